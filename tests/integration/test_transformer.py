"""A small transformer on real digits, from training to files that run the numbers of their twin."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import qi
from qi.exporters.deploy import export
from qi.ir import QGraph
from qi.ir.routing import route

datasets = pytest.importorskip("sklearn.datasets")

PATCHES, SIZE, WIDTH, BLOCKS = 16, 4, 32, 2


def transformer() -> keras.Model:
    """Patches of 2 x 2 pixels, their places, two pre-norm blocks, mean pooling."""
    places = np.random.default_rng(0).normal(0, 0.3, (PATCHES, WIDTH)).astype("float32")
    x = keras.Input((PATCHES, SIZE), name="patches")
    y = layers.Dense(WIDTH, name="embed")(x) + places
    for i in range(BLOCKS):
        n = layers.LayerNormalization(name=f"norm{i}a")(y)
        y = layers.Add(name=f"add{i}a")([y, layers.MultiHeadAttention(4, 8, dropout=0.1, name=f"mha{i}")(n, n)])
        n = layers.LayerNormalization(name=f"norm{i}b")(y)
        n = layers.Dense(2 * WIDTH, activation="gelu", name=f"up{i}")(n)
        y = layers.Add(name=f"add{i}b")([y, layers.Dense(WIDTH, name=f"down{i}")(n)])
    y = layers.GlobalAveragePooling1D(name="pool")(layers.LayerNormalization(name="norm")(y))
    return keras.Model(x, layers.Dense(10, name="head")(y), name="transformer")


@dataclass
class Trained:
    """The model, digits it never saw, and its quantized form."""

    model: keras.Model
    x: np.ndarray
    y: np.ndarray
    qmodel: keras.Model
    report: Any
    graph: QGraph

    def accuracy(self, model: keras.Model) -> float:
        return float(np.mean(np.asarray(model(self.x)).argmax(-1) == self.y))


@pytest.fixture(scope="module")
def trained() -> Trained:
    keras.utils.set_random_seed(0)
    found = datasets.load_digits()
    x = (
        (found.images / 8 - 1)
        .astype("float32")
        .reshape(-1, 4, 2, 4, 2)
        .transpose(0, 1, 3, 2, 4)
        .reshape(-1, PATCHES, SIZE)
    )
    model = transformer()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, jit_compile=False)
    model.fit(x[:1300], found.target[:1300], epochs=8, batch_size=64, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", qi.QuantizationWarning)  # black and white pixels saturate
        qmodel, report = qi.quantize_model(model, "w8a8", x[:256], progress=False)
    return Trained(model, x[1300:], found.target[1300:], qmodel, report, qi.lower(qmodel))


def test_it_is_quantized_whole_and_as_good(trained: Trained) -> None:
    accuracy = trained.accuracy(trained.model)
    assert accuracy > 0.85
    assert trained.accuracy(trained.qmodel) >= accuracy - 0.01
    rows = [row for row in trained.report.rows if row.status == "float"]
    assert {row.name for row in rows} == {"bias", "gamma", "beta"}
    assert len(trained.report.find("mha0/*/kernel")) == 4


def test_only_normalizations_and_gelu_are_done_in_real_numbers(trained: Trained) -> None:
    kinds = {"quantize", "dequantize"}
    assert {op.kind for op in trained.graph.ops if not op.quantized} - kinds == {"layer_norm"}
    wanted = {"litert": {"layer_norm", "unary"}, "onnxruntime": {"layer_norm", "unary"}, "reference": {"layer_norm"}}
    for target, real in wanted.items():
        routed = route(trained.graph, target)
        assert {op.kind.removesuffix("_of_codes") for op in routed.ops if not op.quantized} - kinds == real, target


@pytest.mark.parametrize("name", ["model.tflite", "model.onnx"])
def test_files_give_what_the_twin_gives(trained: Trained, name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", qi.QuantizationWarning)
        report = export(trained.qmodel, tmp_path / name, samples=trained.x[:256], latency=False)
    assert report.proof.max_lsb <= 2  # a code that flips at a normalization may move a logit by two
    assert report.proof.share <= 0.003


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["model.tflite", "model.onnx"])
def test_attention_alone_is_exact(name: str, causal: bool, tmp_path: Path) -> None:
    x = keras.Input((6, 8), name="x")
    y = layers.MultiHeadAttention(2, 4, name="mha")(layers.Dense(8)(x), x, use_causal_mask=causal)
    model = keras.Model(x, layers.Dense(3, name="out")(y))
    given = np.random.default_rng(0).normal(size=(256, 6, 8)).astype("float32")
    qmodel, _ = qi.quantize_model(model, "w8a8", given, progress=False)
    report = export(qmodel, tmp_path / name, samples=given, latency=False)
    real = {text.split(" (")[0] for text in report.float_operations}
    assert real == ({"add", "softmax"} if causal else set())
    if not causal:
        assert report.exact
    assert report.proof.max_lsb <= 1
    assert report.proof.share <= 0.003
