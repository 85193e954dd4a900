"""Models whose ``call`` can't be followed on symbolic tensors, for tests of quantization in place; on any backend."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers, ops

__all__ = ["Branches", "Mix", "Tied", "built", "x"]


def x(count: int = 96, size: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, size)).astype("float32")


@keras.saving.register_keras_serializable(package="tests.loops")
class Mix(layers.Layer):
    """A weight of its own beside a sub-layer."""

    def __init__(self, units: int = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units, self.inner = units, layers.Dense(units)

    def build(self, shape: Any) -> None:
        self.extra = self.add_weight(shape=(shape[-1], self.units), name="extra")
        self.inner.build(shape)
        self.built = True

    def call(self, x: Any) -> Any:
        return self.inner(x) + x @ self.extra

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="tests.loops")
class Branches(keras.Model):
    """A loop over shared layers, a layer that inference never calls, and a weight that no layer holds."""

    def __init__(self, steps: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.steps = steps
        self.first = layers.Dense(8, activation="relu")
        self.blocks = [layers.Dense(8) for _ in range(2)]
        self.mix, self.drop, self.rare = Mix(8), layers.Dropout(0.1), layers.Dense(8)
        self.head, self.odds = layers.Dense(3), layers.Softmax()
        self.temperature = self.add_weight(shape=(), initializer="ones", name="temperature")

    def call(self, x: Any, training: Any = None) -> Any:
        x = self.first(x)
        for step in range(self.steps):
            x = x + self.blocks[step % 2](x)
        x = ops.relu(self.mix(x)) / self.temperature
        if training:
            x = self.drop(x, training=True) + self.rare(x)
        return self.odds(self.head(x))

    def encode(self, x: Any) -> Any:
        """A method that users call by itself."""
        return self.first(x)

    def get_config(self) -> dict[str, Any]:
        return {"steps": self.steps, "name": self.name}


@keras.saving.register_keras_serializable(package="tests.loops")
class Tied(keras.Model):
    """Tokens, a recurrent layer, attention, and a product with the embedding's own table."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.table = layers.Embedding(11, 8)
        self.memory = layers.GRU(8, return_sequences=True)
        self.attention = layers.MultiHeadAttention(2, 4)
        self.norm = layers.LayerNormalization()

    def call(self, ids: Any) -> Any:
        x = self.memory(self.table(ids))
        x = self.norm(x + self.attention(query=x, value=x))
        return x @ ops.transpose(self.table.embeddings)

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name}


def built(model: keras.Model, data: np.ndarray, seed: int = 0) -> keras.Model:
    """The model with fixed weights, called once."""
    model(data[:2], training=True)
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if "seed" not in variable.path and variable.ndim:
            variable.assign(rng.normal(0, 0.5, tuple(variable.shape)).astype("float32"))
    return model
