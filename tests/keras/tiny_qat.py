"""Tiny models to be trained with quantizers, and data for them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

import qi
from qi.keras.sites import quantizer_sites
from qi.keras.variables import to_numpy

X = np.random.default_rng(3).normal(size=(32, 4)).astype(np.float32)
Y = np.stack([X[:, 0] * X[:, 1], X.sum(axis=1)], axis=1)


def float_model(*, norm: bool = False) -> keras.Model:
    """Two dense layers, with a batch normalization between them or not; always the same weights."""
    inputs = keras.Input((4,), name="x")
    x = keras.layers.Dense(6, name="first", kernel_initializer=keras.initializers.GlorotUniform(seed=1))(inputs)
    x = keras.layers.BatchNormalization(momentum=0.5, name="norm")(x) if norm else x
    x = keras.layers.ReLU(name="relu")(x)
    x = keras.layers.Dense(2, name="last", kernel_initializer=keras.initializers.GlorotUniform(seed=2))(x)
    return keras.Model(inputs, x, name="tiny")


def compiled(model: keras.Model, optimizer: Any = None, **options: Any) -> keras.Model:
    """The model, ready to be trained."""
    optimizer = keras.optimizers.SGD(0.02, momentum=0.9) if optimizer is None else optimizer
    model.compile(optimizer, "mse", **({"jit_compile": False} | options))
    return model


def qat_model(recipe: Any = "w4a4", *, norm: bool = False, optimizer: Any = None, **options: Any) -> keras.Model:
    """The tiny model with trainable quantizers, compiled."""
    how = {key: options.pop(key) for key in ("jit_compile", "run_eagerly") if key in options}
    norms = {"batch_norm": "trained"} if norm else {}
    model = qi.prepare_qat(float_model(norm=norm), recipe, X, progress=False, **norms, **options)
    return compiled(model, optimizer, **how)


def fit(model: keras.Model, *callbacks: Any, epochs: int = 1, **options: Any) -> dict[str, list[float]]:
    """The history of a short training without shuffling."""
    options = {"batch_size": 16, "shuffle": False, "verbose": 0, "validation_data": (X, Y)} | options
    history: dict[str, list[float]] = model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), **options).history
    return history


def ranges(model: keras.Model) -> dict[str, np.ndarray]:
    """The values of the quantizers' variables, by where they are."""
    return {
        f"{site.layer}/{site.tensor}/{name}": to_numpy(variable).copy()
        for site in quantizer_sites(model)
        for name, variable in site.bound.variables.items()
    }


def bits(model: keras.Model) -> dict[str, int]:
    """The bits of the quantizers, by where they are."""
    return {f"{site.layer}/{site.tensor}": site.bound.quantizer.num_bits for site in quantizer_sites(model)}


def state(model: keras.Model) -> list[np.ndarray]:
    """All variables of the model and its optimizer."""
    return [to_numpy(v).copy() for v in (*model.variables, *model.optimizer.variables)]


class Watch(keras.callbacks.Callback):
    """Keeps what functions of the model give at the end of every epoch."""

    def __init__(self, **functions: Any) -> None:
        super().__init__()
        self.functions = functions
        self.seen: dict[str, list[Any]] = {name: [] for name in functions}

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        for name, function in self.functions.items():
            self.seen[name].append(function(self.model))
