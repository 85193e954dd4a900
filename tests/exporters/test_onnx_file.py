"""Graphs as ONNX files: valid, alike at every writing, with the borders that were asked for."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from qi.core import IntGrid, QParams
from qi.errors import ConfigError, UnsupportedError
from qi.exporters import onnx_file
from qi.exporters.onnx_file import places, write
from qi.ir.graph import Op, QGraph, Tensor
from qi.ir.kinds import KINDS
from qi.ir.routing import route
from tests.parity.operations import CASES, case


def routed(kind: str, seed: int = 0, **options: bool) -> QGraph:
    return route(case(kind, seed), "onnxruntime", **options)


def unary(function: str, bits: int = 8) -> QGraph:
    q = QParams(np.float32(0.01), 0, IntGrid(bits))
    x, a, y = Tensor("x", (None, 3)), Tensor("a", (None, 3), qparams=q), Tensor("y", (None, 3), qparams=q)
    ops = [Op("quantize", [x], [a]), Op("unary", [a], [y], {"function": function, "alpha": None}, "layer")]
    return route(QGraph("g", [x], [y], ops), "onnxruntime")


@pytest.mark.parametrize("kind", CASES.names())
def test_the_checker_and_shape_inference_are_content(kind: str) -> None:
    for integer_io in (False, True):
        graph = routed(kind)
        model = onnx.load_from_string(write(graph, integer_io=integer_io))
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        assert [given.name for given in model.graph.input] == [tensor.name for tensor in graph.inputs]
        assert [given.name for given in model.graph.output] == [tensor.name for tensor in graph.outputs]


def test_every_kind_has_a_writer() -> None:
    missing = set(KINDS.names()) - set(onnx_file.WRITERS.names())
    assert not missing & {kind.partition("_int")[0] for kind in CASES.names()}


def test_bytes_are_the_same_every_time() -> None:
    assert write(routed("conv2d", 3)) == write(routed("conv2d", 3))


def test_opset_is_the_least_that_serves() -> None:
    found = {
        name: onnx.load_from_string(write(graph)).opset_import[0].version
        for name, graph in {
            "plain": routed("conv2d"),
            "gelu": unary("gelu"),
            "packed": routed("dense_int4", packed=True),
            "wide": unary("tanh", 16),
        }.items()
    }
    assert found == {"plain": 18, "gelu": 20, "packed": 21, "wide": 21}
    assert onnx.load_from_string(write(routed("conv2d"), opset=21)).opset_import[0].version == 21


@pytest.mark.parametrize(("function", "opset"), [("gelu", 19), ("tanh", 17), ("tanh", 99)])
def test_an_opset_that_does_not_serve_is_refused(function: str, opset: int) -> None:
    with pytest.raises(ConfigError, match=f"received opset={opset}"):
        write(unary(function), opset=opset)


def test_metadata_travels() -> None:
    model = onnx.load_from_string(write(routed("add"), metadata={"note": "of ours"}))
    assert {entry.key: entry.value for entry in model.metadata_props} == {"note": "of ours"}


def test_borders_are_float_or_codes() -> None:
    for integer_io, elements in ((False, onnx.TensorProto.FLOAT), (True, onnx.TensorProto.UINT8)):
        graph = onnx.load_from_string(write(routed("conv2d"), integer_io=integer_io)).graph
        assert {given.type.tensor_type.elem_type for given in (*graph.input, *graph.output)} == {elements}


def test_writing_leaves_the_graph_alone() -> None:
    graph = routed("conv2d")
    before = str(graph)
    write(graph, integer_io=True)
    assert str(graph) == before


def test_packed_weights_take_half() -> None:
    graph = case("dense_int4", 0)
    graph.ops[1].inputs[1].data = np.zeros((64, 64), np.int8)
    model = onnx.load_from_string(write(routed("dense_int4", packed=True)))
    packed = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT4 and len(t.dims) == 2]
    assert [len(t.raw_data) for t in packed] == [-(-int(np.prod(t.dims)) // 2) for t in packed] != []


def test_a_graph_for_another_target_is_refused() -> None:
    with pytest.raises(ConfigError, match="routed for 'onnxruntime'; received target='litert'"):
        write(route(case("add", 0), "litert"))


def test_an_operation_without_a_writer_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "WRITERS", {})
    with pytest.raises(UnsupportedError, match=r"'quantize' of layer 'input', which has no writer; do leave it out"):
        write(routed("add"))


def test_places_say_where_tensors_are() -> None:
    graph = routed("conv2d")
    found = places(graph)
    assert found["y"][1] == (0, 3, 1, 2) or found["y"][1] == (0, 1, 2, 3)
    names = {name for node in onnx.load_from_string(write(graph)).graph.node for name in node.output}
    assert {found["x0_codes"][0], found["y"][0]} <= names
