"""Absorbing high biases: the float function stays, what was seen moves with it, and what can't be done is told."""

from __future__ import annotations

from functools import cache
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import qi
from qi.keras.absorb import absorb_links
from qi.keras.calibrate import Calibration, collect
from qi.keras.graph import build_model, build_tensors
from qi.keras.inputs import Watch
from qi.keras.links import Link, find_links, scalable_values
from qi.keras.plan import value_name
from qi.keras.prepare import Prepared, gather_statistics, prepare
from qi.keras.rounding import weight_sites
from qi.keras.running import predict
from tests.keras.models import settle
from tests.keras.warned import warned as ignored

X = np.random.default_rng(0).uniform(0.5, 1.5, (96, 8, 8, 3)).astype(np.float32)


def lifted(model: keras.Model, by: float = 6.0) -> keras.Model:
    """The model with biases (or betas) so high that no ReLU cuts anything off in most channels."""
    for layer in model.layers:
        for variable in layer.weights:
            if variable.path.endswith(("bias", "beta")):
                values = np.asarray(variable) + by * (np.arange(variable.shape[0]) % 3 > 0)
                variable.assign(values)
    return model


def chain(kind: str = "dense") -> keras.Model:
    """A layer, ReLU, and a layer that takes what it gives."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 3), name="x")
    if kind == "dense":
        h = layers.Dense(6, activation="relu", name="first")(layers.Flatten()(inputs))
        return keras.Model(inputs, layers.Dense(4, name="second")(h))
    if kind == "cap":
        h = layers.ReLU(6.0, name="relu6")(layers.Conv2D(6, 3, name="first")(inputs))
        return keras.Model(inputs, layers.Conv2D(4, 1, name="second")(h))
    if kind == "pooled":
        h = layers.ReLU(name="relu")(layers.Conv2D(6, 3, name="first")(inputs))
        h = layers.Flatten()(layers.MaxPooling2D(2)(layers.Dropout(0.5)(h)))
        return keras.Model(inputs, layers.Dense(4, name="second")(h))
    if kind == "depthwise":
        h = layers.ReLU(name="relu")(layers.Conv2D(6, 3, name="first")(inputs))
        return keras.Model(inputs, layers.DepthwiseConv2D(3, depth_multiplier=2, name="second")(h))
    if kind == "grouped":
        h = layers.ReLU(name="relu")(layers.Conv2D(6, 3, name="first")(inputs))
        return keras.Model(inputs, layers.Conv2D(4, 2, groups=2, name="second")(h))
    h = layers.BatchNormalization(name="norm")(layers.Conv2D(6, 3, use_bias=False, name="first")(inputs))
    h = layers.ReLU(name="relu")(h)
    padding = "same" if kind == "padded" else "valid"
    return keras.Model(inputs, layers.Conv2D(4, 3, padding=padding, use_bias=kind != "biasless", name="second")(h))


def recipe(n_std: float = 6.0, **more: Any) -> qi.Recipe:
    spec = qi.TensorSpec(bits=8, granularity="per_channel", algorithms=({"name": "absorb", "n_std": n_std},))
    return qi.Recipe("absorbing", weights=spec, activations=qi.TensorSpec(bits=8, method="uniform"), **more)


def ready_of(model: keras.Model, n_std: float = 6.0) -> tuple[Prepared, Calibration]:
    ready = prepare(model, recipe(n_std), scales=True)
    ready.watch = Watch.of(ready.graph, None, scalable_values(ready.graph))
    return ready, gather_statistics(model, ready, X, None, 32, False)


def absorbed(ready: Prepared, calibration: Calibration) -> tuple[list[Link], list[str]]:
    return absorb_links(find_links(ready.graph), {site.key: site for site in weight_sites(ready)}, ready, calibration)


def looked_again(ready: Prepared) -> Calibration:
    """What calibration sees of the graph as it is now."""
    watch, tensors = Watch.of(ready.graph, None, scalable_values(ready.graph)), build_tensors(ready.graph)
    options: dict[str, Any] = {"batch_size": 32, "progress": False, "keep": 1}
    return collect(ready.graph, tensors, ready.watched, X, {}, watch, **options)


def outputs(ready: Prepared) -> np.ndarray:
    return predict(build_model(ready.graph, build_tensors(ready.graph)), X)


def model_of(kind: str) -> keras.Model:
    """High enough that 6 deviations below the mean are above 0, the normalization settled."""
    model = lifted(chain(kind), 3.0 if kind == "cap" else 8.0)
    if kind in ("norm", "padded", "biasless"):
        norm, x = model.get_layer("norm"), np.asarray(model.get_layer("first")(X))
        norm.moving_mean.assign(x.mean(axis=(0, 1, 2)))
        norm.moving_variance.assign(x.var(axis=(0, 1, 2)))
        norm.gamma.assign([0.5, -0.5] * 3)
    return model


@pytest.mark.parametrize("kind", ["dense", "cap", "pooled", "depthwise", "grouped", "norm"])
def test_the_function_stays_where_inputs_stay_above_what_is_absorbed(kind: str) -> None:
    ready, calibration = ready_of(model_of(kind))
    before = outputs(ready)
    names = [value_name(v) for link in find_links(ready.graph) for v in link.values]
    ranges = {name: float(calibration.statistics[name].hi) for name in names if name in calibration.statistics}
    _, told = absorbed(ready, calibration)
    assert not told
    np.testing.assert_allclose(outputs(ready), before, rtol=1e-5, atol=2e-5)
    assert ranges
    for name, hi in ranges.items():  # the first channel of three has no high bias
        assert float(calibration.statistics[name].hi) < 0.7 * hi
    seen = looked_again(ready)  # what was seen is what would be seen now
    for name in ranges:
        np.testing.assert_allclose(calibration.statistics[name].hi, seen.statistics[name].hi, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(calibration.statistics[name].lo, seen.statistics[name].lo, rtol=1e-5, atol=1e-5)


def test_moments_are_those_of_the_moved_tensor() -> None:
    ready, calibration = ready_of(model_of("grouped"))
    absorbed(ready, calibration)
    made, seen = calibration.inputs["second/kernel"], looked_again(ready).inputs["second/kernel"]
    np.testing.assert_allclose(made.mean, seen.mean, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(made.second, seen.second, rtol=1e-3, atol=1e-3)
    assert np.all(made.absmax >= seen.absmax * (1 - 1e-5))
    assert np.all(made.absmean >= seen.absmean * (1 - 1e-5))


def test_of_a_folded_normalization_beta_and_gamma_count() -> None:
    ready, calibration = ready_of(model_of("norm"), 2.0)
    calibration.channels.clear()
    calibration.statistics.clear()  # not needed where no range is
    (link,), _ = absorbed(ready, calibration)
    beta = np.asarray(model_of("norm").get_layer("norm").beta)
    expected = np.maximum(beta - 2 * 0.5, 0)
    assert expected.max() > 6
    np.testing.assert_allclose(beta - np.asarray(link.giver.op.bias) + folded_rest(link), expected, atol=1e-4)


def folded_rest(link: Link) -> np.ndarray:
    """What the fold made of the mean."""
    model = model_of("norm")
    norm = model.get_layer("norm")
    gain = np.asarray(norm.gamma) / np.sqrt(np.asarray(norm.moving_variance) + norm.epsilon)
    return -np.asarray(norm.moving_mean) * gain


def test_where_there_is_nothing_to_absorb_nothing_changes() -> None:
    ready, calibration = ready_of(settle(chain("pooled")), 50.0)
    before = [np.asarray(w) for call in ready.graph.calls for w in getattr(call.op, "weights", ())]
    known = dict(calibration.statistics)
    done, told = absorbed(ready, calibration)
    assert not done
    assert not told
    after = [np.asarray(w) for call in ready.graph.calls for w in getattr(call.op, "weights", ())]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert calibration.statistics == known


@pytest.mark.parametrize(("kind", "why"), [("padded", "pads with zeros"), ("biasless", "has no bias")])
def test_what_cannot_be_done_is_told_and_left_alone(kind: str, why: str) -> None:
    ready, calibration = ready_of(model_of(kind))
    before = outputs(ready)
    done, (line,) = absorbed(ready, calibration)
    assert not done
    assert why in line
    assert "'second'" in line
    assert "'first'" in line
    np.testing.assert_array_equal(outputs(ready), before)


def test_without_normalization_and_data_it_is_told() -> None:
    ready, calibration = ready_of(model_of("dense"))
    calibration.channels.clear()
    calibration.statistics.clear()
    done, (line,) = absorbed(ready, calibration)
    assert not done
    assert "no statistics" in line


def test_statistics_without_channels_are_left_alone() -> None:
    ready, calibration = ready_of(model_of("norm"))
    calibration.channels.clear()
    done, (line,) = absorbed(ready, calibration)
    assert not done
    assert "no single channels" in line


@cache
def digits() -> tuple[keras.Model, np.ndarray, np.ndarray]:
    """A network trained on real digits, some of whose channels have high biases then: the function stays."""
    found = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = (found.data / 16).astype("float32"), found.target
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64,))
    h = layers.BatchNormalization(name="norm")(layers.Dense(32, name="first")(inputs))
    model = keras.Model(inputs, layers.Dense(10, name="head")(layers.ReLU(name="relu")(h)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, jit_compile=False)
    model.fit(x[:1200], y[:1200], batch_size=64, epochs=3, shuffle=False, verbose=0)
    lift = 30.0 * (np.arange(32) % 4 == 0)
    norm, head = model.get_layer("norm"), model.get_layer("head")
    norm.beta.assign(np.asarray(norm.beta) + lift)
    head.bias.assign(np.asarray(head.bias) - lift @ np.asarray(head.kernel))
    return model, x[:256], x[1200:]


def error(name: str) -> tuple[float, qi.QuantizationReport]:
    model, seen, unseen = digits()
    with ignored():
        quantized, report = qi.quantize_model(model, name, seen, progress=False)
    wanted = predict(model, unseen)
    return float(np.mean((predict(quantized, unseen) - wanted) ** 2) / np.var(wanted)), report


def test_it_rescues_activations_of_few_bits_on_real_digits() -> None:
    plain, _ = error("w8a4_minmax")
    found, report = error("w8a4_minmax_absorb")
    assert found < 0.2 * plain
    assert report.settings["absorbed_links"] == 1


def test_all_algorithms_of_scaling_work_together() -> None:
    found, report = error("w4a8_pt_equalize_absorb_bias_correction")
    assert report.settings["absorbed_links"] == 1
    assert report.settings["scaled_links"] == 1
    assert found < 0.5 * error("w4a8_pt")[0]


def test_weights_alone_need_no_data() -> None:
    model, *_ = digits()
    with ignored():
        quantized, report = qi.quantize_model(model, "w8_absorb", progress=False)
    assert report.settings["absorbed_links"] == 1
    x = digits()[2]
    wanted = predict(model, x)
    assert np.mean((predict(quantized, x) - wanted) ** 2) < 0.01 * np.var(wanted)


def test_a_model_with_nothing_to_absorb_is_told_so() -> None:
    inputs = keras.Input((4,))
    model = settle(keras.Model(inputs, layers.Dense(3)(inputs)))
    with ignored():
        _, report = qi.quantize_model(model, "w8_absorb", progress=False)
    assert any("absorb changed nothing" in line for line in report.warnings)
