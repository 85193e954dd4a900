"""Products of real numbers with integer weights, whose activations become integers as they come: "dynamic range".

Each row gets a scale and a zero point of its own from its least and greatest value, so nothing needs to be calibrated. The
numbers are those of XNNPACK (qd8), which computes this several times faster than a product of real numbers; the kernel's
arithmetic is the operation's meaning, so a graph that holds it is as exact as one of integers. Convolutions have no such form:
runtimes are slower with it than without.
"""

from __future__ import annotations

import numpy as np

from qi.core import IntGrid
from qi.errors import InputError
from qi.ir.graph import Op, QGraph
from qi.ir.kinds import real_kind
from qi.ir.linear import activated, carrier
from qi.typing import Array

__all__ = ["KIND", "make_dynamic", "quantized_rows"]

KIND = "dynamic_dense"
_LOW, _HIGH = np.float32(-128), np.float32(127)
_TARGETS = ("litert",)
_MOST_BITS = 8


def make_dynamic(graph: QGraph) -> None:
    """Makes products of real numbers with codes of at most 8 bits dynamic, where the graph's target has a kernel for that.

    Those that take codes stay: rounding these once more would only lose.
    """
    if graph.target in _TARGETS:
        for op in graph.ops:
            if op.kind == "dense" and _fits(op):
                op.kind = KIND


def _fits(op: Op) -> bool:
    x, w = op.inputs[:2]
    if x.quantized or x.dtype != "float32" or w.data is None or w.qparams is None or w.qparams.zero_point.any():
        return False
    grid, scale = w.qparams.grid, w.qparams.scale
    small = isinstance(grid, IntGrid) and grid.signed and grid.bits <= _MOST_BITS
    return small and (scale.size == 1 or scale.size == scale.shape[-1])  # one, or one for each output


def quantized_rows(x: Array) -> tuple[np.ndarray, np.ndarray]:
    """Codes without their zero point, and what one is worth, as XNNPACK makes them of float32 rows.

    With lo and hi the least and the greatest value of a row and 0: ``s = 255 / (hi - lo)`` codes per unit (1 where all is 0), a
    zero point at ``-128 - lo * s`` or ``127 - hi * s``, whichever errs less, rounded; codes are ``clip(rint(x * s) + zp)``.

    Args:
        x: float32, [..., values of a row].

    Returns:
        (codes less their zero point as float32, [..., values]; ``float32(1 / s)``, [..., 1]).

    Example:
        >>> codes, unit = quantized_rows(np.float32([[0, 1, 2.55]]))
        >>> codes.tolist(), round(float(unit[0, 0]), 4)
        ([[0.0, 100.0, 255.0]], 0.01)
    """
    x = np.asarray(x, np.float32)
    low = np.minimum(x.min(axis=-1, keepdims=True), np.float32(0))
    high = np.maximum(x.max(axis=-1, keepdims=True), np.float32(0))
    width = high - low
    scale = np.where(width > 0, np.float32(255) / np.where(width > 0, width, np.float32(1)), np.float32(1))
    least, most = low * scale, high * scale
    zero = np.where((_LOW + least) + (_HIGH + most) > 0, _LOW - least, _HIGH - most)
    zero = np.rint(np.clip(zero, _LOW, _HIGH))
    return np.clip(np.rint(x * scale), _LOW - zero, _HIGH - zero), np.float32(1) / scale


@real_kind(KIND, (2, 3), "activation")
def _dynamic_dense(op: Op, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """``fma(float32(sums) * unit, sw, bias)`` in float32: the last product and the sum are rounded once."""
    weights, qparams = op.inputs[1].data, op.inputs[1].qparams
    if weights is None or qparams is None:
        raise InputError(f"expected constant weights with codes; received {op}")
    del w  # real numbers; the kernel takes their codes
    codes, unit = quantized_rows(x)
    kind = carrier(codes, weights, (0,))
    sums = (codes.astype(kind) @ weights.astype(kind)).astype(np.float32)
    products = (sums * unit).astype(np.float64) * qparams.scale.reshape(-1)
    return activated(op, (products if bias is None else products + bias).astype(np.float32))
