"""A quantizer and its variables on a layer."""

from __future__ import annotations

import keras
import numpy as np

from qi.keras.bound import bind_quantizer
from qi.keras.variables import to_numpy
from qi.quantizers import (
    LSQQuantizer,
    QuantizationMethod,
    StochasticQuantizer,
    TrainableQuantizerActivationConfig,
    TrainableQuantizerWeightsConfig,
    WeightsSymmetricInferableQuantizer,
)

SYMMETRIC = QuantizationMethod.SYMMETRIC
X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
INFERABLE = WeightsSymmetricInferableQuantizer(4, [0.5, 1.0, 2.0], per_channel=True, channel_axis=-1)


def trainable(cls=LSQQuantizer, bits=4):
    return cls(TrainableQuantizerWeightsConfig(SYMMETRIC, bits, weights_channels_axis=-1))


def test_an_inferable_quantizers_variables_do_not_train():
    layer = keras.layers.Layer()
    bound = bind_quantizer(layer, INFERABLE, X.shape, prefix="kernel_")
    assert not bound.trains
    assert {v.name: v.trainable for v in layer.weights} == {"kernel_scale": False, "kernel_zero_point": False}
    np.testing.assert_array_equal(to_numpy(bound(X)), INFERABLE(X))
    np.testing.assert_array_equal(bound.current().threshold, [[0.5, 1.0, 2.0]])
    assert bound.record() == bound.current()
    bound.variables["scale"].assign(bound.variables["scale"] * 2)
    np.testing.assert_array_equal(bound.current().threshold, [[1.0, 2.0, 4.0]])


def test_a_trainable_quantizers_variables_train():
    layer = keras.layers.Layer()
    bound = bind_quantizer(layer, trainable(), X.shape, X, prefix="kernel_")
    assert bound.trains
    assert [v.name for v in layer.trainable_weights] == ["kernel_step"]
    np.testing.assert_array_equal(to_numpy(bound(X)), bound.current()(X))
    assert bound.record() == trainable().placeholder()
    bound.variables["step"].assign(-bound.variables["step"] * 0.5)
    np.testing.assert_array_equal(to_numpy(bound(X)), bound.current()(X))


def test_the_quantizer_reads_the_layers_variables():
    quantizer = trainable()
    bound = bind_quantizer(keras.layers.Layer(), quantizer, X.shape, X)
    bound.variables["step"].assign([[0.125, 0.25, 0.5]])
    np.testing.assert_array_equal(quantizer.convert2inferable().threshold.ravel(), [1.0, 2.0, 4.0])
    np.testing.assert_array_equal(quantizer.convert2inferable()(X), to_numpy(bound(X)))
    assert dict(quantizer.variables).keys() == {"step"}
    assert len(quantizer.variables) == 1


def test_an_activations_variables_are_scalars():
    quantizer = LSQQuantizer(TrainableQuantizerActivationConfig(SYMMETRIC, 4, {"threshold": 1.0}))
    bound = bind_quantizer(keras.layers.Layer(), quantizer, (1,), reshape=())
    assert bound.variables["step"].shape == ()
    np.testing.assert_array_equal(to_numpy(bound(X)), bound.current()(X))


def test_noise_is_drawn_in_training_only_and_is_another_for_every_layer_and_step():
    results = []
    for name in ("a", "b", "a"):
        bound = bind_quantizer(keras.layers.Layer(name=name), trainable(StochasticQuantizer), X.shape, X, prefix="k_")
        first, second, quiet = (to_numpy(bound(X, training)) for training in (True, True, False))
        assert not np.array_equal(first, second)
        np.testing.assert_array_equal(quiet, bound.current()(X))
        results.append(first)
    assert not np.array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])  # the same in every run
