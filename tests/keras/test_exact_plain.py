"""Back from exact graphs: see test_exact_graph.py for the way there."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import qi
from qi.keras.exact_plain import exact_target, plain
from qi.keras.graph import flatten_model
from tests.keras.models import settle

X = np.random.default_rng(0).normal(size=(32, 4, 4, 2)).astype("float32")


def various() -> keras.Model:
    """Layers whose codes come from tables and kernels that stand beside them."""
    keras.backend.clear_session()
    x = keras.Input((4, 4, 2))
    y = layers.UpSampling2D(2, interpolation="bilinear")(layers.LeakyReLU()(layers.Conv2D(3, 2)(x)))
    y = layers.Subtract()([layers.Conv2D(3, 1)(y), layers.Activation("tanh")(y)])
    y = layers.Softmax()(layers.GlobalAveragePooling2D()(layers.AveragePooling2D(2)(y)))
    return settle(keras.Model(x, y))


@pytest.mark.parametrize(("recipe", "target"), [("w8a8", "litert"), ("w8a8", "reference")])
def test_the_graph_is_that_of_the_plain_model(recipe: str, target: str) -> None:
    before, _ = qi.quantize_model(various(), recipe, X, progress=False)
    exact, _ = qi.quantize_model(various(), recipe, X, exact=target, progress=False)
    graph = flatten_model(exact)
    assert exact_target(graph) == target
    kinds = {call.kind for call in graph.calls}
    assert {"ExactTable", "ExactBilinear"} <= kinds
    assert kinds & {"ExactSoftmax", "ExactFixedSoftmax"}
    after = plain(graph)
    assert [(c.kind, c.path) for c in after.calls] == [(c.kind, c.path) for c in flatten_model(before).calls]
    assert str(qi.lower(exact)) == str(qi.lower(before))
    assert exact_target(after) is None
