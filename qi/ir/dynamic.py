"""Products of real numbers with integer weights, whose activations become integers as they come: "dynamic range".

Each row gets a scale and a zero point of its own from its least and greatest value, so nothing needs to be calibrated. The
numbers are those of XNNPACK (qd8), which computes this several times faster than a product of real numbers; the kernel's
arithmetic is the operation's meaning, so a graph that holds it is as exact as one of integers. Convolutions have no such form:
runtimes are slower with it than without.
"""

from __future__ import annotations

import numpy as np

from qi.core import IntGrid, namespace_of
from qi.errors import InputError
from qi.ir.graph import Op, QGraph
from qi.ir.kinds import real_kind
from qi.ir.linear import activated, carrier
from qi.typing import Array

__all__ = ["KIND", "make_dynamic", "quantized_rows"]

KIND = "dynamic_dense"
_LOW, _HIGH = -128.0, 127.0
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


def quantized_rows(x: Array) -> tuple[Array, Array]:
    """Codes without their zero point, and what one is worth, as XNNPACK makes them of float32 rows.

    With lo and hi the least and the greatest value of a row and 0: ``s = 255 / (hi - lo)`` codes per unit (1 where all is 0), a
    zero point at ``-128 - lo * s`` or ``127 - hi * s``, whichever errs less, rounded; codes are ``clip(rint(x * s) + zp)``.

    Args:
        x: float32, [..., values of a row]; of numpy or any framework.

    Returns:
        (codes less their zero point as float32, [..., values]; ``float32(1 / s)``, [..., 1]).

    Example:
        >>> codes, unit = quantized_rows(np.float32([[0, 1, 2.55]]))
        >>> codes.tolist(), round(float(unit[0, 0]), 4)
        ([[0.0, 100.0, 255.0]], 0.01)
    """
    xp = namespace_of(x)
    low, high = xp.min(x, axis=-1, keepdims=True), xp.max(x, axis=-1, keepdims=True)
    none = xp.zeros_like(low)
    low, high = xp.minimum(low, none), xp.maximum(high, none)
    width = high - low
    # No constant to a graph optimizer, which would take an approximate reciprocal for a division of it.
    one = xp.where(xp.isnan(width), width, none + 1.0)
    scale = xp.where(width > none, xp.divide(one * 255.0, xp.where(width > none, width, one)), one)
    least, most = (
        xp.cast(xp.multiply(xp.cast(end, "float64"), xp.cast(scale, "float64")), "float32") for end in (low, high)
    )
    zero = xp.where((_LOW + least) + (_HIGH + most) > none, _LOW - least, _HIGH - most)
    zero = xp.round(xp.minimum(xp.maximum(zero, none + _LOW), none + _HIGH))
    codes = xp.minimum(xp.maximum(xp.round(xp.multiply(x, scale)), _LOW - zero), _HIGH - zero)
    return codes, xp.divide(one, scale)


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
