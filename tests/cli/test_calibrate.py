from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qi
from qi.observers import load_statistics


@pytest.fixture
def statistics(files: Path, tmp_path: Path, qi_command: Callable[..., Any]) -> Path:
    done = qi_command("calibrate", files / "float.keras", "--data", files / "data.npz", "-o", tmp_path / "s.npz")
    assert done.code == 0, done.err
    assert done.out == f"3 activations over 64 samples (x_calib)\nsaved {tmp_path / 's.npz'}\n"
    return tmp_path / "s.npz"


def test_statistics_stand_in_for_the_samples(
    statistics: Path, files: Path, tmp_path: Path, qi_command: Callable[..., Any], samples: dict[str, np.ndarray]
) -> None:
    assert {"image", "head"} < set(load_statistics(statistics))
    done = qi_command("quantize", files / "float.keras", "--stats", statistics, "-o", tmp_path / "q.keras")
    assert done.code == 0, done.err
    models = [qi.load_model(path) for path in (tmp_path / "q.keras", files / "quantized.keras")]
    ours, direct = (model.predict(samples["x_test"], verbose=0) for model in models)
    assert np.array_equal(ours, direct)


def test_statistics_of_a_model_that_was_trained_on_are_refused(
    statistics: Path, files: Path, tmp_path: Path, qi_command: Callable[..., Any]
) -> None:
    model = qi.load_model(files / "float.keras")
    model.get_layer("head").bias.assign_add(np.ones(6))
    qi.save_model(model, tmp_path / "later.keras")
    done = qi_command("quantize", tmp_path / "later.keras", "--stats", statistics, "-o", tmp_path / "q.keras")
    assert done.code == 2
    assert "expected statistics of this very model" in done.error
    assert not (tmp_path / "q.keras").exists()


def test_too_few_samples_are_warned_of_when_they_are_used(
    files: Path, tmp_path: Path, qi_command: Callable[..., Any]
) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((9, 8, 8, 1)))
    done = qi_command("calibrate", files / "float.keras", "--data", tmp_path / "d.npz", "-o", tmp_path / "s.npz")
    assert done.out.startswith("3 activations over 9 samples (x)\n")
    done = qi_command("quantize", files / "float.keras", "--stats", tmp_path / "s.npz", "-o", tmp_path / "q.keras")
    assert done.code == 0, done.err
    assert "qi: warning: only 9 calibration samples" in done.err


def test_several_inputs_come_by_name(two_inputs: Path, tmp_path: Path, qi_command: Callable[..., Any]) -> None:
    np.savez(tmp_path / "d.npz", right=np.ones((40, 3)), left=np.ones((40, 4)))
    done = qi_command("calibrate", two_inputs, "--data", tmp_path / "d.npz", "-o", tmp_path / "s.npz")
    assert done.code == 0, done.err
    assert "over 40 samples\n" in done.out


def test_the_samples_are_never_overwritten(files: Path, tmp_path: Path, qi_command: Callable[..., Any]) -> None:
    data = tmp_path / "d.npz"
    data.write_bytes((files / "data.npz").read_bytes())
    done = qi_command("calibrate", files / "float.keras", "--data", data, "-o", data)
    assert done.code == 2
    assert "another file to write than to read" in done.error
    assert data.read_bytes() == (files / "data.npz").read_bytes()


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"images": np.zeros((40, 8, 8, 1))}, "called x_calib, x, x_train or x_test"),
        ({"x": np.zeros((40, 5))}, r"expected shape ('n', 8, 8, 1) for input 'image'"),
        ({"x": np.full((40, 8, 8, 1), np.nan)}, "NaN or infinity"),
    ],
)
def test_bad_samples_are_refused(
    arrays: dict[str, Any], problem: str, files: Path, tmp_path: Path, qi_command: Callable[..., Any]
) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    done = qi_command("calibrate", files / "float.keras", "--data", tmp_path / "d.npz", "-o", tmp_path / "s.npz")
    assert done.code == 2
    assert problem in done.error
    assert not (tmp_path / "s.npz").exists()
