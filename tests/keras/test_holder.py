from __future__ import annotations

import keras
import numpy as np
import pytest

from qi.errors import ConfigError, InputError, NotCalibratedError
from qi.keras import KerasActivationQuantizationHolder
from qi.keras.variables import to_numpy
from qi.quantizers import (
    ActivationLutPOTInferableQuantizer,
    ActivationPOTInferableQuantizer,
    ActivationSymmetricInferableQuantizer,
    ActivationUniformInferableQuantizer,
    LSQQuantizer,
    QuantizationMethod,
    TrainableQuantizerActivationConfig,
    TrainableQuantizerWeightsConfig,
    WeightsPOTInferableQuantizer,
)
from tests.backends import needs_compiler, needs_tensorflow

QUANTIZERS = [
    ActivationSymmetricInferableQuantizer(8, 1.9, signed=False),
    ActivationPOTInferableQuantizer(4, 2.0),
    ActivationUniformInferableQuantizer(8, -1.1, 2.3),
    ActivationLutPOTInferableQuantizer(2, [-90, 0, 64], 2.0),
]
X = np.random.default_rng(0).normal(0, 1.5, (64, 5)).astype(np.float32)
each_quantizer = pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda q: type(q).__name__)


def model_of(holder, dtype="float32"):
    inputs = keras.Input((5,), dtype=dtype)
    return keras.Model(inputs, holder(inputs))


@each_quantizer
@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=needs_compiler)])
def test_a_layer_gives_what_the_quantizer_gives(quantizer, jit):
    model = model_of(KerasActivationQuantizationHolder(quantizer))
    model.compile(jit_compile=jit)
    np.testing.assert_array_equal(model.predict(X, verbose=0), quantizer(X))
    np.testing.assert_array_equal(to_numpy(model(X)), quantizer(X))


@each_quantizer
def test_a_saved_model_loads_with_keras_alone(quantizer, tmp_path):
    model = model_of(KerasActivationQuantizationHolder(quantizer, name="q"))
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert again.get_layer("q").quantizer == quantizer
    np.testing.assert_array_equal(again.predict(X, verbose=0), quantizer(X))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_the_dtype_is_the_inputs(dtype):
    holder = KerasActivationQuantizationHolder(QUANTIZERS[2])
    x = keras.ops.cast(X, dtype)
    y = holder(x)
    assert keras.backend.standardize_dtype(y.dtype) == dtype
    assert model_of(holder, dtype).output.dtype == dtype
    rounded = keras.ops.convert_to_numpy(x)
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(y).astype(np.float32), QUANTIZERS[2](rounded).astype(np.float32)
    )
    assert holder.variables[0].dtype == "float32"


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_casts_neither_parameters_nor_arithmetic(policy):
    keras.config.set_dtype_policy(policy)
    try:
        inputs = keras.Input((5,))
        dense = keras.layers.Dense(4)
        model = keras.Model(inputs, [dense(inputs), KerasActivationQuantizationHolder(QUANTIZERS[2])(dense(inputs))])
    finally:
        keras.config.set_dtype_policy("float32")
    plain, quantized = model.predict(X, verbose=0)
    assert quantized.dtype == plain.dtype == np.dtype(model.outputs[0].dtype)
    np.testing.assert_array_equal(quantized, QUANTIZERS[2](plain))


def test_integers_become_float32():
    holder = KerasActivationQuantizationHolder(QUANTIZERS[1])
    assert to_numpy(holder(np.array([[-5, 1]]))).tolist() == [[-2, 1]]
    assert model_of(holder, "int32").output.dtype == "float32"


def test_called_twice_it_shares_its_parameters():
    holder = KerasActivationQuantizationHolder(QUANTIZERS[0])
    x = keras.Input((5,))
    model = keras.Model(x, holder(holder(x) * 2))
    assert len(model.weights) == 2
    assert model.count_params() == 2
    assert not model.trainable_weights
    np.testing.assert_array_equal(model.predict(X, verbose=0), QUANTIZERS[0](QUANTIZERS[0](X) * 2))


@needs_tensorflow
def test_gradients_pass_straight_through_inside_the_range():
    import tensorflow as tf

    holder = KerasActivationQuantizationHolder(QUANTIZERS[2])
    x = tf.constant([[-9.0, -1.0, 0.3, 2.0, 9.0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = holder(x)
    assert tape.gradient(y, x).numpy().tolist() == [[0, 1, 1, 1, 0]]


def test_masks_pass():
    x = keras.Input((3,), dtype="int32")
    embedded = keras.layers.Embedding(5, 2, mask_zero=True)(x)
    summed = keras.layers.GlobalAveragePooling1D()
    model = keras.Model(x, [embedded, summed(KerasActivationQuantizationHolder(QUANTIZERS[2])(embedded))])
    values, mean = model.predict(np.array([[1, 2, 0]]), verbose=0)
    np.testing.assert_allclose(mean, QUANTIZERS[2](values)[:, :2].mean(axis=1), rtol=1e-6)


@pytest.mark.parametrize("quantizer", [None, 8, "relu", WeightsPOTInferableQuantizer(8, 2.0), QUANTIZERS], ids=repr)
def test_only_activation_quantizers(quantizer):
    with pytest.raises(ConfigError, match="expected an activation quantizer; received"):
        KerasActivationQuantizationHolder(quantizer)


@pytest.mark.parametrize("several", [[X, X], (X,), {"a": X}], ids=["list", "tuple", "dict"])
def test_one_tensor_at_a_time(several):
    with pytest.raises(InputError, match=r"expected one tensor; received .*; do use one holder for each tensor"):
        KerasActivationQuantizationHolder(QUANTIZERS[0])(several)


# --- trainable quantizers ---


def trainable_holder(cls=LSQQuantizer, bits=3):
    config = TrainableQuantizerActivationConfig(QuantizationMethod.SYMMETRIC, bits, {"threshold": 1.0})
    return KerasActivationQuantizationHolder(cls(config), name="held")


def test_a_trainable_quantizers_step_trains_and_converts():
    holder = trainable_holder()
    model = keras.Sequential([keras.Input((5,)), holder])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    before = float(to_numpy(holder.trainable_weights[0]))
    model.fit(X, X, epochs=2, verbose=0)
    assert float(to_numpy(holder.trainable_weights[0])) != before
    converted = holder.convert2inferable()
    assert converted.name == "held"
    np.testing.assert_array_equal(to_numpy(converted(X)), to_numpy(holder(X)))
    assert not converted.trainable_weights
    with pytest.raises(ConfigError, match="expected a trainable quantizer in 'held'; received Activation"):
        converted.convert2inferable()


def test_an_unbuilt_holder_does_not_convert():
    with pytest.raises(InputError, match="expected a built layer; 'held' has no variables yet; do call it once"):
        trainable_holder().convert2inferable()


def test_a_trainable_quantizer_survives_its_configuration():
    holder = trainable_holder()
    again = KerasActivationQuantizationHolder.from_config(holder.get_config())
    assert again.quantizer == holder.quantizer
    np.testing.assert_array_equal(to_numpy(again(X)), to_numpy(holder(X)))


def test_a_trainable_quantizer_without_a_range_is_refused_at_build():
    bare = TrainableQuantizerActivationConfig(QuantizationMethod.SYMMETRIC, 3)
    with pytest.raises(NotCalibratedError, match="do give threshold"):
        KerasActivationQuantizationHolder(LSQQuantizer(bare))(X)


def test_a_trainable_quantizer_of_weights_is_refused():
    of_weights = LSQQuantizer(TrainableQuantizerWeightsConfig(QuantizationMethod.SYMMETRIC, 3))
    with pytest.raises(ConfigError, match="expected an activation quantizer; received LSQQuantizer"):
        KerasActivationQuantizationHolder(of_weights)
