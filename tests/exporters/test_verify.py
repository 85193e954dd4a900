from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qi.errors import ConfigError, FileFormatError, InputError, QuantizationWarning, UnsupportedError
from qi.exporters import verify as module
from qi.exporters.deploy import export
from qi.exporters.formats import FORMATS
from qi.exporters.manifest import Options, deflate
from qi.exporters.verify import verify
from qi.keras.lower import lower
from tests.exporters.exported import data, quantized

NAMES = pytest.mark.parametrize("name", ["m.tflite", "m.onnx"])


@pytest.fixture(scope="module")
def model() -> Any:
    return quantized()


@pytest.fixture(scope="module")
def other() -> Any:
    """The same layers with another head."""
    import keras

    found = quantized()
    for variable in found.weights:
        if variable.path == "head_raw/bias":
            variable.assign(variable + keras.ops.ones_like(variable))
    return found


@pytest.fixture(scope="module")
def files(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for name in ("m.tflite", "m.onnx"):
        export(model, folder / name, latency=False)
    return folder


@NAMES
def test_an_exported_file_agrees_in_every_byte(name: str, files: Path, model: Any) -> None:
    for samples in (None, data()):
        found = verify(files / name, model, samples, threads=2)
        assert found.exact
        assert found.identical
        assert found.proof.threads == 2
    assert "equal, bit for bit, on 64 samples (given)" in str(found)
    assert "those that an export of the model gives" in str(found)
    record = json.loads(json.dumps(found.to_dict()))
    assert (record["exact"], record["identical_bytes"], record["integer_io"]) == (True, True, False)


@NAMES
@pytest.mark.parametrize("classes", [3, 400], ids=["without a manifest", "with one"])
def test_the_options_are_found_out(name: str, classes: int, tmp_path: Path) -> None:
    model = quantized("w4a8", islands=True, channels=96, classes=classes)
    for options in (
        Options(),
        Options(integer_io=True),
        Options(integer_only=True),
        Options(packed=True),
        Options(True, True, True),
    ):
        path = tmp_path / name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", QuantizationWarning)  # of what integer_only leaves in real numbers
            report = export(model, path, integer_io=options.integer_io, integer_only=options.integer_only,
                            packed=options.packed, latency=False)  # fmt: skip
        assert any("leaves operations in real numbers" in text for text in report.warnings) is options.integer_only
        kind = FORMATS["onnx" if name == "m.onnx" else "litert"]
        assert bool(kind.read(path.read_bytes())[0]) is (classes == 400)
        found = verify(path, model)
        assert found.identical
        assert found.options.integer_io == options.integer_io
        if classes == 400:
            assert found.options == options


def test_options_may_be_given_in_place_of_the_files(tmp_path: Path) -> None:
    """A file of other options isn't identical to what these lead to."""
    model = quantized("w4a8", islands=True, channels=96, classes=400)
    export(model, tmp_path / "m.tflite", packed=True, latency=False)
    assert verify(tmp_path / "m.tflite", model, packed=True).identical
    found = verify(tmp_path / "m.tflite", model, packed=False, dynamic=False)
    assert not found.identical
    assert found.options.arithmetic == {"integer_only": False, "packed": False, "dynamic": False}


def test_options_that_lead_nowhere_are_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantized("w4a8", islands=True)
    export(model, tmp_path / "m.tflite", latency=False)
    write = module.written

    def picky(graph: Any, kind: Any, options: Options) -> bytes:
        if options.packed or not options.dynamic:
            raise UnsupportedError("expected less")
        return write(graph, kind, options)

    monkeypatch.setattr(module, "written", picky)
    assert verify(tmp_path / "m.tflite", model).identical
    with pytest.raises(UnsupportedError, match="expected less"):
        module._candidates(lower(model), FORMATS["litert"], [Options(packed=True)])


@NAMES
def test_real_numbers_agree_within_float_rounding(name: str, tmp_path: Path) -> None:
    import keras

    import qi

    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(16, 3, activation="swish"), keras.layers.Flatten(), keras.layers.Dense(5)]
    model, _ = qi.quantize_model(keras.Sequential([keras.Input((8, 8, 3)), *layers]), "w8", progress=False)
    export(model, tmp_path / name, latency=False, dynamic=False)
    found = verify(tmp_path / name, model, dynamic=False)
    assert (found.exact, found.equal, found.identical) == (False, True, True)
    assert "equal within float rounding" in str(found)
    assert found.to_dict()["equal"] is True
    model.layers[-1].layer.bias.assign(model.layers[-1].layer.bias + 1)
    assert not verify(tmp_path / name, model, dynamic=False).equal


@NAMES
def test_a_file_of_other_weights_differs(name: str, files: Path, other: Any) -> None:
    found = verify(files / name, other)
    assert not found.exact
    assert not found.identical
    assert found.proof.share > 0.5
    assert found.proof.first is not None
    assert found.proof.first.name.startswith("head")
    assert "of outputs differ" in str(found)
    assert "others than an export of the model gives now" in str(found)


@NAMES
def test_a_file_of_another_model_is_refused(name: str, files: Path) -> None:
    import keras

    import qi

    x = np.random.default_rng(0).normal(size=(64, 5)).astype("float32")
    small = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, name="head")])
    foreign, _ = qi.quantize_model(small, "w8a8", x, progress=False)
    with pytest.raises(FileFormatError, match=r"^expected .* of shape .*; received .*; '.*' is no file of model '"):
        verify(files / name, foreign)


def test_a_weight_that_was_tampered_with_is_a_difference(files: Path, model: Any, tmp_path: Path) -> None:
    import onnx

    tampered = onnx.load(files / "m.onnx")
    weight = next(t for t in tampered.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.raw_data) > 9)
    weight.raw_data = bytes([weight.raw_data[0] ^ 0x55]) + weight.raw_data[1:]
    onnx.save(tampered, tmp_path / "m.onnx")
    found = verify(tmp_path / "m.onnx", model)
    assert not found.exact
    assert not found.identical
    content = bytearray((files / "m.tflite").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "m.tflite").write_bytes(content)
    with pytest.raises(FileFormatError):
        verify(tmp_path / "m.tflite", model)


def test_a_harmless_change_is_seen_but_still_agrees(files: Path, model: Any, tmp_path: Path) -> None:
    import onnx

    renamed = onnx.load(files / "m.onnx")
    renamed.producer_name = "somebody"
    onnx.save(renamed, tmp_path / "m.onnx")
    found = verify(tmp_path / "m.onnx", model)
    assert (found.exact, found.identical) == (True, False)


@pytest.mark.parametrize("options", [b'{"opset": 7}', b'{"opset": 99999999999}', b'{"packed": "yes"}', b"[]"])
def test_a_manifest_that_was_tampered_with_is_refused(options: bytes, files: Path, model: Any, tmp_path: Path) -> None:
    import base64

    import onnx

    text = b'{"format": "qi manifest", "version": 1, "options": ' + options + b"}"
    tampered = onnx.load(files / "m.onnx")
    onnx.helper.set_model_props(tampered, {"qi_manifest": base64.b64encode(deflate(text)).decode()})
    onnx.save(tampered, tmp_path / "m.onnx")
    with pytest.raises(FileFormatError):
        verify(tmp_path / "m.onnx", model)


def flipped(content: bytes, seed: int) -> bytes:
    """A few bits changed, or cut off."""
    random = np.random.default_rng(seed)
    if seed % 3 == 0:
        return content[: random.integers(len(content))]
    damaged = bytearray(content)
    for place in random.integers(0, len(content), 1 + seed % 2):
        damaged[place] ^= 1 << random.integers(8)
    return bytes(damaged)


def refused(path: Path, model: Any) -> bool:
    try:
        found = verify(path, model, data(4))
    except FileFormatError:
        return True
    assert not found.identical
    return False


@pytest.mark.parametrize(("name", "count"), [("m.tflite", 300), ("m.onnx", 150)])
def test_damage_is_an_error_or_a_difference(
    name: str, count: int, files: Path, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process nothing but the checks: what passes them goes to another process, where only a few are run."""
    content, isolated = (files / name).read_bytes(), []

    def watched(*given: Any, **options: Any) -> Any:
        isolated.append(given)
        if len(isolated) > 8:
            raise FileFormatError("expected fewer")
        return run(*given, **options)

    run: Callable[..., Any] = module.run_isolated
    monkeypatch.setattr(module, "run_isolated", watched)
    path = tmp_path / name
    count_refused = 0
    for seed in range(count):
        path.write_bytes(flipped(content, seed))
        count_refused += refused(path, model)
    assert count_refused > count / 2
    assert isolated or name == "m.tflite"  # whose digest tells


@NAMES
@pytest.mark.parametrize("content", [b"", b"something else", b"TFL3" * 20, b"\x08\x08"])
def test_what_is_no_such_file_is_refused(name: str, content: bytes, model: Any, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileFormatError):
        verify(tmp_path / name, model)


def test_the_path_decides_unless_the_format_is_named(files: Path, model: Any, tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes((files / "m.tflite").read_bytes())
    with pytest.raises(ConfigError, match="ends in one of"):
        verify(tmp_path / "m.bin", model)
    assert verify(tmp_path / "m.bin", model, format="litert").exact
    with pytest.raises(FileNotFoundError):
        verify(tmp_path / "no.onnx", model)


def test_a_file_beyond_the_limit_is_not_read(files: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 100)
    with pytest.raises(FileFormatError, match="at most 100 bytes"):
        verify(files / "m.onnx", model)


@NAMES
def test_samples_and_models_that_do_not_fit_are_told_apart_from_bad_files(name: str, files: Path, model: Any) -> None:
    import keras

    with pytest.raises(InputError, match="expected shape"):
        verify(files / name, model, np.zeros((4, 7), "float32"))
    with pytest.raises(UnsupportedError, match="quantize"):
        verify(files / name, keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]))
