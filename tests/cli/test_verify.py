from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qi
from qi.exporters import proof, verify as verifying


@pytest.fixture(scope="module")
def deployed(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """m.tflite and m.onnx of the quantized model, and one of other weights: other.keras."""
    from qi.exporters.deploy import export

    folder = tmp_path_factory.mktemp("deployed")
    model = qi.load_model(files / "quantized.keras")
    for name in ("m.tflite", "m.onnx"):
        export(model, folder / name, latency=False)
    other = qi.load_model(files / "float.keras")
    other.get_layer("head").bias.assign_add([1.0] * 6)
    import numpy as np

    with np.load(files / "data.npz") as data:
        other, _ = qi.quantize_model(other, "w8a8", data["x_calib"], progress=False)
    qi.save_model(other, folder / "other.keras")
    return folder


@pytest.mark.parametrize("name", ["m.tflite", "m.onnx"])
def test_a_file_that_agrees_is_code_0(name: str, deployed: Path, files: Path, qi_command: Callable[..., Any]) -> None:
    done = qi_command("verify", deployed / name, "--model", files / "quantized.keras", "--data", files / "data.npz")
    assert (done.code, done.err) == (0, "")
    assert "equal, bit for bit, on 64 samples (given)" in done.out


@pytest.mark.parametrize("name", ["m.tflite", "m.onnx"])
def test_outputs_without_codes_may_differ_by_float_rounding(
    name: str, deployed: Path, files: Path, tmp_path: Path, qi_command: Callable[..., Any], monkeypatch: Any
) -> None:
    done = qi_command("verify", deployed / name, "--model", files / "quantized.keras", "--json")
    assert json.loads(done.out)["equal"] is True
    for relative, beyond, code in ((1e-6, 0, 0), (1e-3, 4, 3)):
        told = proof.Agreement("head", 10, 5, 255 * relative, relative, beyond)
        monkeypatch.setattr(verifying, "prove", lambda *given, told=told, **options: proof.Proof(64, "given", (told,)))
        done = qi_command("verify", deployed / name, "--model", files / "quantized.keras")
        assert done.code == code
    assert "40.000% of the outputs differ, by at most 0.001 of an output's largest value; do look at" in done.error
    assert "do export" not in done.error  # for the bytes are what that gives


@pytest.mark.parametrize("name", ["m.tflite", "m.onnx"])
def test_a_file_that_differs_is_code_3(name: str, deployed: Path, qi_command: Callable[..., Any]) -> None:
    arguments = "verify", deployed / name, "--model", deployed / "other.keras", "--json"
    done = qi_command(*arguments)
    assert done.code == 3
    assert "to give what" in done.error
    assert "of the outputs differ" in done.error
    found = json.loads(done.out)  # the result is shown all the same
    assert (found["exact"], found["identical_bytes"]) == (False, False)
    assert found["max_lsb"] > 0
    assert qi_command(*arguments, "--max-lsb", found["max_lsb"]).code == 0
    assert qi_command(*arguments, "--max-lsb", found["max_lsb"] / 2).code == 3


@pytest.mark.parametrize("name", ["m.tflite", "m.onnx"])
def test_a_damaged_file_is_one_line_and_code_2(
    name: str, deployed: Path, files: Path, tmp_path: Path, qi_command: Callable[..., Any]
) -> None:
    whole = (deployed / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    done = qi_command("verify", tmp_path / name, "--model", files / "quantized.keras")
    assert (done.code, done.out) == (2, "")
    assert done.error.startswith("expected ")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            ["no.tflite", "--model", "q.keras"],
            "a file with a deployed model; received 'no.tflite', which doesn't exist",
        ),
        ([__file__, "--model", "q.keras"], "a file with a model"),
        ([__file__, "--model", __file__], "ending in .tflite or .onnx"),
        ([__file__], "the following arguments are required: --model"),
        ([__file__, "--model", "q.keras", "--max-lsb", "-1"], "a number from 0 on"),
        ([__file__, "--model", "q.keras", "--threads", "0"], "a whole number from 1 to"),
    ],
)
def test_bad_arguments_are_refused_before_the_work(
    arguments: list[str], problem: str, qi_command: Callable[..., Any], no_packages: Any
) -> None:
    no_packages("keras", "tensorflow")
    done = qi_command("verify", *arguments)
    assert done.code == 2
    assert problem in done.error
