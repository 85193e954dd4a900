from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from qi.errors import ConfigError
from qi.observers import Histogram

EXACT = ("counts", "zeros", "exponent", "lo", "hi", "count")
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
some = arrays(np.float32, st.integers(0, 30), elements=floats | st.sampled_from([0.0, -1e-30, 1e30, 0.5, -0.5]))


def histogram(*batches, bins=64):
    seen = Histogram(bins=bins)
    for batch in batches:
        seen.update(batch)
    return seen


def assert_same(a, b):
    for name in EXACT:
        np.testing.assert_array_equal(a.state()[name], b.state()[name])


@given(some)
def test_bins_are_those_of_exact_arithmetic(x):
    seen = histogram(x)
    expected = np.zeros(64, int)
    for value in x:
        expected[32 + int(Fraction(float(value)) / Fraction(float(seen.width)))] += 1  # int() truncates
    assert seen.counts.tolist() == expected.tolist()
    assert int(seen.zeros) == np.count_nonzero(x == 0)


@given(st.lists(some, max_size=5), st.randoms())
def test_any_order_of_batches_and_merges_gives_the_same_bits(batches, random):
    whole = histogram(np.concatenate([*batches, np.zeros(0, np.float32)]))
    shuffled = random.sample(batches, len(batches))
    assert_same(whole, histogram(*shuffled))
    merged = Histogram(bins=64)
    for batch in shuffled:
        merged = histogram(batch).merge(merged)
    assert_same(whole, merged)


@given(some)
def test_negated_values_give_the_mirror_image(x):
    assert histogram(x).counts[1:].tolist() == histogram(-x).counts[:0:-1].tolist()


@pytest.mark.parametrize("first", [1e-45, 1e-38, 1.0, 3.4e38])
@pytest.mark.parametrize("second", [1e-45, -1e-38, -2.0, 3.4e38])
def test_extreme_first_batches_break_nothing(first, second):
    seen = histogram([first], [second], bins=8192)
    assert_same(seen, histogram([second, first], bins=8192))
    assert (int(seen.counts.sum()), int(seen.zeros)) == (2, 0)
    assert {float(seen.lo), float(seen.hi)} <= {float(np.float32(first)), float(np.float32(second))}
    assert np.isfinite([seen.sum, seen.sum_squares]).all()


def test_the_range_is_the_least_power_of_two_above_all_magnitudes():
    for value, limit in ((1.0, 2.0), (0.99, 1.0), (-1.0, 2.0), (-3.0, 4.0), (2.0**-90, 2.0**-89), (1e-40, 2.0**-96)):
        assert float(histogram([value]).width) * 32 == limit


def test_large_batches_are_counted_whole_on_both_ways_of_counting():
    x = np.random.default_rng(0).standard_normal((3, 100_000)).astype(np.float32)
    for bins in (64, 1 << 20):  # many values for each bin, and few
        seen = histogram(x, bins=bins)
        places = np.trunc(x.astype(np.float64) / float(seen.width)).astype(int).ravel() + bins // 2
        np.testing.assert_array_equal(seen.counts, np.bincount(places, minlength=bins))


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_sums_agree_with_numpy(seed):
    x = (np.random.default_rng(seed).standard_normal(70_000) + 0.1).astype(np.float32)
    seen = histogram(x[:100], x[100:])
    assert float(seen.sum) == pytest.approx(x.astype(float).sum(), abs=1e-5 * float(np.abs(x).sum()))
    assert float(seen.sum_squares) == pytest.approx(np.square(x.astype(float)).sum(), rel=1e-5)


def test_shapes_per_channel():
    seen = Histogram(axis=0, bins=64)
    seen.update([[0.0, 1.0], [0.0, 300.0]])
    assert seen.counts.shape == (2, 64)
    assert seen.zeros.tolist() == [1, 1]
    assert seen.width.tolist() == [2 / 32, 512 / 32]
    assert seen.sum.tolist() == [1, 300]
    assert seen.sum_squares.tolist() == [1, 90_000]


@pytest.mark.parametrize("bins", [0, 32, 100, 8191, 1 << 21, 64.0, True, "64"])
def test_an_illegal_number_of_bins_is_refused(bins):
    with pytest.raises(ConfigError, match="bins="):
        Histogram(bins=bins)


def test_a_state_whose_counts_and_extremes_contradict_is_refused():
    state = histogram([1.0, 2.0]).state()
    shifted = np.roll(state["counts"], 1)
    shifted[0, 0] += 1
    with pytest.raises(ValueError, match="fit each other"):
        Histogram.from_state(state | {"counts": shifted})
    with pytest.raises(ValueError, match="fit each other"):
        Histogram.from_state(state | {"exponent": state["exponent"] + 1})
