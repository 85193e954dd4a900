from __future__ import annotations

import numpy as np
import pytest

from qi.quantizers import AdditiveNoiseQuantizer, LearnedRangeQuantizer
from tests.quantizers.common import SYMMETRIC, UNIFORM, UPSTREAM, X, activations, declared, gradients, weights


@pytest.mark.parametrize("signed", [True, False])
def test_a_threshold_learns_by_what_it_clips(signed):
    quantizer = activations(LearnedRangeQuantizer, SYMMETRIC, 4, threshold=0.8, signed=signed)
    for_x, found = gradients(quantizer, {"threshold": np.float32([0.8])})
    grid = quantizer.grid
    step = np.float32(0.8) / grid.edge
    above, below = grid.qmax * step < X, grid.qmin * step > X
    np.testing.assert_array_equal(for_x, np.where(above | below, 0, UPSTREAM))
    share = np.where(above, grid.qmax / grid.edge, np.where(below, grid.qmin / grid.edge, 0))
    np.testing.assert_allclose(found["threshold"], [np.sum(UPSTREAM * share)], rtol=1e-4)


@pytest.mark.parametrize(("lo", "hi"), [(0.0, 1.5), (-0.7, 0.8), (-1.0, 0.0)])
def test_ends_learn_as_in_tensorflow(lo, hi):
    import tensorflow as tf

    quantizer = activations(LearnedRangeQuantizer, UNIFORM, 4, min_range=lo, max_range=hi)
    for_x, found = gradients(quantizer, {"min_range": np.float32([lo]), "max_range": np.float32([hi])})
    wanted = tf.quantization.fake_quant_with_min_max_vars_gradient(UPSTREAM, X, lo, hi, num_bits=4)
    np.testing.assert_array_equal(for_x, wanted[0])
    np.testing.assert_allclose(found["min_range"], [wanted[1]], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["max_range"], [wanted[2]], rtol=1e-4, atol=1e-4)
    y = quantizer.apply(X, {"min_range": np.float32([lo]), "max_range": np.float32([hi])})
    theirs = tf.quantization.fake_quant_with_min_max_vars(X, lo, hi, num_bits=4).numpy()
    assert np.mean(np.isclose(y, theirs, atol=1e-6)) > 0.97  # it multiplies by the reciprocal and rounds half up


def test_where_zero_is_no_code_of_the_range_an_end_learns_what_the_shift_leaves():
    quantizer = activations(LearnedRangeQuantizer, UNIFORM, 2, min_range=-1.0, max_range=1.5)
    variables = {"min_range": np.float32([-1.0]), "max_range": np.float32([1.5])}
    _, found = gradients(quantizer, variables, np.float32([9.0]), np.ones(1))
    shift = np.rint(1.2) - 1.2  # z = round(1 / s), s = 2.5 / 3: top = max - shift s
    np.testing.assert_allclose(found["max_range"], [1 - shift / 3], rtol=1e-5)
    np.testing.assert_allclose(found["min_range"], [shift / 3], rtol=1e-5)


def test_additive_noise_by_its_formula():
    quantizer = weights(AdditiveNoiseQuantizer, SYMMETRIC, 4, threshold=0.8)
    noise = np.random.default_rng(2).random(X.shape, dtype=np.float32)
    variables = declared(quantizer)
    y = quantizer.apply(X, variables, training=True, noise=lambda x: noise)
    u = X.astype(np.float64) / 0.1
    value = np.clip(np.clip(u, -8, 7) + noise - 0.5, -8, 7)
    np.testing.assert_allclose(y, 0.1 * value, rtol=1e-4, atol=1e-6)
    _, found = gradients(quantizer, variables)
    inside = (u >= -8) & (u <= 7)
    each = np.where(inside, value - u, value) / 8
    np.testing.assert_allclose(found["threshold"], [[np.sum(UPSTREAM * each)]], rtol=1e-3)


def test_per_channel_each_learns_its_own():
    quantizer = weights(LearnedRangeQuantizer, SYMMETRIC, 3, per_channel=True)
    variables = {"threshold": np.float32([[0.3, 0.6, 2.0]])}
    _, found = gradients(quantizer, variables)
    for i in range(3):
        one = weights(LearnedRangeQuantizer, SYMMETRIC, 3)
        _, alone = gradients(
            one, {"threshold": variables["threshold"][:, i : i + 1]}, X[:, i : i + 1], UPSTREAM[:, i : i + 1]
        )
        np.testing.assert_allclose(found["threshold"][0, i], alone["threshold"][0, 0], rtol=1e-5)
