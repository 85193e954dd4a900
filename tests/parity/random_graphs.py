"""Random graphs of several layers, branches among them, the same from every seed; they belong to no target.

Every kind of operation that a target has an integer kernel for may come, on images of changing size; `LAYERS` is the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from qi.core import IntGrid, QParams
from qi.ir.graph import QGraph, Tensor
from qi.ir.validate import validate
from qi.registry import Registry
from tests.parity.operations import BATCH, Draft, window

__all__ = ["LAYERS", "graphs", "random_graph"]

LAYERS: Registry[Callable[[Builder, Tensor], Any]] = Registry("layer of random graphs")
_INT8 = IntGrid(8)
_PROBABILITY = QParams(np.float32(1 / 256), -128, _INT8)
_FIXED = {"sigmoid": _PROBABILITY, "tanh": QParams(np.float32(1 / 128), 0, _INT8)}
_SLOPES = {"leaky_relu": 0.2, "elu": 1.0}
_STEEP = 8  # beyond it, the exponential of a number is none that anybody wants in eight bits
_LARGEST, _MOST = 9, 900  # sides, and numbers, of an image that still may grow


def graphs(count: int, seed: int = 0) -> Iterator[tuple[str, QGraph]]:
    """So many of them, as (name, graph)."""
    for i in range(seed, seed + count):
        yield f"graph-{i}", random_graph(i)


def random_graph(seed: int) -> QGraph:
    """From one image, or indices besides, to five numbers, and to whatever nothing else takes."""
    b = Builder(seed)
    layers = [LAYERS.get(name) for name in LAYERS.names()]
    for _ in range(b.size(4, 14)):
        recent = [t for t in b.live[-3:] if math.prod(b.image(t)) <= _MOST] or b.live[:1]
        b.pick(*layers)(b, b.pick(*recent))
    x = b.live[-1]
    flat = b.add("reshape", [x], x.qparams, shape=[None, math.prod(b.image(x))])
    w = b.weight((int(flat.shape[1] or 0), 5), 1)
    b.add("dense", [flat, w, *b.bias(flat, w, 5)], activation="none")
    return b.done()


class Builder(Draft):
    """A graph in the making, and the dice.

    Attributes:
        live: the images so far.
    """

    def __init__(self, seed: int) -> None:
        super().__init__("graph", seed)
        size, self._count = self.size(4, 9), 0
        self.live = [self.input([size, size, self.size(1, 8)])]

    def image(self, x: Tensor) -> tuple[int, ...]:
        """Height, width and channels."""
        return tuple(int(n or 0) for n in x.shape[1:])

    def activation(self) -> str:
        """One that may be fused."""
        return str(self.pick("none", "relu", "relu6"))

    def named(self, tensor: Tensor) -> Tensor:
        """With a name that nothing has."""
        self._count += 1
        tensor.name = f"{tensor.name}_{self._count}"
        return tensor

    def weight(self, shape: tuple[int, ...], axis: int, bits: int = 8) -> Tensor:
        """As for a single operation, with a name of its own; so the bias."""
        return self.named(super().weight(shape, axis, bits))

    def bias(self, x: Tensor, w: Tensor, channels: int) -> list[Tensor]:
        """int32 at the scale of the sums; sometimes none."""
        return [self.named(t) for t in super().bias(x, w, channels)]

    def add(self, kind: str, inputs: list[Tensor], qparams: QParams | None = None, **attrs: Any) -> Tensor:
        """An operation; its output's scale fits, more or less, where none is given."""
        self.op(kind, inputs, qparams, **attrs)
        y = self.named(self.graph.outputs.pop())
        self.graph.ops[-1].source = f"layer_{self._count}"
        low, high = ((code - y.zero_point) * y.scale for code in (y.grid.qmin, y.grid.qmax))
        self.real[id(y)] = self.real[id(y)].clip(low, high)
        if len(y.shape) == 4:
            self.live.append(y)
        return y

    def done(self) -> QGraph:
        """The graph, valid."""
        used = {id(t) for op in self.graph.ops for t in op.inputs}
        self.graph.outputs = [op.y for op in self.graph.ops if id(op.y) not in used]
        validate(self.graph)
        return self.graph


def _layer(function: Callable[[Builder, Tensor], Any]) -> None:
    LAYERS.register(function.__name__.strip("_"))(function)


def _window(b: Builder, x: Tensor) -> tuple[tuple[int, int], dict[str, Any]]:
    """(Size of a kernel, how it goes over an image)."""
    image, kernel = list(b.image(x)[:2]), (b.size(1, 3), b.size(1, 3))
    stride = b.pick((1, 1), (1, 1), (2, 2), (2, 1)) if min(image) > 2 else (1, 1)
    dilation = b.pick((1, 1), (1, 1), (2, 2), (1, 2)) if stride == (1, 1) else (1, 1)
    pads = window(b, image, kernel, stride, dilation)
    return kernel, {"strides": list(stride), "pads": pads, "dilation": list(dilation), "activation": b.activation()}


@_layer
def _convolution(b: Builder, x: Tensor) -> None:
    (kernel, attrs), given = _window(b, x), b.image(x)[2]
    groups = b.pick(1, 1, *(n for n in (2, 3) if given % n == 0))
    count = groups * b.size(1, 8)
    w = b.weight((*kernel, given // groups, count), 3, b.pick(8, 8, 4))
    b.add("conv2d", [x, w, *b.bias(x, w, count)], groups=groups, **attrs)


@_layer
def _depthwise(b: Builder, x: Tensor) -> None:
    (kernel, attrs), count = _window(b, x), b.image(x)[2] * b.pick(1, 1, 2)
    w = b.weight((*kernel, count), 2, b.pick(8, 8, 4))
    b.add("depthwise_conv2d", [x, w, *b.bias(x, w, count)], **attrs)


@_layer
def _transposed(b: Builder, x: Tensor) -> None:
    if max(b.image(x)[:2]) > _LARGEST:
        return
    count, stride = b.size(1, 5), b.pick(1, 2)
    pads = [0, 1, 0, 1] if stride == 2 else [1, 1, 1, 1]
    w = b.weight((3, 3, count, b.image(x)[2]), 2)
    attrs = {"strides": [stride] * 2, "pads": pads, "dilation": [1, 1], "activation": b.activation()}
    b.add("conv2d_transpose", [x, w, *b.bias(x, w, count)], **attrs)


@_layer
def _dense(b: Builder, x: Tensor) -> None:
    """Of every pixel."""
    count, bits = b.size(1, 9), b.pick(8, 4, 2)
    w = b.weight((b.image(x)[2], count), 1, bits)
    b.add("dense", [x, w, *b.bias(x, w, count)], activation=b.activation())


@_layer
def _binary(b: Builder, x: Tensor) -> None:
    """With an image, itself perhaps, or a constant for each channel."""
    other = b.pick(*(t for t in b.live if t.shape == x.shape))
    if b.pick(True, False, False):
        size = (b.image(x)[2],)
        codes = b.rng.integers(-127, 128, size).astype(np.int8)
        other = b.named(Tensor("c", size, qparams=QParams(b.scale(), 0, _INT8), data=codes))
    b.add(b.pick("add", "sub", "mul"), [x, other], activation=b.activation())


@_layer
def _extreme(b: Builder, x: Tensor) -> None:
    other = b.pick(*(t for t in b.live if t.shape == x.shape and t.qparams == x.qparams))
    if other is x:
        other = b.add("reverse", [x], x.qparams, axis=2)
    b.add(b.pick("maximum", "minimum"), [x, other], x.qparams)


@_layer
def _concat(b: Builder, x: Tensor) -> None:
    """Along the channels; another scale is brought to this one before."""
    other = b.pick(*(t for t in b.live if t.shape[:3] == x.shape[:3]))
    if other.qparams != x.qparams:
        other = b.add("quantize", [other], x.qparams)
    b.add("concat", [x, other], x.qparams, axis=3)


@_layer
def _pool(b: Builder, x: Tensor) -> None:
    moves = x.qparams if b.pick(True, False) else None
    x = b.add("avg_pool2d", [x], moves, pool=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    if min(b.image(x)[:2]) > 1:
        b.add("max_pool2d", [x], x.qparams, pool=[2, 2], strides=[2, 2], pads=[0, 0, 0, 0])


@_layer
def _function(b: Builder, x: Tensor) -> None:
    names = ["leaky_relu", "sigmoid", "tanh", "hard_swish", "abs", "gelu", "gelu_tanh", "elu"]
    name = b.pick(*names, *(["exp"] if b.real[id(x)].max(initial=0) < _STEEP else []))
    b.add("unary", [x], _FIXED.get(name), function=name, alpha=_SLOPES.get(name))


@_layer
def _relu(b: Builder, x: Tensor) -> None:
    if b.pick(True, False):
        b.add("relu", [x], max_value=b.pick(None, 6.0))
        return
    size = (1, 1, b.image(x)[2])
    codes = b.rng.integers(-127, 128, size).astype(np.int8)
    b.add("prelu", [x, b.named(Tensor("alpha", size, qparams=QParams(np.float32(0.004), 0, _INT8), data=codes))])


@_layer
def _gate(b: Builder, x: Tensor) -> None:
    """Each channel times a number of its own, as squeeze-and-excitation does."""
    what = b.pick("mean", "mean", "max")
    part = b.add(what, [x], x.qparams if what == "max" else None, axes=[1, 2], keepdims=True)
    factor = b.add("unary", [part], _PROBABILITY, function="sigmoid", alpha=None)
    b.add("mul", [x, factor], activation="none")


@_layer
def _attention(b: Builder, x: Tensor) -> None:
    """Every row of pixels looks at itself and at a row that is as long."""
    other = b.pick(*(t for t in b.live if t.shape == x.shape))
    scores = b.add("batch_matmul", [x, other], transpose_a=False, transpose_b=True)
    shares = b.add("softmax", [scores], _PROBABILITY, axis=3)
    b.add("batch_matmul", [shares, x], transpose_a=False, transpose_b=False)


@_layer
def _resize(b: Builder, x: Tensor) -> None:
    h, w, _ = b.image(x)
    if max(h, w) <= _LARGEST:
        b.add("resize_nearest", [x], x.qparams, factors=[b.size(1, 2), b.size(1, 2)])
        b.add("resize_bilinear", [x], x.qparams, size=[h * b.size(1, 2), w * b.size(1, 2)])


@_layer
def _move(b: Builder, x: Tensor) -> None:
    h, w, c = b.image(x)
    kind = b.pick("transpose", "reshape", "tile", "reverse", "pad", "slice", "broadcast")
    attrs: dict[str, Any] = {
        "transpose": {"perm": b.pick([0, 2, 1, 3], [0, 3, 1, 2])},
        "reshape": {"shape": b.pick([None, h * w, 1, c], [None, 1, h, w * c])},
        "tile": {"multiples": [1, b.size(1, 2), 1, b.size(1, 2)]},
        "reverse": {"axis": b.pick(1, 2)},
        "pad": {"pads": [[0, 0], [1, 0], [0, 2], [0, 0]]},
        "slice": {"begin": [0, 0, w // 2, 0], "end": [None, h, w, c], "strides": [1, b.size(1, 2), 1, 1]},
        "broadcast": {"shape": [None, 3, 2, c]},
    }[kind]
    if kind == "broadcast":
        x = b.add("max", [x], x.qparams, axes=[1, 2], keepdims=True)
    b.add(kind, [x], x.qparams, **attrs)


@_layer
def _embedding(b: Builder, x: Tensor) -> None:
    """An image out of rows by indices, which are another input of the graph; x is left as it is."""
    del x
    rows, columns, length = b.size(2, 30), b.size(1, 12), b.size(1, 6)
    qparams, ids = QParams(b.scale(), 0, _INT8), b.named(Tensor("ids", (None, length), "int32"))
    codes = b.rng.integers(-127, 128, (rows, columns)).astype(np.int8)
    b.graph.inputs.append(ids)
    b.real[id(ids)] = b.rng.integers(0, rows, (BATCH, length)).astype(np.int32)
    found = b.add("embedding", [ids, b.named(Tensor("table", codes.shape, qparams=qparams, data=codes))], qparams)
    b.add("reshape", [found], qparams, shape=[None, 1, length, columns])
