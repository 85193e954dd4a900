"""Layers that change their weights in call: what changes stays in float and goes on changing, the given model never does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import qi
from qi.keras.graph import flatten_model
from qi.keras.moving import MOVES, moved_by
from qi.keras.variables import to_numpy
from tests.keras.warned import warned

X = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")


@keras.saving.register_keras_serializable("moving")
class Counter(layers.Layer):
    """Counts its calls."""

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(4, 4), name="kernel")
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")

    def call(self, x: Any) -> Any:
        self.count.assign_add(1.0)
        return x @ self.kernel


@keras.saving.register_keras_serializable("moving")
class Average(Counter):
    """Subtracts a moving average of what it is given."""

    def build(self, shape: Any) -> None:
        super().build(shape)
        self.mean = self.add_weight(shape=(4,), initializer="zeros", trainable=False, name="mean")

    def call(self, x: Any) -> Any:
        self.mean.assign(0.5 * self.mean + 0.5 * ops.mean(x, axis=0))
        return (x - self.mean) @ self.kernel


@keras.saving.register_keras_serializable("moving")
class Fading(Counter):
    """Its kernel fades with every call."""

    def call(self, x: Any) -> Any:
        self.kernel.assign(self.kernel * 0.5)
        return x @ self.kernel


@keras.saving.register_keras_serializable("moving")
class Batchwise(layers.Layer):
    """Normalizes by the batch, in inference too."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dense, self.norm = layers.Dense(4), layers.BatchNormalization()

    def call(self, x: Any) -> Any:
        return self.norm(self.dense(x), training=True)


def around(layer: Any) -> keras.Model:
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dense(2, name="head")(layer(inputs)))


def values(model: keras.Model) -> dict[str, np.ndarray]:
    return {variable.path: to_numpy(variable).copy() for variable in model.weights}


@pytest.mark.parametrize("cls", [Counter, Average, Fading, Batchwise])
def test_the_given_model_stays_and_files_hold_the_state(cls: Any, tmp_path: Path) -> None:
    model = around(cls(name="mine"))
    before = values(model)
    result, _ = qi.quantize_model(model, "w8a8", X, progress=False)
    for path, value in values(model).items():
        np.testing.assert_array_equal(value, before[path])
    expected, found = model.predict(X, batch_size=64, verbose=0), result.predict(X, batch_size=64, verbose=0)
    np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())
    result.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    for _ in range(2):  # both go on from the same state
        np.testing.assert_array_equal(loaded.predict(X, verbose=0), result.predict(X, verbose=0))


def test_counters_and_averages_go_on_beside_codes() -> None:
    result, report = qi.quantize_model(around(Average(name="mine")), "w8", progress=False)
    assert report.find("mine/kernel")[0].quantized
    kernel, mean = (next(v for v in result.weights if v.name == name) for name in ("kernel", "mean"))
    before = to_numpy(kernel).copy()
    for _ in range(2):
        result.predict(X, batch_size=64, verbose=0)
    np.testing.assert_allclose(to_numpy(mean), 0.75 * X.mean(axis=0), rtol=1e-4)
    np.testing.assert_array_equal(to_numpy(kernel), before)


def test_a_kernel_that_moves_stays_in_float() -> None:
    model = around(Fading(name="mine"))
    result, report = qi.quantize_model(model, "w8", progress=False)
    (row,) = report.find("mine/kernel")
    assert (row.status, row.reason) == ("float", MOVES)
    with pytest.raises(qi.StrictError, match="also in inference"):
        qi.quantize_model(model, "w8", strict=True, progress=False)
    with warned() as found:
        qat = qi.prepare_qat(model, "w8", progress=False)
    assert MOVES in str(found[0].message)
    np.testing.assert_allclose(qi.convert(qat).predict(X, verbose=0), result.predict(X, verbose=0), atol=1e-6)


@pytest.mark.filterwarnings("ignore::qi.errors.QuantizationWarning")
def test_in_place() -> None:
    class Looping(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.fading, self.gain = Fading(), self.add_weight(shape=(), initializer="ones", name="gain")

        def call(self, x: Any) -> Any:
            return self.fading(x) * self.gain

        @classmethod
        def from_config(cls, config: dict[str, Any]) -> Looping:
            return cls()

    model = Looping()
    model(X)
    before = to_numpy(model.fading.kernel).copy()
    _, report = qi.quantize_model(model, "w8a8", X, progress=False)
    np.testing.assert_array_equal(to_numpy(model.fading.kernel), before)
    assert report.find("fading/kernel")[0].reason == MOVES


def test_what_a_call_changes() -> None:
    found = {cls.__name__: moved_by(flatten_model(around(cls())).calls[0]) for cls in (Counter, Average, Fading)}
    assert found == {"Counter": {"count"}, "Average": {"mean"}, "Fading": {"kernel"}}
    assert moved_by(flatten_model(around(layers.Dense(4))).calls[0]) == set()
