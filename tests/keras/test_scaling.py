"""Tests for qi.keras.scaling: the float function stays, and what was seen is what would be seen anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import qi
from qi.errors import InputError
from qi.keras.caps import ChannelCap
from qi.keras.inputs import weight_key
from qi.keras.links import Link, find_links
from qi.keras.plan import value_name
from qi.keras.prepare import Prepared
from qi.keras.rounding import WeightSite, weight_sites
from qi.keras.scaling import asked_step, equalize_links, rescale_statistics, smooth_links
from qi.keras.variables import to_numpy, weights_of
from qi.recipes import Rule, TensorSpec, get_recipe
from tests.keras.linked import calibrated, convolutions, floats, images, prepared, transformer, uneven

CASES: dict[str, tuple[Callable[[], keras.Model], tuple[int, ...]]] = {
    "relu6": (convolutions, (8, 8, 3)),
    "prelu": (lambda: convolutions("prelu"), (8, 8, 3)),
    "leaky": (lambda: convolutions("leaky", pooled=False), (8, 8, 3)),
    "layer norm": (transformer, (6, 8)),
    "rms norm": (lambda: transformer(layers.RMSNormalization), (6, 8)),
}


def sites_of(ready: Prepared) -> dict[str, WeightSite]:
    return {site.key: site for site in weight_sites(ready)}


def scaled(ready: Prepared, inputs: Any, algorithm: str) -> list[Link]:
    """Runs one algorithm."""
    links, sites = find_links(ready.graph), sites_of(ready)
    return equalize_links(links, sites) if algorithm == "equalize" else smooth_links(links, sites, inputs)


@pytest.mark.parametrize(
    ("algorithm", "case"),
    [
        ("equalize", "relu6"),
        ("equalize", "prelu"),
        ("equalize", "layer norm"),
        ("smooth", "relu6"),
        ("smooth", "leaky"),
        ("smooth", "layer norm"),
        ("awq", "relu6"),
        ("awq", "rms norm"),
    ],
)
def test_function_stays_and_statistics_follow(case: str, algorithm: str) -> None:
    build, shape = CASES[case]
    model, x = build(), images(shape=shape)
    ready = prepared(model, f"w4a8_pt_{algorithm}")
    before = floats(ready, x)
    seen = calibrated(ready, x)
    done = scaled(ready, seen.inputs, algorithm)
    if algorithm == "equalize" and "norm" in case:
        assert done == []  # a normalization's factors are no weights to be quantized
        return
    assert done
    assert max(float(np.abs(np.log(link.factors)).max()) for link in done) > 0.3
    after = floats(ready, x)
    assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()
    rescale_statistics(done, seen)
    anew = calibrated(ready, x)
    assert set(anew.statistics) == set(seen.statistics)
    for name, found in anew.statistics.items():
        was = seen.statistics[name]
        assert was.count == found.count
        reach = max(-float(found.lo), float(found.hi))
        np.testing.assert_allclose([was.lo, was.hi], [found.lo, found.hi], atol=2e-5 * reach, err_msg=name)
        assert was.histogram.bins == found.histogram.bins
    for key, found in anew.inputs.items():
        was = seen.inputs[key]
        assert was.count == found.count
        np.testing.assert_allclose(was.absmax, found.absmax, rtol=1e-4, atol=1e-5 * found.absmax.max(), err_msg=key)
        for part in ("mean", "absmean", "second"):
            a, b = getattr(was, part), getattr(found, part)
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max(), err_msg=f"{key} {part}")


def test_equalized_ranges_agree() -> None:
    model = convolutions("relu")
    ready = prepared(model, "w8a8_pt_equalize")
    done = equalize_links(find_links(ready.graph), sites_of(ready))
    assert len(done) == 4
    for link in done[:2]:
        kernel = np.abs(to_numpy(weights_of(link.giver.op)["kernel"])).astype(float)
        given = kernel.max(axis=(0, 1)).ravel() if "Depthwise" in link.giver.kind else kernel.max(axis=(0, 1, 2))
        (taker,) = link.takers
        matrix = np.abs(taker.linear.view.matrix(to_numpy(weights_of(taker.call.op)[taker.linear.weight])))
        taken = np.zeros(link.channels)
        np.maximum.at(taken, taker.channels.ravel(), matrix.max(axis=2).ravel())
        np.testing.assert_allclose(given, taken, rtol=0.1)


def test_dead_channels() -> None:
    """Of weights, of inputs, of both: factor 1, nothing but finite numbers."""
    model, x = convolutions("relu"), images()
    kernel, bias = (np.array(v) for v in model.get_layer("a").get_weights())
    kernel[..., 1], bias[1] = 0, 0
    model.get_layer("a").set_weights([kernel, bias])
    norm = model.get_layer("a_bn")
    gamma, beta, mean, variance = (np.array(v) for v in norm.get_weights())
    beta[[1, 2]] = -50.0  # nothing passes the ReLU
    norm.set_weights([gamma, beta, mean, variance])
    inner = np.array(model.get_layer("b").get_weights()[0])
    inner[..., 3, :] = 0
    model.get_layer("b").set_weights([inner])
    for algorithm in ("equalize", "smooth", "awq"):
        ready = prepared(model, f"w4a8_pt_{algorithm}")
        before = floats(ready, x)
        seen = calibrated(ready, x)
        done = scaled(ready, seen.inputs, algorithm)
        for link in done:
            assert np.isfinite(link.factors).all()
            assert (link.factors > 0).all()
        changed = {link.giver.path: link for link in done}
        if algorithm == "equalize":
            np.testing.assert_array_equal(changed["a"].factors[[1, 3]], 1)
        elif algorithm == "smooth":
            np.testing.assert_array_equal(changed["a"].factors[[1, 2, 3]], 1)
        after = floats(ready, x)
        assert np.isfinite(after).all()
        assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()


def test_caps_are_scaled_with_their_channels() -> None:
    ready = prepared(convolutions(), "w8a8_pt_equalize")
    done = equalize_links(find_links(ready.graph), sites_of(ready))
    for link in done:
        for call in link.caps:
            assert isinstance(call.op, ChannelCap)
            np.testing.assert_allclose(to_numpy(call.op.caps), 6 * link.factors, rtol=1e-6)


def test_both_sides_ask_for_equalization() -> None:
    recipe = get_recipe("w8a8_pt_equalize").with_rules(Rule("b", weights=TensorSpec(bits=8)))
    ready = prepared(convolutions("relu"), recipe)
    done = equalize_links(find_links(ready.graph), sites_of(ready))
    assert [link.giver.path for link in done] == ["c", "d"]
    floated = get_recipe("w8a8_pt_equalize").with_rules(Rule("c", weights="float"))
    ready = prepared(convolutions("relu"), floated)
    assert [link.giver.path for link in equalize_links(find_links(ready.graph), sites_of(ready))] == ["a", "d"]


def test_every_link_has_its_own_options() -> None:
    near = TensorSpec(bits=8, algorithms=[{"name": "equalize", "limit": 1.5}])  # type: ignore[arg-type]
    recipe = get_recipe("w8a8_pt_equalize").with_rules(Rule("head", weights=near))
    ready = prepared(convolutions("relu"), recipe)
    x = images(8)
    before = floats(ready, x)
    done = {link.giver.path: link.factors for link in equalize_links(find_links(ready.graph), sites_of(ready))}
    assert len(done) == 4
    assert np.abs(np.log(done["d"])).max() <= np.log(1.5) + 1e-9
    assert np.abs(np.log(done["a"])).max() > np.log(1.5)
    assert np.abs(floats(ready, x) - before).max() <= 1e-5 * np.abs(before).max()


def test_smoothing_needs_moments() -> None:
    for algorithm in ("smooth", "awq"):
        ready = prepared(transformer(), f"w4a8_{algorithm}")
        with pytest.raises(InputError, match=f"{algorithm}.*do give data"):
            smooth_links(find_links(ready.graph), sites_of(ready), {})


def test_statistics_without_channels_are_refused() -> None:
    model, x = convolutions("relu"), images()
    ready = prepared(model, "w8a8_pt_equalize")
    seen = calibrated(ready, x)
    seen.channels.clear()
    done = equalize_links(find_links(ready.graph), sites_of(ready))
    with pytest.raises(InputError, match=r"channels of .*do calibrate again"):
        rescale_statistics(done, seen)


def test_links_that_stay_keep_their_statistics() -> None:
    model, x = convolutions("relu"), images()
    ready = prepared(model, "w8a8_pt_equalize")
    seen = calibrated(ready, x)
    before = dict(seen.statistics)
    rescale_statistics(find_links(ready.graph), seen)
    assert all(seen.statistics[name] is found for name, found in before.items())


def test_asked_step() -> None:
    ready = prepared(convolutions(), "w4a8_pt_equalize_gptq")
    site = sites_of(ready)[weight_key("a", "kernel")]
    assert str(asked_step(site, "equalize")) == "equalize"
    assert asked_step(site, "smooth") is None
    assert asked_step(None, "equalize") is None
    assert asked_step(replace(site, spec=TensorSpec(bits=4)), "equalize") is None


def test_values_behind_flatten_follow() -> None:
    """What Flatten gives is on the grid of what it takes, wherever the range was seen."""
    inputs = keras.Input((4, 4, 2))
    x = layers.Flatten()(layers.Conv2D(3, 3, activation="relu", name="a")(inputs))
    model, x_in = uneven(keras.Model(inputs, layers.Dense(2, name="b")(x))), images(shape=(4, 4, 2))
    ready = prepared(model, "w8a8_pt_equalize")
    seen = calibrated(ready, x_in)
    done = equalize_links(find_links(ready.graph), sites_of(ready))
    rescale_statistics(done, seen)
    anew = calibrated(ready, x_in)
    for name, found in anew.statistics.items():
        np.testing.assert_allclose(float(seen.statistics[name].hi), float(found.hi), rtol=1e-5)
    assert value_name(done[0].values[0]) in seen.statistics


def test_quantized_models_gain_by_it() -> None:
    """Per tensor, channels of different sizes cost most of a kernel's codes; equalization gives them back."""
    model, x = convolutions("relu"), images()
    expected = np.asarray(model(x))
    errors = {}
    for recipe in ("w6a8_pt", "w6a8_pt_equalize"):
        found, _ = qi.quantize_model(model, recipe, x, progress=False)
        errors[recipe] = float(np.square(np.asarray(found(x)) - expected).mean())
    assert errors["w6a8_pt_equalize"] < 0.7 * errors["w6a8_pt"]
