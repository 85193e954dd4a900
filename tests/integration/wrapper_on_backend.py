"""Run in a process of its own with KERAS_BACKEND set: wrapper and holder on another Keras backend than TensorFlow.

Prints the name of each check that held; `test_wrapper_backends.py` reads them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np

from qi.keras import (
    KerasActivationQuantizationHolder,
    KerasNodeQuantizationDispatcher,
    KerasQuantizationWrapper,
)
from qi.keras.variables import to_numpy, weights_of
from qi.quantizers import (
    ActivationUniformInferableQuantizer,
    WeightsLUTSymmetricInferableQuantizer,
    WeightsSymmetricInferableQuantizer,
    WeightsUniformInferableQuantizer,
)

FOLDER = Path(sys.argv[1])
W8 = WeightsSymmetricInferableQuantizer(8, 1.0)
W4 = WeightsSymmetricInferableQuantizer(4, 0.8, per_channel=True)
A8 = ActivationUniformInferableQuantizer(8, -3.0, 5.0)
X = np.random.default_rng(5).normal(size=(16, 6)).astype(np.float32)
TARGET = X[:, :3]
STATES = ("unfrozen", "beside", "in place")


def wrap(layer: Any, quantizers: Any = W4, activations: Any = None) -> KerasQuantizationWrapper:
    return KerasQuantizationWrapper(layer, KerasNodeQuantizationDispatcher(quantizers, activations))


def settle(wrapper: KerasQuantizationWrapper, state: str) -> None:
    if state != "unfrozen":
        wrapper.freeze(in_place=state == "in place")


def same(a: Any, b: Any) -> None:
    for x, y in zip(keras.tree.flatten(a), keras.tree.flatten(b), strict=True):
        np.testing.assert_array_equal(to_numpy(x), to_numpy(y))


def weights_are_numpys() -> None:
    for quantizer in (
        W4,
        WeightsUniformInferableQuantizer(5, -0.31, 0.77),
        WeightsLUTSymmetricInferableQuantizer(3, [-70, -20, 0, 33, 90], 0.9, per_channel=True),
        WeightsSymmetricInferableQuantizer(4, 0.8, per_channel=True, group_size=4),
    ):
        layer = keras.layers.Dense(3)
        wrapper = wrap(layer, quantizer)
        before = to_numpy(wrapper(X))
        plain, kernel = to_numpy(layer(X)), to_numpy(layer.kernel)
        expected = quantizer.with_axes(-1, -2)(kernel)
        same(wrapper.get_quantized_weights()["kernel"], expected)
        for in_place in (False, True):
            wrapper.freeze(in_place=in_place)
            same(wrapper(X), before)
            same(wrapper.get_quantized_weights()["kernel"], expected)
            if not in_place:
                same(layer(X), plain)
        same(layer(X), before)


def outputs_are_numpys() -> None:
    holder = KerasActivationQuantizationHolder(A8)
    same(holder(X), A8(X))
    model = keras.Sequential([keras.Input((6,)), holder])
    same(model.predict(X, verbose=0), A8(X))
    dense = keras.layers.Dense(3)
    same(wrap(dense, None, A8)(X), A8(to_numpy(dense(X))))


def regularizers_are_counted_once() -> None:
    for state in STATES:
        layer = keras.layers.Dense(
            3,
            kernel_initializer=keras.initializers.Constant(0.55),
            kernel_regularizer=keras.regularizers.L2(0.25),
            activity_regularizer=keras.regularizers.L2(0.5),
        )
        wrapper = wrap(layer, W8)
        model = keras.Sequential([keras.Input((6,)), wrapper])
        settle(wrapper, state)
        model.compile(keras.optimizers.SGD(0.0), "mse")
        kernel = to_numpy(layer.kernel)
        y = X @ W8(kernel)
        penalty = 0.25 * (kernel**2).sum() if state == "unfrozen" else 0.0
        expected = ((y - TARGET) ** 2).mean() + penalty + 0.5 * (y**2).sum() / 16
        for found in (
            model.evaluate(X, TARGET, batch_size=16, verbose=0),
            model.fit(X, TARGET, batch_size=16, verbose=0).history["loss"][0],
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=state)


def training_leaves_frozen_kernels_alone() -> None:
    for state in STATES:
        wrapper = wrap(keras.layers.Dense(3))
        model = keras.Sequential([keras.Input((6,)), wrapper])
        settle(wrapper, state)
        wrapper.trainable = False
        wrapper.trainable = True
        kernel, quantized = to_numpy(wrapper.layer.kernel).copy(), wrapper.get_quantized_weights()["kernel"]
        model.compile("sgd", "mse")
        model.fit(X, TARGET, epochs=2, verbose=0)
        moved = not np.array_equal(to_numpy(wrapper.layer.kernel), kernel)
        assert moved is (state == "unfrozen"), state
        assert np.all(to_numpy(wrapper.layer.bias) != 0), state
        if state != "unfrozen":
            same(wrapper.get_quantized_weights()["kernel"], quantized)


def statistics_and_seeds_move_in_training() -> None:
    for state in STATES:
        inside = keras.Sequential(
            [
                keras.Input((6,)),
                keras.layers.Dense(4, name="dense"),
                keras.layers.BatchNormalization(name="bn", momentum=0.5),
                keras.layers.GaussianNoise(0.1, name="noise"),
            ]
        )
        wrapper = wrap(inside, {"dense/kernel": W4})
        model = keras.Sequential([keras.Input((6,)), wrapper])
        settle(wrapper, state)
        model.compile(keras.optimizers.SGD(0.0), "mse")
        model.predict(X, verbose=0)
        bn, seed = inside.get_layer("bn"), inside.get_layer("noise").seed_generator.state
        assert not to_numpy(bn.moving_mean).any()
        before = to_numpy(seed).copy()
        model.fit(X, np.zeros((16, 4)), batch_size=16, verbose=0)
        expected = 0.5 * (X @ wrapper.get_quantized_weights()["dense/kernel"]).mean(axis=0)
        np.testing.assert_allclose(to_numpy(bn.moving_mean), expected, atol=1e-6)
        assert not np.array_equal(to_numpy(seed), before)


class Block(keras.layers.Layer):
    """Sub-layers and a weight named by Keras."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.first, self.blocks = keras.layers.Dense(4), [keras.layers.Dense(6)]
        self.gain = self.add_weight(shape=(), initializer="ones")

    def call(self, x: Any) -> Any:
        return self.blocks[0](self.first(x)) * self.gain


def models_come_back_bit_equal() -> None:
    block = Block()
    block(X)
    assert {"first/kernel", "blocks/0/kernel", "gain"} < set(weights_of(block)), list(weights_of(block))
    for state in STATES:
        x = keras.Input((2, 3))
        attention = keras.layers.MultiHeadAttention(2, 3, dropout=0.1)
        attention(x, x)
        bare = keras.layers.Dense(6, name="bare")
        wrappers = [
            wrap(keras.layers.LSTM(3, return_sequences=True), {"recurrent_kernel": W4}),
            wrap(attention, {"query/kernel": W4}),
            wrap(Block(), {"first/kernel": W4, "blocks/0/kernel": W4}, A8),
            wrap(bare),
        ]
        y = wrappers[1](wrappers[0](x), wrappers[0](x))
        flat = keras.layers.Flatten()(y)
        model = keras.Model(x, [wrappers[3](wrappers[2](flat)), bare(flat)])
        for wrapper in wrappers:
            settle(wrapper, state)
        data = X.reshape(16, 2, 3)
        model.save(FOLDER / "m.keras")
        again = keras.models.load_model(FOLDER / "m.keras", custom_objects={"Block": Block})
        same(again.predict(data, verbose=0), model.predict(data, verbose=0))
        model.save_weights(FOLDER / "m.weights.h5")
        model.load_weights(FOLDER / "m.weights.h5")
        same(again.predict(data, verbose=0), model.predict(data, verbose=0))


def mixed_precision() -> None:
    dense = keras.layers.Dense(3, dtype="mixed_bfloat16", use_bias=False)
    wrapper = wrap(dense, W8)
    before = wrapper(X)
    assert keras.backend.standardize_dtype(before.dtype) == "bfloat16"
    wrapper.freeze()
    same(wrapper(X), before)


if __name__ == "__main__":
    for check in (
        weights_are_numpys,
        outputs_are_numpys,
        regularizers_are_counted_once,
        training_leaves_frozen_kernels_alone,
        statistics_and_seeds_move_in_training,
        models_come_back_bit_equal,
        mixed_precision,
    ):
        check()
        print(keras.backend.backend(), check.__name__)
