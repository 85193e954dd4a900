from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from qi.core import IntGrid, PerGroup, QParams
from qi.errors import FileFormatError
from qi.ir import Op, QGraph, Tensor, run
from qi.ir.io import from_record, load_graph, save_graph, to_record
from tests.ir.graphs import act, codes_of, graph_of, perceptron, real

X = np.random.default_rng(0).uniform(-2, 2, (5, 4)).astype(np.float32)


def rich() -> QGraph:
    """Two inputs, indices among them, weights of four bits, attributes of all sorts, structures, a target."""
    graph = perceptron()
    x, ids = graph.inputs[0], real("ids", 2, dtype="int32")
    w = graph.ops[1].inputs[1]
    w.qparams = QParams(w.qparams.scale, w.qparams.zero_point, IntGrid(4, narrow=True), w.qparams.granularity)
    w.data = np.clip(w.data, -7, 7)
    table = Tensor("table", (4, 3), qparams=act(0.3, -4), data=np.arange(12, dtype=np.int8).reshape(4, 3))
    rows, flat = codes_of("rows", 2, 3, qparams=act(0.3, -4)), codes_of("flat", 6, qparams=act(0.3, -4))
    graph.ops += [
        Op("embedding", [ids, table], [rows], source="tokens"),
        Op("reshape", [rows], [flat], {"shape": [None, 6]}, "größe\n"),
    ]
    graph.inputs, graph.outputs = [x, ids], [*graph.outputs, flat]
    graph.input_structure, graph.output_structure = {"x": "x", "more": ["ids"]}, {"y": ["y"], "rows": "flat"}
    graph.target, graph.name = "litert", "rich"
    return graph


def test_a_graph_comes_back_and_runs_alike(tmp_path: Path) -> None:
    graph = rich()
    path = tmp_path / "graph"
    assert save_graph(graph, path) == path
    assert [file.name for file in tmp_path.iterdir()] == ["graph"]
    back = load_graph(str(path))
    assert str(back) == str(graph)
    assert (back.name, back.target) == ("rich", "litert")
    assert (back.input_structure, back.output_structure) == (graph.input_structure, graph.output_structure)
    for a, b in zip(graph.tensors(), back.tensors(), strict=True):
        assert (a.name, a.shape, a.dtype, a.qparams) == (b.name, b.shape, b.dtype, b.qparams)
        assert (a.data is None) == (b.data is None)
        if a.data is not None:
            assert a.data.dtype == b.data.dtype
            np.testing.assert_array_equal(a.data, b.data)
    assert [(op.kind, op.attrs, op.source) for op in graph.ops] == [(op.kind, op.attrs, op.source) for op in back.ops]
    arrays = [X, np.random.default_rng(0).integers(0, 4, (5, 2))]
    expected, found = (run(g, arrays, every=True) for g in (graph, back))
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_tensors_that_were_one_are_one_again(tmp_path: Path) -> None:
    a, b = codes_of("a", 2), codes_of("b", 2)
    graph = graph_of(Op("add", [a, a], [b], {"activation": "relu"}), inputs=[a])
    graph.outputs = [b, a, b]
    back = load_graph(save_graph(graph, tmp_path / "g"))
    assert back.ops[0].inputs == [back.inputs[0]] * 2
    assert back.outputs == [back.ops[0].y, back.inputs[0], back.ops[0].y]


def test_the_record_is_plain_json_and_the_file_plain_arrays(tmp_path: Path) -> None:
    record, arrays = to_record(rich())
    assert json.loads(json.dumps(record)) == record
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    with np.load(save_graph(rich(), tmp_path / "g"), allow_pickle=False) as file:
        assert json.loads(file["graph"].tobytes()) == record
        assert set(file.files) == {"graph", *arrays}


def test_scales_of_groups_come_back() -> None:
    x, y = real("x", 4), real("y", 3)
    qparams = QParams(np.ones((2, 3)), np.zeros((2, 3)), IntGrid(8, narrow=True), PerGroup(0, 2, 1))
    w = Tensor("w", (4, 3), qparams=qparams, data=np.ones((4, 3), np.int8))
    graph = graph_of(Op("dense", [x, w], [y], {"activation": "none"}, "d"), inputs=[x])
    assert from_record(*to_record(graph)).ops[0].inputs[1].qparams == qparams


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        save_graph(perceptron(), tmp_path / "missing" / "g")
    with pytest.raises(OSError, match="nothing"):
        load_graph(tmp_path / "nothing")


def _tensor_list(r: Any) -> None:
    r["tensors"] = 3


def _number_beyond(r: Any) -> None:
    r["ops"][1]["inputs"][0] = 99


def _number_below(r: Any) -> None:
    r["ops"][1]["inputs"][0] = -1


def _no_number(r: Any) -> None:
    r["ops"][1]["inputs"][0] = [0]


def _op_is_text(r: Any) -> None:
    r["ops"][1] = "dense"


def _kind(r: Any) -> None:
    r["ops"][1]["kind"] = "os.system"


def _attrs(r: Any) -> None:
    r["ops"][1]["attrs"] = 7


def _no_source(r: Any) -> None:
    del r["ops"][1]["source"]


def _bits(r: Any) -> None:
    r["tensors"][1]["quantized"]["bits"] = 99


def _bits_as_text(r: Any) -> None:
    r["tensors"][1]["quantized"]["bits"] = "8"


def _axis(r: Any) -> None:
    r["tensors"][2]["quantized"]["axis"] = 7


def _infinite_size(r: Any) -> None:
    r["tensors"][0]["shape"] = [None, float("inf")]


def _shape(r: Any) -> None:
    r["tensors"][2]["shape"] = [4, 4]


def _dtype(r: Any) -> None:
    r["tensors"][0]["dtype"] = "object"


def _no_dtype(r: Any) -> None:
    r["tensors"][0]["dtype"] = "float31"


def _constant(r: Any) -> None:
    r["tensors"][0]["constant"] = True


def _no_outputs(r: Any) -> None:
    del r["outputs"]


def _twice(r: Any) -> None:
    r["tensors"][1]["name"] = r["tensors"][0]["name"]


@pytest.mark.parametrize(
    "spoil",
    [
        _tensor_list, _number_beyond, _number_below, _no_number, _op_is_text, _kind, _attrs, _no_source, _bits,
        _bits_as_text, _axis, _infinite_size, _shape, _dtype, _no_dtype, _constant, _no_outputs, _twice,
    ],
    ids=lambda f: f.__name__.strip("_"),
)  # fmt: skip
def test_a_damaged_record_is_refused(spoil: Callable[[Any], None]) -> None:
    record, arrays = to_record(perceptron())
    spoil(record)
    with pytest.raises(FileFormatError, match="expected a whole graph; received one that is damaged"):
        from_record(record, arrays)


@pytest.mark.parametrize("record", [None, [], {}, {"format": "qi graph"}, {"format": "qi graph", "version": 2}])
def test_another_record_is_refused(record: Any) -> None:
    with pytest.raises(FileFormatError, match="record of a graph, version 1"):
        from_record(record, {})


@pytest.mark.parametrize("missing", ["data_2", "scale_1", "zero_point_2"])
def test_a_missing_array_is_refused(missing: str) -> None:
    record, arrays = to_record(perceptron())
    del arrays[missing]
    with pytest.raises(FileFormatError, match=missing):
        from_record(record, arrays)


def test_scales_that_are_no_numbers_are_refused() -> None:
    record, arrays = to_record(perceptron())
    arrays["scale_1"] = np.float32(np.nan)
    with pytest.raises(FileFormatError, match="scales to be positive and finite"):
        from_record(record, arrays)


def archive(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def array_file(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def half_a_header() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("graph.npy", array_file(np.zeros(3)).replace(b",), }", b",   }"))
    return buffer.getvalue()


def object_archive() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, graph=np.array([{}], dtype=object))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x05\x06" + bytes(18),
        b"not a graph",
        array_file(np.arange(3)),
        archive(other=np.arange(3)),
        archive(graph=np.frombuffer(b"{", np.uint8)),
        archive(graph=np.frombuffer(b"\xff\xfe", np.uint8)),
        archive(graph=np.frombuffer(b"[" * 100_000, np.uint8)),
        archive(graph=np.float64([np.nan])),
        half_a_header(),
        object_archive(),
    ],
    ids=[
        "empty",
        "empty archive",
        "text",
        "npy",
        "no record",
        "half",
        "no text",
        "deep",
        "floats",
        "header",
        "objects",
    ],
)
def test_another_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "g").write_bytes(content)
    with pytest.raises(FileFormatError, match=r"expected a graph's \.npz file"):
        load_graph(tmp_path / "g")


def test_a_file_that_unpacks_to_too_much_is_refused_before_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_graph(perceptron(), tmp_path / "g")
    with zipfile.ZipFile(path) as file:
        size = sum(entry.file_size for entry in file.infolist())
    monkeypatch.setattr("qi.ir.io._LIMIT", size)
    load_graph(path)
    monkeypatch.setattr("qi.ir.io._LIMIT", size - 1)
    with pytest.raises(FileFormatError, match=f"unpacks to {size} bytes"):
        load_graph(path)
    monkeypatch.setattr("qi.ir.io._LIMIT", 10)
    with pytest.raises(FileFormatError, match="at most 10 bytes"):
        load_graph(path)


def outcome(path: Path) -> None:
    """Loads a file that may be damaged: a graph that prints, or the one error."""
    try:
        graph = load_graph(path)
    except FileFormatError:
        return
    str(graph)


def test_every_cut_is_refused(tmp_path: Path) -> None:
    content = save_graph(rich(), tmp_path / "g").read_bytes()
    for end in range(0, len(content) - 1, 97):
        (tmp_path / "cut").write_bytes(content[:end])
        with pytest.raises(FileFormatError):
            load_graph(tmp_path / "cut")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.data())
def test_changed_bytes_give_a_graph_or_the_one_error(tmp_path: Path, data: st.DataObject) -> None:
    if not (tmp_path / "g").exists():
        save_graph(rich(), tmp_path / "g")
    content = bytearray((tmp_path / "g").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "changed").write_bytes(content)
    outcome(tmp_path / "changed")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.data())
def test_a_changed_record_gives_a_graph_or_the_one_error(tmp_path: Path, data: st.DataObject) -> None:
    record, arrays = to_record(rich())
    text = bytearray(json.dumps(record).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.sampled_from(b'0123456789-.,:[]{}"eInfatrus '))
    (tmp_path / "changed").write_bytes(archive(graph=np.frombuffer(bytes(text), np.uint8), **arrays))
    outcome(tmp_path / "changed")
