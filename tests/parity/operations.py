"""Random graphs of one operation each, the same from every seed: what the runtimes' parity tests are made of.

A graph is as `qi.lower` gives it: real inputs, a "quantize" for each, the operation on codes. It belongs to no target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from qi.core import IntGrid, PerChannel, QParams
from qi.ir import twin  # noqa: F401 - registers the kinds of operations
from qi.ir.arithmetic import scale_of_sums
from qi.ir.elementwise import FUNCTIONS
from qi.ir.graph import Op, QGraph, Tensor
from qi.ir.kinds import KINDS
from qi.ir.validate import validate
from qi.registry import Registry

__all__ = ["BATCH", "CASES", "Draft", "case", "cases", "samples", "window"]

CASES: Registry[Callable[[Draft], Any]] = Registry("kind of case")
_INT8 = IntGrid(8)
_ZERO = QParams(np.float32(1), 0, _INT8)
BATCH = 5


def case(kind: str, seed: int) -> QGraph:
    """A valid graph of one operation.

    Args:
        kind: a name of `CASES`.
        seed: the same gives the same graph.
    """
    draft = Draft(kind, seed)
    CASES.get(kind)(draft)
    validate(draft.graph)
    return draft.graph


def cases(count: int, kinds: list[str] | None = None, seed: int = 0) -> Iterator[tuple[str, QGraph]]:
    """`count` cases, the kinds in turn, as (name, graph)."""
    kinds = list(CASES.names()) if kinds is None else kinds
    for i in range(count):
        kind = kinds[i % len(kinds)]
        yield f"{kind}-{seed + i}", case(kind, seed + i)


def samples(graph: QGraph, seed: int = 0, batch: int = BATCH) -> list[np.ndarray]:
    """Inputs for a case: numbers over what its quantizers hold and a little beyond; indices over the whole table."""
    rng, found = np.random.default_rng([seed, 7]), []
    for tensor in graph.inputs:
        shape = (batch, *tensor.shape[1:])
        op = graph.consumers()[id(tensor)][0]
        if tensor.dtype.startswith("int"):
            found.append(rng.integers(0, op.inputs[1].shape[0], shape).astype(tensor.dtype))
        else:
            codes = rng.uniform(-133, 133, shape) - op.y.zero_point
            found.append((codes * np.float64(op.y.scale)).astype(np.float32))
    return found


class Draft:
    """A graph in the making, and the dice."""

    def __init__(self, kind: str, seed: int) -> None:
        self.rng = np.random.default_rng([seed, *kind.encode()])
        self.graph = QGraph(f"{kind}_{seed}", [], [], [])
        self.real: dict[int, np.ndarray] = {}

    def pick(self, *options: Any) -> Any:
        """One of some options."""
        return options[int(self.rng.integers(len(options)))]

    def size(self, low: int = 1, high: int = 9) -> int:
        """A size from low to high."""
        return int(self.rng.integers(low, high + 1))

    def scale(self) -> np.float32:
        """A scale from 0.003 to 0.3."""
        return np.float32(np.exp(self.rng.uniform(np.log(0.003), np.log(0.3))))

    def input(self, shape: list[int] | tuple[int, ...], qparams: QParams | None = None) -> Tensor:
        """An input of the graph and its quantizer; gives the codes' tensor."""
        if qparams is None:
            qparams = QParams(self.scale(), int(self.pick(-128, 0, self.rng.integers(-128, 128))), _INT8)
        name = f"x{len(self.graph.inputs)}"
        x = Tensor(name, (None, *shape))
        codes = Tensor(f"{name}_codes", (None, *shape), qparams=qparams)
        self.graph.inputs.append(x)
        self.graph.ops.append(Op("quantize", [x], [codes], source="input"))
        drawn = self.rng.integers(-128, 128, (BATCH, *shape)) - qparams.zero_point
        self.real[id(codes)] = (drawn * qparams.scale).astype(np.float32)
        return codes

    def weight(self, shape: tuple[int, ...], axis: int, bits: int = 8) -> Tensor:
        """Codes with a scale for each channel."""
        top = 2 ** (bits - 1) - 1
        codes = self.rng.integers(-top, top + 1, shape).astype(np.int8)
        scale_shape = [n if i == axis else 1 for i, n in enumerate(shape)]
        scale = np.exp(self.rng.uniform(np.log(0.002), np.log(0.02), scale_shape)).astype(np.float32)
        if self.rng.random() < 0.15:
            scale[...] = scale.reshape(-1)[0]
        return Tensor(
            "w",
            shape,
            "float32",
            QParams(scale, np.zeros(scale_shape), IntGrid(bits, narrow=True), PerChannel(axis)),
            codes,
        )

    def bias(self, x: Tensor, w: Tensor, channels: int) -> list[Tensor]:
        """int32 at the scale of the sums; sometimes none."""
        if self.rng.random() < 0.2:
            return []
        scale = np.broadcast_to(scale_of_sums(x, w), channels)
        codes = self.rng.integers(-20000, 20000, channels).astype(np.int32)
        bias = Tensor("b", (channels,), "int32", data=codes)
        self.real[id(bias)] = (codes * scale).astype(np.float32)
        return [bias]

    def op(self, kind: str, inputs: list[Tensor], qparams: QParams | None = None, **attrs: Any) -> None:
        """The operation; its output's scale fits what it gives, more or less.

        Args:
            kind: of `qi.ir.kinds`.
            inputs: codes and constants.
            qparams: the output's, where they aren't free.
            attrs: the operation's.
        """
        y = Tensor("y", (), qparams=qparams or _ZERO)
        op = Op(kind, inputs, [y], attrs, source=f"layer_{kind}")
        real = KINDS.get(kind).real(op, *(self.real[id(t)] if id(t) in self.real else t.values() for t in inputs))
        y.shape = (None, *real.shape[1:])
        y.qparams = qparams or self.fitting(real)
        self.real[id(y)] = real
        self.graph.ops.append(op)
        self.graph.outputs.append(y)

    def fitting(self, real: np.ndarray) -> QParams:
        """Eight bits for some numbers: all of them, or too few, with zero at an end where they have one sign."""
        zoom = self.pick(1.0, 1.1, 0.6)
        low, high = min(0.0, float(real.min(initial=0)) * zoom), max(0.0, float(real.max(initial=0)) * zoom)
        if self.rng.random() < 0.2:
            low = min(low, -high)
        scale = np.float32(max(high - low, 1e-3) / 255)
        return QParams(scale, int(np.clip(np.rint(-128 - low / scale), -128, 127)), _INT8)


def window(
    draft: Draft, image: list[int], kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> list[int]:
    """Pads [top, bottom, left, right]: none, "same", or any that are smaller than the window."""
    how = draft.pick("valid", "same", "same", "odd")
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    pads: list[int] = []
    for n, r, s in zip(image, reach, stride, strict=True):
        total = max((-(-n // s) - 1) * s + r - n, 0)
        before, after = {"valid": (0, 0), "same": (total // 2, total - total // 2)}.get(
            how, (draft.size(0, r - 1), draft.size(0, r - 1))
        )
        pads += [before, after + max(0, r - n - before - after)]
    return pads


def _activation(draft: Draft) -> str:
    return str(draft.pick("none", "none", "relu", "relu6"))


def _convolution(depthwise: bool, bits: int = 8) -> Callable[[Draft], None]:
    def make(draft: Draft) -> None:
        image, kernel = [draft.size(1, 10), draft.size(1, 10)], (draft.size(1, 4), draft.size(1, 4))
        stride = draft.pick((1, 1), (1, 1), (2, 2), (2, 1), (3, 2))
        dilation = draft.pick((1, 1), (1, 1), (2, 2), (1, 3)) if stride == (1, 1) else (1, 1)
        groups = 1 if depthwise else draft.pick(1, 1, 1, 2, 3)
        x = draft.input([*image, groups * draft.size(1, 17)])
        channels = int(x.shape[3] or 0)
        attrs: dict[str, Any] = {"strides": list(stride), "pads": window(draft, image, kernel, stride, dilation)}
        attrs |= {"dilation": list(dilation), "activation": _activation(draft)}
        if depthwise:
            count = channels * draft.pick(1, 1, 1, 2, 3)
            w = draft.weight((*kernel, count), 2, bits)
            draft.op("depthwise_conv2d", [x, w, *draft.bias(x, w, count)], **attrs)
        else:
            count = groups * draft.size(1, 19)
            w = draft.weight((*kernel, channels // groups, count), 3, bits)
            draft.op("conv2d", [x, w, *draft.bias(x, w, count)], groups=groups, **attrs)

    return make


CASES.register("conv2d")(_convolution(False))
CASES.register("depthwise_conv2d")(_convolution(True))
CASES.register("conv2d_int4")(_convolution(False, 4))
CASES.register("depthwise_conv2d_int4")(_convolution(True, 4))


@CASES.register("conv2d_transpose")
def _conv2d_transpose(draft: Draft) -> None:
    kernel, stride = (draft.size(1, 4), draft.size(1, 4)), draft.pick((1, 1), (2, 2), (2, 1), (3, 2))
    x = draft.input([draft.size(1, 6), draft.size(1, 6), draft.size(1, 12)])
    count, pads = draft.size(1, 11), []
    same = draft.pick(True, False)
    for k, s in zip(kernel, stride, strict=True):
        spare = k - s if same else -max(s - k, 0)  # as Keras: "same" gives n * s, "valid" n * s + max(k - s, 0)
        pads += [max(spare, 0) // 2, spare - max(spare, 0) // 2]
    w = draft.weight((*kernel, count, int(x.shape[3] or 0)), 2)
    attrs = {"strides": list(stride), "pads": pads, "dilation": [1, 1], "activation": _activation(draft)}
    draft.op("conv2d_transpose", [x, w, *draft.bias(x, w, count)], **attrs)


def _dense(bits: int) -> Callable[[Draft], None]:
    def make(draft: Draft) -> None:
        x = draft.input([draft.size(1, 5) for _ in range(draft.pick(0, 0, 1, 2))] + [draft.size(1, 70)])
        count = draft.size(1, 33)
        w = draft.weight((int(x.shape[-1] or 0), count), 1, bits)
        draft.op("dense", [x, w, *draft.bias(x, w, count)], activation=_activation(draft))

    return make


for _bits in (8, 4, 2):
    CASES.register("dense" if _bits == 8 else f"dense_int{_bits}")(_dense(_bits))


def _binary(kind: str, fused: bool) -> Callable[[Draft], None]:
    def make(draft: Draft) -> None:
        shape = draft.pick([draft.size(1, 40)], [draft.size(2, 5), draft.size(2, 5), draft.size(1, 19)])
        shared = QParams(draft.scale(), draft.size(-20, 20), _INT8) if not fused and draft.pick(True, False) else None
        a = draft.input(shape, shared)
        how = draft.pick("same", "same", "broadcast", "constant", "number")
        if how == "same":
            b = draft.input(shape, shared)
        elif how == "broadcast":
            b = draft.input([1] * (len(shape) - 1) + shape[-1:], shared)
        else:
            size = (1,) if how == "number" else (shape[-1],)
            codes = draft.rng.integers(-127, 128, size).astype(np.int8)
            b = Tensor("constant", size, qparams=shared or QParams(draft.scale(), 0, _INT8), data=codes)
        inputs = [b, a] if b.constant and draft.pick(True, False) else [a, b]
        if fused:
            draft.op(kind, inputs, activation=_activation(draft))
        else:
            draft.op(kind, inputs, shared)

    return make


for _kind in ("add", "sub", "mul", "maximum", "minimum"):
    CASES.register(_kind)(_binary(_kind, _kind in ("add", "sub", "mul")))


@CASES.register("relu")
def _relu(draft: Draft) -> None:
    x = draft.input(draft.pick([9], [4, 5, 6]), QParams(draft.scale(), draft.size(-60, 60), _INT8))
    draft.op("relu", [x], max_value=draft.pick(None, None, 6.0, 1.0))


@CASES.register("prelu")
def _prelu(draft: Draft) -> None:
    shape = [draft.size(1, 5), draft.size(1, 5), draft.size(1, 9)]
    x = draft.input(shape)
    alpha = draft.pick(tuple(shape), (1, 1, shape[2]))
    codes = draft.rng.integers(-127, 128, alpha).astype(np.int8)
    draft.op("prelu", [x, Tensor("alpha", alpha, qparams=QParams(np.float32(0.004), 0, _INT8), data=codes)])


_FIXED = {"sigmoid": (1 / 256, -128), "hard_sigmoid": (1 / 256, -128), "tanh": (1 / 128, 0)}
_INFINITE = ("rsqrt", "log")  # at 0


@CASES.register("unary")
def _unary(draft: Draft) -> None:
    function = draft.pick(*(name for name in FUNCTIONS.names() if name not in _INFINITE))
    qparams = QParams(draft.scale(), -128, _INT8) if function == "sqrt" else None
    x = draft.input(draft.pick([20], [4, 5, 6]), qparams)
    fixed = _FIXED.get(function)
    alpha = {"elu": 1.0, "leaky_relu": 0.2}.get(function)
    draft.op(
        "unary", [x], QParams(np.float32(fixed[0]), fixed[1], _INT8) if fixed else None, function=function, alpha=alpha
    )


@CASES.register("softmax")
def _softmax(draft: Draft) -> None:
    x = draft.input(draft.pick([draft.size(2, 40)], [draft.size(1, 6), draft.size(2, 20)]))
    draft.op("softmax", [x], QParams(np.float32(1 / 256), -128, _INT8), axis=len(x.shape) - 1)


@CASES.register("mean")
def _mean(draft: Draft) -> None:
    rank = draft.pick(3, 4)
    x = draft.input([draft.size(1, 9) for _ in range(rank - 1)])
    axes = [1, 2] if rank == 4 and draft.rng.random() < 0.7 else [draft.pick(*range(1, rank))]
    draft.op("mean", [x], axes=axes, keepdims=draft.pick(True, False))


@CASES.register("max")
def _max(draft: Draft) -> None:
    x = draft.input([draft.size(1, 6), draft.size(1, 6), draft.size(1, 9)])
    draft.op("max", [x], x.qparams, axes=draft.pick([1, 2], [3], [2]), keepdims=draft.pick(True, False))


def _pool(kind: str) -> Callable[[Draft], None]:
    def make(draft: Draft) -> None:
        image, pool = [draft.size(1, 9), draft.size(1, 9)], (draft.size(1, 4), draft.size(1, 4))
        stride = draft.pick((1, 1), (2, 2), (2, 1), (3, 2))
        x = draft.input([*image, draft.size(1, 17)])
        pads = window(draft, image, pool, stride, (1, 1))
        for axis in range(2):  # every window holds something of the image
            before, after = min(pads[2 * axis], pool[axis] // 2), min(pads[2 * axis + 1], pool[axis] // 2)
            pads[2 * axis : 2 * axis + 2] = [before, after + max(0, pool[axis] - image[axis] - before - after)]
        moves = x.qparams if kind == "max_pool2d" or draft.pick(True, True, False) else None
        draft.op(kind, [x], moves, pool=list(pool), strides=list(stride), pads=pads)

    return make


CASES.register("max_pool2d")(_pool("max_pool2d"))
CASES.register("avg_pool2d")(_pool("avg_pool2d"))


@CASES.register("moves")
def _moves(draft: Draft) -> None:
    """One of the operations that only move values."""
    h, w, c = draft.size(1, 5), draft.size(1, 5), draft.size(1, 7)
    x = draft.input([h, w, c])
    kind = draft.pick("reshape", "transpose", "pad", "slice", "concat", "resize_nearest", "tile", "broadcast")
    attrs: dict[str, Any] = {}
    inputs = [x]
    if kind == "reshape":
        attrs["shape"] = draft.pick([None, h * w * c], [None, h * w, c], [None, 1, h, w, c])
    elif kind == "transpose":
        attrs["perm"] = draft.pick([0, 3, 1, 2], [0, 2, 1, 3])
    elif kind == "pad":
        attrs["pads"] = [[0, 0], *([draft.size(0, 2), draft.size(0, 2)] for _ in range(2)), [0, 0]]
    elif kind == "slice":
        attrs = {
            "begin": [0, draft.size(0, h - 1), 0, draft.size(0, c - 1)],
            "end": [None, h, w, c],
            "strides": [1, draft.size(1, 2), 2, 1],
        }
    elif kind == "concat":
        inputs = [draft.input([h, w, n], x.qparams) for n in (draft.size(1, 5), draft.size(1, 5))] + [x]
        attrs["axis"] = 3
    elif kind == "resize_nearest":
        attrs["factors"] = [draft.size(1, 3), draft.size(1, 3)]
    elif kind == "tile":
        attrs["multiples"] = [1, draft.size(1, 2), draft.size(1, 3), 1]
    else:
        inputs = [draft.input([1, w, 1], x.qparams)]
        draft.graph.inputs.remove(draft.graph.inputs[0])
        draft.graph.ops.remove(draft.graph.ops[0])
        attrs["shape"] = [None, h, w, c]
    draft.op(kind, inputs, x.qparams, **attrs)


@CASES.register("embedding")
def _embedding(draft: Draft) -> None:
    rows, columns, length = draft.size(2, 30), draft.size(1, 12), draft.size(1, 6)
    ids = Tensor("ids", (None, length), "int32")
    qparams = QParams(draft.scale(), 0, _INT8)
    codes = draft.rng.integers(-127, 128, (rows, columns)).astype(np.int8)
    draft.graph.inputs.append(ids)
    draft.real[id(ids)] = draft.rng.integers(0, rows, (BATCH, length)).astype(np.int32)
    draft.op("embedding", [ids, Tensor("table", (rows, columns), qparams=qparams, data=codes)], qparams)


@CASES.register("resize_bilinear")
def _resize_bilinear(draft: Draft) -> None:
    h, w = draft.size(1, 6), draft.size(1, 6)
    x = draft.input([h, w, draft.size(1, 9)])
    draft.op("resize_bilinear", [x], x.qparams, size=[h * draft.size(1, 3), w * draft.size(1, 3)])


@CASES.register("batch_matmul")
def _batch_matmul(draft: Draft) -> None:
    n, m, k = draft.size(1, 8), draft.size(1, 8), draft.size(1, 24)
    heads = [draft.size(1, 3)] if draft.pick(True, False) else []
    transpose_a, transpose_b = False, draft.pick(True, False)
    a, b = draft.input([*heads, n, k]), draft.input([*heads, m, k] if transpose_b else [*heads, k, m])
    draft.op("batch_matmul", [a, b], transpose_a=transpose_a, transpose_b=transpose_b)


@CASES.register("layer_norm")
def _layer_norm(draft: Draft) -> None:
    x = draft.input([draft.size(1, 5), draft.size(4, 20)])
    n = int(x.shape[2] or 0)
    gamma, beta = (Tensor(name, (n,), data=draft.rng.normal(1, 1, n).astype(np.float32)) for name in ("gamma", "beta"))
    draft.op("layer_norm", [x, gamma, beta], axes=[2], epsilon=1e-3)
