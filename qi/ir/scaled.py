"""Factors and shifts by channel, such as a normalization's, as a depthwise convolution of one pixel.

With a factor ``a`` and a shift ``b`` of a channel, the weight is 127 (or -127) at a scale of ``|a| / 127``, which is the factor
itself, and the bias ``b`` is rounded to that scale times the input's: by at most a 254th part of what one step of the input
makes. (Beside a shift of more than 30000 such steps the scale is larger, and the factor rounded: by less than a hundredth of
a step of the output.) Every runtime has an integer kernel for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from qi.core import IntGrid, PerChannel, QParams
from qi.ir.graph import Op, QGraph, Tensor

__all__ = ["scaled"]

_TOP = 127
_LARGEST_BIAS = 2.0**22  # steps: with it, sums are exact in float32
_LEAST_FACTOR = 2.0**-20  # steps of the output for one of the sums: what is below it is nothing
_LAYER = {"strides": [1, 1], "pads": [0, 0, 0, 0], "dilation": [1, 1]}


def scaled(graph: QGraph, chain: Sequence[Op], native: Callable[[Op], bool]) -> list[Op]:
    """The operations that do what a chain does, from the same tensor to the same; none where it isn't of that form.

    Args:
        graph: for names.
        chain: functions of one tensor of codes, one after the other, ending in codes (`qi.ir.tables`).
        native: whether the target does an operation on codes in integers.
    """
    x, y = next(t for t in chain[0].inputs if not t.constant), chain[-1].y
    line = _line(chain, len(x.shape))
    sizes = x.shape[1:]
    if line is None or len(sizes) == 0 or any(n is None for n in sizes) or max(part.size for part in line) == 1:
        return []
    channels = int(sizes[-1] or 0)
    made = _constants(graph, x, y, *(np.broadcast_to(part.reshape(-1), (channels,)) for part in line))
    activations = [op.attrs.get("activation", "none") for op in chain]
    attrs = {**_LAYER, "activation": next((name for name in activations if name != "none"), "none")}
    source = chain[0].source
    if len(x.shape) == 4:
        convolution = Op("depthwise_conv2d", [x, *made], [y], attrs, source)
        return [convolution] if native(convolution) else []
    image = (None, 1, math.prod(int(n or 0) for n in sizes[:-1]), channels)
    before, after = (
        Tensor(graph.unique(f"{y.name}/{name}"), image, t.dtype, t.qparams) for name, t in (("image", x), ("scaled", y))
    )
    convolution = Op("depthwise_conv2d", [before, *made], [after], attrs, source)
    there = Op("reshape", [x], [before], {"shape": list(image)}, source)
    back = Op("reshape", [after], [y], {"shape": list(y.shape)}, source)
    return [there, convolution, back] if native(convolution) else []


def _line(chain: Sequence[Op], rank: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(factor, shift) of the chain, in double precision; None where it is no line, or constants differ within a channel."""
    a, b = np.ones(1), np.zeros(1)
    for i, op in enumerate(chain):
        if op.kind == "quantize":
            continue
        constants = [t for t in op.inputs if t.constant]
        if op.kind not in ("add", "sub", "mul") or len(op.inputs) != 2:
            return None
        c = constants[0].values().astype(np.float64)
        last = all(later.kind == "quantize" for later in chain[i + 1 :])
        if c.ndim > rank or any(n != 1 for n in c.shape[:-1]) or (op.attrs["activation"] != "none" and not last):
            return None
        c = c.reshape(-1)
        if op.kind == "mul":
            a, b = a * c, b * c
        elif op.kind == "add":
            b = b + c
        else:
            a, b = (-a, c - b) if op.x.constant else (a, b - c)
    return a, b


def _constants(graph: QGraph, x: Tensor, y: Tensor, a: np.ndarray, b: np.ndarray) -> list[Tensor]:
    """Weights and bias."""
    sx = np.float64(x.scale)
    least = np.float64(y.scale) / sx * _LEAST_FACTOR
    scale = np.maximum(np.maximum(np.abs(a) / _TOP, np.abs(b) / (sx * _LARGEST_BIAS)), least).astype(np.float32)
    codes = np.rint(a / scale).clip(-_TOP, _TOP).astype(np.int8)
    shift = np.rint(b / (x.scale * scale).astype(np.float64)).astype(np.int32)
    shape = (1, 1, a.size)
    qparams = QParams(scale.reshape(shape), np.zeros(shape), IntGrid(8, narrow=True), PerChannel(2))
    return [
        Tensor(graph.unique(f"{y.name}/factor"), shape, "float32", qparams, codes.reshape(shape)),
        Tensor(graph.unique(f"{y.name}/shift"), shift.shape, "int32", data=shift),
    ]
