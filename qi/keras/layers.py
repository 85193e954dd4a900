"""Copies of layers: the given model is never touched, so every layer of a new model is rebuilt from its configuration."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from qi.errors import InputError
from qi.keras.ties import tie_again
from qi.keras.variables import build_layer, sub_layers, to_numpy, weights_of

__all__ = [
    "NotRebuildableError",
    "build_by",
    "build_configs",
    "config_of",
    "copy_operation",
    "copy_operations",
    "finalize_layer",
    "rebuild_layer",
    "weight_values",
]


_MODEL_FROM_CONFIG = keras.Model.from_config.__func__


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
    if any(hasattr(part, "save_assets") for part in layer._flatten_layers()):
        raise NotRebuildableError(
            f"expected a layer whose state is all in its weights; {layer.name!r} of class {type(layer).__name__} keeps tables"
        )
    try:
        copy = _from_config(layer, config_of(layer) | (changes or {}), changes or {})
        build_by(copy, build_configs(layer))
        variables = weights_of(copy)
        had, has = ({path: tuple(w.shape) for path, w in weights.items()} for weights in (wanted, variables))
        if had == has:
            for path, variable in variables.items():
                variable.assign(wanted[path])
            finalize_layer(copy)
    except Exception as error:  # users wrote some of what was called: it may raise anything
        raise NotRebuildableError(
            f"expected a layer that its configuration can rebuild; received {layer.name!r} of class "
            f"{type(layer).__name__} ({_told(error)}); do implement get_config and from_config"
        ) from error
    if had != has:
        raise NotRebuildableError(
            f"expected a layer that its configuration can rebuild; {layer.name!r} of class {type(layer).__name__} has the "
            f"weights {had}, rebuilt it has {has}; do implement get_build_config and build"
        )
    return copy


def finalize_layer(layer: keras.layers.Layer) -> None:
    """Has a layer that was given other weights derive anew what it computes with, sub-layers included."""
    for part in layer._flatten_layers():
        if hasattr(part, "finalize_state"):
            part.finalize_state()


def _told(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, (TypeError, ValueError)) else f"{type(error).__name__}: {text}"


def config_of(layer: keras.layers.Layer) -> dict[str, Any]:
    """A layer's configuration; of a model, without what its constructor doesn't take.

    Keras makes the configuration of a class that has none of its own from the arguments of its constructor, and adds
    "trainable" and "dtype", which constructors of models seldom take.
    """
    config = dict(layer.get_config())
    cls = type(layer)
    if not isinstance(layer, keras.Model) or getattr(cls.from_config, "__func__", None) is not _MODEL_FROM_CONFIG:
        return config
    taken = inspect.signature(cls.__init__).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken):
        return config
    return {key: value for key, value in config.items() if key in {parameter.name for parameter in taken}}


def build_configs(layer: keras.layers.Layer) -> dict[str, Any]:
    """How a built layer and all layers in it were built, by path; that of the layer itself is "". None: it doesn't tell."""
    found: dict[str, Any] = {}

    def walk(part: Any, path: str) -> None:
        if part.built:
            found[path] = part.get_build_config() or None
        for name, child in sub_layers(part):
            walk(child, f"{path}/{name}" if path else name)

    walk(layer, "")
    return found


def build_by(
    layer: keras.layers.Layer, configs: Mapping[str, Any] | None, how: Mapping[str, Any] | None = None
) -> None:
    """Builds a layer and what is in it as `build_configs` says, from the outside to the inside.

    What a call runs in training only, say, the layer's own build leaves without weights. A layer without a ``build`` of its own
    needs no other tensors than its parts do: these tell how they were built, and it is traced where one doesn't.

    Args:
        layer: not built yet, or in part.
        configs: by path; None where only the layer itself told, as in earlier files.
        how: what that told.
    """
    if configs is None:
        _build_alone(layer, how or {})
        return
    left = []

    def walk(part: Any, path: str) -> None:
        if not part.built and configs.get(path):
            _build_one(part, configs[path])
        for name, child in sub_layers(part):
            walk(child, f"{path}/{name}" if path else name)
        if path in configs and not part.built:
            left.append(part)

    walk(layer, "")
    how = configs.get("") or {}
    if left and "input_shape" in how and getattr(layer.build, "_is_default", False):
        build_layer(layer, how["input_shape"])
    for part in left:  # from the inside to the outside
        nothing_more = getattr(part.build, "_is_default", False) and all(child.built for _, child in sub_layers(part))
        part.built = part.built or nothing_more


def _build_alone(layer: keras.layers.Layer, how: Mapping[str, Any]) -> None:
    if "input_shape" in how:
        build_layer(layer, how["input_shape"])  # traces what Keras would leave without weights
    elif how:
        layer.build_from_config(how)


def _build_one(layer: keras.layers.Layer, how: Mapping[str, Any]) -> None:
    with warnings.catch_warnings():
        # Of sub-layers that are still without weights; they get them from their own records.
        warnings.filterwarnings("ignore", "`build\\(\\)` was called on layer", UserWarning)
        warnings.filterwarnings("ignore", "Model '.*' had a build config", UserWarning)
        layer.build_from_config(how)


def _from_config(op: Any, config: dict[str, Any], changes: Mapping[str, Any]) -> Any:
    """A new operation with the same functions: by its name Keras may find none, or one of its own."""
    held = {key: vars(op).get(key) for key in config if key not in changes}
    functions = {key: value for key, value in held.items() if _is_function(value, op)}
    named, wrong = None, functions
    try:
        named = type(op).from_config(dict(config))
        wrong = _others(functions, named)
    except Exception:  # any: users' code, given a name that nobody knows; what isn't about that fails again below
        if not functions:
            raise
    if not wrong:
        return named
    try:
        given = type(op).from_config(config | wrong)
    except Exception:  # any, likewise: a class whose from_config takes names only
        if named is None:
            raise
        return named  # with other functions, perhaps: `qi.keras.verify` runs every copy beside its original
    # An operation that makes a function of its own from the one it is given would make one of that.
    return given if named is None or not _others(wrong, given) else named


def _others(functions: Mapping[str, Any], op: Any) -> dict[str, Any]:
    """Those functions that an operation hasn't got."""
    return {key: function for key, function in functions.items() if vars(op).get(key) is not function}


def _is_function(value: Any, owner: Any) -> bool:
    known = isinstance(value, type) or hasattr(value, "get_config") or getattr(value, "__self__", None) is owner
    return callable(value) and not known


def copy_operation(op: Any, name: str) -> tuple[Any, str]:
    """A copy of a layer or operation under a new name, and why it could not be made ("" where it could).

    What can't be rebuilt is used as it is: it is only called, never changed, but its weights then belong to both models.

    Raises:
        InputError: a float weight holds NaN or an infinity.
    """
    try:
        if isinstance(op, keras.layers.Layer):
            return rebuild_layer(op, {"name": name}), ""
        return _from_config(op, op.get_config() | {"name": name}, {"name": name}), ""
    except Exception as error:
        if isinstance(error, InputError) and not isinstance(error, NotRebuildableError):
            raise
        return _stand_in(op, name), f"shared with the given model: {_told(error)}"


def copy_operations(named: Sequence[tuple[Any, str]]) -> list[tuple[Any, str]]:
    """A copy of each operation as of `copy_operation`; variables and layers that several of them share, their copies share too.

    Raises:
        InputError: a float weight holds NaN or an infinity.
    """
    copies = [copy_operation(op, name) for op, name in named]
    for group in tie_again([op for op, _ in named], [copy for copy, _ in copies]):
        names = ", ".join(repr(named[place][0].name) for place in sorted(group))
        why = next((copies[place][1] for place in sorted(group) if copies[place][1]), "")
        for place in group:
            why = why or f"shared with the given model: {names} hold the same weights, which no configuration tells"
            copies[place] = _stand_in(*named[place]), why
    return copies


def _stand_in(op: Any, name: str) -> Any:
    """The very same operation in an object of its own: calls in the new graph leave no trace in the given model."""
    twin = object.__new__(type(op))
    vars(twin).update(vars(op), name=name, _inbound_nodes=[], _outbound_nodes=[])
    return twin
