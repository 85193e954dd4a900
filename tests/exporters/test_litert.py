from __future__ import annotations

import time

import numpy as np
import pytest

from qi.core import IntGrid, QParams
from qi.errors import ConfigError, FileFormatError, InputError, UnsupportedError
from qi.exporters import litert
from qi.exporters.litert_check import check
from qi.exporters.litert_file import schema
from qi.ir import Op, QGraph, run
from qi.ir.routing import route
from tests.ir.graphs import act, codes_of, graph_of, perceptron, real

X = np.random.default_rng(0).uniform(-2, 2, (5, 4)).astype(np.float32)


def model_of(data: bytes) -> object:
    return schema().ModelT.InitFromPackedBuf(data)


@pytest.fixture
def graph() -> QGraph:
    return route(perceptron(), "litert")


def test_the_file_gives_the_twins_numbers(graph: QGraph) -> None:
    found = litert.run(litert.write(graph), [X])
    codes = run(graph, [X])["y"]
    assert found["y"].dtype == np.float32
    np.testing.assert_array_equal(found["y"], (codes - 3).astype(np.float32) * np.float32(0.1))


def test_codes_go_in_and_come_out(graph: QGraph) -> None:
    codes = run(graph, [X], every=True)
    found = litert.run(litert.write(graph, integer_io=True), [codes["x_codes"].astype(np.int8)])
    assert found["y"].dtype == np.int8
    np.testing.assert_array_equal(found["y"], codes["y"])


def test_names_are_the_graphs(graph: QGraph) -> None:
    model = model_of(litert.write(graph))
    names = {t.name.decode() for t in model.subgraphs[0].tensors}
    assert {t.name for t in graph.tensors()} <= names
    signature = model.signatureDefs[0]
    assert signature.signatureKey == b"serving_default"
    assert [m.name for m in signature.inputs] == [b"x"]
    assert [m.name for m in signature.outputs] == [b"y"]


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_any_batch(graph: QGraph, batch: int) -> None:
    x = np.tile(X, (13, 1))[:batch]
    assert litert.run(litert.write(graph), [x])["y"].shape == (batch, 2)


def test_equal_graphs_give_equal_bytes(graph: QGraph) -> None:
    assert litert.write(graph) == litert.write(route(perceptron(), "litert"))
    assert litert.write(graph) != litert.write(route(perceptron(seed=1), "litert"))


def test_metadata(graph: QGraph) -> None:
    data = litert.write(graph, metadata={"manifest": b"\x00hello", "empty": b""})
    start, size = check(data).metadata["manifest"]
    assert data[start : start + size] == b"\x00hello"
    assert "empty" in check(data).metadata


def test_tensors_inside(graph: QGraph) -> None:
    codes = run(graph, [X], every=True)
    found = litert.run(litert.write(graph), [X], tensors=["hidden", "y"])
    np.testing.assert_array_equal(found["hidden"], codes["hidden"])
    np.testing.assert_array_equal(found["y"], codes["y"])


def test_only_graphs_that_were_routed() -> None:
    with pytest.raises(ConfigError, match="do call route first"):
        litert.write(perceptron())
    with pytest.raises(ConfigError, match="onnxruntime"):
        litert.write(route(perceptron(), "onnxruntime"))


@pytest.mark.parametrize("grid", [IntGrid(16), IntGrid(4, signed=False)])
def test_activations_of_other_widths_are_refused_by_name(grid: IntGrid) -> None:
    y = codes_of("y", 4, qparams=QParams(np.float32(0.1), 0, grid))
    graph = graph_of(Op("quantize", [real("x", 4)], [y], {}, "first"), inputs=[real("x", 4)])
    graph.inputs = [graph.ops[0].x]
    graph.target = "litert"
    with pytest.raises(UnsupportedError, match=r"layer 'first'.*do give it 8 bits"):
        litert.write(graph)


@pytest.mark.parametrize("grid", [IntGrid(4), IntGrid(2), IntGrid(8, narrow=True)])
def test_narrower_grids_are_kept(grid: IntGrid) -> None:
    x, y = real("x", 400), codes_of("y", 400, qparams=QParams(np.float32(0.1), 1, grid))
    graph = route(graph_of(Op("quantize", [x], [y], {}, "first"), inputs=[x]), "litert")
    values = np.linspace(-20, 20, 400, dtype=np.float32)[None]
    found = litert.run(litert.write(graph), [values], tensors=["y"])["y"]
    np.testing.assert_array_equal(found, run(graph, [values])["y"])
    assert (found.min(), found.max()) == (grid.qmin, grid.qmax)


def test_unknown_operations_are_refused_by_name() -> None:
    x, y = codes_of("x", 4), codes_of("y", 4)
    graph = graph_of(Op("teleport", [x], [y], {}, "beam"), inputs=[x], target="litert")
    with pytest.raises(UnsupportedError, match="'teleport' of layer 'beam'"):
        litert.write(graph)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [([], "expected 1 inputs"), ([X[:, :3]], "of shape"), ([X.astype(np.float64)], "of dtype float32")],
)
def test_wrong_inputs(graph: QGraph, inputs: list[np.ndarray], says: str) -> None:
    with pytest.raises(InputError, match=says):
        litert.run(litert.write(graph), inputs)


def test_unknown_tensors(graph: QGraph) -> None:
    with pytest.raises(InputError, match="nowhere"):
        litert.run(litert.write(graph), [X], tensors=["nowhere"])


def test_changed_bytes_are_noticed(graph: QGraph) -> None:
    data = bytearray(litert.write(graph))
    for at in range(40, len(data), 97):
        changed = bytearray(data)
        changed[at] ^= 0x10
        with pytest.raises(FileFormatError):
            litert.run(bytes(changed), [X])


def test_weights_of_a_large_model_take_no_time() -> None:
    graph = perceptron(sizes=(1024, 2048, 1000))
    routed = route(graph, "litert")
    start = time.perf_counter()
    data = litert.write(routed)
    assert time.perf_counter() - start < 1
    assert len(data) < 1.02 * (1024 * 2048 + 2048 * 1000) + 60_000


def test_the_quantizers_own_zero_keeps_borders_apart() -> None:
    x, y = real("x", 4), codes_of("y", 4, qparams=act(0.1, 7))
    graph = graph_of(Op("quantize", [x], [y], {}, "q"), inputs=[x], target="litert")
    found = litert.run(litert.write(graph), [np.zeros((1, 4), np.float32)], tensors=["y"])["y"]
    assert found.tolist() == [[7, 7, 7, 7]]
