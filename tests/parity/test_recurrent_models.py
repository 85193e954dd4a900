"""Models with recurrent layers, from a trained classifier to files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qi
from qi.exporters.deploy import export
from qi.exporters.verify import verify
from qi.keras.emulate import emulate

WORDS, LENGTH = 50, 12
ROUNDING = 0.01  # steps of a 255th of the range, where real numbers are added in another order


def phrases(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, WORDS, (count, LENGTH)).astype("int32")


def classes(x: np.ndarray) -> np.ndarray:
    """Whether more of a phrase is said in its first half."""
    return (x[:, :6].sum(axis=1) > x[:, 6:].sum(axis=1)).astype("int32")


@pytest.fixture(scope="module")
def classifier() -> Any:
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    x = keras.Input((LENGTH,), dtype="int32", name="words")
    y = layers.Embedding(WORDS, 16)(x)
    y = layers.Bidirectional(layers.LSTM(12, return_sequences=True, dropout=0.1))(y)
    model = keras.Model(x, layers.Dense(2, activation="softmax")(layers.LSTM(16)(y)))
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    data = phrases(2048)
    model.fit(data, classes(data), epochs=4, batch_size=64, verbose=0)
    return model


def quantized(model: Any, recipe: str, data: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return qi.quantize_model(model, recipe, data, progress=False)[0]


@pytest.fixture(scope="module", params=["w8a8", "w8", "w4"])
def classified(request: pytest.FixtureRequest, classifier: Any) -> tuple[str, Any]:
    """(recipe, the classifier quantized by it)."""
    return request.param, quantized(classifier, request.param, phrases(256) if request.param == "w8a8" else None)


@pytest.mark.parametrize("suffix", [".tflite", ".onnx"])
def test_a_classifier_of_phrases(classifier: Any, classified: tuple[str, Any], suffix: str, tmp_path: Path) -> None:
    x, (recipe, model) = phrases(256), classified
    path = tmp_path / f"m{suffix}"
    report = export(model, path, samples=x, latency=False, dynamic=False)
    if recipe == "w8a8":
        assert report.proof.max_lsb <= 1
        assert report.proof.share <= 0.003
    else:
        assert report.proof.max_lsb < ROUNDING
    assert verify(path, model, x).identical
    found = emulate(model, x, "litert" if suffix == ".tflite" else "onnxruntime", progress=False)
    right = {name: np.mean(array.argmax(axis=1) == classes(x)) for name, array in _answers(classifier, model, x, found)}
    assert right["float"] > 0.9
    assert right["twin"] == pytest.approx(right["quantized"], abs=0.005)
    assert right["twin"] > right["float"] - (0.02 if recipe != "w4" else 0.1)


def _answers(classifier: Any, model: Any, x: np.ndarray, twin: np.ndarray) -> list[tuple[str, np.ndarray]]:
    return [
        ("float", classifier.predict(x, verbose=0)),
        ("quantized", model.predict(x, verbose=0)),
        ("twin", twin),
    ]


@pytest.mark.parametrize(
    ("kind", "suffix", "least"),
    [("LSTM", ".onnx", 3.6), ("LSTM", ".tflite", 3.6), ("GRU", ".onnx", 3.6), ("GRU", ".tflite", 1.8)],
)
def test_files_are_small(kind: str, suffix: str, least: float, tmp_path: Path) -> None:
    """Steps side by side are no longer so small: they take two kilobytes each, weights or none."""
    import keras

    model = keras.Sequential([keras.Input((32, 64)), getattr(keras.layers, kind)(128)])
    report = export(quantized(model, "w8", None), tmp_path / f"m{suffix}", latency=False)
    assert report.size_ratio > least


def test_both_directions_and_backwards(tmp_path: Path) -> None:
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    x = keras.Input((9, 5), name="steps")
    y = layers.Bidirectional(layers.GRU(6, return_sequences=True), merge_mode="sum")(x)
    y = layers.LSTM(7, return_sequences=True, go_backwards=True)(y)
    y = layers.Bidirectional(layers.SimpleRNN(4, return_sequences=True), merge_mode="ave")(y)
    model = keras.Model(x, layers.Dense(3)(layers.Bidirectional(layers.LSTM(4))(y)))
    data = np.random.default_rng(0).normal(size=(200, 9, 5)).astype("float32")
    coded, real = quantized(model, "w8a8", data), quantized(model, "w8", None)
    for suffix in (".tflite", ".onnx"):
        proof = export(coded, tmp_path / f"c{suffix}", samples=data, latency=False).proof
        assert proof.max_lsb <= 1
        assert proof.share <= 0.01  # four layers, one behind the other, each of which may move a code
        proof = export(real, tmp_path / f"r{suffix}", samples=data, latency=False, dynamic=False).proof
        assert proof.max_lsb < ROUNDING


def test_lengths_that_litert_cannot_unroll_are_refused_before_a_file_is_written(tmp_path: Path) -> None:
    import keras

    model = quantized(keras.Sequential([keras.Input((None, 5)), keras.layers.GRU(4, name="memory")]), "w8", None)
    with pytest.raises(qi.UnsupportedError, match="'memory'"):
        export(model, tmp_path / "m.tflite", latency=False)
    assert list(tmp_path.iterdir()) == []
    assert export(model, tmp_path / "m.onnx", latency=False).proof.max_lsb < ROUNDING
