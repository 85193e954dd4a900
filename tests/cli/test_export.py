from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qi.exporters import deploy, proof
from qi.exporters.integers import FILES


@pytest.mark.parametrize("suffix", ["tflite", "onnx"])
def test_a_file_is_written_with_its_proof(
    suffix: str, files: Path, tmp_path: Path, qi_command: Callable[..., Any]
) -> None:
    out = tmp_path / f"m.{suffix}"
    done = qi_command("export", files / "quantized.keras", "-o", out, "--data", files / "data.npz")
    assert (done.code, done.err) == (0, "")
    assert "equal, bit for bit, on 64 samples (given)" in done.out
    assert "one sample, one thread" in done.out
    assert done.out.endswith(f"\n\nsaved {out}\n")
    assert out.stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["m.tflite", "m.onnx"])
def test_a_real_process_keeps_its_streams_clean(
    name: str, environment: dict[str, str], files: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "qi"]
    steps = [
        ["export", files / "quantized.keras", "-o", tmp_path / name],
        ["verify", tmp_path / name, "--model", files / "quantized.keras"],
    ]
    for step in steps:
        done = subprocess.run([*command, *step], env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert "equal, bit for bit, on 64 samples" in done.stdout


def test_integers_go_to_a_folder(files: Path, tmp_path: Path, qi_command: Callable[..., Any]) -> None:
    done = qi_command("export", files / "quantized.keras", "-o", tmp_path / "out", "--format", "integers")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"Export: integers in {tmp_path / 'out'}\n")
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES


def test_the_format_may_be_named(files: Path, tmp_path: Path, qi_command: Callable[..., Any]) -> None:
    arguments = "export", files / "quantized.keras", "-o", tmp_path / "m.bin", "--no-latency", "--format", "onnx"
    assert qi_command(*arguments).code == 0
    import onnx

    assert [output.name for output in onnx.load(tmp_path / "m.bin").graph.output] == ["head"]


def test_json_tells_all(files: Path, tmp_path: Path, qi_command: Callable[..., Any]) -> None:
    out = tmp_path / "m.onnx"
    options = "--json", "--no-latency", "--integer-io", "--integer-only", "--packed", "--opset", 21
    done = qi_command("export", files / "quantized.keras", "-o", out, *options)
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert found["exact"]
    assert (found["samples"], found["latency"]) == (64, None)
    assert found["file_bytes"] == out.stat().st_size
    import onnx

    model = onnx.load(out)
    assert model.opset_import[0].version == 21
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8


def test_arithmetic_is_as_asked_for(
    files: Path, tmp_path: Path, qi_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    export, found = deploy.export, []

    def recorded(*given: Any, **options: Any) -> Any:
        found.append({name: options[name] for name in ("integer_only", "packed", "dynamic")})
        return export(*given, **options)

    monkeypatch.setattr(deploy, "export", recorded)
    for options in ((), ("--no-dynamic", "--packed", "--integer-only")):
        arguments = "export", files / "quantized.keras", "-o", tmp_path / "m.tflite", "--no-latency"
        assert qi_command(*arguments, *options).code == 0
    assert [list(options.values()) for options in found] == [[False, False, True], [True, True, False]]


def test_strict_is_code_3_where_the_file_differs(
    files: Path, tmp_path: Path, qi_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    differs = proof.Agreement("head", 10, 1, 1.0)
    monkeypatch.setattr(deploy, "prove", lambda *given, **options: proof.Proof(64, "given", (differs,), differs))
    arguments = "export", files / "quantized.keras", "-o", tmp_path / "m.tflite", "--no-latency"
    done = qi_command(*arguments, "--strict")
    assert done.code == 3
    assert "first in 'head'" in done.error
    assert list(tmp_path.iterdir()) == []
    done = qi_command(*arguments)
    assert done.code == 0
    assert "10.000% of the outputs differ" in done.err


@pytest.mark.parametrize(
    ("out", "options", "problem"),
    [
        ("m.pb", [], "ending in .tflite or .onnx"),
        ("no/m.onnx", [], "a folder that exists"),
        ("m.tflite", ["--opset", "18"], "--opset for .onnx files only"),
        ("m.onnx", ["--opset", "x"], "a whole number from 1 to"),
        ("m.onnx", ["--data", "no.npz"], "a file with samples"),
        ("m.onnx", ["--format", "integers"], "another name for --format integers"),
        ("no/m", ["--format", "integers"], "a folder that exists"),
        ("m", ["--format", "integers", "--integer-io"], "--integer-io for files only"),
        ("m", ["--format", "integers", "--opset", "18"], "--opset for .onnx files only"),
    ],
)
def test_bad_options_are_refused_before_the_work(
    out: str,
    options: list[str],
    problem: str,
    files: Path,
    tmp_path: Path,
    qi_command: Callable[..., Any],
    no_packages: Any,
) -> None:
    no_packages("keras", "tensorflow")
    done = qi_command("export", files / "quantized.keras", "-o", tmp_path / out, *options)
    assert done.code == 2
    assert problem in done.error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["export", "emulate", "quantize"])
def test_samples_are_looked_into_before_the_model_is_loaded(
    command: str, files: Path, tmp_path: Path, qi_command: Callable[..., Any], no_packages: Any
) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((0, 3)))
    no_packages("keras", "tensorflow")
    out = tmp_path / {"export": "m.onnx", "emulate": "y.npz", "quantize": "q.keras"}[command]
    done = qi_command(command, files / "quantized.keras", "--data", tmp_path / "x.npz", "-o", out)
    assert done.code == 2
    assert "expected arrays of at least one sample" in done.error


def test_a_float_model_is_refused(files: Path, tmp_path: Path, qi_command: Callable[..., Any]) -> None:
    done = qi_command("export", files / "float.keras", "-o", tmp_path / "m.tflite")
    assert done.code == 2
    assert "quantize" in done.error
    assert list(tmp_path.iterdir()) == []


def test_samples_of_another_shape_are_refused(files: Path, tmp_path: Path, qi_command: Callable[..., Any]) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 7)))
    done = qi_command("export", files / "quantized.keras", "-o", tmp_path / "m.onnx", "--data", tmp_path / "x.npy")
    assert done.code == 2
    assert "expected shape ('n', 8, 8, 1) for input 'image'; received (4, 7)" in done.error
    assert not (tmp_path / "m.onnx").exists()


def test_a_missing_runtime_is_code_1(
    files: Path, tmp_path: Path, qi_command: Callable[..., Any], no_packages: Any
) -> None:
    no_packages("onnxruntime")
    done = qi_command("export", files / "quantized.keras", "-o", tmp_path / "m.onnx")
    assert done.code == 1
    assert "pip install 'quantizers-infrastructure[onnx]'" in done.error
    assert list(tmp_path.iterdir()) == []
