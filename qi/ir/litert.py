"""LiteRT with XNNPACK: what its integer kernels compute.

Formulas as in the kernels' sources; each is checked against the runtime itself (tests/parity). Where XNNPACK declines an
operation, LiteRT's own kernels do it, whose arithmetic is another.
"""

from __future__ import annotations

import math

import numpy as np

from qi.ir import fixed, formulas
from qi.ir.arithmetic import clipped, integer_sums, requantize_float, scale_of_sums
from qi.ir.dynamic import KIND as DYNAMIC
from qi.ir.graph import Op
from qi.ir.kinds import kernel
from qi.ir.linear import LINEAR
from qi.ir.reference import averaged, linear_factor, matrix_products
from qi.ir.routing import island
from qi.ir.softmax import logarithm_of_gain

__all__ = ["bilinear_places", "packed_bits", "weight_bits"]

_SMALL = 1024  # elements of a sample
_FAST = ("sigmoid", "tanh", "elu", "leaky_relu")  # functions of one number that XNNPACK does in integers
_PACKS = {"conv2d": (4,), "depthwise_conv2d": (4,), "dense": (4, 2)}
_SIZES = (2, 4, 8)  # bits of the types that weights lie in


@island("litert")
def _prefers_float(op: Op) -> bool:
    """What LiteRT's own kernels do in integers three to thirty times slower than XNNPACK does it in real numbers.

    Pools stay, which are exact in integers only, and so do softmaxes where `soften_codes` finds no way, or that are small.
    """
    if op.kind == "batch_matmul":
        return op.inputs[1].zero_point != 0
    if op.kind == "softmax":
        size = math.prod(n or 1 for n in op.x.shape)
        return size > _SMALL and logarithm_of_gain(op.x, op.x.shape[op.attrs["axis"]]) is not None
    return op.kind in ("relu", "prelu") or (op.kind == "unary" and op.attrs["function"] not in _FAST)


def packed_bits(op: Op) -> int:
    """Bits of each weight in a LiteRT file: 4 and 2 are packed where a kernel takes them, all others lie in bytes."""
    bits = op.inputs[1].grid.bits
    return bits if bits in _PACKS.get(op.kind, ()) else 8


def weight_bits(op: Op) -> int:
    """Bits of each weight in a LiteRT file, whether the operation is done in integers, dynamically or in real numbers.

    DEQUANTIZE takes packed ones anywhere; XNNPACK's dynamic kernels do where rows end with a byte: where they don't, LiteRT's
    own kernel would take them, whose numbers are others.
    """
    if op.quantized:
        return packed_bits(op)
    w = op.inputs[1]
    bits = next(size for size in _SIZES if size >= w.grid.bits)
    return bits if op.kind != DYNAMIC or w.shape[0] % (8 // bits) == 0 else 8  # type: ignore[operator]


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
    ra, rb = (np.float32(t.scale / op.y.scale) for t in op.inputs)
    a, b = a - op.x.zero_point, b - op.inputs[1].zero_point
    return clipped(op, formulas.fixed_sum(a, ra, b, rb, sign=sign) + op.y.zero_point)


@kernel("mul", "litert")
def _mul(op: Op, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    products = (a - op.x.zero_point) * (b - op.inputs[1].zero_point)
    return requantize_float(op, products, np.float32(op.x.scale * op.inputs[1].scale))


@kernel("batch_matmul", "litert")
def _batch_matmul(op: Op, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """XNNPACK wants a second operand without zero point; LiteRT's own kernel does the others."""
    sums, factor = matrix_products(op, a, b)
    if op.inputs[1].zero_point == 0:
        return requantize_float(op, sums, np.float32(op.x.scale * op.inputs[1].scale))
    return clipped(op, fixed.multiplied_twice(sums, factor) + op.y.zero_point)


@kernel("mean", "litert")
def _mean(op: Op, x: np.ndarray) -> np.ndarray:
    axes = tuple(op.attrs["axes"])
    count = float(np.prod([x.shape[axis] for axis in axes]))
    sums = x.sum(axis=axes, keepdims=op.attrs["keepdims"])
    zeros = np.float32(op.x.zero_point), np.float32(op.y.zero_point)
    return clipped(op, formulas.offset_mean(sums, count, np.float32(op.x.scale / op.y.scale), *zeros))


@kernel("avg_pool2d", "litert")
def _avg_pool2d(op: Op, x: np.ndarray) -> np.ndarray:
    """LiteRT's own kernel, which keeps the scale; another one takes a product with one."""
    codes = averaged(op, x)
    if op.x.qparams == op.y.qparams:
        return clipped(op, codes)
    return requantize_float(op, codes - op.x.zero_point, op.x.scale)


@kernel("resize_bilinear", "litert")
def _resize_bilinear(op: Op, x: np.ndarray) -> np.ndarray:
    """Places with eleven bits behind the point, half up."""
    (first, part), (second, across) = (
        bilinear_places(n, size) for n, size in zip(x.shape[1:3], op.attrs["size"], strict=True)
    )
    x = x.astype(np.int64)
    above, below = (
        (x[:, rows][:, :, second[0]] << 11)
        + (x[:, rows][:, :, second[1]] - x[:, rows][:, :, second[0]]) * across[:, None]
        for rows in first
    )
    total = (above << 11) + (below - above) * part[:, None, None]
    return clipped(op, (total + (1 << 21)) >> 22)


def bilinear_places(n: int, size: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """((the index before, the index behind), how far from the former, of 2048) for each output."""
    half = np.float32(0.5)
    place = (np.arange(size, dtype=np.float32) + half) * (np.float32(n) / np.float32(size)) - half
    place = np.clip(place, 0, n - 1)
    low = place.astype(np.int64)
    return (low, np.minimum(low + 1, n - 1)), np.rint((place - low) * np.float32(2048)).astype(np.int64)
