"""A small trained-looking model, samples for it, and the command called in this process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest


class Done(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that says what went wrong."""
        lines = [line for line in self.err.splitlines() if not line.startswith("qi: warning: ")]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("qi: error: ")
        return lines[0].removeprefix("qi: error: ")


@pytest.fixture
def qi_command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """A function of the command's arguments that runs it in this process."""
    from qi.cli.main import main

    def run(*arguments: object) -> Done:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def environment(checkout: Path) -> dict[str, str]:
    """For a process of its own: TensorFlow is as talkative there as it likes to be."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("TF_", "CUDA_"))}
    return {**mine, "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(scope="session")
def samples() -> dict[str, np.ndarray]:
    """64 images of 8 x 8 and their classes, of which a model knows nothing."""
    random = np.random.default_rng(0)
    return {
        "x_calib": random.normal(size=(64, 8, 8, 1)).astype("float32"),
        "x_test": random.normal(size=(64, 8, 8, 1)).astype("float32"),
        "y_test": random.integers(0, 6, 64),
    }


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory, samples: dict[str, np.ndarray]) -> Path:
    """A folder, not to be written to: float.keras, quantized.keras (w8a8), data.npz."""
    import keras

    import qi

    folder = tmp_path_factory.mktemp("files")
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            keras.layers.Conv2D(4, 3, name="conv", activation="relu"),
            keras.layers.Flatten(name="flat"),
            keras.layers.Dense(6, name="head"),
        ],
        name="tiny",
    )
    quantized, _ = qi.quantize_model(model, "w8a8", samples["x_calib"], progress=False)
    qi.save_model(model, folder / "float.keras")
    qi.save_model(quantized, folder / "quantized.keras")
    np.savez(folder / "data.npz", **samples)
    return folder


@pytest.fixture
def two_inputs(tmp_path: Path) -> Path:
    """A model with the inputs "left" and "right", saved."""
    import keras

    import qi

    keras.utils.set_random_seed(1)
    left, right = keras.Input((4,), name="left"), keras.Input((3,), name="right")
    joined = keras.layers.Concatenate()([keras.layers.Dense(4)(left), keras.layers.Dense(4)(right)])
    return qi.save_model(keras.Model([left, right], keras.layers.Dense(2)(joined)), tmp_path / "two.keras")


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A function that makes packages look as if they weren't installed."""
    import sys

    def hide(*names: str) -> None:
        for name in [*sys.modules, *names]:
            if name.partition(".")[0] in names:
                monkeypatch.setitem(sys.modules, name, None)

    return hide
