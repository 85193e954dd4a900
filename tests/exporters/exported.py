"""A small quantized model and its graph, made once for all tests of a module that needs them."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["data", "graph", "quantized"]


def data(samples: int = 64) -> np.ndarray:
    """Images of 6 x 6, two channels."""
    return np.random.default_rng(0).normal(size=(samples, 6, 6, 2)).astype("float32")


def quantized(recipe: str = "w8a8", *, islands: bool = False, channels: int = 4, classes: int = 3) -> Any:
    """A model of a convolution, a shortcut, a pooling and a product; with a normalization for float islands."""
    import keras

    import qi

    keras.utils.set_random_seed(0)
    x = keras.Input((6, 6, 2), name="image")
    y = keras.layers.Conv2D(channels, 3, padding="same", activation="relu", name="conv")(x)
    y = keras.layers.Add(name="add")([y, keras.layers.Conv2D(channels, 1, name="side")(x)])
    y = keras.layers.GlobalAveragePooling2D(name="mean")(y)
    if islands:
        y = keras.layers.LayerNormalization(name="norm")(y)
    model = keras.Model(x, keras.layers.Dense(classes, name="head")(y), name="small")
    return qi.quantize_model(model, recipe, data(), progress=False)[0]


def graph(target: str) -> Any:
    """The graph of `tests.ir.graphs.perceptron`, routed; without any framework."""
    from qi.ir.routing import route
    from tests.ir.graphs import perceptron

    return route(perceptron(), target)
