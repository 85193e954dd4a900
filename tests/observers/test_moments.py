from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from qi.errors import ConfigError, InputError, NotCalibratedError
from qi.observers import Moments

VALUES = ("mean", "absmean", "absmax", "second")


def moments_of(*batches, groups=1):
    seen = Moments(groups)
    for batch in batches:
        seen.update(batch)
    return seen


def assert_close(first, second, tolerance=1e-6):
    """To within `tolerance` of what the features' magnitudes make of each value."""
    unit = np.where(first.absmax > 0, first.absmax, 1.0)
    for name in VALUES:
        scale = unit[:, :, None] * unit[:, None, :] if name == "second" else unit
        np.testing.assert_allclose(getattr(first, name) / scale, getattr(second, name) / scale, rtol=0, atol=tolerance)


@st.composite
def rows(draw):
    shape = draw(st.tuples(st.integers(1, 40), st.integers(1, 3), st.integers(1, 5)))
    generator = np.random.default_rng(draw(st.integers(0, 1000)))
    magnitudes = 10.0 ** generator.uniform(-30, 30, shape[1:])
    return ((generator.standard_normal(shape) + generator.standard_normal(shape[1:])) * magnitudes).astype(np.float32)


@given(rows())
def test_they_are_those_of_the_rows(x):
    seen = moments_of(x, groups=x.shape[1])
    wide = x.astype(np.float64)
    unit = np.abs(wide).max(axis=0)
    assert seen.count == len(x)
    np.testing.assert_array_equal(seen.absmax, unit)
    np.testing.assert_allclose(seen.mean / unit, wide.mean(axis=0) / unit, atol=1e-12)
    np.testing.assert_allclose(seen.absmean, np.abs(wide).mean(axis=0), rtol=1e-12)
    scaled = wide / unit
    expected = np.einsum("ngi,ngj->gij", scaled, scaled) / len(x)
    np.testing.assert_allclose(seen.second / unit[:, :, None] / unit[:, None, :], expected, atol=1e-6)
    np.testing.assert_array_equal(seen.second, seen.second.swapaxes(1, 2))


@given(rows(), st.integers(0, 40))
def test_merging_is_seeing_both(x, cut):
    groups = x.shape[1]
    merged = moments_of(x[:cut], groups=groups).merge(moments_of(x[cut:], groups=groups))
    assert merged.count == len(x)
    assert_close(moments_of(x, groups=groups), merged)


@given(rows())
def test_a_state_gives_the_same_values_bit_for_bit(x):
    seen = moments_of(x, groups=x.shape[1])
    again = Moments.from_state(seen.state())
    for name in VALUES:
        np.testing.assert_array_equal(getattr(seen, name), getattr(again, name))
    for name, array in seen.state().items():
        np.testing.assert_array_equal(array, again.state()[name])


@given(rows(), st.integers(0, 1000))
def test_scaled_moments_are_those_of_scaled_rows(x, seed):
    factors = np.random.default_rng(seed).normal(size=x.shape[1:]) * 8
    factors[0, 0] = 0.0
    made = moments_of(x, groups=x.shape[1]).scaled(factors)
    assert_close(moments_of((x.astype(np.float64) * factors), groups=x.shape[1]), made)


@given(rows(), st.integers(0, 1000), st.booleans())
def test_shifted_moments_are_those_of_shifted_rows(x, seed, positive):
    x = np.abs(x) if positive else x
    unit = np.abs(x).max(axis=0).astype(np.float64)
    unit[unit == 0] = 1.0
    offsets = np.random.default_rng(seed).uniform(0 if positive else -1, 1, x.shape[1:]) * unit
    made = moments_of(x, groups=x.shape[1]).shifted(offsets)
    direct = moments_of(x.astype(np.float64) - offsets, groups=x.shape[1])
    np.testing.assert_allclose(made.mean / unit, direct.mean / unit, atol=1e-5)
    both = unit[:, :, None] * unit[:, None, :]
    np.testing.assert_allclose(made.second / both, direct.second / both, atol=1e-5)
    slack = 1e-2 * unit  # of a square root of what is precise to 1e-5
    assert np.all(made.absmax >= direct.absmax - slack)
    assert np.all(made.absmean >= direct.absmean - slack)
    if positive:
        assert np.all(made.absmax <= unit * (1 + 1e-3))
    again = Moments.from_state(made.state())
    np.testing.assert_array_equal(again.mean, made.mean)


@given(rows())
def test_powers_of_two_scale_exactly(x):
    factors = np.ldexp(1.0, np.arange(x[0].size).reshape(x.shape[1:]) % 7 - 3)
    seen = moments_of(x, groups=x.shape[1])
    np.testing.assert_array_equal(seen.scaled(factors).scaled(1 / factors).second, seen.second)


def test_many_rows_keep_their_digits():
    x = np.random.default_rng(0).standard_normal((50_000, 1, 3)).astype(np.float32) + np.float32([1, 10, 0])
    seen = moments_of(x)
    wide = x[:, 0].astype(np.float64)
    np.testing.assert_allclose(seen.second[0], wide.T @ wide / len(x), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(seen.covariance[0], np.cov(wide.T, bias=True), atol=1e-4)


def test_rows_are_cut_without_a_trace(monkeypatch):
    x = np.random.default_rng(0).standard_normal((30, 7, 3))
    whole = moments_of(x, groups=7)
    monkeypatch.setattr("qi.observers.moments._VALUES", 20)
    cut = moments_of(x, groups=7)
    assert cut.count == 30
    assert_close(whole, cut)


def test_rows_with_nan_or_infinity_are_skipped_and_counted():
    x = np.random.default_rng(0).standard_normal((10, 2, 3))
    x[[2, 3], [0, 1], 1] = np.nan, np.inf
    x[5, 0, 0] = 1e300  # infinite as float32
    seen = moments_of(x, groups=2)
    assert (seen.count, seen.nonfinite) == (7, 3)
    np.testing.assert_array_equal(seen.second, moments_of(np.delete(x, [2, 3, 5], 0), groups=2).second)
    nothing = moments_of(np.full((4, 1, 2), np.nan))
    assert (nothing.count, nothing.nonfinite) == (0, 4)
    with pytest.raises(NotCalibratedError, match="4 rows"):
        _ = nothing.mean


def test_no_rows_are_no_data():
    seen = moments_of(np.zeros((0, 1, 3)))
    assert (seen.count, seen.features) == (0, 3)
    for name in (*VALUES, "covariance"):
        with pytest.raises(NotCalibratedError):
            getattr(seen, name)
    assert Moments.from_state(seen.state()).features == 3
    assert Moments.from_state(Moments(4).state()).groups == 4
    assert Moments(2).merge(Moments(2)).features is None
    with pytest.raises(NotCalibratedError):
        seen.scaled(np.ones((1, 3)))
    with pytest.raises(NotCalibratedError, match="finite rows"):
        seen.shifted(np.ones((1, 3)))


def test_dead_features_and_small_floats_are_fine():
    seen = moments_of(np.zeros((5, 1, 2), np.float16), np.ones((5, 1, 2), np.int8))
    assert seen.second.tolist() == [[[0.5, 0.5], [0.5, 0.5]]]
    dead = moments_of(np.array([[[0.0, 3.0]]]))
    assert Moments.from_state(dead.state()).second.tolist() == [[[0, 0], [0, 9]]]


@pytest.mark.parametrize("shape", [(3, 2), (3, 1, 2), (3, 2, 5), (3, 2, 0), (2, 2, 2, 2), ()])
def test_other_shapes_are_refused(shape):
    with pytest.raises(InputError, match="expected rows of shape"):
        Moments(2, 4).update(np.zeros(shape))


@pytest.mark.parametrize("wrong", [np.zeros((1, 1, 2), complex), np.full((1, 1, 2), "a"), np.full((1, 1, 2), None)])
def test_other_dtypes_are_refused(wrong):
    with pytest.raises(InputError, match="real numbers"):
        Moments().update(wrong)


@pytest.mark.parametrize(
    "wrong", [{"groups": 0}, {"groups": True}, {"groups": None}, {"features": 0}, {"features": 1.5}]
)
def test_other_sizes_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Moments(**wrong)


def test_strangers_are_not_merged():
    with pytest.raises(ConfigError, match="2 groups"):
        Moments(2).merge(Moments(3))
    with pytest.raises(ConfigError, match="received a int"):
        Moments(2).merge(3)
    with pytest.raises(InputError, match="3 features"):
        Moments(2, 3).merge(Moments(2, 4))


@pytest.mark.parametrize("wrong", [np.ones(3), np.ones((1, 3)), np.full((1, 2), np.nan)])
def test_other_factors_are_refused(wrong):
    with pytest.raises(InputError, match="factors"):
        moments_of(np.ones((1, 1, 2))).scaled(wrong)
    with pytest.raises(InputError, match="offsets of shape"):
        moments_of(np.ones((1, 1, 2))).shifted(wrong)


@given(st.sampled_from(["sum", "abs_sum", "absmax", "second", "count", "groups"]), st.data())
@settings(max_examples=60)
def test_states_that_contradict_themselves_are_refused(name, data):
    x = np.random.default_rng(0).standard_normal((9, 2, 3)) + 1
    state = moments_of(x, groups=2).state()
    if name == "groups":
        state[name] = np.asarray(3)
    elif name == "count":
        state[name] = np.asarray(data.draw(st.sampled_from([0, -1, 2])))
    else:
        place = data.draw(st.integers(0, state[name].size - 1))
        state[name].flat[place] = data.draw(st.sampled_from([1e6, -1e6, np.nan, np.inf]))
    with pytest.raises(InputError):
        Moments.from_state(state)


def test_other_states_are_refused():
    state = moments_of(np.ones((2, 1, 2))).state()
    for wrong in (
        {},
        state | {"more": np.zeros(1)},
        {k: v for k, v in state.items() if k != "sum"},
        {"count": np.asarray(1), "nonfinite": np.asarray(0), "groups": np.asarray(1)},
        state | {"count": np.asarray(1.0)},
        state | {"sum": np.zeros((1, 2), np.float32)},
        state | {"sum": np.zeros(2)},
    ):
        with pytest.raises(InputError, match="expected"):
            Moments.from_state(wrong)
