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
from qi.exporters.formats import FORMATS
from qi.exporters.manifest import Options
from qi.exporters.proof import prove
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
    exact = {"layer_norm_of_codes", "unary"}
    for target, real in {"litert": exact, "onnxruntime": exact, "reference": {"layer_norm"}}.items():
        routed = route(trained.graph, target)
        assert {op.kind for op in routed.ops if not op.quantized} - kinds - {"mul"} == real, target


@pytest.mark.parametrize("name", ["model.tflite", "model.onnx"])
def test_files_give_what_the_twin_gives(trained: Trained, name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", qi.QuantizationWarning)
        report = export(trained.qmodel, tmp_path / name, samples=trained.x, latency=False)
    assert report.exact


def block(y: Any, heads: int, causal: bool, context: Any, name: str) -> Any:
    """Attention to itself, to a context where there is one, and a perceptron; normalized before."""
    width = y.shape[-1]
    attend = lambda part: layers.MultiHeadAttention(heads, width // heads, name=f"{part}{name}")
    n = layers.LayerNormalization(epsilon=1e-6)(y)
    y = layers.Add()([y, attend("self")(n, n, use_causal_mask=causal)])
    if context is not None:
        y = layers.Add()([y, attend("cross")(layers.LayerNormalization()(y), context)])
    n = layers.Dense(2 * width, activation="gelu")(layers.LayerNormalization()(y))
    return layers.Add()([y, layers.Dense(width)(n)])


SHAPES = {  # tokens, width, heads, blocks, causal, tokens of the context
    "16x32": (16, 32, 4, 2, False, 0),
    "16x32 causal, with a context": (16, 32, 2, 1, True, 24),
    "64x128": (64, 128, 8, 2, False, 0),
    "64x64 with a context": (64, 64, 4, 1, False, 72),
    "200x48 causal": (200, 48, 3, 1, True, 0),
}


@pytest.fixture(scope="module", params=SHAPES.values(), ids=list(SHAPES))
def untrained(request: pytest.FixtureRequest) -> tuple[keras.Model, list[np.ndarray]]:
    """A quantized transformer whose every token is an output, with samples that give 20,000 of them and more."""
    tokens, width, heads, blocks, causal, others = request.param
    keras.utils.set_random_seed(0)
    inputs = [keras.Input((tokens, 8), name="x")] + [keras.Input((others, 8), name="context")] * (others > 0)
    y, *context = (layers.Dense(width)(x) for x in inputs)
    for i in range(blocks):
        y = block(y, heads, causal, context[0] if context else None, str(i))
    model = keras.Model(inputs, layers.Dense(16, name="head")(layers.LayerNormalization()(y)))
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if weight.path.endswith(("gamma", "beta")):
            weight.assign(rng.normal(float(weight.path.endswith("gamma")), 0.3, weight.shape))
    arrays = [rng.normal(size=(20_000 // (16 * tokens) + 32, *x.shape[1:])).astype("float32") for x in inputs]
    qmodel, _ = qi.quantize_model(model, "w8a8", [a[:32] for a in arrays] if others else arrays[0][:32], progress=False)
    return qmodel, arrays


@pytest.mark.parametrize("target", ["litert", "onnxruntime"])
def test_every_output_of_every_token_is_the_twins(untrained: Any, target: str) -> None:
    qmodel, arrays = untrained
    kind = FORMATS[{"onnxruntime": "onnx"}.get(target, target)]
    graph = route(qi.lower(qmodel), target)
    real = {op.kind for op in graph.ops if not op.quantized} - {"quantize", "dequantize"}
    assert real <= {"layer_norm_of_codes", "softmax_of_codes", "unary", "add", "mul"}
    proof = prove(kind.write(graph, Options(), b""), graph, kind, arrays, threads=2)
    assert sum(output.elements for output in proof.outputs) >= 20_000
    assert proof.exact, proof.first


@pytest.mark.parametrize("make", ["mixer", "convnext"])
@pytest.mark.parametrize("name", ["model.tflite", "model.onnx"])
def test_networks_of_normalizations_and_gelu(make: str, name: str, tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    model = _mixer() if make == "mixer" else _convnext()
    x = np.random.default_rng(0).normal(size=(64, *model.input_shape[1:])).astype("float32")
    qmodel, _ = qi.quantize_model(model, "w8a8", x, progress=False)
    report = export(qmodel, tmp_path / name, samples=x, latency=False)
    assert report.exact
    real = {text.split(" (")[0] for text in report.float_operations}
    assert real - {"mul"} == {"layer_norm_of_codes", "unary"}  # a factor next to one may keep GELU's results off ties


def _mixer() -> keras.Model:
    x = keras.Input((24, 16))
    n = layers.Permute((2, 1))(layers.LayerNormalization()(x))
    n = layers.Dense(24)(layers.Dense(48, activation="gelu")(n))
    y = layers.Add()([layers.Dense(16)(x), layers.Permute((2, 1))(n)])
    n = layers.Dense(16)(layers.Dense(64, activation="gelu")(layers.LayerNormalization()(y)))
    return keras.Model(x, layers.Dense(16)(layers.LayerNormalization()(layers.Add()([y, n]))))


def _convnext() -> keras.Model:
    x = keras.Input((16, 16, 3))
    y = layers.LayerNormalization(epsilon=1e-6)(layers.Conv2D(16, 2, strides=2)(x))
    n = layers.LayerNormalization(epsilon=1e-6)(layers.DepthwiseConv2D(7, padding="same")(y))
    n = layers.Dense(16)(layers.Dense(64, activation="gelu")(n))
    return keras.Model(x, layers.Dense(16)(layers.LayerNormalization()(layers.Add()([y, n]))))


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
    assert real == ({"add", "softmax_of_codes"} if causal else set())
    assert report.exact
