"""Convolutions and products in real numbers, with coded weights."""

from __future__ import annotations

import numpy as np
import pytest

from qi.exporters import onnx_file, onnx_runtime
from qi.ir import Tensor, twin
from qi.ir.routing import route
from tests.ir.graphs import weight_only
from tests.parity.operations import case, samples

KINDS = ("conv2d", "depthwise_conv2d", "conv2d_transpose", "dense", "dense_int4", "dense_int2", "embedding")


@pytest.mark.parametrize("kind", KINDS)
def test_weights_alone_are_coded(kind: str) -> None:
    """Activations stay as they are: ONNX Runtime would round those of a Gemm to eight bits (MatMulNBits) if it could."""
    for seed in range(6):
        graph = case(kind, seed)
        inputs = samples(graph, seed)
        routed = route(weight_only(graph), "onnxruntime")
        data, expected = onnx_file.write(routed), twin.run(routed, inputs)["y"]
        found = onnx_runtime.run(data, inputs)["y"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1.0, float(np.abs(expected).max())))
        assert "MatMulNBits" not in onnx_runtime.kernels(data)


def test_a_product_that_gives_real_numbers() -> None:
    """As the last layer without a quantizer behind it."""
    graph = case("dense", 4)
    scale = float(graph.outputs[0].scale)
    y = graph.outputs[0]
    y.qparams, bias = None, graph.ops[-1].inputs[2:]
    graph.ops[-1].inputs = graph.ops[-1].inputs[:2]
    routed, inputs = route(graph, "onnxruntime"), samples(graph)
    found = onnx_runtime.run(onnx_file.write(routed), inputs)["y"]
    expected = twin.run(routed, inputs)["y"]
    assert len(bias) <= 1
    np.testing.assert_allclose(found, expected, rtol=0, atol=scale / 1000)


@pytest.mark.parametrize("kind", ["conv2d", "depthwise_conv2d", "conv2d_transpose", "dense"])
def test_real_weights_between_codes_stay_real(kind: str) -> None:
    """ONNX Runtime would round them to eight bits, for an integer kernel, if nothing stood before the QuantizeLinear."""
    apart = 0
    for seed in range(6):
        graph = case(kind, seed)
        (op,) = [op for op in graph.ops if op.kind == kind]
        w = op.inputs[1]
        op.inputs = [op.x, Tensor("w_real", w.shape, data=w.values())]
        routed, inputs = route(graph, "onnxruntime"), samples(graph, seed)
        found = onnx_runtime.run(onnx_file.write(routed), inputs)["y"]
        expected = twin.real_values(routed.outputs[0], twin.run(routed, inputs)["y"])
        apart += int(np.count_nonzero(np.abs(found - expected) > float(routed.outputs[0].scale) / 2))
    assert apart <= 1  # a sum in another order may lie on the other side of a tie
