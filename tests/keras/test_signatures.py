"""Wrappers take what their layers take: by place or by name, tensors and plain values side by side."""

from __future__ import annotations

import inspect
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import qi
from qi.keras.signatures import signature_around
from qi.keras.variables import to_numpy

X = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("float32")


class Mixed(layers.Layer):
    """Takes anything."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(4)

    def build(self, shape: Any) -> None:
        self.dense.build(shape)

    def call(self, x: Any, y: Any = None, gain: float = 1.0, *, shift: Any, mode: str = "sum") -> Any:
        z = gain * self.dense(x) + shift
        return z if y is None else z + y if mode == "sum" else z * y


def wrapped(layer: Any) -> Any:
    quantizer = qi.WeightsSymmetricInferableQuantizer(num_bits=8, threshold=1, per_channel=True)
    return qi.KerasQuantizationWrapper(layer, qi.KerasNodeQuantizationDispatcher({"kernel": quantizer}))


def test_names_of_arguments_and_of_masks() -> None:
    def names(layer: Any) -> list[str]:
        return list(signature_around(layer).parameters)

    assert names(Mixed()) == ["x", "y", "gain", "shift", "mode", "training", "kwargs"]
    assert names(layers.LSTM(2)) == ["sequences", "initial_state", "mask_", "training", "kwargs"]
    attention = names(layers.MultiHeadAttention(1, 2))
    assert {"query", "value", "key", "query_mask_", "attention_mask", "use_causal_mask"} <= set(attention)
    given = signature_around(Mixed()).bind(1, 2, shift=3, training=True, mask=4)
    assert given.arguments == {"x": 1, "y": 2, "shift": 3, "training": True, "kwargs": {"mask": 4}}
    assert inspect.Parameter.POSITIONAL_ONLY not in {p.kind for p in signature_around(Mixed()).parameters.values()}


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {"shift": 1.0}), ((), {"y": X, "shift": ops.ones(4), "mode": "product"}), ((X,), {"gain": 2.0, "shift": X})],
    ids=["value", "mixed names", "mixed"],
)
def test_tensors_and_values_mix(args: Any, kwargs: Any) -> None:
    layer = Mixed()
    wrapper = wrapped(layer)
    found = to_numpy(wrapper(X, *args, **kwargs))
    np.testing.assert_allclose(found, to_numpy(layer(X, *args, **kwargs)), atol=0.1)


def test_symbolic_tensors_and_values_mix() -> None:
    x, y = keras.Input((5, 4)), keras.Input((5, 4))
    model = keras.Model([x, y], wrapped(Mixed())(x, y, shift=0.5, mode="product"))
    assert model.output_shape == (None, 5, 4)
    assert model.predict([X, X], verbose=0).shape == X.shape


def test_attention_by_name_and_with_options() -> None:
    layer = layers.MultiHeadAttention(1, 2)
    layer(X, X)
    quantizer = qi.WeightsSymmetricInferableQuantizer(num_bits=8, threshold=2)
    wrapper = qi.KerasQuantizationWrapper(layer, qi.KerasNodeQuantizationDispatcher({"query/kernel": quantizer}))
    options = {"key": X, "attention_mask": np.tri(5, dtype=bool)[None], "use_causal_mask": True}
    np.testing.assert_allclose(to_numpy(wrapper(X, X, **options)), to_numpy(layer(X, X, **options)), atol=0.05)


def test_masks_are_still_the_layer_s() -> None:
    ids = np.array([[1, 2, 0, 0], [3, 0, 0, 0]])
    layer = layers.LSTM(4)
    embedded = layers.Embedding(5, 4, mask_zero=True)(ids)
    expected = to_numpy(layer(embedded))
    np.testing.assert_allclose(to_numpy(wrapped(layer)(embedded)), expected, atol=0.05)
    assert np.abs(to_numpy(layer(ops.stop_gradient(to_numpy(embedded)))) - expected).max() > 1e-3
