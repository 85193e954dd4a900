"""Every public layer of Keras: its weights are quantized or say why not; models of it reload bit-equal and train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from qi import KerasQuantizationWrapper, convert, prepare_qat, quantize_model
from qi.core import sqnr_db
from qi.keras.variables import to_numpy
from tests.keras.zoo import LAYERS, REASONS, USERS, build, data_for, public_layers

pytestmark = [
    pytest.mark.filterwarnings("ignore::qi.errors.QuantizationWarning"),
    # What sorts values into bins hands no gradient on.
    pytest.mark.filterwarnings("ignore:Gradients do not exist for variables:UserWarning"),
]

IN_FLOAT = (
    "bias: float32 here, int32 at input scale x weight scale in an integer file",  # as exact as the sums it is added to
    "bias: float32, as what recurrent layers add it to",
    "batch normalization is kept: ",  # it runs in float; where it can be folded it does, and nothing of it stays
    "normalizations are computed in float",  # on what has just been divided by its deviation: nothing has a grid there
    "slopes of an activation",  # no kernel of integers takes slopes of its own grid, for each of many
    "no results are made of it",
    "holds int",  # counters, of 64 bits where the backend has them: "not real numbers"
)
"""How the reasons of weights begin that may stay in float; why that is right."""

NUMBERS = {
    "AdditiveAttention": "scale",  # multiplies the channels of tanh(query + key), before they are summed in float
    "Attention": "scale",  # one number for all scores
    "own weights": "gain",
    "made of layers": "scale",
}
"""The vectors and single numbers that stay in float, for they multiply results and no kernel takes them as codes."""

STRICT = set(LAYERS | USERS) - {"PReLU"}  # its slopes are a matrix where no axis shares them
ON_BACKENDS = set("Dense DepthwiseConv2D Embedding LayerNormalization MultiHeadAttention RepeatVector".split())
"""What runs again on Keras' other backends. Convolutions and normalizations that fold do so in `test_ptq.py` and `test_qat.py`,
cells of recurrent layers in `test_inner.py`, files of LSTMs and convolutions in `test_backends.py`."""

OF_TENSORFLOW = {"Hashing", "IntegerLookup"}
"""Layers that Keras computes with TensorFlow's functions, which no training step of JAX can call, of float models neither."""

HELPERS = {"before", "after", "left", "right", "to_query", "to_value"}


def outputs(model: keras.Model, x: np.ndarray) -> np.ndarray:
    return to_numpy(model(x, training=False))


def wrappers(model: keras.Model) -> list[KerasQuantizationWrapper]:
    return [layer for layer in model.layers if isinstance(layer, KerasQuantizationWrapper)]


def state(model: keras.Model) -> dict[str, Any]:
    """What is to stay as it is; AugMix and RandAugment draw random numbers even where all is forgotten."""
    found: dict[str, Any] = {v.path: to_numpy(v) for v in model.variables if "seed_generator" not in v.path}
    nodes = {f"nodes {op.name}": (len(op._inbound_nodes), len(op._outbound_nodes)) for op in model.operations}
    return found | nodes | {"trainable": len(model.trainable_variables)}


def test_every_public_layer_has_a_model_or_a_reason() -> None:
    assert set(public_layers()) == set(LAYERS) | set(REASONS)
    assert not set(LAYERS) & set(REASONS)
    assert all(REASONS.values())
    assert set(LAYERS) > ON_BACKENDS


def marked(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.backend) if name in ON_BACKENDS else name


@pytest.mark.parametrize("name", [marked(name) for name in (*LAYERS, *USERS)])
# Of Keras' AugMix, on torch.
@pytest.mark.filterwarnings(r"ignore:(.|\n)*Tensor\.T is deprecated:UserWarning")
def test_layer(name: str, tmp_path: Path) -> None:
    model = build(name)
    assert name in USERS or name in {type(layer).__name__ for layer in model._flatten_layers()}
    x = data_for(name, model)
    exact = outputs(model, x)
    before = state(model)

    quantized, report = quantize_model(model, "w8a8", x, progress=False, strict=name in STRICT)
    in_float = [row for row in report.rows if row.kind == "weight" and not row.quantized]
    unknown = [row for row in in_float if not row.reason.startswith(IN_FLOAT) and row.name != NUMBERS.get(name)]
    assert [(row.path, row.reason) for row in unknown] == []
    check_reloaded(quantized, x, tmp_path / "quantized.keras")

    own = [layer for layer in model.layers if layer.weights and layer.name not in HELPERS]
    if own:
        check_weights_alone(model, x, exact, name)
    if keras.backend.backend() == "jax" and name in OF_TENSORFLOW:
        return
    trained = prepare_qat(model, "w8a8", x, progress=False)
    # The cheaper of two: JAX compiles every operation apart where a step isn't compiled whole.
    trained.compile("sgd", "mse", run_eagerly=keras.backend.backend() != "jax")
    assert np.isfinite(trained.train_on_batch(x, exact))
    if own:
        np.testing.assert_array_equal(outputs(convert(trained), x), outputs(trained, x))
    np.testing.assert_equal(state(model), before)


def check_reloaded(quantized: keras.Model, x: np.ndarray, path: Path) -> None:
    """Saved and loaded: the same codes, the same outputs."""
    quantized.save(path)
    loaded = keras.models.load_model(path)
    np.testing.assert_array_equal(outputs(loaded, x), outputs(quantized, x))
    for old, new in zip(wrappers(quantized), wrappers(loaded), strict=True):
        assert old.frozen
        assert new.frozen
        np.testing.assert_equal(new.get_quantized_weights(), old.get_quantized_weights())


def check_weights_alone(model: keras.Model, x: np.ndarray, exact: np.ndarray, name: str) -> None:
    """8 bits for the weights alone leave outputs within 3 % of what they are."""
    quantized, report = quantize_model(model, "w8", progress=False, strict=name in STRICT)
    assert sqnr_db(exact, outputs(quantized, x)) >= 30
    weights = [row for row in report.rows if row.quantized]
    assert all(row.granularity.startswith("per channel") and row.bits == 8 for row in weights)
