from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qi.core import IntGrid, QParams
from qi.errors import FileFormatError
from qi.exporters import onnx_file
from qi.exporters.read_onnx import read_onnx
from qi.exporters.vendor import VendorGraph
from qi.ir import Op
from qi.ir.routing import route
from tests.ir.graphs import codes_of, graph_of, perceptron, real
from tests.parity.operations import case


def written(nodes: list[Any], constants: dict[str, np.ndarray], shapes: dict[str, list[Any]], opset: int = 21) -> bytes:
    """A file with input x and output y."""
    info = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, shapes[n]) for n in ("x", "y")}
    stored = [numpy_helper.from_array(a, n) for n, a in constants.items()]
    graph = helper.make_graph(nodes, "g", [info["x"]], [info["y"]], stored)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


def node(kind: str, inputs: str, outputs: str, **attrs: Any) -> Any:
    domain = "com.microsoft" if kind in ("QGemm", "QLinearAdd", "QLinearConcat") else ""
    return helper.make_node(kind, inputs.split(), outputs.split(), domain=domain, **attrs)


def act(scale: float, zero_point: int, *, signed: bool = False) -> QParams:
    return QParams(np.asarray(np.float32(scale)), np.asarray(zero_point), IntGrid(8, signed=signed))


F32, U8, I8 = np.float32, np.uint8, np.int8
CODES = (np.arange(12) - 6).astype(I8).reshape(4, 3)
SCALES = np.array([0.5, 0.25, 1.0], F32)


def kinds(file: VendorGraph) -> list[str]:
    return [n.kind for n in file.nodes]


def product(file: VendorGraph) -> Any:
    return next(n for n in file.nodes if n.kind == "linear")


def test_our_own_file_comes_back() -> None:
    graph = perceptron()
    file = read_onnx(onnx_file.write(route(graph, "onnxruntime")))
    assert kinds(file) == ["quantize", "linear", "quantize", "linear", "quantize"]
    products = [n for n in file.nodes if n.kind == "linear"]
    for found, op in zip(products, (op for op in graph.ops if op.kind == "dense"), strict=True):
        np.testing.assert_array_equal(found.weight.real(), op.inputs[1].values())  # type: ignore[union-attr]
        params = file.settled(found.outputs[0])
        assert params is not None
        assert (params.scale, int(params.zero_point) - 128) == (op.y.scale, op.y.zero_point)


QDQ = {"xs": F32(0.1), "xz": U8(7), "w": CODES, "ws": SCALES, "wz": np.zeros(3, I8), "ys": F32(0.2), "yz": U8(0)}


def qdq() -> bytes:
    nodes = [
        node("QuantizeLinear", "x xs xz", "xq"),
        node("DequantizeLinear", "xq xs xz", "xd"),
        node("DequantizeLinear", "w ws wz", "wd", axis=1),
        node("MatMul", "xd wd", "h"),
        node("Relu", "h", "r"),
        node("QuantizeLinear", "r ys yz", "rq"),
        node("DequantizeLinear", "rq ys yz", "y"),
    ]
    return written(nodes, QDQ, {"x": [None, 4], "y": [None, 3]})


@pytest.mark.parametrize("kind", ["conv2d_int4", "depthwise_conv2d_int4", "dense_int4"])
@pytest.mark.parametrize("integer_io", [False, True])
def test_our_own_packed_weights_come_back_with_their_scales(kind: str, integer_io: bool) -> None:
    """Which stand beside the product there, not within it."""
    for seed in range(4):
        files = [route(case(kind, seed), "onnxruntime", packed=packed) for packed in (True, False)]
        packed, plain = (read_onnx(onnx_file.write(routed, integer_io=integer_io)) for routed in files)
        assert kinds(packed) == kinds(plain)
        for found, expected in zip(packed.nodes, plain.nodes, strict=True):
            assert [t.qparams for t in found.inputs] == [t.qparams for t in expected.inputs]
            assert [t.qparams for t in found.outputs] == [t.qparams for t in expected.outputs]
        assert product(packed).weight.bits == 4
        np.testing.assert_array_equal(product(packed).weight.real(), product(plain).weight.real())
        if product(plain).bias is not None:
            np.testing.assert_array_equal(product(packed).bias.real(), product(plain).bias.real())


def test_constants_that_are_computed_are_constants() -> None:
    stored = QDQ | {"two": F32(2), "four": F32(4)}
    nodes = [node("Mul", "two four", "eight"), node("Div", "eight four", "half"), node("Div", "x half", "y")]
    file = read_onnx(written(nodes, stored, {"x": [None, 4], "y": [None, 4]}))
    assert kinds(file) == ["div"]
    assert file.nodes[0].constants[0].data == F32(2)


def test_qdq() -> None:
    file = read_onnx(qdq())
    assert kinds(file) == ["quantize", "linear", "relu", "quantize"]
    np.testing.assert_array_equal(product(file).weight.real(), CODES * SCALES)
    assert file.settled(file.inputs[0][1]) == act(0.1, 7)
    assert file.settled(file.nodes[2].outputs[0]) == act(0.2, 0)
    assert file.settled(product(file).outputs[0]) is None


def test_weights_that_the_runtime_shall_round_are_rounded() -> None:
    nodes = [
        node("QuantizeLinear", "w ws wz", "wq"),
        node("DequantizeLinear", "wq ws wz", "wd"),
        node("MatMul", "x wd", "y"),
    ]
    stored = {"w": np.linspace(-1, 1, 12, dtype=F32).reshape(4, 3), "ws": F32(0.1), "wz": I8(0)}
    weight = product(read_onnx(written(nodes, stored, {"x": [None, 4], "y": [None, 3]}))).weight
    assert weight.data.tolist() == np.rint(np.linspace(-1, 1, 12, dtype=F32) / F32(0.1)).reshape(4, 3).tolist()


def test_packed_codes_and_blocks() -> None:
    codes = helper.make_tensor("w", TensorProto.INT4, (4, 3), np.clip(CODES, -8, 7).reshape(-1).tolist())
    blocks = np.array([[0.5, 0.25, 1.0], [2.0, 4.0, 8.0]], F32)
    graph = helper.make_graph(
        [node("DequantizeLinear", "w ws", "wd", axis=0, block_size=2), node("MatMul", "x wd", "y")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 3])],
        [codes, numpy_helper.from_array(blocks, "ws")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    weight = product(read_onnx(model.SerializeToString())).weight
    assert weight.bits == 4
    np.testing.assert_array_equal(weight.real(), CODES * np.repeat(blocks, 2, axis=0))


@pytest.mark.parametrize("transposed", [False, True])
def test_operations_on_codes(transposed: bool) -> None:
    stored = QDQ | {"w": CODES.T.copy() if transposed else CODES, "b": np.array([1, 2, 3], np.int32), "two": F32(0.4)}
    nodes = [
        node("QuantizeLinear", "x xs xz", "xq"),
        node("QGemm", "xq xs xz w ws wz b ys yz", "hq", transB=int(transposed)),
        node("QLinearAdd", "hq ys yz hq ys yz two yz", "sq"),
        node("QLinearConcat", "ys yz sq two yz hq ys yz", "cq", axis=1),
        node("DequantizeLinear", "cq ys yz", "y"),
    ]
    file = read_onnx(written(nodes, stored, {"x": [None, 4], "y": [None, 6]}))
    assert kinds(file) == ["quantize", "linear", "add", "concat"]
    found = product(file)
    np.testing.assert_array_equal(found.weight.real(), CODES * SCALES)
    np.testing.assert_allclose(found.bias.real(), np.array([1, 2, 3]) * F32(0.1) * SCALES, rtol=1e-6)
    assert [n.outputs[0].qparams for n in file.nodes] == [act(0.1, 7), act(0.2, 0), act(0.4, 0), act(0.2, 0)]


def test_convolutions_have_the_axes_of_keras() -> None:
    codes = np.random.default_rng(0).integers(-127, 128, (5, 4, 3, 2)).astype(I8)
    stored = {"w": codes, "ws": np.linspace(0.1, 0.2, 5, dtype=F32), "wz": np.zeros(5, I8)}
    nodes = [node("DequantizeLinear", "w ws wz", "wd", axis=0), node("Conv", "x wd", "y")]
    weight = product(read_onnx(written(nodes, stored, {"x": [None, 4, 8, 8], "y": [None, 5, 6, 7]}))).weight
    assert weight.data.shape == (3, 2, 4, 5)
    np.testing.assert_array_equal(weight.data, codes.transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(weight.scale.reshape(-1), stored["ws"])


def test_dynamic_quantization_gives_weights_only() -> None:
    nodes = [
        node("DynamicQuantizeLinear", "x", "xq xs xz"),
        node("Mul", "xs ws", "s"),
        node("MatMulInteger", "xq w xz wz", "i"),
        node("Cast", "i", "f", to=TensorProto.FLOAT),
        node("Mul", "f s", "h"),
        node("Add", "h b", "y"),
    ]
    stored = {"w": CODES, "ws": SCALES, "wz": np.zeros(3, I8), "b": np.ones(3, F32)}
    file = read_onnx(written(nodes, stored, {"x": [None, 4], "y": [None, 3]}))
    assert kinds(file) == ["linear"]
    np.testing.assert_array_equal(file.nodes[0].weight.real(), CODES * SCALES)  # type: ignore[union-attr]
    assert file.nodes[0].bias is not None
    assert file.settled(file.inputs[0][1]) is None


def test_the_exponential_of_a_log_softmax_is_a_softmax() -> None:
    nodes = [node("LogSoftmax", "x", "l", axis=-1), node("Exp", "l", "y")]
    file = read_onnx(written(nodes, {}, {"x": [None, 4], "y": [None, 4]}))
    assert kinds(file) == ["softmax"]
    assert file.nodes[0].outputs[0] is file.outputs[0][1]


def test_constants_in_other_files_are_refused() -> None:
    model = onnx.load_from_string(qdq())
    tensor = model.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.ClearField("raw_data")
    tensor.data_location = 1
    tensor.external_data.add(key="location", value="../secret")
    with pytest.raises(FileFormatError):
        read_onnx(model.SerializeToString())


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("xs", np.nan),
        ("xs", -1.0),
        ("xs", 0.0),
        ("xs", np.inf),
        ("ws", np.nan),
        ("ws", np.inf),
    ],  # blocks may have others
)
def test_impossible_scales_are_refused(name: str, scale: float) -> None:
    model = onnx.load_from_string(qdq())
    for tensor in model.graph.initializer:
        if tensor.name == name:
            array = np.full_like(numpy_helper.to_array(tensor), scale)
            tensor.CopyFrom(numpy_helper.from_array(array, name))
    with pytest.raises(FileFormatError, match="scale"):
        read_onnx(model.SerializeToString())


def test_damaged_bytes_are_refused_or_read() -> None:
    whole = qdq()
    rng = np.random.default_rng(0)
    outcomes = set()
    for trial in range(300):
        data = bytearray(whole)
        for place in rng.integers(len(data), size=3):
            data[place] = rng.integers(256)
        if trial % 4 == 0:
            data = data[: rng.integers(len(data))]
        try:
            read_onnx(bytes(data))
            outcomes.add("read")
        except FileFormatError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


@pytest.mark.parametrize("data", [b"", b"\x00" * 64, b"TFL3TFL3TFL3"])
def test_something_else_is_refused(data: bytes) -> None:
    with pytest.raises(FileFormatError):
        read_onnx(data)


def in_blocks(seed: int, bits: int, shape: tuple[int, int], size: int) -> tuple[np.ndarray, np.ndarray]:
    """(codes [inputs, outputs], a zero point for each block and output)."""
    rng, (depth, count) = np.random.default_rng(seed), shape
    return rng.integers(0, 1 << bits, shape), rng.integers(0, 1 << bits, (-(-depth // size), count))


def packed_rows(codes: np.ndarray, bits: int) -> np.ndarray:
    """Rows of codes, the lower bits of a byte first."""
    per = 8 // bits
    full = np.pad(codes, ((0, 0), (0, -codes.shape[1] % per))).reshape(len(codes), -1, per)
    return (full << (bits * np.arange(per))).sum(-1).astype(U8)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zeros", [True, False])
def test_products_with_blocks(bits: int, zeros: bool) -> None:
    """[outputs, blocks, bytes], the last block filled up; zero points in rows of whole bytes, or the middle code."""
    (depth, count), size = (40, 3), 16
    codes, zero = in_blocks(0, bits, (depth, count), size)
    scales = np.random.default_rng(1).uniform(0.1, 1, zero.shape).astype(F32)
    rows = packed_rows(np.pad(codes, ((0, -depth % size), (0, 0))).T, bits).reshape(count, -(-depth // size), -1)
    constants = {
        "w": rows,
        "s": scales.T.reshape(-1),
        "z": packed_rows(zero.T, bits).reshape(-1),
        "b": np.ones(count, F32),
    }
    attrs = {"K": depth, "N": count, "bits": bits, "block_size": size, "accuracy_level": 4 if zeros else 1}
    names = ["x", "w", "s", "z" if zeros else "", "", "b"]
    made = helper.make_node("MatMulNBits", names, ["y"], domain="com.microsoft", **attrs)
    found = product(read_onnx(written([made], constants, {"x": [None, depth], "y": [None, count]})))
    spread = lambda a: np.repeat(a, size, 0)[:depth]
    middle = np.full(zero.shape, 1 << (bits - 1))
    expected = (codes - spread(zero if zeros else middle)) * spread(scales).astype(np.float64)
    np.testing.assert_allclose(found.weight.real(), expected, rtol=1e-6)
    assert (found.weight.bits, found.bias.name, found.dynamic) == (bits, "b", zeros)


def test_codes_that_are_moved_and_normalized_keep_their_scale() -> None:
    """A normalization takes codes in steps of 1, and may be the first to take them behind a move."""
    grid = QParams(np.float32(0.05), 7, IntGrid(8))
    x, y = real("x", 4, 6), codes_of("y", 24)
    codes, flat = (codes_of(name, *shape, qparams=grid) for name, shape in (("q", (4, 6)), ("flat", (24,))))
    ops = [
        Op("quantize", [x], [codes], source="x"),
        Op("reshape", [codes], [flat], {"shape": [None, 24]}, "flat"),
        Op("layer_norm", [flat], [y], {"axes": [1], "epsilon": 1e-3}, "norm"),
    ]
    found = read_onnx(onnx_file.write(route(graph_of(*ops, inputs=[x]), "onnxruntime"), metadata={"qi": "1"}))
    moved = next(n for n in found.nodes if n.kind == "move").outputs[0]
    assert moved.qparams is not None
    assert float(moved.qparams.scale.reshape(())) == np.float32(0.05)
