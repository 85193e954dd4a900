"""What keeps ONNX Runtime from its integer kernels, or makes them answer something else: each avoided by name."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from qi.core import IntGrid, QParams
from qi.exporters import onnx_file, onnx_runtime
from qi.ir import twin
from qi.ir.graph import Op, QGraph, Tensor
from qi.ir.routing import route
from tests.parity.onnx_agreement import behind_convolutions, graph_of
from tests.parity.operations import case

INT8 = IntGrid(8)
Q = QParams(np.float32(0.05), 3, INT8)


def nodes(data: bytes) -> list[onnx.NodeProto]:
    return list(onnx.load_from_string(data).graph.node)


def written(kind: str, seed: int, **options: object) -> bytes:
    return onnx_file.write(route(case(kind, seed), "onnxruntime"), **options)


def test_activations_are_uint8_for_int8_ones_leave_parts_in_float() -> None:
    model = onnx.load_from_string(written("conv2d", 3))
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    zeros = {node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert {constants[name].data_type for name in zeros} == {onnx.TensorProto.UINT8}


@pytest.mark.parametrize("kind", ["add", "mul", "conv2d", "dense", "avg_pool2d"])
def test_scales_of_activations_have_rank_zero(kind: str) -> None:
    """Of rank 1, they make QLinearAdd fail and leave convolutions in float."""
    model = onnx.load_from_string(written(kind, 2))
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            assert [list(constants[name].dims) for name in node.input[1:]] == [[], []]


@pytest.mark.parametrize("activation", ["relu", "relu6"])
@pytest.mark.parametrize("zero_point", [-128, 5])
def test_no_relu_is_kept_in_real_numbers(activation: str, zero_point: int) -> None:
    q = QParams(np.float32(0.1), 0, INT8)
    y = QParams(np.float32(0.05), zero_point, INT8)
    graph = graph_of("add", [(8,), (8,)], [q, q], y, (8,), activation=activation)
    data = onnx_file.write(graph, integer_io=True)
    assert "Relu" not in [node.op_type for node in nodes(data)]
    kernels = onnx_runtime.kernels(data)
    assert kernels[0] == "QLinearAdd"
    assert kernels[1:] in ([], ["Clip"])
    assert bool(kernels[1:]) == (zero_point == 5 or activation == "relu6")
    clips = [node for node in nodes(data) if node.op_type == "Clip"]
    assert all(node.input[0].endswith(":codes") for node in clips)


def test_pads_are_no_islands() -> None:
    """Zeros around codes are written as codes."""
    graph = case("moves", 0)
    x = graph.ops[0].y
    y = Tensor("padded", (None, *(n + 2 for n in x.shape[1:3] if n), x.shape[3]), qparams=x.qparams)
    graph.ops = [graph.ops[0], Op("pad", [x], [y], {"pads": [[0, 0], [1, 1], [1, 1], [0, 0]]}, "layer_pad")]
    graph.inputs, graph.outputs = [graph.ops[0].x], [y]
    data = onnx_file.write(route(behind_convolutions(graph, 1), "onnxruntime"), integer_io=True)
    assert onnx_runtime.float_kernels(data) == []
    assert "DequantizeLinear" not in onnx_runtime.kernels(data)


def test_products_of_rank_three_with_an_open_batch_are_done_in_integers() -> None:
    graphs = [case("dense", seed) for seed in range(12)]
    graph = next(g for g in graphs if len(g.inputs[0].shape) == 3)
    data = onnx_file.write(route(graph, "onnxruntime"), integer_io=True)
    assert [k for k in onnx_runtime.kernels(data) if k not in ("Reshape", "Clip")] == ["QGemm"]
    assert onnx.load_from_string(data).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_gelu_is_one_operation_that_the_runtime_knows() -> None:
    """Exporters write its exact form with a node "Erfc" that there is not."""
    for function in ("gelu", "gelu_tanh"):
        graph = route(graph_of("unary", [(8,)], [Q], Q, (8,), function=function, alpha=None), "onnxruntime")
        data = onnx_file.write(graph, integer_io=True)
        assert [node.op_type for node in nodes(data)].count("Gelu") == 1
        assert onnx.load_from_string(data).opset_import[0].version == 20
        codes = np.arange(256, dtype=np.uint8).reshape(32, 8)
        expected = twin.run(graph, [codes.astype(int) - 128])["y"]
        assert np.array_equal(onnx_runtime.run(data, [codes])["y"].astype(int) - 128, expected)


def test_a_global_pool_before_a_flatten_is_done_in_integers() -> None:
    """With Flatten between the pool and its quantizer it would be done in float: codes are what is reshaped."""
    given, mean, flat = (
        Tensor(n, (None, *shape), qparams=Q) for n, shape in (("x", (4, 4, 3)), ("m", (1, 1, 3)), ("y", (3,)))
    )
    ops = [
        Op("mean", [given], [mean], {"axes": [1, 2], "keepdims": True}, "pool"),
        Op("reshape", [mean], [flat], {"shape": [None, 3]}, "flatten"),
    ]
    data = onnx_file.write(QGraph("g", [given], [flat], ops, target="onnxruntime"), integer_io=True)
    assert onnx_runtime.float_kernels(data) == []
    assert "QLinearGlobalAveragePool" in onnx_runtime.kernels(data)


def test_four_bit_weights_lie_in_bytes_unless_size_counts() -> None:
    """Packed ones are dequantized at every run, which takes up to thirty times as long."""
    for packed, kernel in ((False, "QGemm"), (True, "Gemm")):
        graph = next(g for g in (case("dense_int4", seed) for seed in range(9)) if len(g.inputs[0].shape) == 2)
        routed = route(graph, "onnxruntime", packed=packed)
        assert kernel in onnx_runtime.kernels(onnx_file.write(routed, integer_io=True))


def test_an_unoptimized_graph_is_computed_in_real_numbers() -> None:
    """As other execution providers do: near a tie, the codes are others than the twin's."""
    x, y = QParams(np.float32(0.1), 5, INT8), QParams(np.float32(2 * np.float32(0.1) * np.float32(0.1)), 3, INT8)
    graph = graph_of("mul", [(64,), (64,)], [x, x], y, (64,), activation="none")
    codes = [np.random.default_rng(seed).integers(120, 147, (500, 64)).astype(np.uint8) for seed in (0, 1)]
    expected = twin.run(graph, [array.astype(int) - 128 for array in codes])["y"] + 128
    data = onnx_file.write(graph, integer_io=True)
    assert np.array_equal(onnx_runtime.run(data, codes)["y"], expected)
    assert (onnx_runtime.run(data, codes, optimized=False)["y"] != expected).any()


def test_subtraction_has_an_integer_kernel() -> None:
    data = written("sub", 1, integer_io=True)
    assert "QLinearAdd" in onnx_runtime.kernels(data)
    assert onnx_runtime.float_kernels(data) == []


def test_transposed_convolutions_are_done_in_integers() -> None:
    for seed in range(4):
        data = written("conv2d_transpose", seed, integer_io=True)
        assert "QLinearConv" in onnx_runtime.kernels(data)
        assert onnx_runtime.float_kernels(data) == []


@pytest.mark.parametrize("axes", [[1, 2], [1], [2], [3]])
def test_means_have_an_integer_kernel(axes: list[int]) -> None:
    q = QParams(np.float32(0.1), 3, INT8)
    given = tuple(n for axis, n in enumerate((4, 5, 6), 1) if axis not in axes)
    graph = graph_of("mean", [(4, 5, 6)], [q], q, given, axes=axes, keepdims=False)
    assert "QLinearGlobalAveragePool" in onnx_runtime.kernels(onnx_file.write(graph, integer_io=True))


def test_codes_of_another_scale_go_through_a_table() -> None:
    """DequantizeLinear and QuantizeLinear alone are joined with their neighbours: they round once, the graph twice."""
    coarse, fine = QParams(np.float32(0.1), 0, INT8), QParams(np.float32(0.013), -3, INT8)
    x, a, b = Tensor("x", (None, 9)), Tensor("a", (None, 9), qparams=coarse), Tensor("b", (None, 9), qparams=fine)
    graph = QGraph("twice", [x], [b], [Op("quantize", [x], [a]), Op("quantize", [a], [b])], target="onnxruntime")
    values = np.random.default_rng(0).uniform(-2, 2, (500, 9)).astype(np.float32)
    found = onnx_runtime.run(onnx_file.write(graph), [values])["b"]
    expected = twin.run(graph, [values])["b"]
    assert np.array_equal(found, (expected + 3).astype(np.float32) * np.float32(0.013))
    once = np.clip(np.rint(values / np.float32(0.013)) - 3, -128, 127)
    assert (once != expected).mean() > 0.5


def test_a_softmax_of_another_scale_than_1_256_is_done_in_real_numbers() -> None:
    """QLinearSoftmax answers 0 for what lies above 255 steps."""
    x, y = QParams(np.float32(0.06), 0, INT8), QParams(np.float32(1 / 368), -128, INT8)
    graph = route(graph_of("softmax", [(4,)], [x], y, (4,), axis=1), "onnxruntime")
    codes = np.array([[127, -128, -128, -128], [5, 5, 5, 5]])
    found = onnx_runtime.run(onnx_file.write(graph, integer_io=True), [(codes + 128).astype(np.uint8)])["y"]
    assert found.tolist() == [[255, 0, 0, 0], [92, 92, 92, 92]]
