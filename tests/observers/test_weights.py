from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from qi.core import (
    IntGrid,
    LutGrid,
    PerChannel,
    PerGroup,
    PerTensor,
    SymmetricRule,
    fake_quantize,
    symmetric_scale,
)
from qi.errors import ConfigError, InputError
from qi.observers import WEIGHT_SELECTIONS, select_weight_threshold

QMAX, EDGE = SymmetricRule.QMAX, SymmetricRule.EDGE
EVERY = pytest.mark.parametrize("name", WEIGHT_SELECTIONS.names())
GRANULARITIES = {
    "tensor": PerTensor(),
    "channel": PerChannel(-1),
    "first": PerChannel(0),
    "group": PerGroup(axis=0, size=16),
    "partial group": PerGroup(axis=0, size=20),
}
EACH = pytest.mark.parametrize("granularity", GRANULARITIES.values(), ids=GRANULARITIES)


def weights(shape=(32, 4), seed=0):
    return np.random.default_rng(seed).standard_t(3, shape).astype(np.float32)


def errors(w, thresholds, grid, granularity, rule):
    scale = granularity.expand(symmetric_scale(thresholds, grid, rule), w.shape)
    return granularity.reduce(np.sum, (w.astype(float) - fake_quantize(w, scale, 0, grid)) ** 2)


def test_the_names_are_those_promised():
    assert WEIGHT_SELECTIONS.names() == ("entropy", "minmax", "mse", "percentile")


@EVERY
@EACH
@pytest.mark.parametrize("shape", [(32, 4), (3, 2, 40, 5)])
def test_thresholds_have_the_parameter_shape(name, granularity, shape):
    w = weights(shape)
    found = select_weight_threshold(w, name, IntGrid(4, narrow=True), granularity, QMAX)
    assert (found.shape, found.dtype) == (granularity.param_shape(shape), np.float64)
    assert (found > 0).all()
    assert (found <= granularity.absmax(w)).all()


@EVERY
def test_each_channel_and_group_is_chosen_by_itself(name):
    w, grid = weights((40, 3)), IntGrid(4, narrow=True)
    channels = select_weight_threshold(w, name, grid, PerChannel(-1), QMAX)
    groups = select_weight_threshold(w, name, grid, PerGroup(0, 20), QMAX)
    for i in range(3):
        alone = select_weight_threshold(w[:, i], name, grid, PerTensor(), QMAX)
        assert channels[0, i] == pytest.approx(alone[0])
        for j in range(2):
            alone = select_weight_threshold(w[20 * j : 20 * j + 20, i], name, grid, PerTensor(), QMAX)
            assert groups[j, i] == pytest.approx(alone[0])


@EACH
def test_minmax_is_the_greatest_magnitude(granularity):
    w = weights()
    found = select_weight_threshold(w, "minmax", IntGrid(8), granularity, EDGE)
    np.testing.assert_array_equal(found, granularity.absmax(w))


@EACH
@pytest.mark.parametrize("rule", SymmetricRule)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_mse_is_never_worse_than_minmax(granularity, rule, bits):
    w, grid = weights(), IntGrid(bits)
    best = select_weight_threshold(w, "mse", grid, granularity, rule)
    widest = select_weight_threshold(w, "minmax", grid, granularity, rule)
    assert (errors(w, best, grid, granularity, rule) <= errors(w, widest, grid, granularity, rule)).all()


@given(st.integers(0, 1000), st.sampled_from([2, 3, 4, 8]))
@settings(max_examples=10)
def test_mse_is_as_good_as_brute_force(seed, bits):
    w, grid = weights((400, 3), seed), IntGrid(bits, narrow=True)
    best = select_weight_threshold(w, "mse", grid, PerChannel(-1), QMAX)
    absmax = PerChannel(-1).absmax(w)
    tried = [errors(w, absmax * f, grid, PerChannel(-1), QMAX) for f in np.linspace(0.03, 1, 200)]
    assert (errors(w, best, grid, PerChannel(-1), QMAX) <= 1.03 * np.min(tried, axis=0)).all()


def test_mse_clips_outliers_at_4_bits():
    w, grid = weights((5000, 1)), IntGrid(4, narrow=True)
    best = select_weight_threshold(w, "mse", grid, PerTensor(), QMAX)
    widest = select_weight_threshold(w, "minmax", grid, PerTensor(), QMAX)
    assert errors(w, best, grid, PerTensor(), QMAX) < 0.5 * errors(w, widest, grid, PerTensor(), QMAX)


def test_mse_with_powers_of_two_is_the_best_of_them():
    w, grid = weights((500, 3)), IntGrid(4)
    best = select_weight_threshold(w, "mse", grid, PerChannel(-1), EDGE, power_of_two=True)
    assert (np.frexp(best)[0] == 0.5).all()
    tried = [errors(w, np.full((1, 3), 2.0**i), grid, PerChannel(-1), EDGE) for i in range(-3, 8)]
    np.testing.assert_array_equal(errors(w, best, grid, PerChannel(-1), EDGE), np.min(tried, axis=0))


def test_mse_of_a_look_up_table():
    w, grid = weights((500, 2)), LutGrid([-100, -30, 0, 30, 100])
    best = select_weight_threshold(w, "mse", grid, PerChannel(-1), EDGE)
    widest = PerChannel(-1).absmax(w)
    assert (errors(w, best, grid, PerChannel(-1), EDGE) < errors(w, widest, grid, PerChannel(-1), EDGE)).all()


@pytest.mark.parametrize("percentile", [90, 99.9, 100])
def test_percentile_is_numpys(percentile):
    w = weights((200, 3))
    found = select_weight_threshold(w, "percentile", IntGrid(8), PerChannel(-1), QMAX, percentile=percentile)
    np.testing.assert_allclose(found[0], np.percentile(np.abs(w), percentile, axis=0), rtol=1e-5)


@EVERY
@EACH
def test_zeros_have_the_threshold_0(name, granularity):
    w = np.zeros((32, 4), np.float32)
    assert not select_weight_threshold(w, name, IntGrid(8), granularity, QMAX).any()
    w[5, 2] = -3  # alone in its channel: nearly all percentiles are 0
    found = select_weight_threshold(w, name, IntGrid(8), granularity, QMAX)
    assert found.max() == pytest.approx(3, rel=0.02)


@EVERY
def test_an_unsigned_grid_covers_the_positive_weights(name):
    w = np.array([[-100.0, -1.0], [1.0, -2.0], [2.0, -3.0]])
    found = select_weight_threshold(w, name, IntGrid(8, signed=False), PerChannel(-1), QMAX)
    assert found.ravel().tolist() == pytest.approx([2, 0], rel=1e-3)


@EVERY
def test_an_empty_weight_has_empty_or_zero_thresholds(name):
    assert select_weight_threshold(np.zeros((0, 3)), name, IntGrid(8), PerChannel(-1), QMAX).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16, np.int8])
def test_other_dtypes_are_taken_as_float32(dtype):
    w = np.array([[1, -3], [2, 0]]).astype(dtype)
    assert select_weight_threshold(w, "mse", IntGrid(8), PerChannel(-1), QMAX).ravel() == pytest.approx(
        [2, 3], rel=0.01
    )


@EVERY
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_nonfinite_weights_are_refused(name, bad):
    with pytest.raises(InputError, match="received 1 NaN or infinite of 2"):
        select_weight_threshold(np.array([1.0, bad]), name, IntGrid(8), PerTensor(), QMAX)


def test_other_values_names_and_options_are_refused():
    arguments = (IntGrid(8), PerTensor(), QMAX)
    with pytest.raises(InputError, match="real numbers"):
        select_weight_threshold(np.array([1j]), "minmax", *arguments)
    with pytest.raises(ConfigError, match="weight range selection; received 'ema'"):
        select_weight_threshold(np.ones(3), "ema", *arguments)
    with pytest.raises(ConfigError, match="received steps=3"):
        select_weight_threshold(np.ones(3), "mse", *arguments, steps=3)
    with pytest.raises(ConfigError, match="percentile=0"):
        select_weight_threshold(np.ones(3), "percentile", *arguments, percentile=0)
