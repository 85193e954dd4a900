"""Copies of layers: the given model is never touched, so every layer of a new model is rebuilt from its configuration."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from qi.errors import InputError
from qi.keras.variables import to_numpy, weights_of

__all__ = ["copy_operation", "rebuild_layer", "weight_values"]


def weight_values(layer: Any) -> dict[str, np.ndarray]:
    """All weights of a layer by path, checked to be finite.

    Raises:
        InputError: a float weight holds NaN or an infinity.
    """
    values = {path: to_numpy(variable) for path, variable in weights_of(layer).items()}
    for path, array in values.items():
        if "float" in array.dtype.name and not np.all(np.isfinite(array.astype(np.float32))):
            raise InputError(f"expected finite weights; weight {path!r} of layer {layer.name!r} holds NaN or infinity")
    return values


def rebuild_layer(
    layer: keras.layers.Layer, changes: dict[str, Any] | None = None, values: dict[str, np.ndarray] | None = None
) -> keras.layers.Layer:
    """A new layer of the same class and configuration with the same weights.

    Args:
        layer: the layer to copy; it is only read.
        changes: configuration entries to replace, such as ``{"use_bias": True}``.
        values: weights to set by path, in place of the layer's own.

    Raises:
        InputError: the class can't be rebuilt from its configuration.
    """
    wanted = weight_values(layer) | (values or {})
    try:
        copy = type(layer).from_config(layer.get_config() | (changes or {}))
        if layer.built and layer.get_build_config():
            copy.build_from_config(layer.get_build_config())
    except (NotImplementedError, TypeError, ValueError) as error:
        raise InputError(
            f"expected a layer that its configuration can rebuild; received {layer.name!r} of class "
            f"{type(layer).__name__} ({error}); do implement get_config and from_config"
        ) from error
    for path, variable in weights_of(copy).items():
        if path in wanted:
            variable.assign(wanted[path])
    return copy


def copy_operation(op: Any, name: str) -> tuple[Any, str]:
    """A copy of a layer or operation under a new name, and why it could not be made ("" where it could).

    What can't be rebuilt is used as it is: it is only called, never changed, but then belongs to both models.
    """
    try:
        if isinstance(op, keras.layers.Layer):
            return rebuild_layer(op, {"name": name}), ""
        return type(op).from_config(op.get_config() | {"name": name}), ""
    except (InputError, NotImplementedError, TypeError, ValueError) as error:
        if "NaN or infinity" in str(error):
            raise
        return op, f"shared with the given model: {error}"
