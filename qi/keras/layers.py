"""Copies of layers: the given model is never touched, so every layer of a new model is rebuilt from its configuration."""

from __future__ import annotations

from types import FunctionType
from typing import Any

import keras
import numpy as np

from qi.errors import InputError
from qi.keras.variables import build_layer, to_numpy, weights_of

__all__ = ["NotRebuildableError", "copy_operation", "rebuild_layer", "weight_values"]


# What configurations that don't fit raise, those that users wrote included.
_NO_CONFIG = (AttributeError, KeyError, NotImplementedError, TypeError, ValueError)


class NotRebuildableError(InputError):
    """A layer's configuration doesn't give the layer again."""


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
        NotRebuildableError: the class can't be rebuilt from its configuration.
        InputError: a float weight holds NaN or an infinity.
    """
    wanted = weight_values(layer) | (values or {})
    if hasattr(layer, "save_assets"):
        raise NotRebuildableError(
            f"expected a layer whose state is all in its weights; {layer.name!r} of class {type(layer).__name__} keeps tables"
        )
    try:
        copy = _from_config(layer, layer.get_config() | (changes or {}))
        _build_alike(copy, layer)
    except _NO_CONFIG as error:
        raise NotRebuildableError(
            f"expected a layer that its configuration can rebuild; received {layer.name!r} of class "
            f"{type(layer).__name__} ({' '.join(str(error).split())}); do implement get_config and from_config"
        ) from error
    variables = weights_of(copy)
    had, has = ({path: tuple(w.shape) for path, w in weights.items()} for weights in (wanted, variables))
    if had != has:
        raise NotRebuildableError(
            f"expected a layer that its configuration can rebuild; {layer.name!r} of class {type(layer).__name__} has the "
            f"weights {had}, rebuilt it has {has}; do implement get_build_config and build"
        )
    for path, variable in variables.items():
        variable.assign(wanted[path])
    if hasattr(copy, "finalize_state"):  # what adapted layers compute with is derived from their weights
        copy.finalize_state()
    return copy


def _build_alike(copy: keras.layers.Layer, layer: keras.layers.Layer) -> None:
    how = layer.get_build_config() if layer.built else None
    if not how or copy.built:
        return
    if "input_shape" in how and getattr(copy.build, "_is_default", False):
        build_layer(copy, how["input_shape"])  # traces what Keras would leave without weights
    else:
        copy.build_from_config(how)


def _from_config(layer: keras.layers.Layer, config: dict[str, Any]) -> keras.layers.Layer:
    """A new layer; functions that Keras can't find by their name are handed over as they are."""
    try:
        return type(layer).from_config(dict(config))
    except _NO_CONFIG:
        functions = {
            key: getattr(layer, key)
            for key, value in config.items()
            if isinstance(value, (str, dict)) and isinstance(getattr(layer, key, None), FunctionType)
        }
        if not functions:
            raise
        return type(layer).from_config(config | functions)


def copy_operation(op: Any, name: str) -> tuple[Any, str]:
    """A copy of a layer or operation under a new name, and why it could not be made ("" where it could).

    What can't be rebuilt is used as it is: it is only called, never changed, but then belongs to both models.

    Raises:
        InputError: a float weight holds NaN or an infinity.
    """
    try:
        if isinstance(op, keras.layers.Layer):
            return rebuild_layer(op, {"name": name}), ""
        return type(op).from_config(op.get_config() | {"name": name}), ""
    except _NO_CONFIG as error:
        if isinstance(error, InputError) and not isinstance(error, NotRebuildableError):
            raise
        return op, f"shared with the given model: {error}"
