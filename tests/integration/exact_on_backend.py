"""Exact models and their fixed-point arithmetic on the backend that KERAS_BACKEND names; a line for each that agrees."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers

import qi
from qi.core.namespace import namespace_of
from qi.errors import UnsupportedError
from qi.ir import fixed, formulas
from qi.keras import exact_fixed
from qi.keras.variables import to_numpy

RNG = np.random.default_rng(0)


def wide(x: np.ndarray) -> object:
    return keras.ops.convert_to_tensor(x, dtype="float64")


def check_arithmetic() -> None:
    """What is computed in float64 keeps its bits: Keras' own functions round some to float32."""
    factors = np.exp2(RNG.uniform(-13, 3, 500))
    found, expected = exact_fixed.multiplier_of(wide(factors)), fixed.multiplier_of(factors)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(to_numpy(one), other)
    x = RNG.integers(-(2**20), 2**20, (200, 500)).astype(np.float64)
    for name in ("once", "twice", "up"):
        codes = to_numpy(exact_fixed.multiplied(wide(x), found, name))
        right = getattr(fixed, f"multiplied_{name}")(x.astype(np.int64), expected)
        np.testing.assert_array_equal(np.clip(codes, -512, 511), np.clip(right, -512, 511))
    edge = np.array([47 - 2.0**-30, 2.0**40 + 0.5, -1 - 2.0**-40])
    xp = namespace_of(wide(edge))
    np.testing.assert_array_equal(to_numpy(xp.floor(wide(edge))), np.floor(edge))
    np.testing.assert_array_equal(to_numpy(xp.ceil(wide(edge))), np.ceil(edge))
    a, b = (RNG.integers(-255, 256, 200_000).astype(np.float32) for _ in range(2))
    ratios = np.float32([0.7123, 0.3331])
    tensors = [keras.ops.convert_to_tensor(value) for value in (a, ratios[0], b, ratios[1])]
    np.testing.assert_array_equal(
        to_numpy(formulas.fixed_sum(*tensors)), formulas.fixed_sum(a, ratios[0], b, ratios[1])
    )


def network() -> keras.Model:
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    y = layers.DepthwiseConv2D(3, padding="same")(x)
    z = layers.AveragePooling2D(2)(layers.Add()([x, y]))
    z = layers.Conv2D(16, 1, activation="relu6")(z)
    return keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling2D()(z)))


def check_models() -> None:
    x = RNG.normal(size=(400, 8, 8, 4)).astype(np.float32)
    for seed, target in enumerate(("litert", "onnxruntime", "reference")):
        keras.utils.set_random_seed(seed)
        if (keras.backend.backend(), target) == ("jax", "onnxruntime"):
            try:
                qi.quantize_model(network(), "w8a8", x[:64], exact=target, progress=False)
            except UnsupportedError:
                print("jax refuses onnxruntime")
            continue
        qmodel, _ = qi.quantize_model(network(), "w8a8", x[:64], exact=target, progress=False)
        found = qmodel.predict(x, verbose=0)
        np.testing.assert_array_equal(found, qi.emulate(qmodel, x, target, progress=False))
        print(keras.backend.backend(), target)


if __name__ == "__main__":
    check_arithmetic()
    print(keras.backend.backend(), "arithmetic")
    check_models()
