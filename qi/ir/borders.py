"""Where real numbers become codes, and codes real numbers."""

from __future__ import annotations

import numpy as np

from qi.ir.arithmetic import clipped
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


@kernel("quantize", "litert", "reference")
def _quantize_by_reciprocal(op: Op, x: np.ndarray) -> np.ndarray:
    """``rint(x * (1 / s)) + z``: XNNPACK multiplies by the reciprocal, rounded to float32."""
    return clipped(op, np.rint(x * (np.float32(1) / op.y.scale)) + op.y.zero_point)


@kernel("quantize", "onnxruntime")
def _quantize_by_division(op: Op, x: np.ndarray) -> np.ndarray:
    """``rint(x / s) + z``; codes of another scale are made real first."""
    x = _dequantize(op, x) if op.x.quantized else x
    return clipped(op, np.rint(x / op.y.scale) + op.y.zero_point)
