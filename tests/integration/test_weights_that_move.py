"""Layers that change their weights in call: SpectralNormalization, and classes of users, trained and frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from qi import KerasQuantizationWrapper, convert, prepare_qat, quantize_model
from qi.keras.variables import to_numpy
from tests.keras.models import settle

X = np.random.default_rng(0).normal(size=(32, 5, 4)).astype("float32")
Y = np.random.default_rng(1).normal(size=(32, 12)).astype("float32")


def normalized() -> keras.Model:
    inputs = keras.Input((5, 4), name="x")
    conv = layers.SpectralNormalization(layers.Conv1D(3, 2), power_iterations=3, name="normalized")
    return settle(keras.Model(inputs, layers.Flatten()(conv(inputs))))


def wrapped(model: keras.Model, name: str = "normalized") -> KerasQuantizationWrapper:
    wrapper = model.get_layer(name)
    assert isinstance(wrapper, KerasQuantizationWrapper)
    return wrapper


def norm(kernel: Any) -> float:
    return float(np.linalg.norm(to_numpy(kernel).reshape(-1, kernel.shape[-1]), 2))


def trained(model: keras.Model, epochs: int) -> keras.Model:
    model.compile(keras.optimizers.SGD(1e-2), "mse")
    model.fit(X, Y, epochs=epochs, batch_size=8, verbose=0, shuffle=False)
    return model


@pytest.mark.parametrize("method", ["ste", "lsq"])
def test_a_kernel_is_kept_normalized_while_its_quantizer_trains(method: str) -> None:
    float_model = trained(normalized(), 4)
    assert norm(float_model.get_layer("normalized").layer.kernel) == pytest.approx(1, abs=0.02)
    model = normalized()
    assert norm(model.get_layer("normalized").layer.kernel) > 1.3
    qat = trained(prepare_qat(model, "w8a8", X, method=method, progress=False), 4)
    kernel = wrapped(qat).layer_weights["conv1d/kernel"]
    assert norm(kernel) == pytest.approx(1, abs=0.02)
    result = convert(qat)
    np.testing.assert_array_equal(to_numpy(result(X)), to_numpy(qat(X)))
    # What inference uses is what training computed with, up to the optimizer's last step.
    inference, training = (to_numpy(qat(X, training=flag)) for flag in (False, True))
    assert np.abs(inference - training).max() < 0.05 * np.abs(inference).max()
    assert norm(model.get_layer("normalized").layer.kernel) > 1.3


def test_inference_uses_the_stored_kernel_and_frozen_ones_stay(tmp_path: Path) -> None:
    model = normalized()
    result, report = quantize_model(model, "w8", progress=False)
    (row,) = report.find("normalized/conv1d/kernel")
    assert (row.status, row.macs) == ("quantized", 4 * 2 * 4 * 3)
    codes = wrapped(result).get_quantized_weights()["conv1d/kernel"]
    np.testing.assert_allclose(codes, model.get_layer("normalized").layer.kernel, atol=0.02)
    result(X, training=True)
    np.testing.assert_array_equal(wrapped(result).layer_weights["conv1d/kernel"], codes)
    result.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(to_numpy(loaded(X)), to_numpy(result(X)))


@keras.saving.register_keras_serializable(package="tests")
class Drifting(layers.Layer):
    """Its table moves a hundredth towards what it sees, as those of vector quantization do."""

    def build(self, shape: Any) -> None:
        self.table = self.add_weight(name="table", shape=(shape[1], shape[-1]), trainable=False)

    def call(self, x: Any, training: Any = None) -> Any:
        if training:
            self.table.assign(self.table + (ops.mean(x, axis=0) - self.table) * 0.01)
        return x + self.table


def test_what_a_layer_adds_to_a_quantized_weight_is_added_to_the_weight_itself() -> None:
    inputs = keras.Input((5, 4), name="x")
    model = settle(keras.Model(inputs, Drifting(name="drifting")(inputs)))
    start, seen = to_numpy(model.get_layer("drifting").table), X.mean(axis=0)
    qat = prepare_qat(model, "w4", method="ste")
    for _ in range(20):
        qat(X, training=True)
    found = to_numpy(wrapped(qat, "drifting").layer_weights["table"])
    expected = seen + (start - seen) * 0.99**20
    assert np.abs(start - expected).max() > 0.2
    # Each step forgets a hundredth of what quantization had changed, of which there is half a step at most.
    assert np.abs(found - expected).max() < 0.2 * np.abs(start).max() / 7
    np.testing.assert_array_equal(model.get_layer("drifting").table, start)
