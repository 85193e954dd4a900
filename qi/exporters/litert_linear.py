"""Convolutions and products in a LiteRT file."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from qi.core import IntGrid, PerChannel, PerGroup, QParams
from qi.exporters.litert_file import Draft
from qi.exporters.litert_ops import activation, refuse, strided_slice, window, writer
from qi.ir.arithmetic import scale_of_sums
from qi.ir.dynamic import KIND as DYNAMIC
from qi.ir.graph import Op, Tensor
from qi.ir.litert import weight_bits

__all__ = ["weight"]

# The axes of our weights in LiteRT's order, and the one of its channels there.
_LAYOUTS = {
    "conv2d": ((3, 0, 1, 2), 0),
    "depthwise_conv2d": ((0, 1, 2), 3),
    "conv2d_transpose": ((2, 0, 1, 3), 0),
    "dense": ((1, 0), 0),
    DYNAMIC: ((1, 0), 0),
}


def weight(draft: Draft, op: Op) -> int:
    """The weights' constant: packed where there are kernels for that, and real numbers where the operation is in those."""
    w = op.inputs[1]
    if w.data is None:
        raise refuse(op, "with weights that are computed", "give it constant ones")
    if w.qparams is None or not (_has_type(w) or op.quantized):
        return draft.constant(w.name, np.ascontiguousarray(_laid(op, w.values()), np.float32))
    if op.quantized and not _has_type(w):
        raise refuse(op, f"with weights {w}", "give the layer signed ones of at most 8 bits by a rule of the recipe")
    data, axis, bits = _laid(op, w.data), _LAYOUTS[op.kind][1], weight_bits(op)
    if w.grid.bits == 2 and bits == 8 and op.quantized:
        raise refuse(op, "with weights of 2 bits", "give the layer 4 or 8 bits by a rule of the recipe")
    if isinstance(w.qparams.granularity, PerGroup):
        return _grouped(draft, op, data.astype(np.int8), bits)
    count = data.shape[axis]
    scale, zero_point = (np.broadcast_to(a.reshape(-1), count) for a in (w.qparams.scale, w.qparams.zero_point))
    qparams = QParams(scale, zero_point, w.qparams.grid, PerChannel(0))
    codes = draft.constant(w.name, data.astype(np.int8), qparams, axis=axis, bits=bits)
    return codes if op.quantized or op.kind == DYNAMIC else _real(draft, w.name, codes, data.shape, bits)


def _laid(op: Op, data: np.ndarray) -> np.ndarray:
    """Weights with their axes as LiteRT has them."""
    data = data.transpose(_LAYOUTS[op.kind][0])
    if op.kind == "depthwise_conv2d":
        return data[None]
    return _spread(op, data) if op.kind == "conv2d_transpose" else data


def _has_type(w: Tensor) -> bool:
    """Whether LiteRT has a type for the codes; the values of others are written, where the operation takes these."""
    grid = w.qparams.grid if w.qparams is not None else None
    return isinstance(grid, IntGrid) and grid.signed and grid.bits <= 8


def _real(draft: Draft, name: str, codes: int, shape: tuple[int, ...], bits: int) -> int:
    """Real numbers of constant codes, which the runtime makes once."""
    y = draft.real(f"{name}/real", shape)
    draft.operator("DEQUANTIZE", [codes], [y], 5 if bits == 8 else 6)
    return y


def _grouped(draft: Draft, op: Op, data: np.ndarray, bits: int) -> int:
    """Real numbers of codes with a scale for each few of them along the inputs, which are the last axis.

    LiteRT has no scales of that form for every operation: the codes are made real at a scale of one and then multiplied, which is
    done at every run. Groups that don't divide the inputs are cut to such that do.
    """
    w = op.inputs[1]
    order, _ = _LAYOUTS[op.kind]
    scale, zero_point = (a.transpose(order) for a in w.qparams.expanded(w.shape))  # type: ignore[union-attr, arg-type]
    size = math.gcd(w.qparams.granularity.size, data.shape[-1])  # type: ignore[union-attr]
    if op.kind not in ("conv2d", "dense") or zero_point.any():
        raise refuse(op, f"with weights of {w.qparams.granularity}", "give it one scale for each channel")  # type: ignore[union-attr]
    shape = (*data.shape[:-1], data.shape[-1] // size, size)
    one = QParams(np.ones(()), np.zeros(()), w.grid)
    real = _real(draft, w.name, draft.constant(w.name, data.reshape(shape), one, bits=bits), shape, bits)
    factors = draft.constant(f"{w.name}/scales", np.ascontiguousarray(scale[..., ::size, None]))
    scaled, whole = draft.real(f"{w.name}/scaled", shape), draft.real(f"{w.name}/whole", data.shape)
    draft.operator("MUL", [real, factors], [scaled], 1, draft.options("MulOptions"))
    sizes = draft.numbers(f"{w.name}/sizes", data.shape)
    draft.operator("RESHAPE", [scaled, sizes], [whole], 1, draft.options("ReshapeOptions", newShape=list(data.shape)))
    return whole


def _bias(draft: Draft, op: Op) -> int:
    """The bias, which LiteRT's convolutions want in any case."""
    w, count = op.inputs[1], int(op.y.shape[-1] or 0)
    given = op.inputs[2] if len(op.inputs) > 2 else None
    name = given.name if given is not None else f"{op.y.name}/bias"
    if not op.quantized:
        return draft.constant(name, np.zeros(count, np.float32) if given is None else given.values())
    data = np.zeros(count, np.int32) if given is None or given.data is None else given.data
    scale = np.broadcast_to(scale_of_sums(op.x, w), data.shape)
    return draft.constant(name, data, QParams(scale, np.zeros(data.shape), IntGrid(8), PerChannel(0)))


def _version(op: Op) -> int:
    """3 is enough for int8 and int4, though converters stamp 7 for the latter, which the reference kernels don't know."""
    return 3 if op.quantized else 1


@writer("conv2d")
def _conv2d(draft: Draft, op: Op) -> None:
    w = op.inputs[1]
    x, how = window(draft, op, (w.shape[0], w.shape[1]))  # type: ignore[arg-type]
    options = draft.options("Conv2DOptions", padding=how, fusedActivationFunction=activation(draft, op), **_steps(op))
    inputs = [x, weight(draft, op), _bias(draft, op)]
    draft.operator("CONV_2D", inputs, [draft.tensor(op.y)], _version(op), options)


def _steps(op: Op) -> dict[str, Any]:
    (sh, sw), (dh, dw) = op.attrs["strides"], op.attrs["dilation"]
    return {"strideH": sh, "strideW": sw, "dilationHFactor": dh, "dilationWFactor": dw}


@writer("depthwise_conv2d")
def _depthwise_conv2d(draft: Draft, op: Op) -> None:
    w, channels = op.inputs[1], op.x.shape[-1]
    x, how = window(draft, op, (w.shape[0], w.shape[1]))  # type: ignore[arg-type]
    options = draft.options(
        "DepthwiseConv2DOptions",
        padding=how,
        depthMultiplier=(w.shape[2] or 1) // (channels or 1),
        fusedActivationFunction=activation(draft, op),
        **_steps(op),
    )
    inputs = [x, weight(draft, op), _bias(draft, op)]
    draft.operator("DEPTHWISE_CONV_2D", inputs, [draft.tensor(op.y)], _version(op), options)


@writer("dense", DYNAMIC)
def _dense(draft: Draft, op: Op) -> None:
    dynamic = op.kind == DYNAMIC  # told by the types: real activations, codes as weights
    options = draft.options(
        "FullyConnectedOptions",
        fusedActivationFunction=activation(draft, op),
        keepNumDims=len(op.x.shape) != 2,
        asymmetricQuantizeInputs=dynamic,
    )
    inputs = [draft.tensor(op.x), weight(draft, op), _bias(draft, op)]
    # 4 is enough for int8, int4 and int2 with a scale for each channel, though converters stamp 5 to 12.
    version = 4 if op.quantized or dynamic else 2 if options.keepNumDims else 1
    draft.operator("FULLY_CONNECTED", inputs, [draft.tensor(op.y)], 5 if version == 2 else version, options)


@writer("conv2d_transpose")
def _conv2d_transpose(draft: Draft, op: Op) -> None:
    """The shape of its output is an input, and holds the batch: XNNPACK takes its height and width only."""
    (sh, sw), pads, (kh, kw) = op.attrs["strides"], op.attrs["pads"], _reach(op)
    if any(n is None for n in (*op.x.shape[1:], *op.y.shape[1:])):
        raise refuse(op, f"on an image of open size {op.x.shape}", "give the model an Input of fixed sizes")
    same = [part for k, s in ((kh, sh), (kw, sw)) for part in ((k - s) // 2, (k - s) - (k - s) // 2)]
    how = "SAME" if list(pads) == same and kh >= sh and kw >= sw else "VALID"
    # Without "same" padding it gives all that its windows reach, and what more is asked for; the rest is cut off.
    cut = how == "VALID" and any(pad > 0 for pad in pads)
    shape: list[int | None] = list(op.y.shape)
    if cut:
        shape[1:3] = [
            int(n or 0) + max(a, 0) + max(b, 0) for n, a, b in zip(op.y.shape[1:3], pads[::2], pads[1::2], strict=True)
        ]
    if how == "VALID" and (-pads[1] >= sh or -pads[3] >= sw):
        raise refuse(op, f"with pads {pads}", "use padding='same' or 'valid'")
    y = draft.new(f"{op.y.name}/whole", shape, op.y) if cut else draft.tensor(op.y)
    options = draft.options(
        "TransposeConvOptions",
        padding=getattr(draft.fb.Padding, how),
        strideH=sh,
        strideW=sw,
        fusedActivationFunction=activation(draft, op),
    )
    out = draft.numbers(f"{op.y.name}/shape", [1 if n is None else int(n) for n in shape])
    draft.operator("TRANSPOSE_CONV", [out, weight(draft, op), draft.tensor(op.x), _bias(draft, op)], [y], 3, options)
    if cut:
        begin = [0, max(pads[0], 0), max(pads[2], 0), 0]
        strided_slice(
            draft,
            op,
            y,
            begin,
            [None, *(b + int(n or 0) for b, n in zip(begin[1:], op.y.shape[1:], strict=True))],
            [1] * 4,
        )


def _reach(op: Op) -> tuple[int, int]:
    """Height and width of the window, dilation considered."""
    kh, kw = ((k or 0) - 1 for k in op.inputs[1].shape[:2])
    return kh * op.attrs["dilation"][0] + 1, kw * op.attrs["dilation"][1] + 1


def _spread(op: Op, data: np.ndarray) -> np.ndarray:
    """The weights of a dilated transposed convolution, [.., height, width, ..], with the zeros between them."""
    (dh, dw), (count, _, _, channels) = op.attrs["dilation"], data.shape
    whole = np.zeros((count, *_reach(op), channels), data.dtype)
    whole[:, ::dh, ::dw] = data
    return whole
