"""Random graphs of several layers, branches among them, the same from every seed; they belong to no target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qi.core import IntGrid, PerChannel, QParams
from qi.ir.graph import Op, QGraph, Tensor
from qi.ir.validate import validate
from qi.registry import Registry

__all__ = ["LAYERS", "random_graph"]

LAYERS: Registry[Callable[[Builder, Tensor], Any]] = Registry("layer of random graphs")
_INT8 = IntGrid(8)
_LARGEST = 12


def random_graph(seed: int) -> QGraph:
    """From one image to five numbers, and to whatever nothing else takes."""
    builder = Builder(seed)
    for _ in range(builder.size(4, 12)):
        LAYERS.get(builder.pick(*LAYERS.names()))(builder, builder.live[-builder.size(1, min(3, len(builder.live)))])
    x = builder.live[-1]
    count = int(np.prod([int(n or 0) for n in x.shape[1:]]))
    flat = builder.add("reshape", [x], (count,), x.qparams, shape=[None, count])
    builder.add("dense", [flat, builder.weight((count, 5), 1), builder.bias(5)], (5,), activation="none")
    return builder.done()


class Builder:
    """A graph in the making, and the dice."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        size = self.size(4, 9)
        x = Tensor("x", (None, size, size, self.size(1, 8)))
        self.graph = QGraph(f"random_{seed}", [x], [], [])
        self.live: list[Tensor] = []
        self._count = 0
        self.add("quantize", [x], x.shape[1:])

    def size(self, low: int, high: int) -> int:
        """A number from low to high."""
        return int(self.rng.integers(low, high + 1))

    def pick(self, *options: Any) -> Any:
        """One of some options."""
        return options[int(self.rng.integers(len(options)))]

    def activation(self) -> str:
        """One that may be fused."""
        return str(self.pick("none", "relu", "relu6"))

    def name(self, kind: str) -> str:
        """A name that nothing has."""
        self._count += 1
        return f"{kind}_{self._count}"

    def weight(self, shape: tuple[int, ...], axis: int) -> Tensor:
        """Codes with a scale for each channel."""
        along = [n if i == axis else 1 for i, n in enumerate(shape)]
        scale = self.rng.uniform(0.002, 0.01, along).astype(np.float32)
        qparams = QParams(scale, np.zeros(along), IntGrid(8, narrow=True), PerChannel(axis))
        return Tensor(self.name("w"), shape, qparams=qparams, data=self.rng.integers(-127, 128, shape).astype(np.int8))

    def bias(self, count: int) -> Tensor:
        """int32 at the scale of the sums."""
        return Tensor(self.name("b"), (count,), "int32", data=self.rng.integers(-5000, 5000, count).astype(np.int32))

    def other(self, x: Tensor, same: Callable[[Tensor], bool]) -> Tensor:
        """One of the tensors so far; x itself if nothing else serves."""
        return self.pick(*(t for t in self.live if same(t)))

    def add(self, kind: str, inputs: list[Tensor], sizes: Any, qparams: QParams | None = None, **attrs: Any) -> Tensor:
        """An operation; its output's scale is random where none is given."""
        if qparams is None:
            qparams = QParams(np.float32(self.rng.uniform(0.02, 0.1)), self.size(-128, 60), _INT8)
        y = Tensor(self.name("t"), (None, *sizes), qparams=qparams)
        self.graph.ops.append(Op(kind, inputs, [y], attrs, f"layer_{self._count}"))
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


def _image(x: Tensor) -> tuple[int, int, int]:
    return tuple(int(n or 0) for n in x.shape[1:])  # type: ignore[return-value]


_ONE: dict[str, Any] = {"strides": [1, 1], "pads": [1, 1, 1, 1], "dilation": [1, 1]}


@_layer
def _convolution(b: Builder, x: Tensor) -> None:
    (h, w, c), count = _image(x), b.size(1, 8)
    inputs = [x, b.weight((3, 3, c, count), 3), b.bias(count)]
    b.add("conv2d", inputs, (h, w, count), groups=1, activation=b.activation(), **_ONE)


@_layer
def _depthwise(b: Builder, x: Tensor) -> None:
    c = _image(x)[2]
    b.add("depthwise_conv2d", [x, b.weight((3, 3, c), 2), b.bias(c)], _image(x), activation=b.activation(), **_ONE)


@_layer
def _transposed(b: Builder, x: Tensor) -> None:
    (h, w, c), count = _image(x), b.size(1, 5)
    if max(h, w) < _LARGEST:
        inputs = [x, b.weight((3, 3, count, c), 2), b.bias(count)]
        attrs = {"strides": [2, 2], "pads": [0, 1, 0, 1], "dilation": [1, 1], "activation": b.activation()}
        b.add("conv2d_transpose", inputs, (2 * h, 2 * w, count), **attrs)


@_layer
def _binary(b: Builder, x: Tensor) -> None:
    inputs = [x, b.other(x, lambda t: t.shape == x.shape)]
    b.add(b.pick("add", "sub", "mul"), inputs, _image(x), activation=b.activation())


@_layer
def _concat(b: Builder, x: Tensor) -> None:
    other = b.other(x, lambda t: t.shape[:3] == x.shape[:3] and t.qparams == x.qparams)
    h, w, c = _image(x)
    b.add("concat", [x, other], (h, w, c + _image(other)[2]), x.qparams, axis=3)


@_layer
def _pool(b: Builder, x: Tensor) -> None:
    h, w, c = _image(x)
    b.add("avg_pool2d", [x], (h, w, c), x.qparams, pool=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    if min(h, w) > 1:
        b.add("max_pool2d", [x], (h // 2, w // 2, c), x.qparams, pool=[2, 2], strides=[2, 2], pads=[0, 0, 0, 0])


@_layer
def _function(b: Builder, x: Tensor) -> None:
    b.add("unary", [x], _image(x), function=b.pick("leaky_relu", "sigmoid", "tanh", "hard_swish"), alpha=0.2)


@_layer
def _gate(b: Builder, x: Tensor) -> None:
    """Each channel times a number of its own, as squeeze-and-excitation does."""
    c = _image(x)[2]
    mean = b.add("mean", [x], (1, 1, c), axes=[1, 2], keepdims=True)
    factor = b.add(
        "unary", [mean], (1, 1, c), QParams(np.float32(1 / 256), -128, _INT8), function="sigmoid", alpha=None
    )
    b.add("mul", [x, factor], _image(x), activation="none")


@_layer
def _move(b: Builder, x: Tensor) -> None:
    h, w, c = _image(x)
    if max(h, w) < _LARGEST:
        b.add("resize_nearest", [x], (2 * h, 2 * w, c), x.qparams, factors=[2, 2])
        b.add("pad", [x], (h + 1, w + 1, c), x.qparams, pads=[[0, 0], [1, 0], [0, 1], [0, 0]])
    if min(h, w) > 2:
        b.add("slice", [x], (h - 1, w - 1, c), x.qparams, begin=[0, 0, 1, 0], end=[None, h - 1, w, c], strides=[1] * 4)
