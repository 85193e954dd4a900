"""Tests for qi.keras.links: which tensors can have their channels scaled, and that scaling changes nothing."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import qi
from qi.keras.caps import ChannelCap
from qi.keras.graph import flatten_model
from qi.keras.links import asks_scaling, find_links, open_caps, scalable_values
from qi.keras.scaling import scale_link
from qi.recipes import Rule, get_recipe
from tests.keras.linked import convolutions, floats, images, links_of, prepared, transformer, uneven

RECIPE = "w8a8_pt_equalize"


def model_of(build: Any, shape: tuple[int, ...] = (8, 8, 3)) -> keras.Model:
    """A model of a function of its input."""
    inputs = keras.Input(shape, name="input")
    return uneven(keras.Model(inputs, build(inputs)))


def paths(build: Any, shape: tuple[int, ...] = (8, 8, 3)) -> list[tuple[str, list[str]]]:
    """The links of such a model."""
    return links_of(prepared(model_of(build, shape), RECIPE))


def same_function(model: keras.Model, x: np.ndarray, recipe: str = RECIPE) -> int:
    """Scales every link by random factors; gives how many there are."""
    ready = prepared(model, recipe)
    before = floats(ready, x)
    random = np.random.default_rng(3)
    links = find_links(ready.graph)
    for link in links:
        scale_link(link, np.exp(random.uniform(-2, 2, link.channels)))
    after = floats(ready, x)
    given = np.asarray(keras.tree.flatten(model(x, training=False))[0])
    assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()
    assert np.abs(after - given).max() <= 1e-4 * np.abs(before).max()
    return len(links)


@pytest.mark.parametrize("activation", ["relu6", "relu", "leaky", "prelu"])
def test_chain_of_convolutions(activation: str) -> None:
    model = convolutions(activation)
    assert links_of(prepared(model, RECIPE)) == [("a", ["b"]), ("b", ["c"]), ("c", ["d"]), ("d", ["head"])]
    assert same_function(model, images()) == 4


@pytest.mark.parametrize("norm", [layers.LayerNormalization, layers.RMSNormalization])
def test_normalizations(norm: Any) -> None:
    model = transformer(norm)
    found = dict(links_of(prepared(model, "w8a8_smooth")))
    assert sorted(found["norm2"]) == ["gate", "value"]
    assert len(found["norm1"]) == 3
    assert all(path.startswith("attention") for path in found["norm1"])
    assert same_function(model, images(shape=(6, 8)), "w8a8_smooth") >= 2


def test_other_normalizations_and_layers() -> None:
    """A normalization that doesn't fold, a product of several axes, sequences, volumes, a separable convolution."""

    def build(x: Any) -> Any:
        x = layers.BatchNormalization(name="norm")(x)
        x = layers.SeparableConv2D(4, 3, name="separable")(x)
        x = layers.GroupNormalization(2, name="groups")(layers.Activation("tanh")(x))
        x = layers.EinsumDense("abcd,de->abce", output_shape=(None, None, 5), bias_axes="e", name="einsum")(x)
        return layers.GlobalAveragePooling2D()(x)

    assert same_function(model_of(build), images()) >= 1
    found = dict(paths(build))
    assert found["groups"] == ["einsum"]

    def sequence(x: Any) -> Any:
        x = layers.Conv1D(6, 3, padding="causal", activation="relu", name="a")(x)
        x = layers.DepthwiseConv1D(2, depth_multiplier=2, name="b")(layers.Cropping1D(1)(x))
        x = layers.Conv1D(4, 3, strides=2, name="c")(layers.LeakyReLU()(layers.UpSampling1D(2)(x)))
        return layers.Dense(2, name="d")(layers.GlobalMaxPooling1D()(layers.Dropout(0.1)(x)))

    assert same_function(model_of(sequence, (12, 3)), images(shape=(12, 3))) == 3

    def volume(x: Any) -> Any:
        x = layers.MaxPooling3D(2)(layers.ReLU()(layers.Conv3D(4, 2, name="a")(x)))
        return layers.Dense(3, name="b")(layers.Flatten()(x))

    assert same_function(model_of(volume, (5, 5, 5, 2)), images(shape=(5, 5, 5, 2))) == 1


def test_depthwise_with_a_multiplier_gives_and_takes() -> None:
    def build(x: Any) -> Any:
        x = layers.Conv2D(4, 1, activation="relu", name="a")(x)
        x = layers.ReLU()(layers.DepthwiseConv2D(3, depth_multiplier=3, name="b")(x))
        return layers.Conv2D(2, 1, name="c")(x)

    assert paths(build) == [("a", ["b"]), ("b", ["c"])]
    assert same_function(model_of(build), images()) == 2


NO_LINKS = {
    "an output of the model": lambda x: [
        y := layers.Dense(4, activation="relu", name="a")(x),
        layers.Dense(2, name="b")(y),
    ],
    "another use": lambda x: layers.Add()(
        [y := layers.Dense(4, activation="relu", name="a")(x), layers.Dense(4, name="b")(y)]
    ),
    "used twice by one call": lambda x: layers.Dense(3, name="b")(
        layers.Multiply()([y := layers.Dense(4, name="a")(x), y])
    ),
    "a function that isn't homogeneous": lambda x: layers.Dense(2)(
        layers.Activation("tanh")(layers.Dense(4, name="a")(x))
    ),
    "an activation within": lambda x: layers.Dense(2)(layers.Dense(4, activation="gelu")(x)),
    "a slope and a cap": lambda x: layers.Dense(2)(layers.ReLU(6.0, negative_slope=0.1)(layers.Dense(4, name="a")(x))),
    "a threshold": lambda x: layers.Dense(2)(layers.ReLU(threshold=1.0)(layers.Dense(4, name="a")(x))),
    "mixed channels": lambda x: layers.Dense(2)(layers.Reshape((2, 2))(layers.Dense(4, name="a")(x))),
    "moved channels": lambda x: layers.Conv1D(2, 1)(
        layers.Permute((2, 1))(layers.Reshape((4, 1))(layers.Dense(4, name="a")(x)))
    ),
    "joined channels": lambda x: layers.Dense(2)(
        layers.Concatenate()([layers.Dense(4, name="a")(x), layers.Dense(4, name="b")(x)])
    ),
    "a recurrent layer": lambda x: layers.LSTM(2)(layers.RepeatVector(3)(layers.Dense(4, name="a")(x))),
}


@pytest.mark.parametrize("why", NO_LINKS)
def test_no_link(why: str) -> None:
    assert paths(NO_LINKS[why], (5,)) == []


def test_residual_connections_end_links() -> None:
    def build(x: Any) -> Any:
        y = shortcut = layers.Conv2D(4, 1, activation="relu", name="a")(x)
        y = layers.Conv2D(4, 3, padding="same", activation="relu", name="b")(y)
        y = layers.Conv2D(4, 3, padding="same", name="c")(y)
        y = layers.ReLU()(layers.Add()([y, shortcut]))
        return layers.Conv2D(2, 1, name="d")(y)

    assert paths(build) == [("b", ["c"])]
    assert same_function(model_of(build), images()) == 1


@pytest.mark.parametrize("place", [0, 1])
def test_layers_called_twice(place: int) -> None:
    """Neither as giver nor as taker: its factors would meet other channels in the other call."""
    shared = layers.Dense(4, activation="relu", name="shared")

    def build(x: Any) -> Any:
        if place:
            y = layers.Dense(4, activation="relu", name="first")(x)
            return layers.Add()([shared(y), shared(x)])
        a, b = shared(x), shared(layers.Activation("tanh")(x))
        return layers.Add()([layers.Dense(2, name="left")(a), layers.Dense(2, name="right")(b)])

    assert paths(build, (4,)) == []


def test_tied_weights() -> None:
    """A kernel that another layer holds as well can't be scaled: the other one would change."""
    inputs = keras.Input((4,))
    first, other, last = (layers.Dense(4, name=name) for name in ("first", "other", "last"))
    x = last(layers.ReLU()(first(inputs)))
    model = uneven(keras.Model(inputs, layers.Add()([x, layers.Activation("tanh")(other(inputs))])))
    assert links_of(prepared(model, RECIPE)) == [("first", ["last"])]
    vars(other)["_kernel"] = first._kernel
    other._trainable_variables[0] = first._kernel
    assert links_of(prepared(model, RECIPE)) == []


def test_channels_first() -> None:
    inputs = keras.Input((3, 8))
    x = layers.ReLU()(layers.Conv1D(4, 1, data_format="channels_first")(inputs))
    x = layers.Conv1D(4, 1, data_format="channels_first")(x)
    assert find_links(flatten_model(keras.Model(inputs, x))) == []


def test_open_caps_keep_the_function_and_the_names() -> None:
    """Only where the recipe scales; rules still speak of the clamp by its path."""
    model, x = convolutions(), images()
    graph = flatten_model(model).copy()
    every = flatten_model(model).copy()
    assert open_caps(graph, lambda link: False) == []
    made = open_caps(every, lambda link: True)
    assert [type(call.op) for call in made] == [ChannelCap] * 3
    assert len(open_caps(every, lambda link: True)) == 0
    assert [call.path for call in made] == [layer.name for layer in model.layers if isinstance(layer, layers.ReLU)]
    ready = prepared(model, RECIPE)
    np.testing.assert_allclose(floats(ready, x), np.asarray(model(x)), rtol=1e-4, atol=1e-4)
    caps = [call for call in ready.graph.calls if isinstance(call.op, ChannelCap)]
    assert [np.unique(np.asarray(call.op.caps)).tolist() for call in caps] == [[6.0]] * 3
    assert not [c for c in prepared(model, "w8a8").graph.calls if isinstance(c.op, ChannelCap)]


@pytest.mark.parametrize(
    "clamp", [layers.ReLU(4.0), layers.Activation("relu6"), keras.ops.relu6], ids=["max", "name", "ops"]
)
def test_every_clamp_becomes_a_cap(clamp: Any) -> None:
    model = model_of(lambda x: layers.Conv2D(2, 1, name="b")(clamp(layers.Conv2D(5, 3, name="a")(x))))
    assert links_of(prepared(model, RECIPE)) == [("a", ["b"])]
    assert same_function(model, images()) == 1


def test_scalable_values_and_who_asks() -> None:
    model = convolutions()
    ready = prepared(model, RECIPE)
    assert len(scalable_values(ready.graph)) == sum(len(link.values) for link in find_links(ready.graph))
    first, *_ = find_links(ready.graph)
    assert asks_scaling(get_recipe(RECIPE).resolve(), first)
    assert not asks_scaling(get_recipe("w4a8_gptq").resolve(), first)
    plain = get_recipe("w8").weights
    rule = Rule("b", weights=plain)
    assert not asks_scaling(get_recipe(RECIPE).with_rules(rule).resolve(), first)


def test_rules_leave_links_alone() -> None:
    """A link is equalized where both sides ask for it."""
    model, x = convolutions("relu"), images()
    recipe = get_recipe(RECIPE).with_rules(Rule("c", weights=get_recipe("w8").weights))
    _, report = qi.quantize_model(model, recipe, x, progress=False)
    assert report.settings["scaled_links"] == 2
