"""Tests for qi.keras.correction: means and deviations of outputs that rounding moved."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from qi.algorithms import output_moments
from qi.keras.correction import corrected
from qi.keras.prepare import prepare
from qi.keras.rounding import Rounded, round_weights, weight_sites
from qi.observers import Moments
from qi.recipes import Recipe, TensorSpec
from tests.keras.linked import calibrated, images, uneven

X = images(64, (5, 5, 3))


def network(multiplier: int = 1, **options: Any) -> keras.Model:
    inputs = keras.Input((5, 5, 3), name="image")
    x = layers.Conv2D(4, 2, activation="relu", name="conv", **options)(inputs)
    x = layers.DepthwiseConv2D(2, depth_multiplier=multiplier, activation="relu", name="depth", **options)(x)
    x = layers.Conv2D(6, 1, groups=2, activation="relu", name="grouped", **options)(x)
    return uneven(keras.Model(inputs, layers.Dense(5, name="dense", **options)(layers.Flatten()(x))))


def worked(
    model: keras.Model, *names: Any, bits: int = 3, method: str = "symmetric", granularity: str = "per_channel"
) -> tuple[dict[str, Rounded], dict[str, Moments]]:
    group = 2 if granularity == "per_group" else None
    spec = TensorSpec(bits=bits, method=method, granularity=granularity, group_size=group, algorithms=names)
    ready = prepare(model, Recipe("mine", weights=spec))
    seen = calibrated(ready, X)
    found = round_weights(weight_sites(ready), seen.inputs, jobs=1, resume=None, origin="net", progress=False)
    return found, seen.inputs


def outputs(one: Rounded, moments: Moments, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and deviations of a layer's products."""
    assert one.site.linear is not None
    matrix = one.site.linear.view.matrix(values).astype(np.float64)
    mean, variance = output_moments(matrix, moments.mean, moments.second)
    return mean.ravel(), np.sqrt(variance).ravel()


def on_grid(one: Rounded) -> None:
    np.testing.assert_array_equal(np.asarray(one.quantizer(one.values)), one.values)


@pytest.mark.parametrize("first", [(), ("gptq",), ("kmeans",)])
def test_means_come_back(first: tuple[str, ...]) -> None:
    found, moments = worked(network(), *first, "bias_correction")
    moved = 0.0
    for key, one in found.items():
        result = corrected(one, moments[key])
        assert not result.left
        after, shift = result.rounded, result.shift
        assert after is one  # the weight stays
        wanted, _ = outputs(one, moments[key], one.site.array)
        given, _ = outputs(one, moments[key], after.values)
        moved = max(moved, float(np.abs(wanted - given).max()))
        np.testing.assert_allclose(given + shift, wanted, atol=1e-5 * np.abs(wanted).max(), err_msg=key)
    assert moved > 1e-3


@pytest.mark.parametrize("first", [(), ("kmeans",)])
def test_deviations_come_back(first: tuple[str, ...]) -> None:
    found, moments = worked(network(), *first, "norm_correction")
    changed = 0.0
    for key, one in found.items():
        result = corrected(one, moments[key])
        assert not result.left
        after, shift = result.rounded, result.shift
        on_grid(after)
        mean, deviation = outputs(one, moments[key], one.site.array)
        _, before = outputs(one, moments[key], one.values)
        given, now = outputs(one, moments[key], after.values)
        inside = (before > deviation / 1.9) & (before < deviation * 1.9) & (deviation > 0)
        assert inside.any()
        changed = max(changed, float(np.abs(before / deviation - 1)[inside].max()))
        np.testing.assert_allclose(now[inside], deviation[inside], rtol=1e-4, err_msg=key)
        np.testing.assert_allclose(given + shift, mean, atol=1e-4 * np.abs(mean).max(), err_msg=key)
    assert changed > 0.01


def test_both_are_the_norms_alone() -> None:
    """A mean that is right already isn't moved again, whichever comes first."""
    results = []
    for names in (["norm_correction"], ["norm_correction", "bias_correction"], ["bias_correction", "norm_correction"]):
        found, moments = worked(network(), *names)
        results.append(corrected(found["dense/kernel"], moments["dense/kernel"]))
    for one in results[1:]:
        np.testing.assert_array_equal(one.rounded.values, results[0].rounded.values)
        np.testing.assert_allclose(one.shift, results[0].shift, atol=1e-6)


def test_asymmetric_weights() -> None:
    found, moments = worked(network(), "norm_correction", method="uniform")
    for key, one in found.items():
        result = corrected(one, moments[key])
        assert not result.left
        on_grid(result.rounded)


@pytest.mark.parametrize(
    ("options", "granularity", "method", "said"),
    [
        ({"use_bias": False}, "per_channel", "symmetric", "no bias"),
        ({}, "per_tensor", "symmetric", "no scale of its own"),
        ({}, "per_channel", "power_of_two", "no scale of its own"),
    ],
)
def test_what_cant_be_corrected(options: Any, granularity: str, method: str, said: str) -> None:
    found, moments = worked(network(**options), "norm_correction", granularity=granularity, method=method)
    for key, one in found.items():
        result = corrected(one, moments[key])
        assert (result.rounded, result.shift) == (one, None)
        assert said in result.left["norm_correction"]


def test_scales_of_several_outputs() -> None:
    """Of a depthwise convolution, a scale serves all outputs of a channel: means can be corrected, deviations can't."""
    found, moments = worked(network(multiplier=2), "norm_correction")
    result = corrected(found["depth/kernel"], moments["depth/kernel"])
    assert "shares scales among outputs" in result.left["norm_correction"]
    found, moments = worked(network(multiplier=2), "norm_correction", "bias_correction")
    result = corrected(found["depth/kernel"], moments["depth/kernel"])
    assert list(result.left) == ["norm_correction"]
    assert result.shift is not None


def test_groups_of_one_output_each() -> None:
    """Groups run along the inputs, so each output still has scales of its own."""
    found, moments = worked(network(), "norm_correction", granularity="per_group")
    result = corrected(found["dense/kernel"], moments["dense/kernel"])
    assert not result.left
    on_grid(result.rounded)


def test_dead_inputs_and_outputs() -> None:
    model = network()
    kernel, bias = model.get_layer("dense").get_weights()
    kernel[:, 2] = 0
    model.get_layer("dense").set_weights([kernel, bias])
    model.get_layer("grouped").set_weights(
        [np.zeros_like(model.get_layer("grouped").get_weights()[0]), np.full(6, -1.0, "float32")]
    )
    found, moments = worked(model, "norm_correction")
    for key, one in found.items():
        result = corrected(one, moments[key])
        assert not result.left
        assert np.isfinite(result.rounded.values).all()
        assert np.isfinite(result.shift).all()
    result = corrected(found["dense/kernel"], moments["dense/kernel"])
    np.testing.assert_array_equal(result.shift, 0)  # nothing comes in


def test_only_what_an_activation_lets_through_counts() -> None:
    """Against all rows of the layer's own input: the mean error where the output is above 0, were it normal."""
    model = network()
    found, moments = worked(model, "bias_correction", bits=2)
    closer = []
    for key in ("conv/kernel", "depth/kernel", "grouped/kernel"):
        one, seen = found[key], moments[key]
        plain, active = corrected(one, seen), corrected(one, seen, ends=(0.0, np.inf))
        assert plain.shift is not None
        assert active.shift is not None
        layer = model.get_layer(key.partition("/")[0])
        before = keras.Model(model.inputs, layer.input).predict(X, verbose=0)
        assert one.site.linear is not None
        rows = one.site.linear.rows(before).astype(np.float64)
        weight, values = (one.site.linear.view.matrix(a).astype(np.float64) for a in (one.site.array, one.values))
        y = np.einsum("ngk,gkm->ngm", rows, weight).reshape(len(rows), -1) + np.asarray(layer.bias)
        error = np.einsum("ngk,gkm->ngm", rows, weight - values).reshape(len(rows), -1)

        def left(shift: np.ndarray, y: np.ndarray = y, error: np.ndarray = error) -> float:
            return float(np.sum((np.maximum(y - error + shift, 0) - np.maximum(y, 0)) ** 2))

        closer.append((left(active.shift), left(plain.shift)))
    assert sum(active for active, _ in closer) < sum(plain for _, plain in closer)
