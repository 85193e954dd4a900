from __future__ import annotations

import numpy as np
import pytest

from qi.quantizers import STEQuantizer, StochasticQuantizer
from tests.quantizers.common import POT, SYMMETRIC, UNIFORM, UPSTREAM, X, activations, declared, gradients, weights


@pytest.mark.parametrize("method", [SYMMETRIC, POT, UNIFORM])
def test_one_within_the_range_and_zero_outside(method):
    given = {"min_range": -1.0, "max_range": 0.75} if method is UNIFORM else {"threshold": 1.0}
    quantizer = weights(STEQuantizer, method, **given)
    variables = declared(quantizer)
    scale, zero = variables["scale"], variables.get("zero_point", 0)
    for_x, _ = gradients(quantizer, variables)
    lo, hi = (quantizer.grid.qmin - zero) * scale, (quantizer.grid.qmax - zero) * scale
    np.testing.assert_array_equal(for_x, np.where((lo <= X) & (hi >= X), UPSTREAM, 0))
    assert not any(item.trainable for item in quantizer.declare(X.shape, X))
    assert not quantizer.learned_range


def test_golden_numbers():
    quantizer = activations(STEQuantizer, UNIFORM, 2, min_range=-1.0, max_range=2.0)
    quantizer.initialize(np.zeros(1))
    assert quantizer(np.float32([-9, -0.6, -0.4, 0.5, 1.5, 9])).tolist() == [-1, -1, 0, 0, 2, 2]


def test_the_range_is_the_tensors_own():
    per_channel = declared(weights(STEQuantizer, SYMMETRIC, 8, per_channel=True))["scale"]
    np.testing.assert_allclose(per_channel, np.abs(X).max(axis=0, keepdims=True) / 127, rtol=1e-6)
    powers = declared(weights(STEQuantizer, POT, 8, per_channel=True))["scale"] * 128
    np.testing.assert_array_equal(powers, 2 ** np.ceil(np.log2(np.abs(X).max(axis=0, keepdims=True))))
    uniform = declared(weights(STEQuantizer, UNIFORM, 8))
    np.testing.assert_allclose(uniform["scale"], [[(X.max() - X.min()) / 255]], rtol=1e-6)


def test_stochastic_rounding_has_no_bias_in_training_and_rounds_to_nearest_otherwise():
    quantizer = weights(StochasticQuantizer, SYMMETRIC, 4, threshold=8.0)
    x = np.full((20_000, 1), 2.3, np.float32)
    variables = declared(quantizer, x)
    noise = np.random.default_rng(0)
    y = quantizer.apply(x, variables, training=True, noise=lambda x: noise.random(x.shape, dtype=np.float32))
    assert set(np.unique(y)) == {2.0, 3.0}
    assert abs(y.mean() - 2.3) < 0.02
    assert np.all(quantizer.apply(x, variables) == 2.0)
    for_x, _ = gradients(quantizer, variables, x[:9], np.ones((9, 1)))
    assert np.all(for_x == 1)
