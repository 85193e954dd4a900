from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qi.errors import ConfigError, FileFormatError
from qi.exporters.formats import FORMATS, format_of, path_of
from qi.exporters.manifest import MANIFEST, Options
from tests.exporters.exported import graph

MANIFEST_TEXT = b'{"format": "qi manifest", "version": 1}'
X = [np.linspace(-2, 2, 20, dtype="float32").reshape(5, 4)]


@pytest.mark.parametrize(
    ("path", "name", "expected"),
    [("a.tflite", None, "litert"), ("a.ONNX", None, "onnx"), ("a.bin", "onnx", "onnx"), ("a.onnx", "litert", "litert")],
)
def test_the_suffix_tells_unless_the_format_is_named(path: str, name: str | None, expected: str) -> None:
    assert format_of(Path(path), name).name == expected


def test_unknown_formats_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"ends in one of \['.onnx', '.tflite'\]; received 'a.pb'"):
        format_of(Path("a.pb"))
    with pytest.raises(ConfigError, match=r"one of \['litert', 'onnx'\]; received format='tf'"):
        format_of(Path("a.onnx"), "tf")


@pytest.mark.parametrize("integer_io", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_written_can_be_read_and_run(name: str, integer_io: bool) -> None:
    kind = FORMATS[name]
    routed = graph(kind.target)
    data = kind.write(routed, Options(integer_io=integer_io), MANIFEST_TEXT)
    assert data == kind.write(routed, Options(integer_io=integer_io), MANIFEST_TEXT)
    assert kind.read(data) == (MANIFEST_TEXT, integer_io)
    assert kind.read(kind.write(routed, Options(), b"")) == (b"", False)
    dtype = ("uint8" if name == "onnx" else "int8") if integer_io else "float32"
    fed = [x.astype(dtype) for x in X]
    found = kind.run(data, fed, threads=1)
    assert list(found) == ["y"]
    assert found["y"].dtype == dtype
    kind.session(data)(fed)


@pytest.mark.parametrize("name", FORMATS)
def test_activations_have_their_places(name: str) -> None:
    kind = FORMATS[name]
    routed = graph(kind.target)
    data = kind.write(routed, Options(), b"")
    places = kind.places(data, routed, Options())
    assert {"x", "x_codes", "hidden", "y"} <= set(places)
    assert all("kernel" not in tensor for tensor in places)
    there, axes = places["hidden"]
    assert axes == (0, 1)
    assert kind.run(data, X, tensors=[there])[there].dtype == ("uint8" if name == "onnx" else "int8")


def test_an_opset_is_for_onnx() -> None:
    with pytest.raises(ConfigError, match="opset for ONNX files only; received opset=18"):
        FORMATS["litert"].write(graph("litert"), Options(opset=18), b"")
    data = FORMATS["onnx"].write(graph("onnxruntime"), Options(opset=19), b"")
    import onnx

    assert onnx.load_from_string(data).opset_import[0].version == 19


@pytest.mark.parametrize(  # no bytes are an empty message of protobuf: that fails when it is run
    ("name", "content"),
    [("litert", b""), *((name, content) for name in FORMATS for content in (b"something else", b"\0" * 100))],
)
def test_what_is_no_such_file_cannot_be_read(name: str, content: bytes) -> None:
    with pytest.raises(FileFormatError):
        FORMATS[name].read(content)


@pytest.mark.parametrize("text", ["no base64!", "größe", "AAAA"])
def test_a_manifest_that_was_tampered_with_is_refused(text: str) -> None:
    import onnx

    model = onnx.load_from_string(FORMATS["onnx"].write(graph("onnxruntime"), Options(), b""))
    onnx.helper.set_model_props(model, {MANIFEST: text})
    with pytest.raises(FileFormatError, match="manifest"):
        FORMATS["onnx"].read(model.SerializeToString())


@pytest.mark.parametrize("path", [None, 3, b"m.onnx", ["m.onnx"]])
def test_a_path_is_text_or_a_path(path: object) -> None:
    with pytest.raises(ConfigError, match="expected a path; received path="):
        path_of(path)
    assert path_of("m.onnx") == path_of(Path("m.onnx")) == Path("m.onnx")


def test_one_format_is_not_written_under_the_suffix_of_another() -> None:
    for path, name in (("a.tflite", "litert"), ("a.bin", "onnx"), ("a", "integers"), ("a.v1", "integers")):
        assert path_of(path, name) == Path(path)
    for path, name in (("a.TFLITE", "onnx"), ("a.onnx", "integers")):
        with pytest.raises(ConfigError, match="another suffix"):
            path_of(path, name)
