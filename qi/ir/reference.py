"""LiteRT's reference kernels, as microcontrollers run them: fixed-point arithmetic on 32-bit integers.

Also what LiteRT falls back to where XNNPACK has no kernel. Checked against the interpreter with its reference resolver
(tests/parity).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from qi.ir import fixed
from qi.ir.arithmetic import clipped, integer_sums, scale_of_sums
from qi.ir.fixed_functions import INTEGER_FUNCTIONS, ratio
from qi.ir.graph import Op
from qi.ir.kinds import kernel
from qi.ir.linear import LINEAR
from qi.ir.routing import lacks
from qi.ir.windows import window_counts, windows

__all__ = [
    "averaged",
    "bilinear_places",
    "exponentials",
    "linear_factor",
    "matrix_factor",
    "matrix_products",
    "mean_factor",
    "sum_factors",
]

_Factor: TypeAlias = tuple[np.ndarray, np.ndarray]


_CLASSES = 4096  # so many terms overflow the sum of the fixed-point softmax
_FIXED = {"softmax": (1 / 256, -128), "sigmoid": (1 / 256, -128), "tanh": (1 / 128, 0)}
"""Scale and zero point that kernels want of an output."""


def _without_kernel(target: str) -> Callable[[Op], bool]:
    """What a target has a kernel for in general, but not in this form."""

    def answer(op: Op) -> bool:
        if op.kind == "unary":
            function = op.attrs["function"]
            if function not in INTEGER_FUNCTIONS[target] or _held(op, _FIXED.get(function)):
                return True
            if function == "elu" and op.attrs["alpha"] != 1:
                return True
        if op.kind == "softmax":
            # Of so small a scale, the kernel ends the process.
            crowded = target == "reference" and (op.y.shape[op.attrs["axis"]] or 0) >= _CLASSES
            return _held(op, _FIXED["softmax"]) or bool(op.x.scale <= 2.0**-26) or crowded
        if op.kind == "relu" and op.attrs["max_value"] not in (None, 6):
            return True
        if op.kind in LINEAR and op.inputs[1].grid.bits > 8:
            return True
        if op.kind in ("maximum", "minimum", "resize_bilinear"):
            return any(t.qparams != op.y.qparams for t in op.inputs)
        return _steep(op)

    return answer


def _held(op: Op, wanted: tuple[float, int] | None) -> bool:
    """Whether the output has another scale or zero point than the kernel is made for."""
    return wanted is not None and (float(op.y.scale), op.y.zero_point) != wanted


def _steep(op: Op) -> bool:
    """Whether the step to the output's scale is one that kernels refuse, or overflow at: that of a layer that is always 0."""
    sy = op.y.scale
    if op.kind in LINEAR:
        return bool(np.any(scale_of_sums(op.x, op.inputs[1]) / sy >= 2**8))
    if op.kind in ("add", "sub"):
        return not all(2**-10 <= t.scale / sy < 2**8 for t in op.inputs)
    if op.kind in ("mul", "batch_matmul"):
        return not 2**-16 <= op.x.scale * op.inputs[1].scale / sy < 2**8
    if op.kind == "quantize":  # from codes: a product with one
        return not 2**-16 <= op.x.scale / sy < 2**8
    if op.kind in ("relu", "prelu", "avg_pool2d", "mean") or op.attrs.get("function") in (
        "leaky_relu",
        "abs",
        "hard_swish",
    ):
        return not 2**-8 <= op.x.scale / sy < 2**7
    return False


for _target in ("litert", "reference"):
    lacks(_target)(_without_kernel(_target))


# Convolutions and products ----------------------------------------------------------------------------------------------


def linear_factor(op: Op) -> _Factor:
    """Sx * sw / sy in double precision, as multiplier and exponent, for each channel."""
    scale = np.float64(op.x.scale) * op.inputs[1].scales().astype(np.float64)
    return fixed.multiplier_of(scale / np.float64(op.y.scale))


def _linear(op: Op, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Two roundings; one in products, as that kernel was written later."""
    sums = integer_sums(op, x, w, bias).astype(np.int64)
    multiplied = fixed.multiplied_once if op.kind == "dense" else fixed.multiplied_twice
    return clipped(op, multiplied(sums, linear_factor(op)) + op.y.zero_point)


for _kind in sorted(LINEAR):
    kernel(_kind, "reference")(_linear)


# Two tensors ------------------------------------------------------------------------------------------------------------


def sum_factors(op: Op) -> tuple[list[_Factor], _Factor]:
    """(each input's factor to twice the larger scale, that from there to the output's, less the 20 bits)."""
    scales = [np.float64(t.scale) for t in op.inputs]
    common = 2 * max(scales)
    last = fixed.multiplier_of(common / (np.float64(2**20) * np.float64(op.y.scale)))
    return [fixed.multiplier_of(scale / common) for scale in scales], last


def _sum(op: Op, a: np.ndarray, b: np.ndarray, sign: int) -> np.ndarray:
    """A + b or a - b: both shifted left by 20 bits and brought to twice the larger scale, then the sum to the output's."""
    factors, factor = sum_factors(op)
    parts = [
        fixed.multiplied_twice((x.astype(np.int64) - t.zero_point) << 20, first)
        for x, t, first in zip((a, b), op.inputs, factors, strict=True)
    ]
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
    factor = ratio(op, float(op.inputs[1].scale))
    return clipped(op, fixed.multiplied_twice(products, factor) + op.y.zero_point)


def matrix_factor(op: Op) -> _Factor:
    """The product of the scales in float32, over the output's in double precision."""
    return fixed.multiplier_of(np.float64(np.float32(op.x.scale * op.inputs[1].scale)) / np.float64(op.y.scale))


def matrix_products(op: Op, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, _Factor]:
    """(sums of products of the codes' distances from zero, the factor to the output's scale)."""
    a, b = a.astype(np.float64) - op.x.zero_point, b.astype(np.float64) - op.inputs[1].zero_point
    a = np.swapaxes(a, -1, -2) if op.attrs["transpose_a"] else a
    b = np.swapaxes(b, -1, -2) if op.attrs["transpose_b"] else b
    return (a @ b).astype(np.int64), matrix_factor(op)


@kernel("batch_matmul", "reference")
def _batch_matmul(op: Op, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return clipped(op, fixed.multiplied_twice(*matrix_products(op, a, b)) + op.y.zero_point)


@kernel("maximum", "litert", "onnxruntime", "reference")
def _maximum(op: Op, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of codes with one scale."""
    del op
    return np.asarray(np.maximum(a, b))


@kernel("minimum", "litert", "onnxruntime", "reference")
def _minimum(op: Op, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of codes with one scale."""
    del op
    return np.asarray(np.minimum(a, b))


# Means ------------------------------------------------------------------------------------------------------------------


def averaged(op: Op, x: np.ndarray) -> np.ndarray:
    """The mean of the codes in each window, half away from zero; int64."""
    sums = windows(op, x.astype(np.int64), 0).sum(axis=(3, 4))
    counts = window_counts(op, x.shape)[..., None].astype(np.int64)
    half = counts // 2
    return np.asarray(np.where(sums > 0, (sums + half) // counts, -((half - sums) // counts)))


@kernel("avg_pool2d", "reference")
def _avg_pool2d(op: Op, x: np.ndarray) -> np.ndarray:
    """The kernel keeps the scale; another one takes a product with one."""
    codes = averaged(op, x)
    if op.x.qparams == op.y.qparams:
        return clipped(op, codes)
    return clipped(op, fixed.multiplied_twice(codes - op.x.zero_point, ratio(op)) + op.y.zero_point)


def mean_factor(op: Op, count: int) -> _Factor:
    """The ratio of the scales in double precision, with the count of what is averaged divided into the multiplier."""
    multiplier, exponent = (int(part) for part in fixed.multiplier_of(np.float64(op.x.scale) / np.float64(op.y.scale)))
    shift = min(count.bit_length() - 1, 32, 31 + exponent)
    return np.asarray((multiplier << shift) // count, np.int64), np.asarray(exponent - shift, np.int64)


@kernel("mean", "reference")
def _mean(op: Op, x: np.ndarray) -> np.ndarray:
    """The sum of the codes' distances from zero, times a factor that holds their count."""
    axes = tuple(op.attrs["axes"])
    sums = (x.astype(np.int64) - op.x.zero_point).sum(axis=axes, keepdims=op.attrs["keepdims"])
    factor = mean_factor(op, int(np.prod([x.shape[axis] for axis in axes])))
    return clipped(op, fixed.multiplied_twice(sums, factor) + op.y.zero_point)


@kernel("resize_bilinear", "reference")
def _resize_bilinear(op: Op, x: np.ndarray) -> np.ndarray:
    """Places with ten bits behind the point, half away from zero."""
    (first, part), (second, across) = (
        bilinear_places(n, size) for n, size in zip(x.shape[1:3], op.attrs["size"], strict=True)
    )
    down, right = part[:, None, None], across[:, None]
    above, below = (
        x[:, rows][:, :, second[0]] * (1024 - right) + x[:, rows][:, :, second[1]] * right for rows in first
    )
    total = above * (1024 - down) + below * down
    rounded = total + np.where(total > 0, 1 << 19, -(1 << 19))
    return clipped(op, np.where(rounded >= 0, rounded >> 20, -((-rounded) >> 20)))


def bilinear_places(n: int, size: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """((the index before, the index behind), how far from the former, of 1024) for each output."""
    step = (1024 * n + size // 2) // size
    place = np.arange(size) * step + (step >> 1) - 512
    low = np.maximum(place >> 10, 0)
    return (low, np.minimum((place + 1023) // 1024, n - 1)), place - (low << 10)


# Softmax --------------------------------------------------------------------------------------------------------------


def exponentials(op: Op) -> np.ndarray:
    """``exp(float32(-s * i))`` for i from 0 to 255, rounded to float32, which numpy's own of float32 isn't always."""
    return np.asarray(np.exp((-op.x.scale * np.arange(256, dtype=np.float32)).astype(np.float64)).astype(np.float32))


@kernel("softmax", "litert")
def softmax(op: Op, x: np.ndarray) -> np.ndarray:
    """A table of exp in float32, its sum in float32, half away from zero; the reference kernel's is `qi.ir.fixed_softmax`."""
    axis = op.attrs["axis"]
    x = np.moveaxis(x, axis, -1)
    terms = exponentials(op)[x.max(axis=-1, keepdims=True) - x]
    total = np.zeros((*x.shape[:-1], 1), np.float32)
    for i in range(x.shape[-1]):
        total += terms[..., i : i + 1]
    factor = np.float32(1) / (total * op.y.scale)
    steps = (terms * factor).astype(np.float64)
    return np.moveaxis(clipped(op, np.floor(steps + 0.5) + op.y.zero_point), -1, axis)
