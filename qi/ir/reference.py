"""LiteRT's reference kernels, as microcontrollers run them: fixed-point arithmetic on 32-bit integers.

Also what LiteRT falls back to where XNNPACK has no kernel. Checked against the interpreter with its reference resolver (tests/parity).
"""

from __future__ import annotations

import numpy as np

from qi.ir import fixed
from qi.ir.arithmetic import clipped, integer_sums
from qi.ir.elementwise import FUNCTIONS
from qi.ir.graph import Op
from qi.ir.kinds import kernel
from qi.ir.linear import LINEAR
from qi.ir.windows import window_counts, windows

__all__ = ["averaged", "fixed_sum", "linear_factor", "looked_up", "softmax"]


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


def fixed_sum(op: Op, a: np.ndarray, b: np.ndarray, sign: int) -> np.ndarray:
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
    return fixed_sum(op, a, b, 1)


@kernel("sub", "reference")
def _sub(op: Op, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return fixed_sum(op, a, b, -1)


@kernel("mul", "reference")
def fixed_product(op: Op, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The factor sa * sb / sy is computed in float32."""
    products = (a.astype(np.int64) - op.x.zero_point) * (b - op.inputs[1].zero_point)
    factor = fixed.multiplier_of(np.float64(np.float32(np.float32(op.x.scale * op.inputs[1].scale) / op.y.scale)))
    return clipped(op, fixed.multiplied_twice(products, factor) + op.y.zero_point)


@kernel("batch_matmul", "litert", "reference")
def _batch_matmul(op: Op, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """XNNPACK has none: two roundings in either case."""
    real = np.float64
    a, b = a.astype(real) - op.x.zero_point, b.astype(real) - op.inputs[1].zero_point
    a = np.swapaxes(a, -1, -2) if op.attrs["transpose_a"] else a
    b = np.swapaxes(b, -1, -2) if op.attrs["transpose_b"] else b
    factor = np.float64(np.float32(np.float32(op.x.scale * op.inputs[1].scale) / op.y.scale))
    return clipped(op, fixed.multiplied_twice((a @ b).astype(np.int64), fixed.multiplier_of(factor)) + op.y.zero_point)


# Means ------------------------------------------------------------------------------------------------------------------


def averaged(op: Op, x: np.ndarray) -> np.ndarray:
    """The mean of the codes in each window, half away from zero."""
    sums = windows(op, x.astype(np.int64), 0).sum(axis=(3, 4))
    counts = window_counts(op, x.shape)[..., None].astype(np.int64)
    half = counts // 2
    return clipped(op, np.where(sums > 0, (sums + half) // counts, -((half - sums) // counts)))


kernel("avg_pool2d", "litert", "reference")(averaged)


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


# Functions of one number ------------------------------------------------------------------------------------------------


def looked_up(op: Op, x: np.ndarray, *, even: bool = False) -> np.ndarray:
    """A table of 256 codes: the function in float32, divided by the scale through its reciprocal, rounded.

    Args:
        op: of kind "unary".
        x: codes.
        even: whether halves go to the even code; else away from zero.
    """
    codes = np.arange(-128, 128, dtype=np.int32)
    real = (codes - op.x.zero_point).astype(np.float32) * op.x.scale
    with np.errstate(all="ignore"):
        y = np.asarray(FUNCTIONS.get(op.attrs["function"])(real, op), np.float32) * (np.float32(1) / op.y.scale)
    rounded = np.rint(y) if even else np.sign(y) * np.floor(np.abs(y) + np.float32(0.5))
    table = clipped(op, np.clip(rounded, -(2**20), 2**20).astype(np.int64) + op.y.zero_point)
    return table[x + 128]


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
