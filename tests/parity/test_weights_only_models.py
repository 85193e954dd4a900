"""Keras models of which the weights alone are quantized, as files: their numbers and their sizes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qi
from qi.errors import QuantizationWarning
from qi.exporters.deploy import export
from qi.exporters.verify import verify
from qi.keras.emulate import emulate

TOLERANCE = 0.01  # steps of a 255th of the range, where real numbers are added in another order


def quantized(model: Any, recipe: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return qi.quantize_model(model, recipe, progress=False)[0]


@pytest.fixture(scope="module")
def perceptron() -> Any:
    import keras

    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(512, activation="relu") for _ in range(2)]
    return keras.Sequential([keras.Input((256,)), *hidden, keras.layers.Dense(10)])


@pytest.fixture(scope="module")
def images() -> Any:
    import keras

    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 3))
    y = keras.layers.Conv2D(32, 3, activation="relu")(x)
    y = keras.layers.Conv2D(9, 3, padding="same")(keras.layers.DepthwiseConv2D(3)(y))
    return keras.Model(x, keras.layers.Dense(5)(keras.layers.Flatten()(y)))


@pytest.mark.parametrize(
    ("recipe", "suffix", "options", "least"),
    [
        ("w8", ".tflite", {}, 3.8),
        ("w4", ".tflite", {}, 7.0),
        ("w4", ".tflite", {"dynamic": False}, 7.0),
        ("w4_g32", ".tflite", {}, 6.2),  # a scale of 4 bytes for each 16
        ("w8", ".onnx", {}, 3.8),
        ("w4", ".onnx", {}, 7.0),
        ("w4_g32", ".onnx", {}, 6.2),
        ("w4_g32", ".onnx", {"packed": True}, 6.2),
    ],
)
def test_perceptrons_are_small(
    recipe: str, suffix: str, options: dict[str, bool], least: float, perceptron: Any, tmp_path: Path
) -> None:
    model = quantized(perceptron, recipe)
    report = export(model, tmp_path / f"m{suffix}", latency=False, **options)
    assert report.size_ratio > least
    assert report.proof.max_lsb < TOLERANCE
    dynamic = suffix == ".tflite" and options.get("dynamic", True) and recipe != "w4_g32"
    assert report.exact >= dynamic
    assert {op.partition(" ")[0] for op in report.float_operations} == {"dynamic_dense" if dynamic else "dense"}
    again = verify(tmp_path / f"m{suffix}", model)
    assert again.identical
    assert again.options.dynamic is options.get("dynamic", True)


def test_the_twin_rounds_what_the_kernel_rounds(perceptron: Any) -> None:
    model, x = quantized(perceptron, "w8"), np.random.default_rng(0).normal(size=(16, 256)).astype(np.float32)
    expected = model.predict(x, verbose=0)
    rounded, real = (emulate(model, x, dynamic=dynamic, progress=False) for dynamic in (True, False))
    np.testing.assert_allclose(real, expected, atol=1e-5)
    assert 1e-3 < np.abs(rounded - expected).max() < 0.05


@pytest.mark.parametrize("suffix", [".tflite", ".onnx"])
@pytest.mark.parametrize("recipe", ["w8", "w4"])
def test_convolutions_stay_in_float(recipe: str, suffix: str, images: Any, tmp_path: Path) -> None:
    model = quantized(images, recipe)
    with warnings.catch_warnings():
        warnings.simplefilter("error", QuantizationWarning)  # the last bits of real numbers are no difference
        report = export(model, tmp_path / f"m{suffix}", latency=False)
    assert report.proof.max_lsb < 1
    assert "conv2d" in {op.partition(" ")[0] for op in report.float_operations}


def test_groups_beside_quantized_activations_are_a_float_island(perceptron: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
        model = qi.quantize_model(perceptron, "w4a8_g32", x, progress=False)[0]
        for name in ("m.tflite", "m.onnx"):
            report = export(model, tmp_path / name, samples=x, latency=False)
            assert report.proof.max_lsb <= 1
            assert report.proof.share <= 0.003
            assert len(report.float_operations) == 3
