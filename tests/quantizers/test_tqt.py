from __future__ import annotations

import numpy as np
import pytest

from qi.quantizers import TQTQuantizer
from tests.quantizers.common import POT, UPSTREAM, X, activations, declared, gradients, weights


@pytest.mark.parametrize("signed", [True, False])
def test_the_exponent_learns_by_equation_7(signed):
    quantizer = activations(TQTQuantizer, POT, 3, threshold=1.0, signed=signed)
    grid = quantizer.grid
    for_x, found = gradients(quantizer, {"log2_threshold": np.float32([-0.3])})
    step = 1.0 / grid.edge  # ceil(-0.3) = 0
    u = X.astype(np.float64) / step
    each = np.where(u < grid.qmin, grid.qmin, np.where(u > grid.qmax, grid.qmax, np.rint(u) - u))
    np.testing.assert_allclose(found["log2_threshold"], [step * np.log(2) * np.sum(UPSTREAM * each)], rtol=1e-4)
    np.testing.assert_array_equal(for_x, np.where((u >= grid.qmin) & (u <= grid.qmax), UPSTREAM, 0))


@pytest.mark.parametrize(
    ("exponent", "threshold"),
    [(0.0, 1.0), (0.01, 2.0), (-0.99, 1.0), (-1.0, 0.5), (3.2, 16.0), (500, 2.0**100), (-500, 2.0**-100)],
)
def test_thresholds_are_powers_of_two_at_every_step(exponent, threshold):
    quantizer = activations(TQTQuantizer, POT, 8, threshold=1.0)
    scale, zero_point = quantizer.scale_zero_point({"log2_threshold": np.float32([exponent])})
    assert scale.dtype == np.float32
    assert scale.tolist() == [threshold / 128]
    assert zero_point is None


def test_the_first_threshold_is_the_power_of_two_above_the_range():
    quantizer = weights(TQTQuantizer, POT, 8, per_channel=True)
    wanted = np.ceil(np.log2(np.abs(X).max(axis=0, keepdims=True)))
    np.testing.assert_array_equal(declared(quantizer)["log2_threshold"], wanted)
    assert np.ravel(quantizer.initialize(X).convert2inferable().threshold).tolist() == (2**wanted).ravel().tolist()
