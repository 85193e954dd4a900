"""Transfer learning: a frozen trunk, trained elsewhere, within a new model with augmentation and a head of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from sklearn.datasets import load_digits

from qi import KerasQuantizationWrapper, convert, load_model, prepare_qat, quantize_model, save_model
from qi.core import sqnr_db
from qi.keras.variables import to_numpy
from tests.keras.models import settle

pytestmark = pytest.mark.filterwarnings("ignore::qi.errors.QuantizationWarning")

LOSS = "sparse_categorical_crossentropy"


@dataclass
class Transfer:
    """The float model, the trunk in it, pixels and digits to train on and to test with."""

    model: keras.Model
    trunk: keras.Model
    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray

    def accuracy(self, model: keras.Model) -> float:
        return float(np.mean(predict(model, self.x_test).argmax(-1) == self.y_test))


def predict(model: keras.Model, x: np.ndarray) -> np.ndarray:
    return to_numpy(model(x, training=False))


def block(filters: int, name: str) -> list[Any]:
    return [
        layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"{name}_conv"),
        layers.BatchNormalization(momentum=0.7, name=f"{name}_norm"),
        layers.ReLU(6.0, name=f"{name}_clamp"),
    ]


def compiled(model: keras.Model, rate: float = 0.003) -> keras.Model:
    model.compile(keras.optimizers.Adam(rate), LOSS, metrics=["accuracy"], jit_compile=False)
    return model


@pytest.fixture(scope="module")
def transfer() -> Transfer:
    keras.utils.set_random_seed(0)
    pixels, digits = load_digits(return_X_y=True)
    pixels = (pixels.reshape(-1, 8, 8, 1) * 255 / 16).astype("uint8")
    order = np.random.default_rng(0).permutation(len(digits))
    x, x_test = np.split(pixels[order], [1200])
    y, y_test = np.split(digits[order], [1200])
    stack = [keras.Input((8, 8, 1)), *block(8, "a"), layers.MaxPooling2D(2, name="pool"), *block(16, "b")]
    trunk = keras.Sequential(stack, name="trunk")
    source = keras.Sequential([trunk, layers.Flatten(), layers.Dense(10, activation="softmax")])
    compiled(source).fit(x / 127.5 - 1.0, y, epochs=5, verbose=0)

    trunk.trainable = False
    image = keras.Input((8, 8, 1), dtype="uint8", name="image")
    z = layers.RandomTranslation(0.05, 0.05, name="shift")(layers.RandomFlip("vertical", name="flip")(image))
    normalize = layers.Normalization(axis=None, name="normalize")
    normalize.adapt(x / 255.0)
    z = trunk(normalize(layers.Rescaling(1 / 255, name="rescale")(z)), training=False)
    z = layers.Dropout(0.1, name="drop")(layers.Flatten(name="flat")(z))
    model = keras.Model(image, layers.Dense(10, activation="softmax", name="head")(z), name="transfer")
    compiled(model).fit(x, y, epochs=10, verbose=0)
    return Transfer(model, trunk, x, y, x_test, y_test)


def state(model: keras.Model) -> dict[str, Any]:
    flags = {layer.path: layer.trainable for layer in model._flatten_layers()}
    values = {v.path: to_numpy(v) for v in model.variables if "seed" not in v.path}
    return {"flags": flags, "values": values, "optimizer": model.optimizer, "compiled": model.compiled}


def wrappers(model: keras.Model) -> dict[str, KerasQuantizationWrapper]:
    return {layer.layer.name: layer for layer in model.layers if isinstance(layer, KerasQuantizationWrapper)}


def test_quantized_after_training(transfer: Transfer, tmp_path: Path) -> None:
    before = state(transfer.model)
    exact = transfer.accuracy(transfer.model)
    assert exact > 0.8
    quantized, report = quantize_model(transfer.model, "w8a8", transfer.x[:300], progress=False, strict=True)
    assert abs(transfer.accuracy(quantized) - exact) <= 0.01
    assert {row.path for row in report.weights if row.quantized} == {
        "trunk/a_conv/kernel", "trunk/b_conv/kernel", "head/kernel",
    }  # fmt: skip
    loaded = load_model(save_model(quantized, tmp_path / "quantized.keras"))
    np.testing.assert_array_equal(predict(loaded, transfer.x_test), predict(quantized, transfer.x_test))
    np.testing.assert_array_equal(predict(quantized, transfer.x_test), predict(quantized, transfer.x_test))
    np.testing.assert_equal(state(transfer.model), before)


@pytest.mark.parametrize("batch_norm", ["folded", "trained"])
def test_training_moves_only_what_was_to_train(batch_norm: str, transfer: Transfer, tmp_path: Path) -> None:
    exact, before = transfer.accuracy(transfer.model), state(transfer.model)
    qat = prepare_qat(transfer.model, "w8a8", transfer.x[:300], batch_norm=batch_norm, progress=False)
    frozen = {v.path for name, wrapper in wrappers(qat).items() if "head" not in name for v in wrapper.variables}
    frozen |= {
        v.path for layer in qat.layers if "norm" in layer.name for v in layer.variables if "_quant" not in v.path
    }
    assert len(frozen) >= 4
    assert not {v.path for v in qat.trainable_variables} & frozen
    first = {v.path: to_numpy(v) for v in qat.variables if v.path in frozen}
    compiled(qat, 3e-4).fit(transfer.x, transfer.y, epochs=1, verbose=0)
    np.testing.assert_equal({v.path: to_numpy(v) for v in qat.variables if v.path in frozen}, first)
    assert abs(transfer.accuracy(qat) - exact) <= 0.01 or transfer.accuracy(qat) > exact
    np.testing.assert_equal(state(transfer.model), before)

    converted = convert(qat)
    tolerance = 0 if batch_norm == "folded" else 1e-5
    np.testing.assert_allclose(
        predict(converted, transfer.x_test), predict(qat, transfer.x_test), rtol=0, atol=tolerance
    )
    qat.save(tmp_path / "qat.keras")
    loaded = keras.models.load_model(tmp_path / "qat.keras")
    assert [v.path for v in loaded.trainable_variables] == [v.path for v in qat.trainable_variables]
    np.testing.assert_array_equal(predict(loaded, transfer.x_test), predict(qat, transfer.x_test))


def test_what_is_unfrozen_later_trains(transfer: Transfer, tmp_path: Path) -> None:
    prepare_qat(transfer.model, "w8a8", transfer.x[:300], progress=False).save(tmp_path / "qat.keras")
    qat = keras.models.load_model(tmp_path / "qat.keras")
    for layer in qat.layers:
        layer.trainable = True
    inside = wrappers(qat)["a_conv"]
    assert {v.name for v in inside.trainable_variables} == {"kernel", "bias", "kernel_step"}
    first = [to_numpy(v) for v in inside.trainable_variables]
    compiled(qat, 1e-3).fit(transfer.x, transfer.y, epochs=2, verbose=0)
    assert all(np.any(to_numpy(v) != old) for v, old in zip(inside.trainable_variables, first, strict=True))
    assert transfer.accuracy(convert(qat)) >= transfer.accuracy(transfer.model) - 0.01
    assert not transfer.trunk.trainable


def test_a_network_with_its_own_preprocessing(tmp_path: Path) -> None:
    trunk = settle(
        keras.applications.MobileNetV3Small(
            (32, 32, 3), minimalistic=True, weights=None, include_top=False, include_preprocessing=True, pooling="avg"
        )
    )
    trunk.trainable = False
    image = keras.Input((32, 32, 3), name="image")
    model = keras.Model(image, layers.Dense(3, name="head")(trunk(image, training=False)))
    x = np.random.default_rng(0).uniform(0, 255, (40, 32, 32, 3)).astype("float32")
    quantized, report = quantize_model(model, "w8a8_minmax", x, progress=False, strict=True)
    assert any(row.layer.endswith("rescaling") and row.quantized for row in report.activations)
    assert sqnr_db(predict(model, x), predict(quantized, x)) > 15
    loaded = load_model(save_model(quantized, tmp_path / "quantized.keras"))
    np.testing.assert_array_equal(predict(loaded, x), predict(quantized, x))
