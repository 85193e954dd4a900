from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from qi.core import IntGrid, PerChannel, QParams
from qi.errors import FileFormatError
from qi.exporters import litert
from qi.exporters.litert_file import Draft, packed
from qi.exporters.read_litert import CODES, read_litert
from qi.ir import Op
from qi.ir.routing import route
from tests.ir.graphs import act, codes_of, graph_of, per_channel as per_channel_params, perceptron, real, weight


def channels_of(count: int, bits: int = 8) -> QParams:
    scale = np.linspace(0.1, 0.2, count)
    return QParams(scale, np.zeros(count), IntGrid(bits), PerChannel(0))


def test_numbers_of_operators_are_the_schemas() -> None:
    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    assert {number: names[number] for number in CODES} == {number: name for number, (name, _) in CODES.items()}


def test_our_own_file_comes_back() -> None:
    graph = perceptron()
    file = read_litert(litert.write(route(graph, "litert")))
    assert [node.kind for node in file.nodes] == ["quantize", "linear", "linear"]
    assert [name for name, _ in (*file.inputs, *file.outputs)] == ["x", "y"]
    products = [node for node in file.nodes if node.weight is not None]
    for node, op in zip(products, (op for op in graph.ops if op.kind == "dense"), strict=True):
        assert node.weight is not None
        assert node.bias is not None
        np.testing.assert_array_equal(node.weight.data, op.inputs[1].data)
        assert node.weight.scale is not None
        np.testing.assert_array_equal(node.weight.scale.reshape(-1), op.inputs[1].scales())
        assert file.settled(node.outputs[0]) == op.y.qparams
    assert file.outputs[0][1].qparams == graph.ops[-1].y.qparams


@pytest.mark.parametrize(
    ("kind", "bits"),
    [("conv2d", 8), ("conv2d", 4), ("depthwise_conv2d", 8), ("depthwise_conv2d", 4), ("conv2d_transpose", 8)],
)
def test_kernels_have_the_axes_that_keras_gives_them(kind: str, bits: int) -> None:
    shape = {"conv2d": (3, 2, 4, 5), "depthwise_conv2d": (3, 2, 4), "conv2d_transpose": (3, 2, 5, 4)}[kind]
    channels, axis = (4, 2) if kind == "depthwise_conv2d" else (5, 3 if kind == "conv2d" else 2)
    codes = np.random.default_rng(0).integers(-7, 8, shape)
    w = weight("w", codes, np.linspace(0.1, 0.2, channels), axis)
    w.qparams = per_channel_params(np.linspace(0.1, 0.2, channels), axis, len(shape), bits)
    size = {"conv2d": (6, 7), "depthwise_conv2d": (6, 7), "conv2d_transpose": (10, 9)}[kind]
    x, y = codes_of("x", 8, 8, 4), codes_of("y", *size, channels)
    attrs = {"strides": [1, 1], "pads": [0, 0, 0, 0], "dilation": [1, 1], "activation": "none"}
    attrs |= {"groups": 1} if kind == "conv2d" else {}
    op = Op(kind, [x, w], [y], attrs)
    file = read_litert(litert.write(route(graph_of(op, inputs=[x]), "litert", packed=True), integer_io=True))
    found = next(node.weight for node in file.nodes if node.weight is not None)
    assert found.bits == bits
    np.testing.assert_array_equal(found.data, codes)
    np.testing.assert_array_equal(found.real(), w.values())


def test_a_constant_that_is_dequantized_is_a_weight_of_codes() -> None:
    draft = Draft()
    x = draft.real("x", (None, 4))
    codes = draft.constant("w", np.arange(12, dtype=np.int8).reshape(3, 4) - 6, channels_of(3, 4), bits=4)
    plain, y = draft.real("w/real", (3, 4)), draft.real("y", (None, 3))
    draft.operator("DEQUANTIZE", [codes], [plain])
    draft.operator("FULLY_CONNECTED", [x, plain], [y], 1, draft.options("FullyConnectedOptions"))
    file = read_litert(draft.finish("m", [("in", x)], [("out", y)], {}))
    (node,) = file.nodes
    assert node.weight is not None
    assert (node.weight.bits, node.weight.data.shape, node.bias) == (4, (4, 3), None)
    assert node.weight.data.T.tolist() == (np.arange(12).reshape(3, 4) - 6).tolist()
    assert [name for name, _ in file.inputs] == ["in"]


def test_fused_activations_are_nodes_and_islands_are_none() -> None:
    x, y, z = codes_of("x", 4), codes_of("y", 4, qparams=act(0.2)), real("z", 4)
    ops = [Op("add", [x, x], [y], {"activation": "relu"}), Op("dequantize", [y], [z])]
    file = read_litert(litert.write(route(graph_of(*ops, inputs=[x]), "litert"), integer_io=True))
    assert [node.kind for node in file.nodes] == ["add", "relu"]
    assert file.outputs[0][1] is file.nodes[1].outputs[0]


def test_a_table_is_an_embedding() -> None:
    draft = Draft()
    ids = draft.tensor(real("ids", 3, dtype="int32"))
    table = draft.constant(
        "table", np.arange(10, dtype=np.int8).reshape(5, 2), QParams(np.asarray(0.5), np.asarray(0), IntGrid(8))
    )
    y = draft.real("y", (None, 3, 2))
    draft.operator("GATHER", [table, ids], [y], 2, draft.options("GatherOptions"))
    (node,) = read_litert(draft.finish("m", [("ids", ids)], [("y", y)], {})).nodes
    assert node.kind == "embedding"
    assert node.weight is not None
    assert node.weight.data.shape == (5, 2)


def test_a_scale_that_is_no_number_is_refused() -> None:
    model = schema.ModelT.InitFromPackedBuf(litert.write(route(perceptron(), "litert")))
    model.metadata = None
    broken = [t for t in model.subgraphs[0].tensors if t.quantization is not None and t.quantization.scale is not None]
    broken[0].quantization.scale = np.full(len(broken[0].quantization.scale), np.nan, np.float32)
    with pytest.raises(FileFormatError, match="scale"):
        read_litert(packed(model, 10000))


def test_damaged_bytes_are_refused_or_read(shared_bytes: bytes) -> None:
    rng = np.random.default_rng(0)
    outcomes = set()
    for trial in range(300):
        data = bytearray(shared_bytes)
        for place in rng.integers(len(data), size=4):
            data[place] = rng.integers(256)
        if trial % 4 == 0:
            data = data[: rng.integers(len(data))]
        try:
            read_litert(bytes(data))
            outcomes.add("read")
        except FileFormatError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


@pytest.fixture(scope="module")
def shared_bytes(checkout: Path) -> bytes:
    """A file of another tool, which no digest protects."""
    return (checkout / "tests" / "golden" / "vendor" / "aeq_w8a8.tflite").read_bytes()


@pytest.mark.parametrize("data", [b"", b"TFL3", b"\x00" * 64, b"PK\x03\x04" + bytes(100)])
def test_something_else_is_refused(data: bytes) -> None:
    with pytest.raises(FileFormatError, match="flatbuffer"):
        read_litert(data)


def test_scales_of_blocks_are_a_tensor_of_their_own(checkout: Path) -> None:
    data = (checkout / "tests" / "golden" / "vendor" / "aeq_blocks32.tflite").read_bytes()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(data, 0))
    tensors = model.subgraphs[0].tensors
    (entry,) = (t for t in tensors if t.name.endswith(b"a_1/MatMul"))
    half = model.buffers[tensors[entry.quantization.details.scales].buffer].data.view(np.float16).reshape(96, 2)
    (found,) = (
        n.weight for n in read_litert(data).nodes if n.weight is not None and n.weight.name.endswith("a_1/MatMul")
    )
    assert (found.data.shape, found.bits) == ((64, 96), 4)
    np.testing.assert_array_equal(found.scale, np.repeat(half.T.astype(np.float32), 32, 0))
    assert not found.zero_point.any()


def test_scales_that_are_too_few_for_the_blocks_are_refused(checkout: Path) -> None:
    data = bytearray((checkout / "tests" / "golden" / "vendor" / "aeq_blocks32.tflite").read_bytes())
    model = schema.Model.GetRootAsModel(data, 0)
    quantization = next(
        t.Quantization() for t in map(model.Subgraphs(0).Tensors, range(14)) if t.Name().endswith(b"a_1/MatMul")
    )
    table = schema.BlockwiseQuantization()
    table.Init(quantization.Details().Bytes, quantization.Details().Pos)
    assert table.BlockSize() == 32
    place = table._tab.Offset(8) + table._tab.Pos
    data[place : place + 4] = (16).to_bytes(4, "little")
    with pytest.raises(FileFormatError, match=r"a scale for each 16 codes of '.*a_1/MatMul'"):
        read_litert(bytes(data))
