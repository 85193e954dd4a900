from __future__ import annotations

import keras
import numpy as np
import pytest

import qi
from qi.keras.inputs import weight_key
from qi.keras.links import find_links
from qi.keras.norm_means import folded_norm, norm_means
from qi.keras.prepare import prepare


def network(*between: keras.layers.Layer, scale: bool = True) -> keras.Model:
    """A convolution and a normalization, whatever is between, and a convolution of one pixel."""
    layers = keras.layers
    x = inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(5, 1, use_bias=False, name="first")(x)
    x = layers.BatchNormalization(name="norm", scale=scale)(x)
    for layer in between:
        x = layer(x)
    model = keras.Model(inputs, layers.Conv2D(3, 1, name="second")(x))
    rng = np.random.default_rng(0)
    norm = model.get_layer("norm")
    norm.set_weights([np.abs(rng.normal(1, 0.4, w.shape)).astype("float32") for w in norm.get_weights()])
    return model


def normal_inputs(model: keras.Model) -> np.ndarray:
    """Images whose pixels the first layer and the statistics of its normalization make normal, with mean 0 and deviation 1."""
    x = np.random.default_rng(1).normal(size=(400, 6, 6, 2)).astype("float32")
    seen = model.get_layer("first")(x).numpy().reshape(-1, 5)
    norm = model.get_layer("norm")
    norm.epsilon = 0
    norm.moving_mean.assign(seen.mean(0))
    norm.moving_variance.assign(seen.var(0))
    return x


@pytest.mark.parametrize(
    "between",
    [
        (),
        (keras.layers.ReLU(),),
        (keras.layers.ReLU(2.0),),
        (keras.layers.Activation("relu6"), keras.layers.AveragePooling2D(2)),
        (keras.layers.Dropout(0.5), keras.layers.ReLU()),
    ],
    ids=str,
)
def test_means_are_those_of_normal_values(between: tuple[keras.layers.Layer, ...]) -> None:
    model = network(*[type(layer).from_config(layer.get_config()) for layer in between])
    x = normal_inputs(model)
    ready = prepare(model, "w4")
    found = norm_means(ready, find_links(ready.graph))
    taken = keras.Model(model.input, model.get_layer("second").input).predict(x, verbose=0)
    mean = taken.reshape(-1, 5).mean(0)
    np.testing.assert_allclose(found[weight_key("second", "kernel")], mean[None], atol=0.02 * np.abs(mean).max())


@pytest.mark.parametrize(
    "layer", [keras.layers.MaxPooling2D(2), keras.layers.LeakyReLU(), keras.layers.PReLU()], ids=str
)
def test_other_operations_tell_nothing(layer: keras.layers.Layer) -> None:
    model = network(type(layer).from_config(layer.get_config()))
    ready = prepare(model, "w4")
    links = find_links(ready.graph)
    assert links
    assert norm_means(ready, links) == {}
    assert folded_norm(links[0], ready) is not None


def test_a_normalization_without_gamma_has_deviation_one() -> None:
    ready = prepare(network(scale=False), "w4")
    known = folded_norm(find_links(ready.graph)[0], ready)
    assert known is not None
    np.testing.assert_array_equal(known[1], 1.0)


@pytest.mark.filterwarnings("ignore::qi.QuantizationWarning")
def test_biases_are_corrected_without_data() -> None:
    """The mean of the output comes back; what has no normalization ahead is told."""
    model = network(keras.layers.ReLU())
    x = normal_inputs(model)
    rule = qi.Rule("first", weights="float")

    def off(name: str) -> float:
        recipe = qi.recipes.get_recipe(name).with_rules(rule)
        means = [
            m.predict(x, verbose=0).mean((0, 1, 2))
            for m in (model, qi.quantize_model(model, recipe, progress=False)[0])
        ]
        return float(np.abs(means[1] - means[0]).max())

    assert off("w2_analytic_bias_correction") < 0.1 * off("w2")
    _, report = qi.quantize_model(model, "w2_analytic_bias_correction", progress=False)
    assert report.find("second/kernel")[0].algorithms == "analytic_bias_correction"
    assert report.find("first/kernel")[0].algorithms == ""
    assert any("'first/kernel' is left without analytic_bias_correction" in line for line in report.warnings)
