"""Layers that compute the codes of what targets do in real numbers: saved, reloaded, and equal to the twin's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import qi
from qi.ir import run
from qi.ir.routing import route
from qi.keras.exact_graph import make_exact
from qi.keras.exact_islands import ExactNorm, ExactShares
from qi.keras.exact_kernels import ExactTable
from qi.keras.variables import to_numpy

X = np.random.default_rng(0).normal(size=(64, 12, 16)).astype("float32")
TARGETS = ("litert", "onnxruntime")


def quantized(*made: Any) -> keras.Model:
    """Layers between two of Dense."""
    keras.utils.set_random_seed(0)
    x = keras.Input(X.shape[1:], name="x")
    y = layers.Dense(16, name="before")(x)
    for layer in made:
        y = layer(y)
        for i, weight in enumerate(layer.weights):
            weight.assign(np.random.default_rng(i).normal(1, 0.4, weight.shape))
    qmodel, _ = qi.quantize_model(keras.Model(x, layers.Dense(40, name="after")(y)), "w8a8", X, progress=False)
    return qmodel


def check(qmodel: keras.Model, target: str, kind: type, tmp_path: Path) -> None:
    """The exact model, saved and reloaded, gives the twin's codes by a layer of that kind; the way back is open."""
    exact = make_exact(qmodel, target)
    assert any(isinstance(layer, kind) for layer in exact.layers)
    exact.save(tmp_path / "m.keras")
    graph = route(qi.lower(qmodel), target)
    y = graph.outputs[0]
    expected = (run(graph, [X])[y.name] - y.zero_point).astype(np.float32) * y.scale
    np.testing.assert_array_equal(to_numpy(exact(X)), expected)
    np.testing.assert_array_equal(to_numpy(qi.load_model(tmp_path / "m.keras")(X)), expected)
    assert str(qi.lower(exact)) == str(qi.lower(qmodel))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.LayerNormalization(epsilon=1e-6),
        lambda: layers.LayerNormalization(axis=1, center=False, scale=False),
        lambda: layers.RMSNormalization(),
        lambda: layers.GroupNormalization(4),
    ],
    ids=["layer", "places", "rms", "group"],
)
def test_normalizations(make: Any, target: str, tmp_path: Path) -> None:
    check(quantized(make()), target, ExactNorm, tmp_path)


@pytest.mark.parametrize("target", TARGETS)
def test_functions(target: str, tmp_path: Path) -> None:
    check(quantized(layers.Activation("gelu"), layers.Activation("softplus")), target, ExactTable, tmp_path)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("causal", [False, True])
def test_attention(causal: bool, target: str, tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    x = keras.Input(X.shape[1:], name="x")
    y = layers.Dense(16, name="before")(x)
    y = layers.MultiHeadAttention(8, 4, name="mha")(y, y, use_causal_mask=causal)
    qmodel, _ = qi.quantize_model(keras.Model(x, layers.Dense(8)(y)), "w8a8", X, progress=False)
    if causal or target == "litert":  # 8 * 12 * 12 scores are few for ONNX Runtime, which does them in integers
        check(qmodel, target, ExactShares, tmp_path)


def test_while_quantizers_train_layers_compute_themselves() -> None:
    keras.utils.set_random_seed(0)
    x = keras.Input(X.shape[1:], name="x")
    model = keras.Model(x, layers.Dense(4)(layers.LayerNormalization()(layers.Dense(16)(x))))
    qat = qi.prepare_qat(model, "w8a8", X, exact="litert", progress=False)
    assert not any(isinstance(layer, ExactNorm) for layer in qat.layers)
    assert any(isinstance(layer, ExactNorm) for layer in qi.convert(qat).layers)
