"""Tests for qi.keras.clamps: where activations cut values off."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from qi.keras.caps import ChannelCap
from qi.keras.clamps import ends_after, limit_of
from qi.keras.graph import Graph, flatten_model

INF = np.inf


def graph_of(*after: Any, **options: Any) -> tuple[Graph, Any]:
    """A layer of two channels, and what comes after it."""
    x = inputs = keras.Input((3,))
    dense = layers.Dense(2, **options)
    x = dense(x)
    for layer in after:
        x = layer(x)
    return flatten_model(keras.Model(inputs, layers.Dense(1)(x))), dense


@pytest.mark.parametrize(
    ("after", "options", "ends"),
    [
        (list, {}, (-INF, INF)),
        (list, {"activation": "relu"}, (0, INF)),
        (list, {"activation": "relu6"}, (0, 6)),
        (list, {"activation": "tanh"}, (-INF, INF)),
        (lambda: [layers.ReLU()], {}, (0, INF)),
        (lambda: [layers.ReLU(4.0)], {}, (0, 4)),
        (lambda: [layers.ReLU(4.0), layers.Activation("relu6"), layers.ReLU(5.0)], {}, (0, 4)),
        (lambda: [keras.ops.relu6], {}, (0, 6)),
        (lambda: [layers.ReLU(negative_slope=0.1)], {}, (-INF, INF)),
        (lambda: [layers.ReLU(threshold=1.0)], {}, (-INF, INF)),
        (lambda: [layers.LeakyReLU()], {}, (-INF, INF)),
        (lambda: [layers.Reshape((2,)), layers.ReLU()], {}, (-INF, INF)),
    ],
)
def test_ends(after: Any, options: dict[str, Any], ends: tuple[float, float]) -> None:
    assert ends_after(*graph_of(*after(), **options)) == ends


def test_caps_of_channels() -> None:
    cap = ChannelCap(6.0)
    graph, dense = graph_of(layers.ReLU(), cap)
    cap.caps.assign([3.0, 12.0])
    lo, hi = ends_after(graph, dense)
    assert (lo, list(hi)) == (0, [3, 12])
    assert limit_of(next(call for call in graph.calls if call.op is cap)) == 6


def test_what_others_see_as_well_is_not_cut_off() -> None:
    inputs = keras.Input((3,))
    dense = layers.Dense(2)
    x = dense(inputs)
    for outputs in ([layers.ReLU()(x), x], layers.Add()([layers.ReLU()(x), x])):
        assert ends_after(flatten_model(keras.Model(inputs, outputs)), dense) == (-INF, INF)


def test_layers_called_twice() -> None:
    inputs = keras.Input((2,))
    dense = layers.Dense(2)
    same = keras.Model(inputs, layers.ReLU()(dense(layers.ReLU()(dense(inputs)))))
    other = keras.Model(inputs, dense(layers.ReLU()(dense(inputs))))
    assert ends_after(flatten_model(same), dense) == (0, INF)
    assert ends_after(flatten_model(other), dense) == (-INF, INF)
