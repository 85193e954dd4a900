"""LiteRT's reference kernels, as microcontrollers run them: fixed-point arithmetic on 32-bit integers.

Also what LiteRT falls back to where XNNPACK has no kernel. Checked against the interpreter with its reference resolver (tests/parity).
"""

from __future__ import annotations

import numpy as np

from qi.ir import fixed
from qi.ir.arithmetic import clipped, integer_sums
from qi.ir.fixed_functions import INTEGER_FUNCTIONS
from qi.ir.graph import Op
from qi.ir.kinds import kernel
from qi.ir.linear import LINEAR
from qi.ir.routing import lacks
from qi.ir.windows import window_counts, windows

__all__ = ["averaged", "linear_factor", "matrix_products", "without_kernel"]


def without_kernel(op: Op, target: str) -> bool:
    """Functions without a table, bounds other than those of ReLU and ReLU6, choices between numbers of several scales, and logits so small
    that the kernel ends the process.
    """
    if op.kind == "softmax":
        return bool(op.x.scale <= 2.0**-26)
    if op.kind == "unary":
        return op.attrs["function"] not in INTEGER_FUNCTIONS[target]
    if op.kind == "relu":
        return op.attrs["max_value"] not in (None, 6)
    if op.kind in ("maximum", "minimum"):
        return any(t.qparams != op.y.qparams for t in op.inputs)
    return op.kind == "resize_bilinear" and op.x.qparams != op.y.qparams


@lacks("reference")
def _without_kernel(op: Op) -> bool:
    return without_kernel(op, "reference")


# Convolutions and products ----------------------------------------------------------------------------------------------


def linear_factor(op: Op) -> tuple[np.ndarray, np.ndarray]:
    """sx * sw / sy in double precision, as multiplier and exponent, for each channel."""
    w = op.inputs[1].qparams
    assert w is not None
    scale = np.float64(op.x.scale) * w.scale.reshape(-1).astype(np.float64)
    return fixed.multiplier_of(scale / np.float64(op.y.scale))


def _linear(op: Op, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Two roundings; one in products, as that kernel was written later."""
    sums = integer_sums(op, x, w, bias).astype(np.int64)
    multiplied = fixed.multiplied_once if op.kind == "dense" else fixed.multiplied_twice
    return clipped(op, multiplied(sums, linear_factor(op)) + op.y.zero_point)


for _kind in sorted(LINEAR):
    kernel(_kind, "reference")(_linear)


# Two tensors ------------------------------------------------------------------------------------------------------------


def _sum(op: Op, a: np.ndarray, b: np.ndarray, sign: int) -> np.ndarray:
    """a + b or a - b: both shifted left by 20 bits and brought to twice the larger scale, then the sum to the output's."""
    scales = [np.float64(t.scale) for t in op.inputs]
    common = 2 * max(scales)
    parts = [
        fixed.multiplied_twice((x.astype(np.int64) - t.zero_point) << 20, fixed.multiplier_of(scale / common))
        for x, t, scale in zip((a, b), op.inputs, scales, strict=True)
    ]
    factor = fixed.multiplier_of(common / (np.float64(2**20) * np.float64(op.y.scale)))
    return clipped(op, fixed.multiplied_twice(parts[0] + sign * parts[1], factor) + op.y.zero_point)


@kernel("add", "reference")
def _add(op: Op, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return _sum(op, a, b, 1)


@kernel("sub", "reference")
def _sub(op: Op, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return _sum(op, a, b, -1)


@kernel("mul", "reference")
def _mul(op: Op, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The factor sa * sb / sy is computed in float32."""
    products = (a.astype(np.int64) - op.x.zero_point) * (b - op.inputs[1].zero_point)
    factor = fixed.multiplier_of(np.float64(np.float32(np.float32(op.x.scale * op.inputs[1].scale) / op.y.scale)))
    return clipped(op, fixed.multiplied_twice(products, factor) + op.y.zero_point)


def matrix_products(op: Op, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """(sums of products of the codes' distances from zero, the factor to the output's scale)."""
    a, b = a.astype(np.float64) - op.x.zero_point, b.astype(np.float64) - op.inputs[1].zero_point
    a = np.swapaxes(a, -1, -2) if op.attrs["transpose_a"] else a
    b = np.swapaxes(b, -1, -2) if op.attrs["transpose_b"] else b
    factor = np.float64(np.float32(op.x.scale * op.inputs[1].scale)) / np.float64(op.y.scale)
    return (a @ b).astype(np.int64), fixed.multiplier_of(factor)


@kernel("batch_matmul", "reference")
def _batch_matmul(op: Op, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return clipped(op, fixed.multiplied_twice(*matrix_products(op, a, b)) + op.y.zero_point)


@kernel("maximum", "litert", "reference")
def _maximum(op: Op, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of codes with one scale."""
    del op
    return np.maximum(a, b)


@kernel("minimum", "litert", "reference")
def _minimum(op: Op, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of codes with one scale."""
    del op
    return np.minimum(a, b)


# Means ------------------------------------------------------------------------------------------------------------------


def averaged(op: Op, x: np.ndarray) -> np.ndarray:
    """The mean of the codes in each window, half away from zero; int64."""
    sums = windows(op, x.astype(np.int64), 0).sum(axis=(3, 4))
    counts = window_counts(op, x.shape)[..., None].astype(np.int64)
    half = counts // 2
    return np.where(sums > 0, (sums + half) // counts, -((half - sums) // counts))


@kernel("avg_pool2d", "reference")
def _avg_pool2d(op: Op, x: np.ndarray) -> np.ndarray:
    """The kernel keeps the scale; another one takes a product with one."""
    codes = averaged(op, x)
    if op.x.qparams == op.y.qparams:
        return clipped(op, codes)
    factor = fixed.multiplier_of(np.float64(op.x.scale / op.y.scale))
    return clipped(op, fixed.multiplied_twice(codes - op.x.zero_point, factor) + op.y.zero_point)


@kernel("mean", "reference")
def _mean(op: Op, x: np.ndarray) -> np.ndarray:
    """The count is divided into the multiplier."""
    axes = tuple(op.attrs["axes"])
    sums = (x.astype(np.int64) - op.x.zero_point).sum(axis=axes, keepdims=op.attrs["keepdims"])
    count = int(np.prod([x.shape[axis] for axis in axes]))
    multiplier, exponent = (int(part) for part in fixed.multiplier_of(np.float64(op.x.scale) / np.float64(op.y.scale)))
    shift = min(count.bit_length() - 1, 32, 31 + exponent)
    factor = np.int64((multiplier << shift) // count), np.int64(exponent - shift)
    return clipped(op, fixed.multiplied_twice(sums, factor) + op.y.zero_point)


@kernel("resize_bilinear", "reference")
def _resize_bilinear(op: Op, x: np.ndarray) -> np.ndarray:
    """Places with ten bits behind the point, half away from zero."""
    (first, part), (second, across) = (_places(n, size) for n, size in zip(x.shape[1:3], op.attrs["size"], strict=True))
    down, right = part[:, None, None], across[:, None]
    above, below = (
        x[:, rows][:, :, second[0]] * (1024 - right) + x[:, rows][:, :, second[1]] * right for rows in first
    )
    total = above * (1024 - down) + below * down
    rounded = total + np.where(total > 0, 1 << 19, -(1 << 19))
    return clipped(op, np.where(rounded >= 0, rounded >> 20, -((-rounded) >> 20)))


def _places(n: int, size: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """((the index before, the index behind), how far from the former, of 1024) for each output."""
    step = (1024 * n + size // 2) // size
    place = np.arange(size) * step + (step >> 1) - 512
    low = np.maximum(place >> 10, 0)
    return (low, np.minimum((place + 1023) // 1024, n - 1)), place - (low << 10)


# Softmax --------------------------------------------------------------------------------------------------------------


@kernel("softmax", "litert", "reference")
def softmax(op: Op, x: np.ndarray) -> np.ndarray:
    """A table of exp in float32, its sum in float32, half to even."""
    axis = op.attrs["axis"]
    x = np.moveaxis(x, axis, -1)
    table = np.exp(-op.x.scale * np.arange(256, dtype=np.float32))
    terms = table[x.max(axis=-1, keepdims=True) - x]
    total = np.zeros((*x.shape[:-1], 1), np.float32)
    for i in range(x.shape[-1]):
        total += terms[..., i : i + 1]
    factor = np.float32(1) / (total * op.y.scale)
    return np.moveaxis(clipped(op, np.rint(terms * factor) + op.y.zero_point), -1, axis)
