"""Layers that are steps of another one: what a layer becomes where its parts are quantized each by itself."""

from __future__ import annotations

import keras

__all__ = ["factor_step", "swish_steps"]


def swish_steps(sigmoid: str, product: str) -> tuple[keras.layers.Layer, keras.layers.Layer]:
    """A sigmoid, and the product of its result with what it took; with these names.

    Example:
        >>> gate, times = swish_steps("gate", "times")
        >>> x = keras.ops.ones((1, 2))
        >>> bool(keras.ops.all(times([x, gate(x)]) == keras.ops.silu(x)))
        True
    """
    return keras.layers.Activation("sigmoid", name=sigmoid), keras.layers.Multiply(name=product)


def factor_step(factor: float, name: str) -> keras.layers.Layer:
    """A product with one number."""
    return keras.layers.Rescaling(factor, name=name)
