"""ONNX Runtime on a CPU: what its integer kernels compute.

Its activations are uint8: the codes here with 128 added, which changes no arithmetic but that of sums, whose rounding sees the
zero point. Each formula is checked against the runtime itself (tests/parity).
"""

from __future__ import annotations

import math

import numpy as np

from qi.ir.arithmetic import clipped, integer_sums, requantize_float, scale_of_sums
from qi.ir.graph import Op, Tensor
from qi.ir.kinds import KINDS, kernel
from qi.ir.linear import LINEAR
from qi.ir.routing import island, lacks
from qi.ir.softmax import logarithm_of_gain
from qi.ir.windows import window_counts, windows

__all__ = ["PACKED_BITS", "bilinear_places", "exponentials", "integer_softmax", "resize_factor"]

PACKED_BITS = 4  # weights of so many bits and fewer lie in the file two to the byte, if they come here with so few

_SMALL = 8192  # elements of a sample
_FEW = 1024  # terms of a sum, which exact models add one by one
_MOST = 2**30  # half of what int32 holds: bounds are rounded themselves
_OFFSET = 128  # from the codes here to those of the file
_INTEGER = ("leaky_relu", "sigmoid", "square")  # the functions of one number that have an integer kernel


@island("onnxruntime")
def _prefers_float(op: Op) -> bool:
    """A function that has no integer kernel, though a look-up table would do, and a softmax that isn't small.

    Likewise the greatest and the least of two, which take codes as numbers of int32.
    """
    if op.kind in ("maximum", "minimum"):
        return True
    if op.kind == "softmax":
        count = op.x.shape[op.attrs["axis"]] or 1
        large = math.prod(n or 1 for n in op.x.shape) > _SMALL or count > _FEW
        return large and logarithm_of_gain(op.x, count) is not None
    return op.kind == "unary" and op.attrs["function"] not in _INTEGER


@lacks("onnxruntime")
def _real_only(op: Op) -> bool:
    """More than eight bits, most scales of a softmax, transposed weights with a zero point, and steps that overflow."""
    if op.kind == "quantize":  # from codes: made real in any case
        return False
    if any(t.grid.bits > 8 for t in (*op.inputs, *op.outputs) if t.quantized):
        return True
    if op.kind == "conv2d_transpose" and op.inputs[1].qparams.zero_point.any():  # type: ignore[union-attr]
        return True  # it is written as a convolution with gaps between the weights, which are codes of 0
    if op.kind in ("maximum", "minimum") and any(t.constant or t.qparams != op.y.qparams for t in op.inputs):
        return True
    return _steep(op) or (op.kind == "softmax" and not integer_softmax(op))


def _steep(op: Op) -> bool:
    """Whether the step to the output's scale is one that a kernel overflows at, or refuses: that of a layer that is always 0.

    Sums and products are turned to int32 before they are clipped; the kernel of means checks its factor.
    """
    scales, sy = [float(t.scale) for t in op.inputs if t.quantized and t.scales().size == 1], float(op.y.scale)
    if op.kind in ("add", "sub"):
        return 256 * sum(scales) / sy >= _MOST
    if op.kind == "mul" or op.attrs.get("function") == "square":
        return 2**16 * scales[0] * scales[-1] / sy >= _MOST
    if op.kind == "mean" or _whole(op):
        axes = op.attrs["axes"] if op.kind == "mean" else (1, 2)
        return not 2**-32 <= scales[0] / sy / math.prod(op.x.shape[axis] or 1 for axis in axes) < 2**8
    return False


def _whole(op: Op) -> bool:
    """Whether a pool has one window, the whole image; then the kernel of means does it."""
    return op.kind == "avg_pool2d" and tuple(op.attrs["pool"]) == op.x.shape[1:3] and not any(op.attrs["pads"])


def integer_softmax(op: Op) -> bool:
    """Whether a softmax is done in integers: QLinearSoftmax is wrong, for some scales by far, unless that is 1 / 256.

    It is wrong, too, where there is but one class: it gives 0 instead of 1.
    """
    y = op.y
    fits = op.quantized and y.grid.bits == 8 and (float(y.scale), y.zero_point) == (1 / 256, y.grid.qmin)
    return fits and y.shape[op.attrs["axis"]] != 1


# Sums of products ------------------------------------------------------------------------------------------------------------


def _linear(op: Op, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """``clip(rint(float32(sum) * float32(float32(sx * sw) / sy)) + zy)``; transposed ones are written as ordinary ones."""
    return requantize_float(op, integer_sums(op, x, w, bias), scale_of_sums(op.x, op.inputs[1]))


for _kind in sorted(LINEAR):
    kernel(_kind, "onnxruntime")(_linear)


@kernel("batch_matmul", "onnxruntime")
def _batch_matmul(op: Op, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """QLinearMatMul: as `_linear`."""
    sums = KINDS.get(op.kind).real(op, *(_centred(t, q, np.float64) for t, q in zip(op.inputs, (a, b), strict=True)))
    return requantize_float(op, sums, np.float32(op.x.scale * op.inputs[1].scale))


def _centred(tensor: Tensor, codes: np.ndarray, dtype: type) -> np.ndarray:
    return (codes - np.int32(tensor.zero_point)).astype(dtype)


# Two operands --------------------------------------------------------------------------------------------------------------


def _fma(a: np.ndarray | np.float32, b: np.ndarray | np.float32, c: np.ndarray | np.float32) -> np.ndarray:
    """Gives a * b + c with a single rounding to float32; products of float32 are exact in float64."""
    return np.asarray(np.asarray(a, np.float64) * np.asarray(b, np.float64) + np.asarray(c, np.float64), np.float32)


@kernel("add", "onnxruntime")
def _add(op: Op, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """QLinearAdd; codes are those of the file."""
    za, zb = (t.zero_point + _OFFSET for t in op.inputs)
    return _sum(op, a + _OFFSET, za, b + _OFFSET, zb)


@kernel("sub", "onnxruntime")
def _sub(op: Op, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """QLinearAdd with the negative of the second operand: codes 255 - q, zero point 255 - z."""
    za, zb = (t.zero_point + _OFFSET for t in op.inputs)
    return _sum(op, a + _OFFSET, za, 255 - (b + _OFFSET), 255 - zb)


def _sum(op: Op, a: np.ndarray, za: int, b: np.ndarray, zb: int) -> np.ndarray:
    """``rint(fma(a, ra, fma(b, rb, z - fma(ra, za, rb * zb))))`` with ratios ra = sa / sy, rb = sb / sy, in float32."""
    ra, rb = (np.float32(t.scale / op.y.scale) for t in op.inputs)
    fixed = np.float32(op.y.zero_point + _OFFSET) - _fma(ra, np.float32(za), np.float32(rb * np.float32(zb)))
    return clipped(op, np.rint(_fma(a, ra, _fma(b, rb, fixed))) - _OFFSET)


@kernel("mul", "onnxruntime")
def _mul(op: Op, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """QLinearMul."""
    return _product(op, op.x, a, op.inputs[1], b)


def _product(op: Op, tensor: Tensor, codes: np.ndarray, other: Tensor, others: np.ndarray) -> np.ndarray:
    """``rint(float32(product * float32(float32(sa * sb) / sy)) + z)``: z is added before rounding."""
    products = (_centred(tensor, codes, np.int32) * _centred(other, others, np.int32)).astype(np.float32)
    factor = np.float32(tensor.scale * other.scale) / op.y.scale
    return clipped(op, np.rint(products * factor + np.float32(op.y.zero_point + _OFFSET)) - _OFFSET)


# One operand -----------------------------------------------------------------------------------------------------------------


def _dequantized(tensor: Tensor, codes: np.ndarray) -> np.ndarray:
    return _centred(tensor, codes, np.float32) * tensor.scale


def _quantized(op: Op, real: np.ndarray) -> np.ndarray:
    """``rint(x / s) + z``."""
    return clipped(op, np.rint(real / op.y.scale) + op.y.zero_point)


@kernel("relu", "onnxruntime")
def _table(op: Op, x: np.ndarray) -> np.ndarray:
    """A table of 256 entries, each the code of the function of what a code stands for."""
    return _quantized(op, KINDS.get(op.kind).real(op, _dequantized(op.x, x)))


@kernel("unary", "onnxruntime")
def _unary(op: Op, x: np.ndarray) -> np.ndarray:
    """A table; squares are products."""
    return _product(op, op.x, x, op.x, x) if op.attrs["function"] == "square" else _table(op, x)


def exponentials(op: Op) -> np.ndarray:
    """QLinearSoftmax' table: exp((t - i) * s) for i from 0 to 255, rounded to float32.

    The shift t keeps the sum of a row within float32: ``max(log(float32(largest / n)) - 5, 0) / s``.
    """
    scale, count = np.float64(op.x.scale), np.float32(op.x.shape[op.attrs["axis"]] or 1)
    shift = max(float(np.log(np.finfo(np.float32).max / count)) - 5, 0.0) / scale
    return np.asarray(np.exp((shift - np.arange(256)) * scale).astype(np.float32))


@kernel("softmax", "onnxruntime")
def _softmax(op: Op, x: np.ndarray) -> np.ndarray:
    """QLinearSoftmax at scale 1 / 256: ``rint(e * 256 / sum(e))``, with the sum in float32, one number after the other."""
    axis = op.attrs["axis"]
    entries = exponentials(op)[x.max(axis=axis, keepdims=True) - x]
    total = np.add.accumulate(entries, axis=axis, dtype=np.float32).take([-1], axis=axis)
    return clipped(op, np.rint(entries * np.float32(256) / total) + op.y.zero_point)


# Windows ------------------------------------------------------------------------------------------------------------------------


@kernel("mean", "onnxruntime")
def _mean(op: Op, x: np.ndarray) -> np.ndarray:
    """QLinearGlobalAveragePool."""
    return _integer_mean(op, x, tuple(op.attrs["axes"]), op.attrs["keepdims"])


def _integer_mean(op: Op, x: np.ndarray, axes: tuple[int, ...], keepdims: bool) -> np.ndarray:
    """``rint(float32(sum) * float32(sx / float32(sy * count))) + zy``."""
    sums = _centred(op.x, x, np.int64).sum(axis=axes, keepdims=keepdims)
    count = np.float32(np.prod([x.shape[axis] for axis in axes]))
    factor = np.float32(op.x.scale / np.float32(op.y.scale * count))
    return clipped(op, np.rint(sums.astype(np.float32) * factor) + op.y.zero_point)


@kernel("avg_pool2d", "onnxruntime")
def _avg_pool2d(op: Op, x: np.ndarray) -> np.ndarray:
    """QLinearAveragePool: the mean of real numbers, ``rint(x / s + z)``; z is added before rounding.

    A window that is the whole image goes to the kernel of `_mean`.
    """
    if tuple(op.attrs["pool"]) == x.shape[1:3] and not any(op.attrs["pads"]):
        return _integer_mean(op, x, (1, 2), True)
    views = windows(op, _dequantized(op.x, x), 0)
    total = np.zeros((*views.shape[:3], views.shape[5]), np.float32)
    for i in range(views.shape[3]):
        for j in range(views.shape[4]):
            total = total + views[:, :, :, i, j]
    mean = total / window_counts(op, x.shape)[..., None].astype(np.float32)
    return clipped(op, np.rint(mean / op.y.scale + np.float32(op.y.zero_point + _OFFSET)) - _OFFSET)


# Resizing ----------------------------------------------------------------------------------------------------------------------


@kernel("resize_bilinear", "onnxruntime")
def _resize_bilinear(op: Op, x: np.ndarray) -> np.ndarray:
    """Resize in real numbers: ``(d2 * e2) * x11 + (d1 * e2) * x21 + (d2 * e1) * x12 + (d1 * e1) * x22``, in that order."""
    real = _dequantized(op.x, x)
    if tuple(op.attrs["size"]) == x.shape[1:3]:
        return _quantized(op, real)
    (top, bottom, e1, e2), (left, right, d1, d2) = (bilinear_places(op, x.shape, axis) for axis in (1, 2))
    above, below = real.take(top, 1), real.take(bottom, 1)
    total = (d2 * e2) * above.take(left, 2) + (d1 * e2) * above.take(right, 2)
    total = total + (d2 * e1) * below.take(left, 2)
    return _quantized(op, total + (d1 * e1) * below.take(right, 2))


def resize_factor(n: int, size: int) -> np.float32:
    """The float32 factor that takes n elements to `size`: the least from size / n up whose product with n isn't below it."""
    factor = np.float32(size / n)
    while float(factor) * n < size:
        factor = np.nextafter(factor, np.float32(np.inf))
    return factor


def bilinear_places(op: Op, given: tuple[int | None, ...], axis: int) -> tuple[np.ndarray, ...]:
    """Along an axis (the neighbours before, those after, the distances to them), with half-pixel centres.

    Where both neighbours are one element, as in all rows where the height stays, the distances are a half.
    """
    n, size = int(given[axis] or 0), int(op.attrs["size"][axis - 1])
    at = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / resize_factor(n, size) - np.float32(0.5)
    at = at.clip(0, n - 1)
    low = np.floor(at).astype(int)
    high = low if axis == 1 and size == n else np.minimum(low + 1, n - 1)
    before, after = (
        np.where(low == high, np.float32(0.5), np.abs(at - side.astype(np.float32))) for side in (low, high)
    )
    shape = [-1 if i == axis else 1 for i in range(4)]
    return low, high, before.reshape(shape), after.reshape(shape)
