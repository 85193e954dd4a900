from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qi.errors import FileFormatError, InputError
from qi.exporters import isolated, litert
from qi.exporters.formats import FORMATS
from qi.exporters.isolated import run_isolated
from qi.exporters.litert_check import check
from qi.exporters.litert_file import packed, schema
from qi.exporters.manifest import Options
from qi.ir.routing import route
from tests.exporters.exported import graph
from tests.ir.graphs import perceptron

X = [np.linspace(-2, 2, 20, dtype="float32").reshape(5, 4)]


def file_of(name: str) -> bytes:
    kind = FORMATS[name]
    return kind.write(graph(kind.target), Options(), b"")


def bomb() -> bytes:
    """A sound ONNX file that asks for some 2**40 bytes."""
    from onnx import TensorProto, helper

    info = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in (("x", [None, 4]), ("y", None))
    ]
    pads = helper.make_tensor("pads", TensorProto.INT64, [4], [0, 0, 0, 2**38])
    model = helper.make_model(
        helper.make_graph([helper.make_node("Pad", ["x", "pads"], ["y"])], "bomb", [info[0]], [info[1]], [pads]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )
    return model.SerializeToString()


@pytest.mark.parametrize("name", FORMATS)
def test_a_sound_file_gives_the_same_in_another_process(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = file_of(name)
    there = FORMATS[name].places(data, graph(FORMATS[name].target), Options())["hidden"][0]
    monkeypatch.chdir(tmp_path)  # where no package lies
    found = run_isolated(name, data, X, threads=2, tensors=[there])
    expected = FORMATS[name].run(data, X, tensors=[there])
    assert list(found) == list(expected)
    for key, array in expected.items():
        assert np.array_equal(found[key], array)
        assert found[key].dtype == array.dtype


def test_errors_keep_their_kind_and_words() -> None:
    with pytest.raises(InputError, match=r"expected 1 inputs \['x'\]; received 2"):
        run_isolated("onnx", file_of("onnx"), X * 2)
    with pytest.raises(FileFormatError, match="expected an ONNX file; it is damaged or something else"):
        run_isolated("onnx", b"no model", X)


def test_a_file_that_asks_for_all_memory_is_an_error() -> None:
    pytest.importorskip("resource")
    with pytest.raises(FileFormatError):
        run_isolated("onnx", bomb(), X)


def test_a_file_that_ends_the_process_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    run = subprocess.run
    dying = [sys.executable, "-c", "import os; os.abort()"]
    monkeypatch.setattr(isolated.subprocess, "run", lambda command, **options: run(dying, **options))
    with pytest.raises(FileFormatError, match=r"it ended with -?[0-9]+"):
        run_isolated("onnx", b"", X)


def test_a_file_that_does_not_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    run = subprocess.run
    waiting = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(isolated, "_SECONDS", 0.5)
    monkeypatch.setattr(isolated.subprocess, "run", lambda command, **options: run(waiting, **options))
    with pytest.raises(FileFormatError, match=r"onnx runs; it wasn't done after 0.5 s"):
        run_isolated("onnx", b"", X)


def test_no_framework_is_loaded_there(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    run = subprocess.run

    def watched(command: list[str], **options: Any) -> Any:
        code = (
            "import runpy, sys\n"
            f"try: runpy.run_module({command[-1]!r}, run_name='__main__')\n"
            "except SystemExit as stop: sys.stderr.write(f'{stop.code} {sorted(m for m in sys.modules if \".\" not in m)}')"
        )
        seen["done"] = run([command[0], "-c", code], **options)
        return seen["done"]

    monkeypatch.setattr(isolated.subprocess, "run", watched)
    run_isolated("onnx", file_of("onnx"), X)
    told = seen["done"].stderr.decode()
    assert told.startswith("0 ")
    assert "'onnxruntime'" in told
    assert not [name for name in ("keras", "tensorflow", "torch", "jax") if f"'{name}'" in told]


def foreign() -> bytes:
    """A file without our digest."""
    model = schema().ModelT.InitFromPackedBuf(litert.write(route(perceptron(), "litert")))
    model.metadata = None
    return packed(model, 10_000)


def test_the_process_starts_no_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that isn't ours runs there, at last."""
    given: list[bytes] = []

    def kept(content: bytes, format: str) -> None:
        given.append(content)
        raise StopIteration

    monkeypatch.setattr(isolated, "_run", kept)
    with pytest.raises(StopIteration):
        litert.run(foreign(), X)
    written = io.BytesIO()
    monkeypatch.setattr(isolated, "_limit_memory", lambda size: None)
    monkeypatch.setattr(isolated, "_run", lambda content, format: pytest.fail("another process"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given[0])))
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written))
    assert isolated._main() == 0
    with np.load(io.BytesIO(written.getvalue())) as found:
        assert np.array_equal(found["array_0"], litert.run(foreign(), X, here=True)["y"])


def test_a_foreign_file_runs_in_a_process_of_its_own() -> None:
    assert not check(foreign()).sealed
    found = litert.run(foreign(), X, tensors=["hidden"])
    expected = litert.run(litert.write(route(perceptron(), "litert")), X, tensors=["hidden"])
    for name in ("y", "hidden"):
        np.testing.assert_array_equal(found[name], expected[name])


def test_one_that_ends_the_process_is_an_error() -> None:
    """A vector of shape that the runtime reads without asking; it passes every check of structure."""
    fb = schema()
    model = fb.ModelT.InitFromPackedBuf(foreign())
    for operator in model.subgraphs[0].operators:
        operator.inputs = [-1] * len(operator.inputs)
    with pytest.raises(FileFormatError, match="ended with"):
        litert.run(packed(model, 10_000), X)


def test_the_process_gets_this_very_qi(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have been found through sys.path, which no other process knows of."""
    given: list[str] = []
    run = isolated.subprocess.run

    def watched(command: list[str], **options: Any) -> Any:
        given.extend(options["env"]["PYTHONPATH"].split(os.pathsep))
        return run(command, **options)

    monkeypatch.setattr(isolated.subprocess, "run", watched)
    litert.run(foreign(), X)
    assert str(Path(isolated.__file__).parents[2]) in given
