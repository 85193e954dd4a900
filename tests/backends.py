"""The frameworks of the current process behind one small interface: tensors, numpy arrays, gradients; and whom tests need."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

Function = Callable[..., Any]

needs_tensorflow = pytest.mark.skipif(
    os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow",
    reason="is about how TensorFlow runs a model, or looks at it through a GradientTape; Keras runs on another backend",
)
"""Marks tests that can't run with KERAS_BACKEND set to another backend."""

needs_compiler = pytest.mark.skipif(
    os.environ.get("KERAS_BACKEND") == "torch",
    reason="with jit_compile Keras calls torch.compile, which wants a compiler of C++ on the machine",
)
"""Marks tests that compile a model with ``jit_compile=True``."""


class TensorFlow:
    """TensorFlow tensors, as `keras.ops` of Keras' TensorFlow backend takes them."""

    name = "tensorflow"

    def tensor(self, x: Any) -> Any:
        import tensorflow as tf

        return tf.constant(x)

    def numpy(self, x: Any) -> np.ndarray:
        return np.asarray(x.numpy())

    def gradients(self, function: Function, *arrays: Any, upstream: Any = None) -> list[np.ndarray]:
        """Gradients of ``sum(upstream * function(*arrays))``; zeros where an argument has no influence."""
        import tensorflow as tf

        tensors = [tf.constant(a) for a in arrays]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            result = function(*tensors)
        found = tape.gradient(
            result,
            tensors,
            output_gradients=None if upstream is None else tf.constant(upstream),
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return [g.numpy() for g in found]


class Torch:
    """Raw torch tensors."""

    name = "torch"

    def tensor(self, x: Any) -> Any:
        import torch

        return torch.tensor(np.array(x))

    def numpy(self, x: Any) -> np.ndarray:
        return x.detach().numpy()

    def gradients(self, function: Function, *arrays: Any, upstream: Any = None) -> list[np.ndarray]:
        """Gradients of ``sum(upstream * function(*arrays))``; zeros where an argument has no influence."""
        import torch

        tensors = [torch.tensor(np.array(a), requires_grad=True) for a in arrays]
        result = function(*tensors)
        weights = torch.ones_like(result) if upstream is None else torch.tensor(np.array(upstream))
        found = torch.autograd.grad(result, tensors, weights, materialize_grads=True, allow_unused=True)
        return [g.numpy() for g in found]


BACKENDS = [TensorFlow(), Torch()]
