"""Finite differences with everything that steps frozen, against derivatives known in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from qi.core.gradients import ceil_ste, round_ste, scale_gradient, surrogate
from qi.core.namespace import NUMPY, namespace_of
from qi.quantizers import LSQQuantizer, QuantizationMethod, TrainableQuantizerWeightsConfig
from qi.testing.surrogate import _differences, _Frozen, expected_gradients


def derivative(function, at):
    """The derivative at a point of sum(function(Real))."""
    frozen, point = _Frozen(), np.array(at, np.float64)
    evaluate = lambda: float(np.sum(np.asarray(function(frozen.real(point)))))
    evaluate()
    return _differences(evaluate, point, frozen)


AT = np.array([0.3, -1.7, 2.4])


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x * x, 2 * AT),
        (lambda x: round_ste(x, xp=namespace_of(x)), [1, 1, 1]),
        (lambda x: ceil_ste(3 * x, xp=namespace_of(x)), [3, 3, 3]),
        (lambda x: namespace_of(x).floor(x), [1, 1, 1]),
        (lambda x: namespace_of(x).stop_gradient(x) * x, AT),
        (lambda x: scale_gradient(x, 0.25, xp=namespace_of(x)), [0.25] * 3),
        (lambda x: surrogate(namespace_of(x).tanh(x), 5 * x, xp=namespace_of(x)), [5, 5, 5]),
        (lambda x: namespace_of(x).clip(x, np.float32(-1), np.float32(1)), [1, 0, 0]),
        (lambda x: namespace_of(x).take(np.arange(9.0), namespace_of(x).ceil(x)), [0, 0, 0]),
        (lambda x: namespace_of(x).cast(namespace_of(x).divide(1.0, x), "float32"), -1 / AT**2),
        (lambda x: namespace_of(x).sum(x) * namespace_of(x).max(x, axis=0, keepdims=True), [2.4, 2.4, 3.4]),
    ],
)
def test_derivatives_of_what_steps(function, expected):
    np.testing.assert_allclose(derivative(function, AT), expected, rtol=1e-6, atol=1e-8)


def test_a_single_number_stays_an_array_with_its_namespace():
    frozen = _Frozen()
    x = frozen.real(2.5)
    for result in (x * 2, -x, x + np.float32(1), np.abs(x), frozen.maximum(x, 1.0)):
        assert namespace_of(result) is frozen
    assert namespace_of(np.asarray(x)) is NUMPY
    assert frozen.dtype(x) == "float64"
    assert namespace_of(frozen.asarray([1]), np.zeros(1)) is namespace_of(np.zeros(1), frozen.frozen([1])) is frozen


def test_lsqs_gradients_by_hand():
    quantizer = LSQQuantizer(
        TrainableQuantizerWeightsConfig(QuantizationMethod.SYMMETRIC, 3, {}, weights_per_channel_threshold=False)
    )
    x, step = np.float32([[-50.0, -0.83], [0.31, 50.0]]), np.float32([[0.5]])
    upstream = np.float32([[1.0, 2.0], [-1.0, 0.5]])
    for_x, for_variables = expected_gradients(quantizer, {"step": step}, x, upstream, np.zeros_like(x))
    np.testing.assert_allclose(for_x, [[0, 2], [-1, 0]], atol=1e-8)
    u = x.astype(np.float64) / 0.5
    each = np.where(u < -4, -4, np.where(u > 3, 3, np.rint(u) - u))
    factor = 1 / np.sqrt(4 * 3)
    np.testing.assert_allclose(for_variables["step"], [[factor * np.sum(upstream * each)]], rtol=1e-6)
