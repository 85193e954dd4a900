"""Small graphs made by hand, without any framework."""

from __future__ import annotations

from typing import Any

import numpy as np

from qi.core import IntGrid, PerChannel, PerGroup, QParams
from qi.ir import Op, QGraph, Tensor

__all__ = ["act", "codes_of", "graph_of", "grouped", "per_channel", "perceptron", "real", "weight", "weight_only"]


def act(scale: float = 0.1, zero_point: int = 0, bits: int = 8) -> QParams:
    """Parameters of an activation."""
    return QParams(np.asarray(scale), np.asarray(zero_point), IntGrid(bits))


def per_channel(scales: Any, axis: int, rank: int, bits: int = 8) -> QParams:
    """Parameters of a weight."""
    shape = [-1 if i == axis else 1 for i in range(rank)]
    scale = np.asarray(scales, np.float32).reshape(shape)
    return QParams(scale, np.zeros(scale.shape, np.int32), IntGrid(bits, narrow=True), PerChannel(axis))


def real(name: str, *shape: int | None, dtype: str = "float32") -> Tensor:
    """A tensor of plain values with a batch in front."""
    return Tensor(name, (None, *shape), dtype)


def codes_of(name: str, *shape: int | None, qparams: QParams | None = None) -> Tensor:
    """A tensor of codes with a batch in front."""
    return Tensor(name, (None, *shape), qparams=qparams or act())


def weight(name: str, codes: Any, scales: Any = None, axis: int = -1) -> Tensor:
    """A constant: codes with a scale for each channel, or real numbers without."""
    array = np.asarray(codes)
    if scales is None:
        return Tensor(name, array.shape, data=array.astype(np.float32))
    return Tensor(
        name, array.shape, "float32", per_channel(scales, axis % array.ndim, array.ndim), array.astype(np.int8)
    )


def graph_of(*ops: Op, inputs: list[Tensor], outputs: list[Tensor] | None = None, **options: Any) -> QGraph:
    """A graph whose last operation gives the output."""
    outputs = ops[-1].outputs if outputs is None else outputs
    names: tuple[Any, Any] = tuple([t.name for t in tensors] for tensors in (inputs, outputs))
    return QGraph("graph", inputs, outputs, list(ops), *names, **options)


def perceptron(seed: int = 0, sizes: tuple[int, int, int] = (4, 3, 2)) -> QGraph:
    """quantize, dense with ReLU, dense: all in integers."""
    rng = np.random.default_rng(seed)
    x = real("x", sizes[0])
    h = [codes_of("x_codes", sizes[0], qparams=act(0.02, 5)), codes_of("hidden", sizes[1], qparams=act(0.05, -128))]
    y = codes_of("y", sizes[2], qparams=act(0.1, 3))
    ops = [Op("quantize", [x], [h[0]], source="x")]
    for i, (a, b) in enumerate(((h[0], h[1]), (h[1], y))):
        n, m = sizes[i], sizes[i + 1]
        w = weight(f"w{i}", rng.integers(-127, 128, (n, m)), rng.uniform(0.01, 0.02, m))
        bias = Tensor(f"b{i}", (m,), "int32", data=rng.integers(-900, 900, m).astype(np.int32))
        ops.append(Op("dense", [a, w, bias], [b], {"activation": "none" if i else "relu"}, source=f"dense{i}"))
    return graph_of(*ops, inputs=[x])


def weight_only(graph: QGraph) -> QGraph:
    """The graph without its activations' quantizers."""
    real = {id(op.y): op.x for op in graph.ops if op.kind == "quantize"}
    graph.ops = [op for op in graph.ops if op.kind != "quantize"]
    for op in graph.ops:
        op.y.qparams = None
        op.inputs = [real.get(id(t), t) for t in op.inputs]
        for i, t in enumerate(op.inputs):
            if t.constant and t.dtype == "int32":
                op.inputs[i] = Tensor(t.name, t.shape, data=(t.values() * 1e-3).astype(np.float32))
    return graph


def grouped(name: str, rng: np.random.Generator, shape: tuple[int, ...], size: int, bits: int = 4) -> Tensor:
    """A constant with a scale for each group of `size` codes along the last axis but one, and for each index of the last."""
    granularity, top = PerGroup(len(shape) - 2, size, len(shape) - 1), 2 ** (bits - 1) - 1
    scale = rng.uniform(0.01, 0.05, granularity.param_shape(shape)).astype(np.float32)
    qparams = QParams(scale, np.zeros(scale.shape, np.int32), IntGrid(bits, narrow=True), granularity)
    return Tensor(name, shape, qparams=qparams, data=rng.integers(-top, top + 1, shape).astype(np.int8))
