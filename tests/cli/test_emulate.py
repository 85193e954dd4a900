from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qi
from qi.cli.emulate import TARGETS
from qi.ir.kinds import TARGETS as KNOWN
from qi.keras import emulate


def test_the_help_names_every_target() -> None:
    assert set(TARGETS) == set(KNOWN)


@pytest.mark.parametrize(("options", "target"), [([], "litert"), (["--target", "onnxruntime"], "onnxruntime")])
def test_outputs_are_saved_by_name(
    options: list[str],
    target: str,
    files: Path,
    tmp_path: Path,
    qi_command: Callable[..., Any],
    samples: dict[str, Any],
) -> None:
    out = tmp_path / "y.npz"
    done = qi_command("emulate", files / "quantized.keras", "--data", files / "data.npz", "-o", out, *options)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"output 'head': 64 samples (x_test) on {target}\nsaved {out}\n"
    model = qi.load_model(files / "quantized.keras")
    expected = emulate(model, samples["x_test"], target, progress=False)
    with np.load(out) as found:
        assert found.files == ["head"]
        assert found["head"].dtype == np.float32
        assert np.array_equal(found["head"], expected)


def test_codes_are_saved_raw(files: Path, tmp_path: Path, qi_command: Callable[..., Any]) -> None:
    found = {}
    for target in ("litert", "onnxruntime"):
        options = "--raw", "--target", target, "--batch-size", 10, "--integer-only"
        arguments = files / "quantized.keras", "--data", files / "data.npz", "-o", tmp_path / "y.npz"
        assert qi_command("emulate", *arguments, *options).code == 0
        with np.load(tmp_path / "y.npz") as arrays:
            found[target] = arrays["head"]
    assert [array.dtype for array in found.values()] == [np.int8, np.uint8]
    assert np.array_equal(found["litert"].astype(int) + 128, found["onnxruntime"])


def test_the_arithmetic_is_as_asked_for(files: Path, tmp_path: Path, qi_command: Callable[..., Any]) -> None:
    """Packed weights of an odd number of inputs take another kernel of LiteRT; dynamic products round their activations."""
    model = qi.load_model(files / "float.keras")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 8, 8, 1)).astype("float32")
    np.savez(tmp_path / "d.npz", x=x)
    cases = (("w4a8", "--packed", {"packed": True}), ("w8", "--no-dynamic", {"dynamic": False}))
    for recipe, option, expected in cases:
        qmodel, _ = qi.quantize_model(model, recipe, x, progress=False)
        qi.save_model(qmodel, tmp_path / "q.keras")
        found = {}
        for given in ((), (option,)):
            arguments = tmp_path / "q.keras", "--data", tmp_path / "d.npz", "-o", tmp_path / "y.npz"
            assert qi_command("emulate", *arguments, *given).code == 0
            with np.load(tmp_path / "y.npz") as arrays:
                found[given] = arrays["head"]
        assert np.array_equal(found[()], emulate(qmodel, x, progress=False))
        assert np.array_equal(found[(option,)], emulate(qmodel, x, progress=False, **expected))
        assert not np.array_equal(found[()], found[(option,)])


def test_several_inputs_and_outputs_go_by_name(tmp_path: Path, qi_command: Callable[..., Any]) -> None:
    import keras

    left, right = keras.Input((4,), name="left"), keras.Input((3,), name="right")
    joined = keras.layers.Concatenate()([keras.layers.Dense(4)(left), keras.layers.Dense(4)(right)])
    outputs = [keras.layers.Dense(2, name="two")(joined), keras.layers.Dense(3, name="three")(joined)]
    rng = np.random.default_rng(0)
    x = {name: rng.normal(size=(40, n)).astype("float32") for name, n in (("right", 3), ("left", 4))}
    quantized, _ = qi.quantize_model(keras.Model([left, right], outputs), "w8a8", x, progress=False)
    qi.save_model(quantized, tmp_path / "q.keras")
    np.savez(tmp_path / "d.npz", **x)
    done = qi_command("emulate", tmp_path / "q.keras", "--data", tmp_path / "d.npz", "-o", tmp_path / "y.npz")
    assert (done.code, done.err) == (0, "")
    with np.load(tmp_path / "y.npz") as found:
        assert {name: found[name].shape for name in found.files} == {"two": (40, 2), "three": (40, 3)}


@pytest.mark.parametrize(
    ("out", "options", "problem"),
    [
        ("y.npy", [], "ending in .npz"),
        ("y.npz", ["--target", "tpu"], "invalid choice: 'tpu'"),
        ("y.npz", ["--batch-size", "0"], "a whole number from 1 to"),
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
    arguments = files / "quantized.keras", "--data", files / "data.npz", "-o", tmp_path / out
    done = qi_command("emulate", *arguments, *options)
    assert done.code == 2
    assert problem in done.error
    assert list(tmp_path.iterdir()) == []


def test_the_samples_are_never_overwritten(files: Path, tmp_path: Path, qi_command: Callable[..., Any]) -> None:
    data = tmp_path / "d.npz"
    data.write_bytes((files / "data.npz").read_bytes())
    done = qi_command("emulate", files / "quantized.keras", "--data", data, "-o", data)
    assert done.code == 2
    assert "another file to write than to read" in done.error


def test_a_float_model_is_refused(files: Path, tmp_path: Path, qi_command: Callable[..., Any]) -> None:
    done = qi_command("emulate", files / "float.keras", "--data", files / "data.npz", "-o", tmp_path / "y.npz")
    assert done.code == 2
    assert list(tmp_path.iterdir()) == []
