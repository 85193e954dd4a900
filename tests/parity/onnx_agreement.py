"""Compares ONNX Runtime with the twin on graphs of a few operations, code by code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from qi.core import IntGrid, PerChannel, QParams
from qi.exporters import onnx_file, onnx_runtime
from qi.ir import twin
from qi.ir.graph import Op, QGraph, Tensor
from qi.ir.routing import route
from qi.ir.validate import validate
from tests.parity.operations import samples

__all__ = ["behind_convolutions", "differences", "graph_of", "survey"]

TOLERATED = 0.003  # of the codes behind what is done in real numbers may differ, by one step
_LAYER = {"strides": [1, 1], "pads": [0, 0, 0, 0], "dilation": [1, 1], "groups": 1, "activation": "none"}


def differences(
    graph: QGraph, *, threads: int = 1, integer_only: bool = False, batch: int = 5, packed: bool = False
) -> np.ndarray:
    """Steps between ONNX Runtime's codes and the twin's, for every code that the graph gives.

    Args:
        graph: as `tests.parity.operations` makes it.
        threads: for the runtime.
        integer_only: no islands where the twin has an integer kernel.
        batch: samples.
        packed: weights of few bits two to the byte.
    """
    routed = route(graph, "onnxruntime", integer_only=integer_only, packed=packed)
    inputs = samples(graph, batch=batch)
    expected = twin.run(routed, inputs)
    found = onnx_runtime.run(onnx_file.write(routed), inputs, threads=threads)
    steps = []
    for tensor in routed.outputs:
        codes = np.rint(found[tensor.name].astype(np.float64) / np.float64(tensor.scale)) + tensor.zero_point
        assert codes.shape == expected[tensor.name].shape
        steps.append(np.abs(codes - expected[tensor.name]).astype(np.int64).ravel())
    return np.concatenate(steps)


def exact(graph: QGraph) -> bool:
    """Whether all of a graph is done in integers whose every bit is known."""
    ops = route(graph, "onnxruntime").ops
    return all(op.quantized or op.kind in ("quantize", "dequantize") for op in ops) and all(
        op.kind != "softmax" for op in ops
    )


def survey(named: Iterable[tuple[str, QGraph]]) -> tuple[Counter[str], list[str]]:
    """(cases and codes; a line for each case that differs and mayn't)."""
    counts: Counter[str] = Counter()
    differing = []
    for name, graph in named:
        steps = differences(graph)
        counts.update(cases=1, codes=steps.size)
        if steps.any() and (exact(graph) or steps.max() > 1):
            differing.append(f"{name}: {np.count_nonzero(steps)} of {steps.size}, up to {steps.max()}; {graph.ops[-1]}")
        elif steps.any():
            counts.update(tolerated=np.count_nonzero(steps))
    if counts["tolerated"] > TOLERATED * counts["codes"]:
        differing.append(f"{counts['tolerated']} codes behind real numbers differ, more than {TOLERATED:.1%}")
    return counts, differing


def behind_convolutions(graph: QGraph, seed: int) -> QGraph:
    """The graph with a convolution of one pixel before each image and after it, so that channels come and go first."""
    rng = np.random.default_rng(seed)
    for op in [op for op in graph.ops if op.kind == "quantize" and len(op.y.shape) == 4]:
        users = [user for user in graph.ops if op.y in user.inputs]
        made = _convolution(op.y, int(op.y.shape[3] or 0), op.y.qparams, rng)
        graph.ops.insert(graph.ops.index(op) + 1, made)
        for user in users:
            user.inputs = [made.y if t is op.y else t for t in user.inputs]
    y = graph.outputs[0]
    if len(y.shape) == 4 and rng.random() < 0.7:
        made = _convolution(y, 3, QParams(np.float32(0.05), 3, IntGrid(8)), rng)
        graph.ops.append(made)
        graph.outputs = [made.y] if rng.random() < 0.5 else [y, made.y]
    validate(graph)
    return graph


def _convolution(x: Tensor, count: int, qparams: QParams | None, rng: np.random.Generator) -> Op:
    given = int(x.shape[3] or 0)
    scale = np.full((1, 1, 1, count), 0.01, np.float32)
    kernel = QParams(scale, np.zeros(scale.shape), IntGrid(8, narrow=True), PerChannel(3))
    codes = rng.integers(-127, 128, (1, 1, given, count)).astype(np.int8)
    w = Tensor(f"{x.name}_w", codes.shape, qparams=kernel, data=codes)
    y = Tensor(f"{x.name}_convolved", (*x.shape[:3], count), qparams=qparams)
    return Op("conv2d", [x, w], [y], dict(_LAYER), "convolution")


def graph_of(
    kind: str,
    shapes: list[tuple[int, ...]],
    qparams: list[QParams],
    y: QParams,
    given: tuple[int, ...],
    **attrs: object,
) -> QGraph:
    """A routed graph of one operation whose inputs hold codes.

    Args:
        kind: of the operation.
        shapes: of the inputs, without the batch.
        qparams: the inputs'.
        y: the output's.
        given: shape of the output, without the batch.
        attrs: the operation's.
    """
    inputs = [
        Tensor(f"x{i}", (None, *shape), qparams=q) for i, (shape, q) in enumerate(zip(shapes, qparams, strict=True))
    ]
    output = Tensor("y", (None, *given), qparams=y)
    return QGraph(
        kind, inputs, [output], [Op(kind, inputs, [output], dict(attrs), f"layer_{kind}")], target="onnxruntime"
    )
