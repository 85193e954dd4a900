"""LiteRT with XNNPACK: what its integer kernels compute.

Formulas as in the kernels' sources; each is checked against the runtime itself (tests/parity). Where XNNPACK declines an operation, LiteRT's
own kernels do it, whose arithmetic is another.
"""

from __future__ import annotations

import numpy as np

from qi.ir import fixed, formulas
from qi.ir.arithmetic import clipped, integer_sums, requantize_float, scale_of_sums
from qi.ir.graph import Op
from qi.ir.kinds import kernel
from qi.ir.linear import LINEAR
from qi.ir.reference import fixed_product, fixed_sum, linear_factor

__all__ = ["packed_bits"]

_PACKS = {"conv2d": (4,), "depthwise_conv2d": (4,), "dense": (4, 2)}


def packed_bits(op: Op) -> int:
    """Bits of each weight in a LiteRT file: 4 and 2 are packed where a kernel takes them, all others lie in bytes."""
    bits = op.inputs[1].grid.bits
    return bits if bits in _PACKS.get(op.kind, ()) else 8


def _linear(op: Op, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Sums in int32, back to codes through float32; packed weights mostly by LiteRT's own kernels."""
    sums = integer_sums(op, x, w, bias)
    bits = packed_bits(op)
    if bits == 8 or (op.kind == "dense" and w.shape[0] % (8 // bits) == 0):
        return requantize_float(op, sums, scale_of_sums(op.x, op.inputs[1]))
    up, away = (
        clipped(op, multiplied(sums.astype(np.int64), linear_factor(op)) + op.y.zero_point)
        for multiplied in (fixed.multiplied_up, fixed.multiplied_twice)
    )
    if op.kind == "depthwise_conv2d":  # eight channels at a time half up, the rest half away from zero
        blocks = w.shape[-1] // 8 * 8
        return np.concatenate([up[..., :blocks], away[..., blocks:]], axis=-1)
    return away if op.attrs.get("groups", 1) > 1 else up


for _kind in sorted(LINEAR):
    kernel(_kind, "litert")(_linear)


@kernel("add", "litert")
def _add(op: Op, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return _sum(op, a, b, 1)


@kernel("sub", "litert")
def _sub(op: Op, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return _sum(op, a, b, -1)


def _sum(op: Op, a: np.ndarray, b: np.ndarray, sign: int) -> np.ndarray:
    """Factors of 20 bits with one rounding, where XNNPACK takes them."""
    ratios = [np.float32(t.scale / op.y.scale) for t in op.inputs]
    if not all(2**-10 <= ratio < 2**8 for ratio in ratios):
        return fixed_sum(op, a, b, sign)
    a, b = a - op.x.zero_point, b - op.inputs[1].zero_point
    return clipped(op, formulas.fixed_sum(a, ratios[0], b, ratios[1], sign=sign) + op.y.zero_point)


@kernel("mul", "litert")
def _mul(op: Op, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    scale = np.float32(op.x.scale * op.inputs[1].scale)
    if not 2**-16 <= scale / op.y.scale < 2**8:
        return fixed_product(op, a, b)
    return requantize_float(op, (a - op.x.zero_point) * (b - op.inputs[1].zero_point), scale)


@kernel("mean", "litert")
def _mean(op: Op, x: np.ndarray) -> np.ndarray:
    """Sums in int32; their count goes into the factor: float32(float32(sx / sy) / count)."""
    axes = tuple(op.attrs["axes"])
    sums = (x.astype(np.int64) - op.x.zero_point).sum(axis=axes, keepdims=op.attrs["keepdims"])
    count = np.prod([x.shape[axis] for axis in axes])
    factor = np.float32(np.float32(op.x.scale / op.y.scale) / np.float32(count))
    return clipped(op, np.rint(sums.astype(np.float32) * factor) + op.y.zero_point)
