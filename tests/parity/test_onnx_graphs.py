"""ONNX Runtime and the twin give the same codes on random graphs of several layers."""

from __future__ import annotations

import numpy as np
import pytest

from qi.core import IntGrid, QParams
from qi.exporters import onnx_file, onnx_runtime
from qi.ir import twin
from qi.ir.graph import Op, QGraph, Tensor
from qi.ir.routing import route
from tests.parity.onnx_agreement import differences, graph_of
from tests.parity.operations import case, samples
from tests.parity.random_graphs import graphs

INT8 = IntGrid(8)
Q = QParams(np.float32(0.1), 3, INT8)


@pytest.mark.parametrize("packed", [False, True])
def test_random_graphs(packed: bool) -> None:
    differing = []
    for name, graph in graphs(50):
        routed, inputs = route(graph, "onnxruntime", packed=packed), samples(graph)
        data, expected = onnx_file.write(routed), twin.run(routed, inputs)
        for threads in (1, 2):
            found = onnx_runtime.run(data, inputs, threads=threads)
            for tensor in routed.outputs:
                real = (expected[tensor.name] - tensor.zero_point).astype(np.float32) * tensor.scale
                if not np.array_equal(found[tensor.name], real):
                    differing.append((name, threads, tensor.name, onnx_runtime.first_difference(routed, data, inputs)))
    assert differing == []


def test_the_softmax_of_one_class_is_one() -> None:
    """QLinearSoftmax gives 0."""
    y = QParams(np.float32(1 / 256), -128, INT8)
    graph = route(graph_of("softmax", [(6, 1)], [Q], y, (6, 1), axis=2), "onnxruntime")
    codes = np.arange(6, dtype=np.uint8).reshape(1, 6, 1) * 50
    assert (onnx_runtime.run(onnx_file.write(graph, integer_io=True), [codes])["y"] == 255).all()


@pytest.mark.parametrize("kind", ["add", "sub", "mul", "mean", "avg_pool2d"])
@pytest.mark.parametrize("exponent", [-60, -40, -30, -24, -20, 34, 60])
def test_layers_that_are_always_zero(kind: str, exponent: int) -> None:
    """Their scale is so small that kernels overflow, or refuse to run: they are done in real numbers.

    Means of these lie about the last bits of float32; nearly all of their codes are at an end.
    """
    for seed in range(4):
        graph = case(kind, seed)
        op = graph.ops[-1]
        if op.attrs.get("pool"):
            op.attrs |= {"pool": list(op.x.shape[1:3]), "pads": [0, 0, 0, 0], "strides": [1, 1]}
            op.y.shape = (None, 1, 1, op.x.shape[3])
        op.y.qparams = QParams(np.float32(op.y.scale * 2.0**exponent), op.y.zero_point, INT8)
        steps = differences(graph)
        assert not steps.any() or (kind in ("mean", "avg_pool2d") and exponent <= -20 and np.mean(steps > 0) < 0.1)


def test_a_transposed_image_is_resized() -> None:
    """ONNX Runtime moves transpositions behind Resize, and has then no kernel for the axes (seed 63)."""
    x, codes, turned, y = (
        Tensor(name, shape, qparams=qparams)
        for name, shape, qparams in (
            ("x", (None, 4, 5, 6), None),
            ("codes", (None, 4, 5, 6), Q),
            ("turned", (None, 6, 4, 5), Q),
            ("y", (None, 12, 8, 5), Q),
        )
    )
    ops = [
        Op("quantize", [x], [codes], {}, "input"),
        Op("transpose", [codes], [turned], {"perm": [0, 3, 1, 2]}, "permute"),
        Op("resize_bilinear", [turned], [y], {"size": [12, 8]}, "resize"),
    ]
    assert not differences(QGraph("turned", [x], [y], ops)).any()
