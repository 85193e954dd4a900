from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, strategies as st

from qi.core import IntGrid
from qi.errors import ConfigError, InputError, NotCalibratedError
from qi.observers import TensorStatistics, rescaled, select_range

EXACT = ("counts", "zeros", "exponent", "lo", "hi", "count", "nonfinite", "batches")


def statistics(batches, axis=None, bins=64):
    seen = TensorStatistics(axis, bins)
    for batch in batches:
        seen.update(batch)
    return seen


@st.composite
def batches(draw):
    channels, generator = draw(st.integers(1, 5)), np.random.default_rng(draw(st.integers(0, 1000)))
    magnitudes = 10.0 ** generator.uniform(-6, 6, channels) * generator.integers(0, 2, channels)
    found = [
        generator.standard_normal((n, channels)) * magnitudes for n in draw(st.lists(st.integers(1, 20), min_size=1))
    ]
    if draw(st.booleans()):
        found = [np.clip(batch, 0.0, 0.75) for batch in found]
    if draw(st.booleans()):
        found[0][0, 0] = np.nan
    return [batch.astype(np.float32) for batch in found]


@given(batches(), st.integers(0, 1000))
def test_powers_of_two_give_the_bins_of_the_scaled_tensor(found, seed):
    factors = np.exp2(np.random.default_rng(seed).integers(-4, 5, found[0].shape[1]))
    direct = statistics([batch * factors for batch in found])
    if not direct.count:
        return
    made = rescaled(statistics(found, -1), factors)
    for name in EXACT:
        np.testing.assert_array_equal(made.histogram.state()[name], direct.histogram.state()[name])
    for name in ("sum", "sum_squares"):
        scale = max(abs(float(direct.lo)), abs(float(direct.hi))) ** (2 if name == "sum_squares" else 1)
        value = getattr(made.histogram, name), getattr(direct.histogram, name)
        np.testing.assert_allclose(*value, rtol=1e-5, atol=1e-5 * scale * direct.count)


@given(batches(), st.integers(0, 1000))
def test_any_factors_give_whole_statistics_with_exact_extremes(found, seed):
    factors = np.exp(np.random.default_rng(seed).normal(size=found[0].shape[1]))
    seen = statistics(found, -1)
    if not seen.count:
        return
    made = rescaled(seen, factors, bins=256)
    again = TensorStatistics.from_state(made.state())  # which checks that the arrays fit each other
    wide = np.stack([np.concatenate(found)[:, c] * np.float64(f) for c, f in enumerate(factors)])
    assert (float(again.lo), float(again.hi)) == (np.nanmin(wide), np.nanmax(wide))
    assert int(again.histogram.zeros) == np.count_nonzero(wide == 0)
    assert again.count == np.isfinite(wide).sum()


@cache
def activations():
    """Of the hidden layers of a classifier of handwritten digits: before and after ReLU, and clipped."""
    from sklearn.datasets import load_digits
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    x, y = load_digits(return_X_y=True)
    x = x / 16
    net = MLPClassifier((48, 32), max_iter=30, random_state=0)
    with pytest.warns(ConvergenceWarning):
        net.fit(x, y)
    first = x @ net.coefs_[0] + net.intercepts_[0]
    second = np.maximum(first, 0) @ net.coefs_[1] + net.intercepts_[1]
    tensors = {"pixels": x, "relu": np.maximum(first, 0), "before": second, "clipped": np.clip(first, 0, 1.5)}
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


# As shares of the range, above what was measured: the worst of the four tensors, 4 and 8 bits, symmetric or not. The
# entropy of a range is nearly flat in its end, so a few values in other bins move the choice.
TOLERANCES = {"minmax": 0.0, "mse": 0.02, "percentile": 0.005, "entropy": 0.06, "ema": 0.04}


@pytest.mark.parametrize("selection", TOLERANCES)
@pytest.mark.parametrize("name", ["pixels", "relu", "before", "clipped"])
@pytest.mark.parametrize("kind", ["ones", "any"])
def test_ranges_are_those_of_the_tensor_itself(name, kind, selection):
    tensor = activations()[name]
    factors = np.exp(np.random.default_rng(0).normal(size=tensor.shape[1]) * (kind == "any"))
    parts = np.array_split(tensor, 6)
    made = rescaled(statistics(parts, -1, 8192), factors)
    direct = statistics([part * factors for part in parts], bins=8192)
    tolerance = TOLERANCES[selection]
    if kind == "ones" and selection != "ema":
        tolerance = 0.0
    elif selection == "minmax":
        tolerance = 1e-7  # the tensor itself is rounded to float32
    width = float(direct.hi - direct.lo)
    for bits in (4, 8):
        for symmetric in (False, True):
            ranges = [select_range(seen, selection, IntGrid(bits), symmetric=symmetric) for seen in (made, direct)]
            np.testing.assert_allclose(*ranges, rtol=0, atol=tolerance * width)


@pytest.mark.parametrize("name", ["pixels", "relu", "before", "clipped"])
def test_bins_hold_what_they_would_if_seen(name):
    tensor = activations()[name]
    factors = np.exp(np.random.default_rng(0).normal(size=tensor.shape[1]))
    made, direct = rescaled(statistics([tensor], -1, 8192), factors), statistics([tensor * factors], bins=8192)
    counts = made.histogram.counts - direct.histogram.counts
    assert np.abs(np.cumsum(counts)).max() < 0.002 * direct.count  # 0.0015 of pixels, which have 17 values


def test_other_ranges_than_those_of_the_unscaled_tensor():
    tensor = activations()["before"]
    factors = np.exp(np.random.default_rng(0).normal(size=tensor.shape[1]))
    made, unscaled = rescaled(statistics([tensor], -1, 8192), factors), statistics([tensor], bins=8192)
    for selection in ("minmax", "mse", "percentile", "entropy", "ema"):
        ranges = [select_range(seen, selection, IntGrid(4), symmetric=False) for seen in (made, unscaled)]
        assert np.abs(np.subtract(*ranges)).max() > 0.2 * float(unscaled.hi - unscaled.lo)


@pytest.mark.parametrize("wrong", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, np.nan], [[1.0, 1.0]]])
def test_other_factors_are_refused(wrong):
    with pytest.raises(InputError, match="positive factors"):
        rescaled(statistics([np.ones((1, 2))], -1), wrong)


def test_other_statistics_are_refused():
    with pytest.raises(ConfigError, match="per channel"):
        rescaled(statistics([np.ones((1, 2))]), [1.0])
    with pytest.raises(NotCalibratedError):
        rescaled(TensorStatistics(-1), [1.0])
    with pytest.raises(InputError, match="float32"):
        rescaled(statistics([np.ones((1, 2))], -1), [1.0, 1e39])


@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("name", ["before", "relu", "clipped"])
def test_moved_channels_give_the_ranges_of_the_moved_tensor(name, rectified):
    tensor = activations()[name]
    generator = np.random.default_rng(1)
    factors, shifts = np.exp(generator.normal(size=tensor.shape[1])), generator.uniform(-0.2, 0.6, tensor.shape[1])
    moved = tensor * factors - shifts
    moved = (np.maximum(moved, 0) if rectified else moved).astype(np.float32)
    made = rescaled(statistics([tensor], -1, 8192), factors, shifts=shifts, rectified=rectified)
    direct = statistics([moved], bins=8192)
    np.testing.assert_allclose([made.lo, made.hi], [direct.lo, direct.hi], rtol=1e-6, atol=1e-7)
    assert made.count == direct.count == int(made.histogram.counts.sum())
    counts = made.histogram.counts - direct.histogram.counts
    assert np.abs(np.cumsum(counts)).max() < 0.005 * direct.count
    assert abs(int(made.histogram.zeros) - int(direct.histogram.zeros)) < 0.005 * direct.count
    np.testing.assert_allclose(made.histogram.sum, direct.histogram.sum, rtol=1e-3, atol=1e-3 * direct.count)
    np.testing.assert_allclose(made.histogram.sum_squares, direct.histogram.sum_squares, rtol=1e-3)
    plain = rescaled(statistics([tensor], -1, 8192), factors)
    assert float(plain.hi) != float(made.hi)  # control


def test_no_shift_is_the_same_bit_for_bit():
    seen = statistics([activations()["before"]], -1, 256)
    factors = np.exp(np.random.default_rng(0).normal(size=seen.channels))
    one, other = rescaled(seen, factors).state(), rescaled(seen, factors, shifts=np.zeros(seen.channels)).state()
    assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("wrong", [[1.0], [np.nan, 0.0], [[0.0, 0.0]]])
def test_other_shifts_are_refused(wrong):
    with pytest.raises(InputError, match="shifts"):
        rescaled(statistics([np.ones((3, 2))], -1), [1.0, 1.0], shifts=wrong)
