"""What holds for every statistic, per tensor and per channel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from qi.errors import ConfigError, InputError, NotCalibratedError
from qi.observers import EmaMinMax, Histogram, MinMax
from qi.observers.base import feed

KINDS = {"MinMax": MinMax, "EmaMinMax": EmaMinMax, "Histogram": lambda axis=None: Histogram(axis, bins=64)}
EVERY = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)

floats = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1e-40, 1e30, 1.0])
batches = st.lists(arrays(np.float32, st.tuples(st.integers(0, 6), st.just(3)), elements=floats), max_size=4)


def seen(statistic, *given_batches):
    for batch in given_batches:
        statistic.update(batch)
    return statistic


def assert_same(a, b, *, exact=True):
    """Equal states: bit for bit, or but for the rounding of sums."""
    assert set(a.state()) == set(b.state())
    for name, array in a.state().items():
        other = b.state()[name]
        assert (array.dtype, array.shape) == (other.dtype, other.shape)
        if "sum" in name and not exact:
            np.testing.assert_allclose(array, other, rtol=1e-5, atol=1e-5 * largest_sum(a))
        else:
            np.testing.assert_array_equal(array, other)


def largest_sum(statistic):
    """What the sums could be at most, so that cancelled ones have a tolerance."""
    if not statistic.count:
        return 0.0
    ends = np.abs([*np.ravel(statistic.lo), *np.ravel(statistic.hi)])
    return statistic.count * ends[np.isfinite(ends)].max()


@EVERY
@pytest.mark.parametrize("axis", [None, -1, 1])
@given(first=batches, second=batches)
def test_merge_equals_seeing_both(make, axis, first, second):
    merged = seen(make(axis=axis), *first).merge(seen(make(axis=axis), *second))
    assert_same(merged, seen(make(axis=axis), *first, *second), exact=False)


@EVERY
@given(given_batches=batches)
def test_a_state_round_trips_bit_for_bit(make, given_batches):
    original = seen(make(axis=-1), *given_batches)
    restored = type(original).from_state(original.state())
    assert_same(original, restored)
    more = np.array([[5.0, -5.0, 0.0]])
    assert_same(seen(original, more), seen(restored, more))


@EVERY
def test_per_channel_equals_per_slice(make):
    x = np.random.default_rng(0).standard_normal((40, 3, 50)) * np.array([1, 1e-3, 100])[:, None]
    channels = seen(make(axis=1), x[:20], x[20:])
    for i in range(3):
        alone = seen(make(), x[:20, i], x[20:, i])
        np.testing.assert_array_equal(channels.lo[i], alone.lo)
        np.testing.assert_array_equal(channels.hi[i], alone.hi)
        if isinstance(alone, Histogram):
            np.testing.assert_array_equal(channels.counts[i], alone.counts)
            np.testing.assert_array_equal(channels.zeros[i], alone.zeros)
            np.testing.assert_array_equal(channels.width[i], alone.width)


@EVERY
@given(x=arrays(np.float32, st.integers(0, 30), elements=floats))
def test_nonfinite_values_are_counted_and_change_nothing_else(make, x):
    statistic, finite = seen(make(), x), x[np.isfinite(x)]
    assert (statistic.count, statistic.nonfinite) == (finite.size, x.size - finite.size)
    statistic.nonfinite = 0
    assert_same(statistic, seen(make(), finite), exact=False)


@EVERY
@pytest.mark.parametrize("shape", [(0,), (0, 3), (4, 0)])
def test_an_empty_batch_counts_as_a_batch_only(make, shape):
    statistic = seen(make(axis=-1), np.ones((2, 3)))
    before = statistic.state()
    statistic.update(np.zeros(shape))
    after = statistic.state()
    assert int(after.pop("batches")) == 1 + int(before.pop("batches"))
    assert all(np.array_equal(before[name], after[name]) for name in before)


@EVERY
def test_reset_forgets_everything(make):
    for axis in (None, 0):
        statistic = seen(make(axis=axis), np.array([1.0, np.nan]))
        statistic.reset()
        assert_same(statistic, make(axis=axis))


@EVERY
def test_another_number_of_channels_is_refused_and_nothing_changes(make):
    statistic = seen(make(axis=-1), np.ones((2, 3)))
    before = statistic.state()
    with pytest.raises(InputError, match="expected 3 channels along axis -1 as before; received 4"):
        statistic.update(np.ones((2, 4)))
    with pytest.raises(InputError, match="expected 3 channels"):
        statistic.merge(seen(make(axis=-1), np.ones((2, 4))))
    assert all(np.array_equal(before[name], array) for name, array in statistic.state().items())


@EVERY
def test_nothing_finite_seen_is_not_calibrated(make):
    statistic = seen(make(), [np.nan, np.inf])
    for end in ("lo", "hi"):
        with pytest.raises(NotCalibratedError, match="1 batches with none \\(2 NaN or infinite"):
            getattr(statistic, end)


@EVERY
def test_a_channel_without_finite_values_has_an_empty_range(make):
    statistic = seen(make(axis=0), [[1.0, 2.0], [np.nan, np.inf]])
    assert statistic.lo.tolist()[1] == np.inf
    assert statistic.hi.tolist()[1] == -np.inf


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (MinMax(), MinMax(0)),
        (MinMax(), Histogram()),
        (Histogram(), MinMax()),
        (EmaMinMax(momentum=0.5), EmaMinMax()),
        (Histogram(bins=64), Histogram(bins=128)),
        (MinMax(), 3),
    ],
)
def test_merging_with_something_else_is_refused(one, other):
    with pytest.raises(ConfigError, match="to merge with; received a"):
        one.merge(other)


@EVERY
def test_a_merge_leaves_both_parts_alone(make):
    a, b = seen(make(), [1.0, 2.0]), seen(make(), [-30.0])
    before = a.state(), b.state()
    merged = a.merge(b)
    merged.update([1e6])
    for statistic, old in zip((a, b), before, strict=True):
        assert all(np.array_equal(old[name], array) for name, array in statistic.state().items())


@EVERY
@pytest.mark.parametrize("name", ["count", "nonfinite", "batches", "axis"])
def test_a_state_without_an_array_is_refused(make, name):
    state = seen(make(), [1.0]).state()
    del state[name]
    with pytest.raises(InputError, match=name):
        type(make()).from_state(state)


@EVERY
def test_a_damaged_state_is_refused(make):
    kind = type(make())
    good = seen(make(axis=-1), np.ones((2, 3))).state()
    kind.from_state(good)
    damaged = [{name: bad} for name in kind._ARRAYS for bad in damages(good[name])]
    damaged += [
        {"count": np.array(-1)},
        {"count": np.array(0)},
        {"extra": np.array(1)},
        {"axis": np.zeros(2)},
    ]
    for change in damaged:
        with pytest.raises(InputError):
            kind.from_state(good | change)


def damages(array):
    """What an array of a state can't be."""
    yield array.astype(np.float16)
    yield array[..., :2]
    yield np.array(0.0)
    yield np.full_like(array, -1000) if array.dtype.kind == "i" else np.full_like(array, np.nan)


def test_a_failing_batch_reaches_no_statistic():
    first, second = MinMax(-1), Histogram(-1)
    second.update(np.ones((1, 2)))
    with pytest.raises(InputError):
        feed([second, first], np.ones((1, 3)))
    assert (first.batches, first.count, second.batches) == (0, 0, 1)


def test_updates_leave_the_batch_alone(readonly):
    for x in ([0.0, 1.0, -2.0], [np.nan, 1.0]):
        batch = readonly(x, np.float32)
        feed([MinMax(), Histogram(), EmaMinMax()], batch)
        np.testing.assert_array_equal(batch, np.asarray(x, np.float32))
