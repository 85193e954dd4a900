"""Transposed convolutions in an ONNX file: as ordinary ones where integers are wanted."""

from __future__ import annotations

import numpy as np

from qi.core import PerChannel, QParams
from qi.exporters.onnx_builder import FIRST, Builder, constant_data, writer
from qi.exporters.onnx_linear import attributes_of
from qi.exporters.onnx_packed import finish, source, whole
from qi.exporters.onnx_weights import bias, weight
from qi.ir.graph import Op, Tensor

__all__: list[str] = []


@writer("conv2d_transpose")
def _conv2d_transpose(b: Builder, op: Op) -> None:
    """In integers: as convolutions, for ONNX Runtime has no integer kernel for ConvTranspose."""
    if op.quantized:
        _by_phases(b, op)
        return
    x, w = op.inputs[:2]
    kernel = weight(b, w, lambda a: a.transpose(3, 2, 0, 1), 1)
    attributes = attributes_of(op)
    # Pads below zero: rows beyond the reach of the windows, which hold the bias alone.
    attributes["output_padding"] = [max(0, -n) for n in attributes["pads"][2:]]
    attributes["pads"] = [max(0, n) for n in attributes["pads"]]
    b.finish(op, b.node("ConvTranspose", [b.real(x, FIRST), kernel, *bias(b, op)], **attributes), FIRST)


def _by_phases(b: Builder, op: Op) -> None:
    """One convolution that gives the s * s outputs between two inputs as channels, which are then moved into place.

    Along one axis, ``y[q * s + r] = sum_m x[q - m] * w[r + m * s]``: for each phase r a convolution with every s-th weight, in
    reverse order. No product is done that the transposed convolution doesn't need, save for what fills up uneven kernels.
    """
    x, w, y = *op.inputs[:2], op.y
    strides = op.attrs["strides"]
    codes = _phases(_dilated(constant_data(w), op.attrs["dilation"]), strides)
    count, phases = int(y.shape[3] or 0), strides[0] * strides[1]
    spans = [_Span(op, axis, codes.shape[axis]) for axis in (0, 1)]
    unit = whole(op)
    kernel = weight(b, _with_codes(w, codes, phases), lambda a: a.transpose(3, 2, 0, 1), 0, unit=unit)
    shape = (None, *(span.count for span in spans), count * phases)
    deep = Tensor(f"{y.name}:phases", shape, y.dtype, y.qparams)
    inner = Op(op.kind, [x, w, *(_repeated(t, phases) for t in op.inputs[2:])], [deep], op.attrs, op.source)
    pads = [span.before for span in spans] + [span.after for span in spans]
    inputs = [source(b, op, _cropped(b, x, spans), FIRST), kernel, *bias(b, inner, phases, unit=unit)]
    finish(b, inner, b.node("Conv", inputs, kernel_shape=list(codes.shape[:2]), pads=pads), FIRST, phases)
    moved = b.codes(deep, FIRST)
    if phases > 1:
        # [n, (r, t, c), h, w] -> [n, c, (h, r), (w, t)]
        h, v = spans[0].count, spans[1].count
        moved = b.node("Reshape", [moved, b.indices([0, *strides, count, h, v])])
        moved = b.node("Transpose", [moved], perm=[0, 3, 4, 1, 5, 2])
        moved = b.node("Reshape", [moved, b.indices([0, count, h * strides[0], v * strides[1]])])
    starts = [span.skipped for span in spans]
    sizes = [span.size for span in spans]
    if starts != [0, 0] or [s.count * t for s, t in zip(spans, strides, strict=True)] != sizes:
        ends = [start + size for start, size in zip(starts, sizes, strict=True)]
        moved = b.node("Slice", [moved, b.indices(starts), b.indices(ends), b.indices([2, 3])])
    b.put_codes(y, moved, FIRST)


class _Span:
    """The places along one axis that `_by_phases` computes.

    Attributes:
        count: how many, each of which holds the outputs of all phases.
        before: padding, likewise after; never below zero.
        crop: how many inputs at the start, and at the end, no place needs.
        skipped: outputs in front of the first that is asked for.
        size: of the output.
    """

    def __init__(self, op: Op, axis: int, taps: int) -> None:
        stride, begin = op.attrs["strides"][axis], op.attrs["pads"][2 * axis]
        self.size, n = int(op.y.shape[axis + 1] or 0), int(op.x.shape[axis + 1] or 0)
        first = begin // stride
        self.count = (begin + self.size - 1) // stride - first + 1
        self.skipped = begin - first * stride
        before = taps - 1 - first
        after = self.count - n - before + taps - 1
        self.before, self.after = max(0, before), max(0, after)
        self.crop = (max(0, -before), max(0, -after))


def _cropped(b: Builder, x: Tensor, spans: list[_Span]) -> Tensor:
    """The input of the convolution, without what no output needs."""
    if not any(any(span.crop) for span in spans):
        return x
    starts, sizes = [span.crop[0] for span in spans], [int(n or 0) for n in x.shape[1:3]]
    ends = [n - span.crop[1] for n, span in zip(sizes, spans, strict=True)]
    part = Tensor(
        f"{x.name}:part", (None, *(e - s for s, e in zip(starts, ends, strict=True)), x.shape[3]), x.dtype, x.qparams
    )
    b.put_codes(
        part, b.node("Slice", [b.codes(x, FIRST), b.indices(starts), b.indices(ends), b.indices([2, 3])]), FIRST
    )
    return part


def _dilated(codes: np.ndarray, dilation: list[int]) -> np.ndarray:
    """A kernel with the zeros between its weights."""
    sizes = [(n - 1) * d + 1 for n, d in zip(codes.shape[:2], dilation, strict=True)]
    spread = np.zeros((*sizes, *codes.shape[2:]), codes.dtype)
    spread[:: dilation[0], :: dilation[1]] = codes
    return spread


def _phases(codes: np.ndarray, strides: list[int]) -> np.ndarray:
    """[kh, kw, out, in] as [taps, taps, in, (phase down, phase across, out)]."""
    (sh, sw), (kh, kw, out, given) = strides, codes.shape
    th, tw = -(-kh // sh), -(-kw // sw)
    full = np.zeros((th * sh, tw * sw, out, given), codes.dtype)
    full[:kh, :kw] = codes
    split = full.reshape(th, sh, tw, sw, out, given)[::-1, :, ::-1]
    return split.transpose(0, 2, 5, 1, 3, 4).reshape(th, tw, given, sh * sw * out)


def _with_codes(w: Tensor, codes: np.ndarray, repeat: int) -> Tensor:
    """The weight of a convolution, its scales those of w for each phase."""
    scale = np.broadcast_to(w.scales(), codes.shape[3] // repeat)
    scale = np.tile(scale, repeat).reshape(1, 1, 1, -1)
    qparams = QParams(scale, np.zeros(scale.shape), w.grid, PerChannel(3))
    return Tensor(w.name, codes.shape, w.dtype, qparams, codes)


def _repeated(bias: Tensor, repeat: int) -> Tensor:
    data = np.tile(constant_data(bias), repeat)
    return Tensor(bias.name, data.shape, bias.dtype, bias.qparams, data)
