"""What users get wrong in deploying: a clear error, before anything is written."""

from __future__ import annotations

import base64
import sys
import zlib
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import qi
from tests.keras.models import settle

X = np.random.default_rng(3).normal(size=(40, 6)).astype(np.float32)


def perceptron(recipe: str = "w8a8") -> Any:
    stack = [
        keras.Input((6,), name="x"),
        layers.Dense(5, activation="relu", name="hidden"),
        layers.Dense(3, name="top"),
    ]
    return qi.quantize_model(settle(keras.Sequential(stack, name="mlp")), recipe, X, progress=False)[0]


@pytest.fixture(scope="module")
def model() -> Any:
    return perceptron()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"integer_io": "no"}, "expected integer_io to be true or false; received integer_io='no'"),
        ({"packed": "no", "format": "integers"}, "expected packed to be true or false"),
        ({"dynamic": None}, "expected dynamic to be true or false"),
        ({"opset": "18"}, "expected opset to be a whole number; received opset='18'"),
        ({"opset": 18.0}, "expected opset to be a whole number"),
        ({"format": ["onnx"]}, r"expected format to be one of \['integers', 'litert', 'onnx'\]"),
    ],
)
def test_options(options: dict[str, Any], message: str, model: Any, tmp_path: Path) -> None:
    with pytest.raises(qi.ConfigError, match=message):
        qi.export(model, tmp_path / "m.onnx", samples=X, latency=False, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_is_no_name(model: Any) -> None:
    with pytest.raises(qi.ConfigError, match="expected target to be one of"):
        qi.emulate(model, X, ["litert"], progress=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("threads", [0, -1, 2.5, None, True, 10**6])
def test_threads(threads: Any, model: Any, tmp_path: Path) -> None:
    with pytest.raises(qi.ConfigError, match="expected threads from 1 to 256"):
        qi.verify(tmp_path / "m.onnx", model, X, threads=threads)


def test_places_that_no_file_can_have(model: Any, tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    cases: list[tuple[str, type[Exception], str]] = [
        ("folder.onnx", IsADirectoryError, "received a folder: '.*folder.onnx'"),
        ("nowhere/m.onnx", FileNotFoundError, "do create it first: '.*nowhere'"),
    ]
    for name, error, message in cases:
        with pytest.raises(error, match=message):
            qi.export(model, tmp_path / name, latency=False)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="Python takes such a link for a file from 3.13 on")
def test_a_link_to_itself(model: Any, tmp_path: Path) -> None:
    (tmp_path / "loop.onnx").symlink_to(tmp_path / "loop.onnx")
    with pytest.raises(OSError, match="received a loop of links"):
        qi.export(model, tmp_path / "loop.onnx", latency=False)


def test_a_name_as_long_as_names_may_be(model: Any, tmp_path: Path) -> None:
    path = tmp_path / f"{'n' * 249}.onnx"
    assert qi.export(model, path, latency=False).exact
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("dtype", ["float64", "float16", "int64", "bool"])
def test_samples_of_other_types_are_taken_as_predict_takes_them(dtype: str, model: Any, tmp_path: Path) -> None:
    for name in ("m.tflite", "m.onnx"):
        report = qi.export(model, tmp_path / name, samples=(2 * X).astype(dtype), latency=False)
        assert report.exact
        assert report.proof.source == "given"
        assert qi.verify(tmp_path / name, model, (2 * X).astype(dtype)).exact


@pytest.mark.parametrize("part", ["kernel_scale", "bias"])
def test_numbers_that_are_none(part: str, tmp_path: Path) -> None:
    qmodel = perceptron()
    variable = next(v for v in qmodel.get_layer("hidden").variables if v.path.endswith(part))
    variable.assign(np.full(variable.shape, np.nan))
    with pytest.raises(qi.InputError, match=r"received .*layer 'hidden'"):
        qi.export(qmodel, tmp_path / "m.tflite", latency=False)
    assert list(tmp_path.iterdir()) == []


def test_sums_that_no_integer_holds(tmp_path: Path) -> None:
    with pytest.raises(qi.InputError, match="; do give layer 'hidden' fewer bits"):
        qi.export(perceptron("w16a16"), tmp_path / "m.onnx", latency=False)


def test_a_manifest_that_fills_the_machine(model: Any, tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "m.onnx"
    qi.export(model, path, latency=False)
    file = onnx.load(path)
    entry = file.metadata_props.add()
    entry.key, entry.value = "qi_manifest", base64.b64encode(zlib.compress(bytes(65 * 2**20), 9)).decode()
    onnx.save(file, path)
    with pytest.raises(qi.FileFormatError, match="expected a whole manifest of at most"):
        qi.verify(path, model, X)
