"""Networks whose channels can be scaled, with channels of very different sizes."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

from qi.keras.calibrate import Calibration, collect
from qi.keras.graph import build_model, build_tensors
from qi.keras.inputs import Watch
from qi.keras.links import find_links, scalable_values
from qi.keras.prepare import Prepared, prepare
from tests.keras.models import settle

__all__ = ["calibrated", "convolutions", "floats", "images", "links_of", "prepared", "transformer", "uneven"]


def uneven(model: keras.Model) -> keras.Model:
    """Weights whose output channels differ by a factor of 100 at most; the last two of each kernel alike."""
    settle(model)
    random = np.random.default_rng(7)
    for layer in model._flatten_layers(include_self=False):
        kernel = getattr(layer, "kernel", None)
        if kernel is not None and len(kernel.shape) > 1:
            spread = np.exp(random.uniform(-2.3, 2.3, kernel.shape[-1])).astype("float32")
            kernel.assign(np.asarray(kernel) * spread / spread.mean())
    return model


def convolutions(activation: Any = "relu6", *, pooled: bool = True) -> keras.Model:
    """conv, depthwise, conv, pooling and Dense behind Flatten, each but the last with a normalization that folds."""

    def act(x: Any) -> Any:
        if activation == "relu6":
            return layers.ReLU(6.0)(x)
        return {"relu": layers.ReLU, "leaky": layers.LeakyReLU, "prelu": lambda: layers.PReLU(shared_axes=[1, 2])}[
            activation
        ]()(x)

    inputs = keras.Input((8, 8, 3), name="image")
    x = act(layers.BatchNormalization(name="a_bn")(layers.Conv2D(6, 3, padding="same", name="a")(inputs)))
    x = layers.ZeroPadding2D(1, name="pad")(x)
    x = act(layers.BatchNormalization(name="b_bn")(layers.DepthwiseConv2D(3, use_bias=False, name="b")(x)))
    x = act(layers.Conv2D(4, 1, groups=2, name="c")(x))
    if pooled:
        x = layers.MaxPooling2D(2, name="max")(x)
        x = layers.AveragePooling2D(2, name="average")(x)
    x = layers.Dense(5, activation="relu", name="d")(layers.Flatten(name="flat")(x))
    return uneven(keras.Model(inputs, layers.Dense(3, name="head")(x), name="convolutions"))


def transformer(norm: Any = layers.LayerNormalization) -> keras.Model:
    """Normalizations ahead of attention and of two layers beside each other."""
    inputs = keras.Input((6, 8), name="tokens")
    x = layers.Dense(8, name="embed")(inputs)
    y = norm(name="norm1")(x)
    x = layers.Add(name="join")([x, layers.MultiHeadAttention(2, 4, name="attention")(y, y)])
    y = norm(name="norm2")(x)
    gate, value = layers.Dense(8, activation="sigmoid", name="gate")(y), layers.Dense(8, name="value")(y)
    x = layers.Dense(4, name="out")(layers.Multiply(name="product")([gate, value]))
    return uneven(keras.Model(inputs, x, name="transformer"))


def images(count: int = 48, shape: tuple[int, ...] = (8, 8, 3)) -> np.ndarray:
    """Inputs."""
    return np.random.default_rng(2).normal(0.3, 1.0, (count, *shape)).astype("float32")


def prepared(model: keras.Model, recipe: Any) -> Prepared:
    """As `quantize_model` prepares it."""
    return prepare(model, recipe, scales=True)


def floats(ready: Prepared, x: Any) -> np.ndarray:
    """What the float graph gives, as its weights are now."""
    model = build_model(ready.graph, build_tensors(ready.graph))
    return np.asarray(keras.tree.flatten(model(x, training=False))[0])


def links_of(ready: Prepared) -> list[tuple[str, list[str]]]:
    """(giver, takers) of each link, by path."""
    return [(link.giver.path, [taker.call.path for taker in link.takers]) for link in find_links(ready.graph)]


def calibrated(ready: Prepared, x: Any) -> Calibration:
    """What calibration sees of the prepared graph as it is now, all that scaling needs included."""
    ready.tensors = build_tensors(ready.graph)
    ready.watch = Watch.of(ready.graph, channels=scalable_values(ready.graph))
    return collect(
        ready.graph,
        ready.tensors,
        ready.watched,
        x,
        ready.parts,
        ready.watch,
        batch_size=64,
        progress=False,
        keep=1,
    )
