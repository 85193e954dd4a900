from __future__ import annotations

import numpy as np
import pytest

from qi.quantizers import LSQPlusQuantizer, LSQQuantizer
from tests.quantizers.common import SYMMETRIC, UNIFORM, UPSTREAM, X, activations, declared, gradients, weights


def equation_3(x, step, qmin, qmax):
    u = x.astype(np.float64) / step
    return np.where(u <= qmin, qmin, np.where(u >= qmax, qmax, np.rint(u) - u))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_step_learns_by_equation_3(bits):
    quantizer = weights(LSQQuantizer, SYMMETRIC, bits)
    grid, step = quantizer.grid, np.float32([[0.31]])
    for_x, found = gradients(quantizer, {"step": step})
    factor = 1 / np.sqrt(X.size * max(1, grid.qmax))
    wanted = factor * np.sum(UPSTREAM * equation_3(X, step, grid.qmin, grid.qmax))
    np.testing.assert_allclose(found["step"], [[wanted]], rtol=1e-4)
    u = X / step
    np.testing.assert_array_equal(for_x, np.where((u >= grid.qmin) & (u <= grid.qmax), UPSTREAM, 0))


def test_the_first_step_is_the_papers():
    quantizer = weights(LSQQuantizer, SYMMETRIC, 4, per_channel=True)
    wanted = 2 * np.abs(X).mean(axis=0, keepdims=True) / np.sqrt(7)
    np.testing.assert_allclose(declared(quantizer)["step"], wanted, rtol=1e-6)
    assert declared(quantizer, np.zeros_like(X))["step"].tolist() == [[1, 1, 1]]
    given = weights(LSQQuantizer, SYMMETRIC, 4, threshold=2.0)
    assert declared(given)["step"].tolist() == [[0.25]]


@pytest.mark.parametrize(
    ("quantizer", "shape", "n"),
    [
        (weights(LSQQuantizer, SYMMETRIC, 4), (3, 3, 8, 16), 1152),
        (weights(LSQQuantizer, SYMMETRIC, 4, per_channel=True), (3, 3, 8, 16), 72),
        (activations(LSQQuantizer, SYMMETRIC, 4, threshold=1.0), (32, 5, 5, 2), 50),
        (activations(LSQQuantizer, SYMMETRIC, 4, threshold=1.0), (None, None, 2), 2),
    ],
    ids=["tensor", "channel", "activation", "unknown sizes"],
)
def test_gradients_are_scaled_by_the_elements_of_a_step(quantizer, shape, n):
    assert quantizer.gradient_scale(shape) == pytest.approx(1 / np.sqrt(n * 7))


def test_a_negative_step_is_its_magnitude_and_learns_towards_it():
    quantizer = weights(LSQQuantizer, SYMMETRIC)
    plus, minus = {"step": np.float32([[0.31]])}, {"step": np.float32([[-0.31]])}
    np.testing.assert_array_equal(quantizer.apply(X, plus), quantizer.apply(X, minus))
    np.testing.assert_array_equal(gradients(quantizer, plus)[1]["step"], -gradients(quantizer, minus)[1]["step"])


def test_uniform_keeps_its_first_zero_point():
    quantizer = weights(LSQQuantizer, UNIFORM, 4)
    trains = {item.name: item.trainable for item in quantizer.declare(X.shape, X)}
    assert trains == {"step": True, "zero_point": False}
    variables = declared(quantizer) | {"step": np.float32([[0.31]])}
    zero = variables["zero_point"]
    _, found = gradients(quantizer, variables)
    wanted = np.sum(UPSTREAM * equation_3(X, 0.31, 0 - zero, 15 - zero)) / np.sqrt(X.size * 15)
    np.testing.assert_allclose(found["step"], [[wanted]], rtol=1e-4)


def test_lsq_plus_learns_the_offset_by_what_it_clips():
    quantizer = activations(LSQPlusQuantizer, UNIFORM, 3, min_range=-1.0, max_range=2.0)
    step, offset = np.float32(0.25), np.float32(-0.75)
    _, found = gradients(quantizer, {"step": [step], "offset": [offset]})
    factor = 1 / np.sqrt(X.shape[1] * 7)
    outside = (offset > X) | (offset + 7 * step < X)
    np.testing.assert_allclose(found["offset"], [factor * np.sum(UPSTREAM[outside])], rtol=1e-4)
    # above, y = offset + 7 step; below, y = offset: the paper's gradient of the step
    u = (X.astype(np.float64) - offset) / step
    wanted = np.where(u < 0, 0, np.where(u > 7, 7, np.rint(u) - u))
    np.testing.assert_allclose(found["step"], [factor * np.sum(UPSTREAM * wanted)], rtol=1e-4)


def test_lsq_plus_far_off_the_offset_ends_at_the_grid():
    quantizer = activations(LSQPlusQuantizer, UNIFORM, 3, min_range=-1.0, max_range=2.0)
    for offset, zero in ((5.0, 0.0), (0.0, 0.0), (-0.75, 3.0), (-9.0, 7.0), (-3e38, 7.0)):
        _, found = quantizer.scale_zero_point({"step": np.float32([0.25]), "offset": np.float32([offset])})
        assert found.tolist() == [zero]
