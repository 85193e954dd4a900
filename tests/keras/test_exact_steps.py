"""The steps to a grid beside the twin's kernels, on all pairs of codes."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from qi.ir import twin  # noqa: F401 - registers kinds and kernels
from qi.ir.graph import Op
from qi.ir.kinds import kernel_of
from qi.keras.exact_steps import EXACT_TARGETS, STEP_SHAPES, STEPS
from qi.keras.variables import to_numpy
from tests.ir.graphs import act, codes_of

A, B = (grid.reshape(256, 256).astype(np.int32) for grid in np.meshgrid(np.arange(-128, 128), np.arange(-128, 128)))
SCALES = [
    ((0.02, -128), (0.013, 5), (0.031, -3)),
    ((0.1, 127), (0.004, -128), (0.05, 0)),
    ((0.07, 0), (0.07, 0), (0.07, 0)),
]


def numbers(scale: float, zero: int) -> list[Any]:
    return [keras.ops.convert_to_tensor(np.float32(n)) for n in (scale, zero)]


@pytest.mark.parametrize("target", EXACT_TARGETS)
@pytest.mark.parametrize("kind", ["add", "sub", "mul"])
@pytest.mark.parametrize("scales", SCALES)
def test_two_operands(kind: str, target: str, scales: Any) -> None:
    a, b, y = scales
    x0, x1, out = (codes_of(name, 256, qparams=act(*given)) for name, given in zip("aby", scales, strict=True))
    op = Op(kind, [x0, x1], [out], {"activation": "none"})
    expected = kernel_of(op, target)(op, A, B)
    options = {"sign": -1} if kind == "sub" else {}
    operands = [(A - a[1]).astype(np.float32), *numbers(*a), (B - b[1]).astype(np.float32), *numbers(*b)]
    operands = [keras.ops.convert_to_tensor(x) for x in operands]
    _, exact = STEPS.get("mul" if kind == "mul" else "add")(target, *numbers(*y), *operands, **options)
    np.testing.assert_array_equal(np.clip(to_numpy(exact()) + y[1], -128, 127), expected)


@pytest.mark.parametrize("target", EXACT_TARGETS)
def test_from_one_grid_to_another(target: str) -> None:
    op = Op("quantize", [codes_of("x", qparams=act(0.02, -7))], [codes_of("y", qparams=act(0.033, 4))])
    codes = np.arange(-128, 128)
    x = keras.ops.convert_to_tensor((codes + 7).astype(np.float32))
    _, exact = STEPS.get("rescale")(target, *numbers(0.033, 4), x, *numbers(0.02, -7))
    found = np.clip(to_numpy(exact()) + 4, -128, 127)
    np.testing.assert_array_equal(found, kernel_of(op, target)(op, codes.astype(np.int32)))


def test_shapes_that_broadcast() -> None:
    a, b = keras.KerasTensor((None, 1, 4)), keras.KerasTensor((None, 5, 1))
    assert STEP_SHAPES["add"]([a, None, None, b]) == (None, 5, 4)
    assert STEP_SHAPES["mul"]([keras.KerasTensor((4,)), None, None, b]) == (None, 5, 4)
