from __future__ import annotations

from typing import Any

import keras
import pytest
from keras import activations, layers, ops

from qi.keras.lower_activations import activate
from tests.keras.lowered import branches, in_integers, kinds, refusal

NAMES = (
    "relu relu6 sigmoid tanh silu swish hard_sigmoid hard_silu hard_swish exponential softplus gelu elu leaky_relu softmax linear"
).split()


def test_activations_as_layers_and_as_arguments() -> None:
    x, image = keras.Input((6,), name="features"), keras.Input((2, 3, 4), name="image")
    made: dict[str, Any] = {}
    for name in NAMES:
        made[f"layer_{name}"] = layers.Activation(name)(x)
        made[f"dense_{name}"] = layers.Dense(3, activation=name)(x)
        made[f"conv_{name}"] = layers.Conv2D(3, 2, activation=name)(image)
    branches([x, image], made)


def test_activations_with_a_layer_of_their_own() -> None:
    x = keras.Input((2, 3, 4), name="image")
    made = {
        "relu": layers.ReLU()(x),
        "relu6": layers.ReLU(6)(x),
        "relu_to_one": layers.ReLU(1.0)(x),
        "relu_sloped": layers.ReLU(negative_slope=0.25)(x),
        "leaky": layers.LeakyReLU(negative_slope=0.1)(x),
        "leaky_default": layers.LeakyReLU()(x),
        "elu": layers.ELU(alpha=0.5)(x),
        "prelu": layers.PReLU()(x),
        "prelu_shared": layers.PReLU(shared_axes=[1, 2])(x),
        "softmax": layers.Softmax()(x),
        "softmax_of_rows": layers.Softmax(axis=1)(x),
        "softmax_of_channels": layers.Softmax(axis=-1)(x),
        "dense": layers.Dense(2)(x),
    }
    branches(x, made)


def test_activations_as_functions() -> None:
    x = keras.Input((3, 4), name="x")
    positive = ops.exp(x)
    made = {
        "relu": ops.relu(x),
        "relu6": ops.relu6(x),
        "sigmoid": ops.sigmoid(x),
        "tanh": ops.tanh(x),
        "silu": ops.silu(x),
        "hard_sigmoid": ops.hard_sigmoid(x),
        "hard_silu": ops.hard_silu(x),
        "gelu_exact": ops.gelu(x, approximate=False),
        "gelu_tanh": ops.gelu(x),
        "elu": ops.elu(x, alpha=0.4),
        "leaky_relu": ops.leaky_relu(x, negative_slope=0.3),
        "exp": positive,
        "softplus": ops.softplus(x),
        "abs": ops.abs(x),
        "absolute": ops.absolute(x),
        "negative": -x,
        "sqrt": ops.sqrt(positive),
        "rsqrt": ops.rsqrt(positive),
        "square": ops.square(x),
        "log": ops.log(positive),
        "softmax": ops.softmax(x, axis=1),
        "clip": ops.clip(x, 0, 0.5),
        "activation": activations.gelu(x),
        "dense": layers.Dense(2)(x),
    }
    branches(x, made)


@pytest.mark.parametrize("form", ["string", "layer", "function"])
def test_a_fused_activation_leaves_no_operation(form: str) -> None:
    x = keras.Input((4,), name="x")
    y = layers.Dense(3, activation="relu6" if form == "string" else None, name="a")(x)
    y = layers.ReLU(6.0)(y) if form == "layer" else ops.relu6(y) if form == "function" else y
    _, graph, _ = in_integers(keras.Model(x, layers.Dense(2, activation="sigmoid", name="b")(y)))
    assert kinds(graph) == ["quantize", "dense", "dense", "unary"]
    assert graph.ops[1].attrs["activation"] == "relu6"
    assert all(op.quantized for op in graph.ops[1:])
    assert (graph.ops[3].y.scale, graph.ops[3].y.zero_point) == (1 / 256, -128)


def named_relu(x: Any) -> Any:
    """Somebody's own function under a name of Keras'."""
    return x * 2


named_relu.__name__ = "relu"


@pytest.mark.filterwarnings("ignore:1 layers apply functions with the name of one of Keras")
def test_refusals() -> None:
    x = keras.Input((3, 4))
    dense = layers.Dense(4)
    assert "softmax over several axes" in refusal(x, layers.Softmax(axis=(1, 2))(dense(x)))
    assert "with threshold=0.5" in refusal(x, layers.ReLU(threshold=0.5)(dense(x)))
    assert "with negative_slope and max_value" in refusal(x, layers.ReLU(2.0, 0.1)(dense(x)))
    assert "whose activation 'custom_relu' has no integer form" in refusal(x, layers.Activation(named_relu)(dense(x)))
    text = refusal(x, layers.Dense(2, activation="log_softmax", name="d")(x))
    assert "whose activation 'log_softmax' has no integer form; do use one of elu, exponential, gelu," in text
    assert "which clips to -1.0..1.0; do clip at 0 below" in refusal(x, ops.clip(dense(x), -1, 1))
    mask = ops.convert_to_tensor([[True, False, True, True]] * 3)
    assert "class Softmax, with a mask" in refusal(x, layers.Softmax()(dense(x), mask=mask))


def test_linear_is_nothing() -> None:
    marker: Any = object()
    assert activate(marker, marker, "linear") is marker
