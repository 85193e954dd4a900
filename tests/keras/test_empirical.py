"""Bias correction from samples: every layer gets its mean back with all before it corrected, and nothing else changes."""

from __future__ import annotations

from functools import cache
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import qi
from qi.keras.empirical import correct_biases, output_means, samples_of, why_not
from qi.keras.prepare import prepare
from qi.keras.running import predict
from qi.keras.variables import to_numpy
from tests.keras.models import settle
from tests.keras.prepared import nearest, start
from tests.keras.warned import warned

X = np.random.default_rng(0).normal(0.5, 1.0, (40, 8, 8, 3)).astype(np.float32)


def network() -> keras.Model:
    inputs = keras.Input((8, 8, 3))
    h = layers.Conv2D(6, 3, activation="relu", name="conv")(inputs)
    h = layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", name="depthwise")(h))
    h = layers.Dropout(0.5)(layers.Conv2DTranspose(5, 2, strides=2, activation="relu", name="transposed")(h))
    h = layers.SeparableConv2D(4, 3, name="separable")(h)
    h = layers.Reshape((10, 40))(layers.Activation("swish")(h))
    h = layers.EinsumDense("abc,cde->abde", (10, 2, 3), bias_axes="de", activation="tanh", name="einsum")(h)
    short = layers.Flatten()(h)
    h = layers.Dense(60, activation="relu", name="dense")(short)
    return settle(keras.Model(inputs, layers.Dense(3, name="last")(layers.Add()([h, short]))))


def biased(ready: Any) -> dict[str, Any]:
    return {call.path: call.op for call in ready.graph.calls if not why_not(ready.graph, call.op)}


def rounded(model: keras.Model, recipe: str, x: np.ndarray = X) -> tuple[Any, dict[int, np.ndarray], Any]:
    """A prepared graph whose weights lie on their grids, the means from before, and the quantizers of activations."""
    ready, weights, activations = start(model, recipe, x)
    means = output_means(ready, list(biased(ready).values()), [x])
    for (key, path), (_, values) in nearest(ready, weights).items():
        op = next(call.op for call in ready.graph.calls if id(call.op) == key)
        next(v for v in op.weights if v.path.endswith(path)).assign(values)
    return ready, means, activations


def test_means_are_those_ahead_of_activations() -> None:
    model = network()
    ready, *_ = start(model, "w8a8", X)
    ops = biased(ready)
    assert {"conv", "depthwise", "transposed", "einsum", "dense", "last"} <= set(ops)
    means = output_means(ready, list(ops.values()), [X])
    first = model.get_layer("conv")
    plain = keras.ops.conv(X, first.kernel, padding="valid") + first.bias
    np.testing.assert_allclose(means[id(ops["conv"])], np.mean(to_numpy(plain), axis=(0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(means[id(ops["last"])], predict(model, X).mean(axis=0), rtol=1e-4, atol=1e-5)
    assert means[id(ops["einsum"])].shape == (2, 3)
    assert ops["conv"].activation is keras.activations.relu


def test_each_layer_is_corrected_behind_those_before_it() -> None:
    """A second walk finds nothing left to correct anywhere: means are those of float, with activations rounded."""
    ready, means, activations = rounded(network(), "w3a4", X)
    kernels = {call.path: to_numpy(call.op.kernel) for call in ready.graph.calls if hasattr(call.op, "kernel")}
    shifts = correct_biases(ready, means, activations, [X])
    assert set(shifts) == set(means)
    assert all(np.abs(shift).max() > 1e-3 for shift in shifts.values())
    again = correct_biases(ready, means, activations, [X])
    for key, shift in again.items():
        assert np.abs(shift).max() < 1e-4 * max(1.0, np.abs(means[key]).max())
    after = {call.path: to_numpy(call.op.kernel) for call in ready.graph.calls if hasattr(call.op, "kernel")}
    assert all(np.array_equal(after[path], kernel) for path, kernel in kernels.items())


def test_without_rounding_nothing_is_corrected() -> None:
    ready, *_ = start(network(), "w8a8", X)
    means = output_means(ready, list(biased(ready).values()), [X])
    for shift in correct_biases(ready, means, {}, [X]).values():
        np.testing.assert_array_equal(shift, 0)


def test_states_stay() -> None:
    inputs = keras.Input(batch_shape=(4, 6, 3))
    h = layers.LSTM(5, stateful=True, name="rnn")(inputs)
    model = settle(keras.Model(inputs, layers.Dense(2, name="last")(h)))
    x = X[:, :6, 0, :]
    ready = prepare(model, "w8a8")
    rnn = next(call.op for call in ready.graph.calls if call.path == "rnn")
    before = [to_numpy(state) for state in rnn.states]
    assert len(output_means(ready, list(biased(ready).values()), samples_of(ready.graph, x, 10))) == 1
    assert all(np.array_equal(a, to_numpy(b)) for a, b in zip(before, rnn.states, strict=True))
    assert len(samples_of(ready.graph, x, 10)[0]) == 8  # whole batches
    with pytest.raises(qi.InputError, match="4 samples"):
        samples_of(ready.graph, x[:2], 10)


def test_no_more_samples_than_wanted_or_held(monkeypatch: pytest.MonkeyPatch) -> None:
    ready, *_ = start(network(), "w8a8", X)
    assert len(samples_of(ready.graph, X, 7)[0]) == 7
    assert len(samples_of(ready.graph, X, 1000)[0]) == 40
    monkeypatch.setattr("qi.keras.empirical._HELD_ELEMENTS", 3 * 1500)
    assert 1 <= len(samples_of(ready.graph, X, 1000)[0]) <= 4


def test_layers_that_cannot_are_named() -> None:
    inputs = keras.Input((4,))
    shared = layers.Dense(4, name="shared")
    h = shared(shared(inputs))
    h = layers.Dense(4, use_bias=False, name="biasless")(h)
    model = settle(keras.Model(inputs, layers.Dense(2, activation=layers.ReLU(), name="own")(h)))
    x = X[:, 0, 0, :1] * np.ones(4, np.float32)
    with warned():
        _, report = qi.quantize_model(model, "w3_empirical_bias_correction", x, progress=False)
    told = {line.split("/")[0].strip("'"): line for line in report.warnings if "empirical" in line}
    assert "several times" in told["shared"]
    assert "no bias" in told["biasless"]
    assert "as its activation" in told["own"]


def test_it_is_refused_without_data_and_with_illegal_options() -> None:
    model = settle(keras.Sequential([keras.Input((4,)), layers.Dense(2)]))
    with pytest.raises(qi.InputError, match="empirical_bias_correction"):
        qi.quantize_model(model, "w3_empirical_bias_correction", progress=False)
    with pytest.raises(qi.ConfigError, match="samples"):
        qi.TensorSpec(bits=3, algorithms=({"name": "empirical_bias_correction", "samples": 0},))


@cache
def digits() -> tuple[keras.Model, np.ndarray, np.ndarray]:
    found = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = (found.data / 16).astype("float32"), found.target
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64,))])
    for width in (48, 32):
        model.add(layers.Dense(width, activation="relu"))
    model.add(layers.Dense(10))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, jit_compile=False)
    model.fit(x[:1200], y[:1200], batch_size=64, epochs=3, shuffle=False, verbose=0)
    return model, x[:256], x[1200:]


def error(name: str) -> tuple[float, float]:
    """Of the outputs: the mean squared error on samples never seen, and how far their means are off on those seen."""
    model, seen, unseen = digits()
    with warned():
        quantized, _ = qi.quantize_model(model, name, seen, progress=False)
    (wanted, wanted_seen), (found, found_seen) = ([predict(m, x) for x in (unseen, seen)] for m in (model, quantized))
    shift = np.abs(found_seen.mean(axis=0) - wanted_seen.mean(axis=0)).max()
    return float(np.mean((found - wanted) ** 2) / np.var(wanted)), float(shift)


def test_real_digits_come_nearer() -> None:
    plain, analytic, found = (error(f"w2a8{name}") for name in ("", "_bias_correction", "_empirical_bias_correction"))
    assert found[0] < 0.8 * plain[0]
    assert found[1] < 0.1 * min(analytic[1], plain[1])  # the analytic one isn't after the means of all outputs


def test_weights_that_no_algorithm_rounds_are_on_their_grids_on_the_way() -> None:
    """The means of the last layer alone are corrected: they are right only if the layers before it are rounded as well."""
    model, seen, _ = digits()
    head = model.layers[-1].name
    spec = qi.TensorSpec(bits=2, granularity="per_channel")
    corrected = qi.TensorSpec(bits=8, granularity="per_channel", algorithms=("empirical_bias_correction",))
    recipe = qi.Recipe("last", weights=spec, rules=(qi.Rule(match=head, weights=corrected),))
    with warned():
        quantized, report = qi.quantize_model(model, recipe, seen, progress=False)
    wanted, found = predict(model, seen).mean(axis=0), predict(quantized, seen).mean(axis=0)
    np.testing.assert_allclose(found, wanted, atol=1e-3 * np.abs(wanted).max())
    assert report.settings["bias_correction_samples"] == 256
