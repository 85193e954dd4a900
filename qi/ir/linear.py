"""Convolutions and products: sums of products, exact where the numbers are integers.

Integers are carried in float32 where no sum can reach 2**24, in float64 otherwise; either way the sums are exact, and the
processor's fast matrix product does the work.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qi.ir.graph import Op
from qi.ir.kinds import real_kind

__all__ = ["EXACT32", "LINEAR", "accumulate", "activated", "carrier"]

EXACT32 = 2**24
"""Integers below it are exact in float32, and so are their sums as long as these stay below it."""


def carrier(x: np.ndarray, w: np.ndarray, axes: tuple[int, ...]) -> np.dtype:
    """The float type in which sums of products of integers are exact.

    Args:
        x: integers, in any type.
        w: weights, integers.
        axes: those of w that a sum runs over.
    """
    reach = max(int(x.max(initial=0)), -int(x.min(initial=0)))  # of int8, abs(-128) would be -128
    largest = reach * np.abs(w.astype(np.float64)).sum(axis=axes).max(initial=0)
    return np.dtype(np.float32 if largest < EXACT32 else np.float64)


def accumulate(op: Op, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The sums of a linear operation, without its bias, in the type of its (equally typed) arguments.

    The library behind numpy's products may read beyond a matrix, and tell of NaN that it found there and didn't use.
    """
    with np.errstate(invalid="ignore"):
        return _SUMS[op.kind](op, x, w)


def _padded(op: Op, x: np.ndarray) -> np.ndarray:
    top, bottom, left, right = op.attrs["pads"]
    return np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0))) if any(op.attrs["pads"]) else x


def _taps(op: Op, x: np.ndarray, size: tuple[int, int]) -> Any:
    """For each place (i, j) of a window: (i, j, the inputs under it for every output)."""
    (sh, sw), (dh, dw), (kh, kw) = op.attrs["strides"], op.attrs.get("dilation", (1, 1)), size
    height = (x.shape[1] - (kh - 1) * dh - 1) // sh + 1
    width = (x.shape[2] - (kw - 1) * dw - 1) // sw + 1
    for i in range(kh):
        for j in range(kw):
            yield i, j, x[:, i * dh : i * dh + (height - 1) * sh + 1 : sh, j * dw : j * dw + (width - 1) * sw + 1 : sw]


def _conv2d(op: Op, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    groups = op.attrs["groups"]
    if groups > 1:
        parts = zip(np.split(x, groups, axis=3), np.split(w, groups, axis=3), strict=True)
        single = Op(op.kind, [], [], op.attrs | {"groups": 1})
        return np.concatenate([_conv2d(single, *part) for part in parts], axis=3)
    total: Any = 0
    for i, j, tap in _taps(op, _padded(op, x), w.shape[:2]):
        total = total + tap @ w[i, j]
    return np.asarray(total)


def _depthwise_conv2d(op: Op, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The weights are [height, width, channels * multiplier], those of one channel side by side."""
    multiplier, total = w.shape[2] // x.shape[3], np.float32(0)
    for i, j, tap in _taps(op, _padded(op, x), w.shape[:2]):
        total = total + (tap.repeat(multiplier, axis=3) if multiplier > 1 else tap) * w[i, j]
    return np.asarray(total)


def _conv2d_transpose(op: Op, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    (sh, sw), (kh, kw), (top, bottom, left, right) = op.attrs["strides"], w.shape[:2], op.attrs["pads"]
    (dh, dw), (n, height, width, _) = op.attrs["dilation"], x.shape
    full_h, full_w = (height - 1) * sh + (kh - 1) * dh + 1, (width - 1) * sw + (kw - 1) * dw + 1
    # Negative pads ask for more rows than the windows reach: they hold the bias alone.
    total = np.zeros((n, full_h + max(0, -bottom), full_w + max(0, -right), w.shape[2]), x.dtype)
    for i in range(kh):
        for j in range(kw):
            rows = slice(i * dh, i * dh + (height - 1) * sh + 1, sh)
            columns = slice(j * dw, j * dw + (width - 1) * sw + 1, sw)
            total[:, rows, columns] += x @ w[i, j].T
    return total[:, top : full_h - bottom, left : full_w - right]


def _dense(op: Op, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    del op
    return np.asarray(x @ w)


_SUMS = {
    "conv2d": _conv2d,
    "depthwise_conv2d": _depthwise_conv2d,
    "conv2d_transpose": _conv2d_transpose,
    "dense": _dense,
}
LINEAR = frozenset(_SUMS)


def _real(op: Op, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    sums = accumulate(op, x, w.astype(x.dtype))
    return activated(op, sums if bias is None else sums + bias)


def activated(op: Op, y: np.ndarray) -> np.ndarray:
    """Real numbers after the activation that an operation has taken into itself."""
    top = {"none": None, "relu": np.inf, "relu6": 6.0}[op.attrs["activation"]]
    return y if top is None else np.clip(y, 0, top).astype(y.dtype)


real_kind("conv2d", (2, 3), "strides pads dilation groups activation")(_real)
real_kind("depthwise_conv2d", (2, 3), "strides pads dilation activation")(_real)
real_kind("conv2d_transpose", (2, 3), "strides pads dilation activation")(_real)
real_kind("dense", (2, 3), "activation")(_real)
