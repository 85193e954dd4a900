from __future__ import annotations

import numpy as np
import onnx
import pytest

from qi.exporters import onnx_file, onnx_runtime
from qi.ir import Op, twin
from qi.ir.graph import QGraph, Tensor
from qi.ir.routing import route
from tests.ir.graphs import act, codes_of, graph_of

RNG = np.random.default_rng(0)


def nodes(graph: QGraph) -> list[str]:
    """The file's operations."""
    return [node.op_type for node in onnx.load_from_string(onnx_file.write(route(graph, "onnxruntime"))).graph.node]


def of_codes(epsilon: float = 1e-6) -> QGraph:
    x, y = codes_of("x", 8, qparams=act(0.1)), codes_of("y", 8, qparams=act(0.02))
    return graph_of(Op("layer_norm", [x], [y], {"axes": [1], "epsilon": epsilon}, "layer"), inputs=[x])


@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize(("axes", "size"), [([3], 5), ([2, 3], (6, 5)), ([1], (4, 1, 1)), ([1, 3], (4, 1, 5))])
@pytest.mark.parametrize("weights", [0, 1])
def test_real_numbers(kind: str, axes: list[int], size: int | tuple[int, ...], weights: int) -> None:
    x, y = Tensor("x", (None, 4, 6, 5)), Tensor("y", (None, 4, 6, 5))
    constants = [Tensor("gamma", np.empty(size).shape, data=RNG.normal(1, 0.3, size).astype(np.float32))][:weights]
    op = Op(kind, [x, *constants], [y], {"axes": axes, "epsilon": 1e-3}, "layer")
    graph = route(QGraph("g", [x], [y], [op]), "onnxruntime")
    given = RNG.normal(3, 5, (9, 4, 6, 5)).astype(np.float32)
    found = onnx_runtime.run(onnx_file.write(graph), [given])["y"]
    np.testing.assert_allclose(found, twin.run(graph, [given])["y"], rtol=1e-5, atol=1e-5)


def test_over_the_last_axes_there_is_one_operation() -> None:
    graph = of_codes()
    for tensor in graph.tensors():
        tensor.qparams = None
    assert nodes(graph)[0] == "LayerNormalization"


def test_codes_are_dequantized_once() -> None:
    """ONNX Runtime would do so for each of the three nodes that take them."""
    data = onnx_file.write(route(of_codes(), "onnxruntime"))
    found = onnx_runtime.kernels(data)
    assert found[:2] == ["DequantizeLinear", "Sum"]
    assert found.count("DequantizeLinear") == 2  # that of the output, too


@pytest.mark.parametrize(("epsilon", "guarded"), [(1e-6, True), (1.0, False)])
def test_a_large_epsilon_needs_no_guard(epsilon: float, guarded: bool) -> None:
    """Roundings can't take the variance below 0 then, so there is one node less."""
    assert ("Relu" in nodes(of_codes(epsilon))) is guarded
