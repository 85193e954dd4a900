"""Configurations that disable a quantizer: the tensor stays in float, in training, after conversion and in files."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import qi
from qi.quantizers import QuantizationMethod, STEQuantizer

X = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)


def weights(enabled: bool) -> STEQuantizer:
    return STEQuantizer(
        qi.TrainableQuantizerWeightsConfig(QuantizationMethod.SYMMETRIC, 2, enable_weights_quantization=enabled)
    )


def activation(enabled: bool) -> STEQuantizer:
    return STEQuantizer(
        qi.TrainableQuantizerActivationConfig(
            QuantizationMethod.SYMMETRIC, 2, {"threshold": 1.0}, enable_activation_quantization=enabled
        )
    )


def model_of(*, kernel: bool, output: bool, holder: bool) -> tuple[keras.Model, keras.Model]:
    """(float model, the same with trainable quantizers)"""
    keras.utils.set_random_seed(1)
    inner = layers.Dense(4)
    inputs = keras.Input((6,))
    dispatcher = qi.KerasNodeQuantizationDispatcher({"kernel": weights(kernel)}, [activation(output)])
    hidden = qi.KerasQuantizationWrapper(inner, dispatcher)(inputs)
    outputs = qi.KerasActivationQuantizationHolder(activation(holder))(hidden)
    return keras.Model(inputs, inner(inputs)), keras.Model(inputs, outputs)


def test_disabled_quantizers_leave_everything_in_float() -> None:
    exact, model = model_of(kernel=False, output=False, holder=False)
    np.testing.assert_array_equal(model(X, training=True), exact(X))
    converted = qi.convert(model)
    np.testing.assert_array_equal(converted(X), exact(X))


@pytest.mark.parametrize("enabled", ["kernel", "output", "holder"])
def test_each_is_disabled_by_itself(enabled: str, tmp_path: Path) -> None:
    flags = {name: name == enabled for name in ("kernel", "output", "holder")}
    exact, model = model_of(**flags)
    trained = np.asarray(model(X))
    assert not np.array_equal(trained, exact(X))
    converted = qi.convert(model)
    np.testing.assert_array_equal(converted(X), trained)
    reloaded = qi.load_model(qi.save_model(converted, tmp_path / "m.keras"))
    np.testing.assert_array_equal(reloaded(X), trained)
    midway = qi.load_model(qi.save_model(model, tmp_path / "qat.keras"))
    np.testing.assert_array_equal(midway(X), trained)


def test_a_disabled_quantizer_has_no_inferable_form() -> None:
    with pytest.raises(qi.ConfigError, match="leaves its tensor in float"):
        weights(False).initialize(X).convert2inferable()
