"""Models that are refused before anything is made of them."""

from __future__ import annotations

from typing import Any

import keras
import pytest
import tensorflow as tf
from keras import layers

from qi.errors import InputError, UnsupportedError
from qi.keras.given import check_copied, check_graph, check_layers
from qi.keras.graph import flatten_model


def model_of(*stack: Any, shape: Any = (4,), name: str = "given") -> keras.Model:
    return keras.Sequential([keras.Input(shape, name="x"), *stack], name=name)


def rest_of_nothing() -> keras.Model:
    x = keras.Input((4, 3), name="x")
    return keras.Model(x, [x, x[:, 4:]])


def test_a_float_model_passes() -> None:
    model = model_of(layers.Dense(3, dtype="mixed_bfloat16"), layers.Dense(2))
    graph = flatten_model(model)
    check_layers(model)
    check_graph(graph)
    check_copied(graph, {})


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize` method:UserWarning")
def test_layers_that_keras_quantized_are_found_at_any_depth() -> None:
    inner = model_of(layers.Dense(4, name="deep"), name="inner")
    model = model_of(inner, layers.Dense(2))
    inner.quantize("int8")
    with pytest.raises(
        UnsupportedError, match=r"received 'given', in which Keras has quantized 1 layers \('deep' to int8"
    ):
        check_layers(model)


@pytest.mark.parametrize(
    ("model", "place"),
    [
        (lambda: model_of(layers.ReLU(), shape=(0, 3)), r"\(None, 0, 3\) from 'x'"),
        (rest_of_nothing, r"\(None, 0, 3\) from 'get_item"),
    ],
)
def test_tensors_without_values(model: Any, place: str) -> None:
    with pytest.raises(InputError, match=rf"received one of shape {place}.*; do take it out"):
        check_graph(flatten_model(model()))


@pytest.mark.parametrize("name", ["two words", "größe", "a:0"])
def test_names_that_cannot_be_run(name: str) -> None:
    model = model_of(layers.Dense(2, name=name))
    with tf.Graph().as_default(), pytest.raises(ValueError, match="scope name"):  # so it is for TensorFlow itself
        tf.name_scope(name).__enter__()  # not by predict: Keras would never leave the scope around it
    with pytest.raises(InputError, match=f"received '{name}'; do set another name"):
        check_graph(flatten_model(model))


def test_what_belongs_to_the_given_model_is_not_trained() -> None:
    model = model_of(layers.Dense(2, name="own"), layers.ReLU(name="clamp"))
    graph, notes = flatten_model(model), {"own": "shared with the given model", "clamp": "shared with the given model"}
    with pytest.raises(
        InputError, match="'own' of class Dense is shared with the given model; or do set its trainable"
    ):
        check_copied(graph, notes)
    model.get_layer("own").trainable = False
    check_copied(graph, notes)
