from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from qi.algorithms.registry import ALGORITHMS
from qi.algorithms.smooth import smoothing_factors
from qi.errors import ConfigError, InputError
from qi.observers import Moments
from tests.algorithms.digits import digits, rounded, rounded_activations, squared


@given(st.integers(0, 1000), st.floats(0, 1))
def test_the_product_stays_and_ranges_are_shared(seed, alpha):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(20, 6)) * 10.0 ** generator.uniform(-1, 1, 6)
    weight = generator.normal(size=(6, 4))
    inputs, weights = np.abs(x).max(axis=0), np.abs(weight).max(axis=1)
    s = smoothing_factors(inputs, weights, alpha=alpha)
    np.testing.assert_allclose((x / s) @ (weight * s[:, None]), x @ weight, atol=1e-11)
    product = inputs * weights
    np.testing.assert_allclose(inputs / s, product ** (1 - alpha), rtol=1e-10)
    np.testing.assert_allclose(weights * s, product**alpha, rtol=1e-10)


def test_powers_of_two_change_no_bit():
    generator = np.random.default_rng(0)
    x, weight = generator.normal(size=(20, 6)).astype(np.float32), generator.normal(size=(6, 4)).astype(np.float32)
    s = smoothing_factors(np.abs(x).max(axis=0) * 9, np.abs(weight).max(axis=1), power_of_two=True).astype(np.float32)
    assert (s != 1).any()
    first, second = x[:, :, None] * weight, (x / s)[:, :, None] * (weight * s[:, None])
    np.testing.assert_array_equal(first, second)


def test_dead_channels_keep_the_factor_one_and_factors_are_bounded():
    assert smoothing_factors([0.0, 5.0, 1e12], [1.0, 0.0, 1e-9], limit=7.0).tolist() == [1, 1, 7]


@pytest.mark.parametrize("alpha", [-0.1, 1.1, np.nan, "half"])
def test_other_alphas_are_refused(alpha):
    with pytest.raises(ConfigError, match="alpha"):
        smoothing_factors([1.0], [1.0], alpha=alpha)


@pytest.mark.parametrize("wrong", [[-1.0], [np.inf], [1.0, 1.0], 1.0])
def test_other_ranges_are_refused(wrong):
    with pytest.raises(InputError, match="absmax"):
        smoothing_factors([1.0], wrong)


@pytest.mark.parametrize(("share", "works"), [(1.0, True), (0.0, False)])
def test_it_helps_inputs_with_outliers(share, works):
    """Hidden layers of real data whose channels differ as batch normalization makes them: 4 bits each; 1s as a control."""
    net, before, after = digits(1.0), [], []
    for layer in (1, 2):
        x, weight, moments = net.inputs(layer), net.weights[layer], Moments()
        moments.update(x[:, None])
        s = smoothing_factors(moments.absmax[0], np.abs(weight).max(axis=1)) ** share
        wanted = x @ weight
        before.append(squared(rounded_activations(x, 4) @ rounded(weight, 4, axis=0), wanted))
        after.append(squared(rounded_activations(x / s, 4) @ rounded(weight * s[:, None], 4, axis=0), wanted))
    assert all(a <= b for a, b in zip(after, before, strict=True))
    assert (sum(after) < 0.8 * sum(before)) == works


def test_it_is_registered():
    found = ALGORITHMS.get("smooth")
    assert (found.stage, found.needs, set(found.options)) == ("scaling", "moments", {"alpha", "limit", "power_of_two"})
