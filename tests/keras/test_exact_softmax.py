"""Softmax in fixed point on tensors: saved, reloaded, and equal to the twin's."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from qi.ir.fixed_softmax import fixed_exponentials
from qi.ir.graph import Op
from qi.ir.kinds import kernel_of
from qi.keras.exact_softmax import ExactFixedSoftmax
from tests.ir.graphs import act, codes_of


@pytest.mark.parametrize(("axis", "scale"), [(1, 0.02), (3, 0.3), (3, 0.001)])
def test_codes_are_the_twins(axis: int, scale: float, tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(-128, 128, (300, 5, 4, 3))
    x, y = codes_of("x", 5, 4, 3, qparams=act(scale)), codes_of("y", 5, 4, 3, qparams=act(1 / 256, -128))
    op = Op("softmax", [x], [y], {"axis": axis})
    inputs = keras.Input(codes.shape[1:])
    layer = ExactFixedSoftmax(axis, fixed_exponentials(op))
    keras.Model(inputs, layer(inputs, 0.0 * keras.ops.max(inputs))).save(tmp_path / "m.keras")
    found = keras.models.load_model(tmp_path / "m.keras").predict(codes.astype("float32"), verbose=0)
    np.testing.assert_array_equal(found, kernel_of(op, "reference")(op, codes))
