from __future__ import annotations

import errno
import importlib
import os
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qi
from qi.errors import (
    ConfigError,
    InputError,
    MissingDependencyError,
    QuantizationWarning,
    StrictError,
    UnsupportedError,
)
from qi.exporters import formats
from qi.exporters.deploy import export, written
from qi.exporters.formats import FORMATS
from qi.exporters.manifest import Options, options_of
from tests.exporters.exported import data, graph, quantized
from tests.keras.warned import warned

SUFFIXES = pytest.mark.parametrize("suffix", [".tflite", ".onnx"])


@pytest.fixture(scope="module")
def model() -> Any:
    return quantized()


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A LiteRT whose convolution gives one code that is a step off, and a runtime that carries on with it."""
    kind = FORMATS["litert"]

    def run(content: bytes, inputs: Any, **options: Any) -> Any:
        found = {name: np.array(array) for name, array in kind.run(content, inputs, **options).items()}
        for name, array in found.items():
            if name == "add_quant" or array.dtype.kind == "f":
                array.reshape(-1)[0] += 1
        return found

    monkeypatch.setitem(formats.FORMATS, "litert", replace(kind, run=run))


@SUFFIXES
@pytest.mark.parametrize("options", [{}, {"integer_io": True, "integer_only": True, "packed": True}])
def test_a_file_is_written_and_proven(suffix: str, options: dict[str, bool], model: Any, tmp_path: Path) -> None:
    path = tmp_path / f"m{suffix}"
    report = export(model, path, samples=data(), **options)
    assert report.exact
    assert (report.proof.samples, report.proof.source) == (64, "given")
    assert report.operations == {"conv2d": 2, "add": 1, "mean": 1, "dense": 1}
    assert report.float_operations == ()
    assert report.file_bytes == path.stat().st_size
    assert report.latency is not None
    assert report.float_latency is not None
    assert min(report.latency, report.float_latency) > 0
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@SUFFIXES
def test_samples_are_made_where_none_are_given(suffix: str, model: Any, tmp_path: Path) -> None:
    report = export(model, tmp_path / f"m{suffix}", latency=False)
    assert report.exact
    assert report.proof.source == "seeded, over the calibrated range"
    assert (report.latency, report.speedup) == (None, None)


@SUFFIXES
def test_the_same_model_gives_the_same_bytes(suffix: str, model: Any, tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        export(model, tmp_path / f"{name}{suffix}", latency=False)
        contents.append((tmp_path / f"{name}{suffix}").read_bytes())
    assert contents[0] == contents[1]


def test_the_format_can_be_named(model: Any, tmp_path: Path) -> None:
    export(model, tmp_path / "model.bin", format="litert", latency=False)
    assert (tmp_path / "model.bin").read_bytes()[4:8] == b"TFL3"


@pytest.mark.parametrize("kind", FORMATS.values(), ids=FORMATS)
def test_the_manifest_is_in_the_file_and_small(kind: Any) -> None:
    options = Options(integer_io=True)
    assert kind.read(written(graph(kind.target), kind, options))[0] == b""  # 1 % of so small a file is nothing
    large = route_large(kind.target)
    content = written(large, kind, options)
    text, _ = kind.read(content)
    assert options_of(text) == options
    assert len(content) - len(kind.write(large, options, b"")) < 0.02 * len(content)


def route_large(target: str) -> Any:
    from qi.ir.routing import route
    from tests.ir.graphs import perceptron

    return route(perceptron(sizes=(4, 2000, 200)), target)


def test_float_islands_are_told(tmp_path: Path) -> None:
    report = export(quantized(islands=True), tmp_path / "m.tflite", samples=data(), latency=False)
    (operation,) = report.float_operations
    assert operation.startswith("layer_norm")
    assert operation.endswith(" (norm)")
    assert report.proof.max_lsb <= 1
    assert report.proof.share <= 0.003


def test_a_difference_is_warned_of_and_the_first_tensor_named(wrong: None, model: Any, tmp_path: Path) -> None:
    with warned() as found:
        report = export(model, tmp_path / "m.tflite", latency=False)
    (warning,) = found
    assert re.search("litert and the twin differ: .* first in 'add_quant'", str(warning.message))
    assert not report.exact
    assert report.proof.first is not None
    assert (report.proof.first.name, report.proof.first.differing, report.proof.first.max_lsb) == ("add_quant", 1, 1)
    assert report.warnings[0] in str(report)
    assert (tmp_path / "m.tflite").exists()


@pytest.fixture(scope="module")
def weights_only() -> Any:
    """An image model with real activations, of several sums in float32."""
    import keras

    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(16, 3, activation="swish"), keras.layers.Conv2D(16, 3), keras.layers.Flatten()]
    model = keras.Sequential([keras.Input((8, 8, 3), name="image"), *layers, keras.layers.Dense(5, name="out")])
    return qi.quantize_model(model, "w8", progress=False)[0]


@SUFFIXES
def test_real_numbers_need_only_be_equal_within_float_rounding(suffix: str, weights_only: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", QuantizationWarning)
        report = export(weights_only, tmp_path / f"m{suffix}", strict=True, latency=False, dynamic=False)
    assert (report.exact, report.equal, report.warnings) == (False, True, ())
    assert "equal within float rounding (largest difference " in str(report)
    assert "all of it: only weights are in integers" in str(report)
    assert "reshape" not in {name.partition(" ")[0] for name in report.float_operations}
    assert [tensor.name for tensor in report.proof.outputs] == ["out"]  # as Keras calls it


def test_strict_points_at_no_tensor_where_none_was_found(
    weights_only: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = FORMATS["litert"]
    run = lambda *given, **options: {name: 1.1 * array for name, array in kind.run(*given, **options).items()}
    monkeypatch.setitem(formats.FORMATS, "litert", replace(kind, run=run))
    with pytest.raises(
        StrictError, match=r"differ, by at most 0.1 of an output's largest value .*; do export without strict"
    ):
        export(weights_only, tmp_path / "m.tflite", strict=True, latency=False)


@SUFFIXES
def test_codes_are_not_asked_of_a_model_without_any(suffix: str, weights_only: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="inputs and outputs have no codes; do leave integer_io out"):
        export(weights_only, tmp_path / f"m{suffix}", integer_io=True)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_one_sample_at_a_time_says_so(tmp_path: Path) -> None:
    import keras

    model = keras.Sequential([keras.Input((5, 3)), keras.layers.LSTM(4, name="memory"), keras.layers.Dense(2)])
    quantized, _ = qi.quantize_model(model, "w8", progress=False)
    report = export(quantized, tmp_path / "m.tflite", latency=False)
    assert report.notes == ("the file takes one sample at a time: LSTM layer 'memory'",)
    assert export(quantized, tmp_path / "m.onnx", latency=False).notes == ()


def test_strict_writes_nothing_where_the_runtime_differs(wrong: None, model: Any, tmp_path: Path) -> None:
    with pytest.raises(StrictError, match=r"expected litert to give what the twin gives; .* first in 'add_quant'"):
        export(model, tmp_path / "m.tflite", strict=True, latency=False)
    assert list(tmp_path.iterdir()) == []


@SUFFIXES
def test_strict_is_no_matter_where_all_is_equal(suffix: str, model: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", QuantizationWarning)
        export(model, tmp_path / f"m{suffix}", strict=True, latency=False)
    assert (tmp_path / f"m{suffix}").exists()


LEFT = r"layer_norm in layer 'norm' \(no integer kernel for it\)"


@pytest.mark.parametrize("name", ["m.tflite", "m.onnx", "m"])
def test_integer_only_never_leaves_float_in_silence(name: str, tmp_path: Path) -> None:
    islands, options = quantized(islands=True), {"samples": data(), "latency": False}
    options |= {"format": "integers"} if name == "m" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", QuantizationWarning)
        export(islands, tmp_path / name, **options)
    with warned() as found:
        report = export(islands, tmp_path / name, integer_only=True, **options)
    (warning,) = (w for w in found if "integer_only" in str(w.message))
    assert re.fullmatch(f"integer_only=True leaves operations in real numbers: {LEFT}", str(warning.message))
    assert warning.filename == __file__
    assert str(warning.message) in report.warnings
    assert str(warning.message) in str(report)
    assert len(report.float_operations) == 1
    before = sorted(tmp_path.rglob("*")), (tmp_path / name).stat().st_mtime_ns
    with pytest.raises(StrictError, match=f"expected every operation in integers.*; received {LEFT}; do "):
        export(islands, tmp_path / name, integer_only=True, strict=True, **options)
    assert (sorted(tmp_path.rglob("*")), (tmp_path / name).stat().st_mtime_ns) == before


def test_integer_only_has_a_way_for_layers_without_kernels(tmp_path: Path) -> None:
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    x = keras.Input((6, 6, 2))
    y = layers.Conv2D(4, 3, activation="relu")(layers.Rescaling(0.5, offset=0.1)(x))
    y = layers.Conv2D(4, 1, activation="swish")(layers.BatchNormalization(name="bn")(y))
    y = layers.PReLU(alpha_initializer="random_uniform")(layers.Conv2D(4, 1)(y))
    y = layers.Maximum()([layers.Conv2D(4, 1, activation="hard_sigmoid")(y), layers.Conv2D(4, 1)(y)])
    model = keras.Model(x, layers.Dense(3, activation="softplus")(layers.Flatten()(y)))
    for i, weight in enumerate(model.get_layer("bn").weights):
        weight.assign(np.random.default_rng(i).uniform(0.5, 1.5, weight.shape))
    qmodel, _ = qi.quantize_model(model, "w8a8", data(), progress=False)
    for name in ("m.tflite", "m.onnx"):
        report = export(
            qmodel, tmp_path / name, samples=data(), integer_only=True, integer_io=True, strict=True, latency=False
        )
        assert report.exact
        assert report.float_operations == report.warnings == ()
        assert report.operations["table"] >= 5
        assert report.operations["depthwise_conv2d"] == 1
    by_tables = qi.emulate(qmodel, data(), "litert", integer_only=True)
    assert np.abs(by_tables - qmodel.predict(data(), verbose=0)).max() < 0.1
    report = export(qmodel, tmp_path / "m", format="integers", samples=data(), integer_only=True, strict=True)
    assert report.float_operations == ()


@pytest.mark.parametrize(
    ("path", "options", "problem"),
    [
        ("m.pb", {}, "ends in one of"),
        ("m.onnx", {"format": "tf"}, r"expected format to be one of \['integers', 'litert', 'onnx'\]"),
        ("m.tflite", {"format": "integers"}, "another suffix for format='integers'; received .*m.tflite"),
        ("m.onnx", {"format": "litert"}, "which ends as files of 'onnx' do"),
        ("m.tflite", {"opset": 18}, "opset for ONNX files only"),
        ("m.onnx", {"opset": 7}, "expected opset from 18"),
    ],
)
def test_wrong_options_are_refused(
    path: str, options: dict[str, Any], problem: str, model: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=problem):
        export(model, tmp_path / path, **options)
    assert list(tmp_path.iterdir()) == []


@SUFFIXES
@pytest.mark.parametrize(
    ("samples", "problem"),
    [
        (np.zeros((4, 7), "float32"), r"expected shape \('n', 6, 6, 2\) for input 'image'; received \(4, 7\)"),
        (np.zeros((6, 6, 2), "float32"), "do batch them"),
        (np.zeros((0, 6, 6, 2), "float32"), "expected samples to compare on; received no samples"),
        (np.full((2, 6, 6, 2), np.nan, "float32"), "NaN or infinity"),
        ([np.zeros((2, 6, 6, 2), "float32")] * 2, "expected 1 inputs"),
    ],
)
def test_samples_that_do_not_fit_are_refused(
    samples: Any, problem: str, suffix: str, model: Any, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=problem):
        export(model, tmp_path / f"m{suffix}", samples=samples)
    assert list(tmp_path.iterdir()) == []


@SUFFIXES
def test_models_that_are_not_quantized_yet_are_refused(suffix: str, tmp_path: Path) -> None:
    import keras

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")])
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    with pytest.raises(UnsupportedError, match="quantize"):
        export(model, tmp_path / f"m{suffix}")
    training = qi.prepare_qat(model, "w8a8", x, progress=False)
    with pytest.raises(UnsupportedError, match="convert"):
        export(training, tmp_path / f"m{suffix}")
    assert list(tmp_path.iterdir()) == []
    assert export(qi.convert(training), tmp_path / f"m{suffix}", samples=x, latency=False).exact


def test_a_layer_that_no_target_carries_is_named_before_anything_is_written(tmp_path: Path) -> None:
    import keras

    layers = [keras.layers.Conv1D(4, 3), keras.layers.GroupNormalization(2, axis=1, name="odd"), keras.layers.Flatten()]
    model = keras.Sequential([keras.Input((6, 4)), *layers, keras.layers.Dense(2)])
    x = np.random.default_rng(0).normal(size=(64, 6, 4)).astype("float32")
    quantized, _ = qi.quantize_model(model, "w8a8", x, progress=False)
    for name in ("m.tflite", "m.onnx"):
        with pytest.raises(UnsupportedError, match="'odd'"):
            export(quantized, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_the_way_to_get_it(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'quantizers-infrastructure\[onnx\]'"):
        export(model, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_an_os_error(model: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        export(model, tmp_path / "no" / "m.tflite", latency=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is read-only to this user")
def test_a_read_only_folder_is_an_os_error(model: Any, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        export(model, tmp_path / "m.tflite", latency=False)
    assert list(tmp_path.iterdir()) == []


@SUFFIXES
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_disk_that_cannot_be_written_leaves_the_old_file(
    code: int, suffix: str, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"m{suffix}"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("qi.files.os.fsync", full)
    with pytest.raises(OSError, match=os.strerror(code)):
        export(model, path, latency=False)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_model_is_lowered_once(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both the file and the float one that it is compared with come of that."""
    lower = importlib.import_module("qi.keras.lower")  # the package has a function of that name
    lowered, found = lower.lower_graph, []

    def watched(*args: Any, **options: Any) -> Any:
        found.append(args)
        return lowered(*args, **options)

    monkeypatch.setattr(lower, "lower_graph", watched)
    export(model, tmp_path / "m.tflite", samples=data(), latency=False)
    assert len(found) == 1
