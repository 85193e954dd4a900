"""Where real numbers become codes, and codes real numbers."""

from __future__ import annotations

import numpy as np

from qi.ir.arithmetic import clipped, requantize_float
from qi.ir.fixed import multiplied_twice, multiplier_of
from qi.ir.graph import Op
from qi.ir.kinds import TARGETS, kernel, real_kind

__all__: list[str] = []


def _as_it_is(op: Op, x: np.ndarray) -> np.ndarray:
    del op
    return x


real_kind("quantize")(_as_it_is)
real_kind("dequantize")(_as_it_is)


@kernel("dequantize", *TARGETS)
def _dequantize(op: Op, codes: np.ndarray) -> np.ndarray:
    return np.asarray((codes - op.x.zero_point).astype(np.float32) * op.x.scale)


@kernel("quantize", "litert")
def _quantize_by_reciprocal(op: Op, x: np.ndarray) -> np.ndarray:
    """``rint(x * (1 / s)) + z``: XNNPACK multiplies by the reciprocal, rounded to float32.

    Codes of another scale are multiplied by one.
    """
    if op.x.quantized:
        return requantize_float(op, x - op.x.zero_point, op.x.scale)
    return clipped(op, np.rint(x * (np.float32(1) / op.y.scale)) + op.y.zero_point)


@kernel("quantize", "reference")
def _quantize_away(op: Op, x: np.ndarray) -> np.ndarray:
    """``x / s`` rounded half away from zero, plus z; codes of another scale are multiplied by one in fixed point."""
    if op.x.quantized:
        factor = multiplier_of(np.float64(op.x.scale / op.y.scale))
        return clipped(op, multiplied_twice(x.astype(np.int64) - op.x.zero_point, factor) + op.y.zero_point)
    steps = np.clip(x / op.y.scale, -(2.0**24), 2.0**24)  # far beyond any code; infinities have no rest
    whole = np.trunc(steps)
    return clipped(op, whole + np.sign(steps) * (np.abs(steps - whole) >= 0.5) + op.y.zero_point)


@kernel("quantize", "onnxruntime")
def _quantize_by_division(op: Op, x: np.ndarray) -> np.ndarray:
    """``rint(x / s) + z``; codes of another scale are made real first."""
    x = _dequantize(op, x) if op.x.quantized else x
    return clipped(op, np.rint(x / op.y.scale) + op.y.zero_point)
