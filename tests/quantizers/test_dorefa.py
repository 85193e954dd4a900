from __future__ import annotations

import numpy as np
import pytest

from qi.quantizers import DoReFaActivationQuantizer, DoReFaWeightsQuantizer
from tests.quantizers.common import SYMMETRIC, UNIFORM, UPSTREAM, X, activations, declared, gradients, weights


@pytest.mark.parametrize("per_channel", [False, True])
def test_weights_are_squashed_by_equation_9(per_channel):
    quantizer = weights(DoReFaWeightsQuantizer, SYMMETRIC, 4, per_channel=per_channel)
    variables = declared(quantizer)
    t = variables["scale"].astype(np.float64) * 7
    squashed = np.tanh(X / t)
    expected = t * squashed / np.abs(squashed).max(axis=0 if per_channel else None, keepdims=True)
    np.testing.assert_allclose(quantizer.transform(X, variables), expected, rtol=1e-5)
    np.testing.assert_allclose(np.abs(expected).max(), np.abs(X).max(), rtol=1e-5)  # the layer keeps its magnitude


def test_the_gradient_is_that_of_the_squashing():
    quantizer = weights(DoReFaWeightsQuantizer, SYMMETRIC, 4)
    variables = declared(quantizer)
    for_x, found = gradients(quantizer, variables)
    t = float(variables["scale"][0, 0]) * 7
    squashed = np.tanh(X.astype(np.float64) / t)
    top = np.abs(squashed).max()
    inside = np.ones(X.shape)  # the squashed weight spans the grid exactly, give or take a rounding at its greatest
    others = np.abs(squashed) < top
    slope = (1 - squashed**2) / top
    np.testing.assert_allclose(for_x[others], (UPSTREAM * inside * slope)[others], rtol=1e-3, atol=1e-5)
    assert set(found) == {"scale"}


def test_zeros_stay_zero():
    quantizer = weights(DoReFaWeightsQuantizer, SYMMETRIC, 4)
    assert not np.any(quantizer.initialize(np.zeros((4, 3), np.float32))(np.zeros((4, 3), np.float32)))


@pytest.mark.parametrize("method", [SYMMETRIC, UNIFORM])
def test_activations_are_clipped_to_a_fixed_range(method):
    given = {"min_range": 0.0, "max_range": 1.0} if method is UNIFORM else {"threshold": 1.0, "signed": False}
    quantizer = activations(DoReFaActivationQuantizer, method, 2, **given)
    variables = declared(quantizer)
    for_x, _ = gradients(quantizer, variables)
    top = 1.0 if method is UNIFORM else 0.75
    np.testing.assert_array_equal(for_x, np.where((X >= 0) & (top >= X), UPSTREAM, 0))
    np.testing.assert_allclose(np.unique(quantizer.apply(X, variables)), np.arange(4) * top / 3, rtol=1e-6)
    assert not any(item.trainable for item in quantizer.declare((1,), None))
