"""What integer kernels are made of: code ranges, sums with their bias, and the step back to eight bits."""

from __future__ import annotations

import numpy as np

from qi.ir.graph import Op, Tensor
from qi.ir.linear import accumulate, carrier

__all__ = ["clipped", "code_range", "integer_sums", "largest_sum", "requantize_float", "scale_of_sums", "sum_axes"]

# The axes of a weight that one sum runs over.
_SUM_AXES = {"conv2d": (0, 1, 2), "depthwise_conv2d": (0, 1), "conv2d_transpose": (0, 1, 3), "dense": (0,)}


def sum_axes(kind: str) -> tuple[int, ...]:
    """The axes of a linear operation's weight that one sum runs over."""
    return _SUM_AXES[kind]


def code_range(op: Op) -> tuple[int, int]:
    """The least and the greatest code of an operation's output, its fused activation considered."""
    y = op.y
    low, high = y.grid.qmin, y.grid.qmax
    activation = op.attrs.get("activation", "none")
    if activation != "none":
        low = max(low, y.zero_point)
    if activation == "relu6":
        high = min(high, y.zero_point + int(np.rint(np.float32(6) / y.scale)))
    return low, high


def clipped(op: Op, codes: np.ndarray) -> np.ndarray:
    """Codes of the output, clipped to their range, as int32."""
    return np.asarray(np.clip(codes, *code_range(op)), np.int32)


def scale_of_sums(x: Tensor, w: Tensor) -> np.ndarray:
    """The scale of sums of products, the bias' own: float32(sx * sw), [channels] or [1]."""
    return np.asarray(x.scale * w.scales())


def largest_sum(op: Op) -> int:
    """A bound for every sum of a linear operation on codes, bias included, and for every part of one."""
    x, w = op.inputs[:2]
    reach = max(x.zero_point - x.grid.qmin, x.grid.qmax - x.zero_point)
    totals = reach * np.abs(_less_zero(w, np.asarray(w.data, np.int64))).sum(axis=sum_axes(op.kind))
    if len(op.inputs) > 2:
        totals = totals + np.abs(np.asarray(op.inputs[2].data, np.int64))
    return int(totals.max(initial=0))


def integer_sums(op: Op, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """The int32 sums of a linear operation on codes, bias included, exact, as float64."""
    x, w = x - np.int32(op.x.zero_point), _less_zero(op.inputs[1], w)
    kind = carrier(x, w, sum_axes(op.kind))
    sums = accumulate(op, x.astype(kind), w.astype(kind)).astype(np.float64)
    return sums if bias is None else sums + bias


def _less_zero(w: Tensor, codes: np.ndarray) -> np.ndarray:
    """Codes of a weight without their zero point, of which most have none."""
    if w.qparams is None or not w.qparams.zero_point.any():
        return codes
    return np.asarray(codes.astype(np.int64) - w.qparams.expanded(codes.shape)[1].astype(np.int64))


def requantize_float(op: Op, sums: np.ndarray, scale: np.ndarray | np.float32) -> np.ndarray:
    """Codes from sums: ``clip(rint(float32(sums) * float32(scale / sy)) + zy)``, half to even, in float32.

    Args:
        op: gives the output's scale, zero point and range.
        sums: integers.
        scale: float32, of the sums.
    """
    factor = np.asarray(scale, np.float32) / op.y.scale
    return clipped(op, np.rint(sums.astype(np.float32) * factor) + op.y.zero_point)
