"""Tests for qi.keras.inputs: what calibration sees of layers' inputs and of single channels."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import qi.keras.inputs as module
from qi.keras.graph import flatten_model
from qi.keras.inputs import Watch, weight_key
from qi.keras.links import scalable_values
from qi.keras.prepare import prepare
from tests.keras.linked import calibrated, images, uneven


def network() -> keras.Model:
    shared, inputs = layers.Dense(4, activation="relu", name="shared"), keras.Input((6, 4), name="x")
    x = shared(shared(inputs))
    x = layers.Dense(5, activation="relu", name="wide")(x)
    return uneven(keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten()(x)), name="net"))


def test_names() -> None:
    assert weight_key("block/conv", "kernel") == "block/conv/kernel"
    watch = Watch.of(flatten_model(network()))
    assert list(watch.inputs) == ["shared/kernel", "wide/kernel", "head/kernel"]
    assert len(watch.seen) == 4  # both calls of the shared layer
    assert len(watch.values) == 4
    assert watch.channels == {}
    assert watch.too_large == []


def test_keys_choose() -> None:
    graph = flatten_model(network())
    assert list(Watch.of(graph, ["head/kernel", "unknown"]).inputs) == ["head/kernel"]
    assert Watch.of(graph, []).seen == []
    assert Watch.of(graph, []).values == []


def test_moments_of_both_calls_of_a_layer() -> None:
    model, x = network(), images(40, (6, 4))
    seen = calibrated(prepare(model, "w8a8"), x)
    inner = np.asarray(model.get_layer("shared")(x))
    rows = np.concatenate([x.reshape(-1, 4), inner.reshape(-1, 4)]).astype(np.float64)
    found = seen.inputs["shared/kernel"]
    assert found.count == len(rows)
    np.testing.assert_allclose(found.mean[0], rows.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.second[0], rows.T @ rows / len(rows), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.absmax[0], np.abs(rows).max(axis=0), rtol=1e-5)


def test_batches_sum_up() -> None:
    """However the data come, the moments are those of all."""
    model, x = network(), images(40, (6, 4))
    whole = calibrated(prepare(model, "w8a8"), x)
    parts = calibrated(prepare(model, "w8a8"), iter([x[:7], x[7:30], x[30:]]))
    for key, found in whole.inputs.items():
        assert parts.inputs[key].count == found.count
        np.testing.assert_allclose(parts.inputs[key].second, found.second, rtol=1e-4, atol=1e-5)


def test_channels() -> None:
    model, x = network(), images(40, (6, 4))
    ready = prepare(model, "w8a8")
    values = scalable_values(ready.graph)
    watch = Watch.of(ready.graph, [], [*values, *values])
    assert len(watch.channels) == len(watch.seen) == len(values) > 0
    seen = calibrated(ready, x)
    expected = np.asarray(keras.Model(model.input, model.get_layer("wide").output)(x)).reshape(-1, 5)
    found = seen.channels[next(name for name in seen.channels if "wide" in name)]
    np.testing.assert_allclose(np.ravel(found.hi), expected.max(axis=0), rtol=1e-4)
    assert found.axis == -1


def test_what_would_take_too_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_MOMENTS", 100)
    watch = Watch.of(flatten_model(network()))
    assert watch.too_large == ["head/kernel"]
    assert list(watch.inputs) == ["shared/kernel", "wide/kernel"]


def test_values_are_told_apart_by_what_they_are() -> None:
    """Two layers that take one value see the same array; nothing is asked for twice."""
    inputs = keras.Input((4,))
    model = keras.Model(inputs, [layers.Dense(2, name="a")(inputs), layers.Dense(3, name="b")(inputs)])
    watch = Watch.of(flatten_model(model))
    (value,) = watch.values
    x: Any = images(9, (4,))
    watch.update([value], [x])
    watch.update([value], [x])
    assert {key: found.count for key, found in watch.inputs.items()} == {"a/kernel": 18, "b/kernel": 18}
