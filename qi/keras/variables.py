"""Variables of Keras layers: finding them by path, and keeping quantizer parameters as variables."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from qi.errors import InputError

__all__ = [
    "Place",
    "add_parameter",
    "build_layer",
    "check_model",
    "class_names",
    "first_value",
    "is_builtin",
    "layers_within",
    "names_within",
    "own_variables",
    "paths_within",
    "places_of",
    "sub_layers",
    "to_numpy",
    "unique_path",
    "weights_of",
]


def check_model(model: Any) -> None:
    """Refuses what is no Keras model.

    Raises:
        InputError: it is none; modules of torch are told where to go.
    """
    if isinstance(model, keras.Model):
        return
    if any(cls.__module__.startswith("torch.nn.") for cls in type(model).__mro__):
        raise InputError(
            f"expected a Keras model; received the torch module {type(model).__name__}; do use the function of that name in "
            "qi.torch"
        )
    raise InputError(f"expected a Keras model; received {model!r} of type {type(model).__name__}")


@dataclass(frozen=True, eq=False)
class Place:
    """A variable of a layer, and whose it is.

    `owners` are the layers that hold it, from the outermost to the one it belongs to, each with the variable's path below it.
    """

    variable: keras.Variable
    owners: tuple[tuple[Any, str], ...]


def to_numpy(value: Any) -> np.ndarray:
    """A tensor or variable as a numpy array."""
    return np.asarray(keras.ops.convert_to_numpy(value))


def first_value(variable: keras.Variable) -> np.ndarray:
    """The value of a variable as a numpy array, also where it was made within a call that is traced: its initial one."""
    with _outside_of_traces():
        return to_numpy(variable)


@contextmanager
def _outside_of_traces() -> Iterator[None]:
    """Runs what is inside on real values, in the middle of a symbolic call too."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.init_scope():
            yield
    elif keras.backend.backend() == "jax":
        import jax

        with jax.ensure_compile_time_eval():
            yield
    else:
        with keras.device("cpu"):  # in place of torch's device without memory
            yield


def class_names(layer: Any) -> list[str]:
    """Names along the method resolution order, nearest first: what policies and rules match."""
    return [cls.__name__ for cls in type(layer).__mro__]


def weights_of(layer: keras.layers.Layer) -> dict[str, keras.Variable]:
    """All variables of a built layer by their path below it ("kernel", "query/kernel"), sub-layers included.

    A path joins the names of sub-layers and of the variable. Names that Keras made up ("dense_7") count on through a
    process. So that a reloaded or rebuilt layer has the same paths, models count anew, Keras' other classes lose the number,
    and in classes of users the attribute's name stands for them. Where two variables have one path, a counter keeps them
    apart.
    """
    return {path: place.variable for path, place in places_of(layer).items()}


def places_of(layer: keras.layers.Layer) -> dict[str, Place]:
    """The variables of a built layer by the paths of `weights_of`, with the sub-layers that hold them."""
    found: dict[str, Place] = {}
    seen: set[int] = set()
    for place in _walk(layer):
        if id(place.variable) in seen:
            continue
        seen.add(id(place.variable))
        found[unique_path(place.owners[0][1], found)] = place
    return found


def unique_path(path: str, taken: Container[str]) -> str:
    """The path, or with the least number behind it that none of those taken has."""
    count, unique = 1, path
    while unique in taken:
        count += 1
        unique = f"{path}_{count}"
    return unique


def _walk(layer: Any) -> Iterator[Place]:
    name_of = _namer(layer)
    for variable in own_variables(layer):
        yield Place(variable, ((layer, name_of(variable)),))
    for name, child in sub_layers(layer):
        for place in _walk(child):
            yield Place(place.variable, ((layer, f"{name}/{place.owners[0][1]}"), *place.owners))


def is_builtin(layer: Any) -> bool:
    """Whether a layer's class is one of Keras' own."""
    return type(layer).__module__.partition(".")[0] == "keras"


def own_variables(layer: Any) -> list[keras.Variable]:
    """The variables of a layer that no layer within it holds."""
    below = {id(variable) for _, child in sub_layers(layer) for variable in child.variables}
    return [variable for variable in layer.variables if id(variable) not in below]


def sub_layers(layer: Any) -> list[tuple[str, Any]]:
    """The layers that a layer directly holds, by the names that paths have of them."""
    name_of = _namer(layer)
    return [(name_of(child), child) for child in layer._flatten_layers(include_self=False, recursive=False)]


def layers_within(layer: Any) -> dict[str, Any]:
    """All layers that a layer holds, at any depth, by path; each once."""
    found: dict[str, Any] = {}
    seen: set[int] = set()

    def walk(owner: Any, prefix: str) -> None:
        for name, child in sub_layers(owner):
            if id(child) not in seen:
                seen.add(id(child))
                found[unique_path(prefix + name, found)] = child
                walk(child, f"{prefix}{name}/")

    walk(layer, "")
    return found


def paths_within(layer: Any) -> dict[int, str]:
    """The paths of all layers in a layer, by ``id``."""
    return {id(child): path for path, child in layers_within(layer).items()}


def _namer(layer: Any) -> Callable[[Any], str]:
    """Gives the name that paths have of a layer's sub-layer or variable."""
    names = _names_in_model(layer) if isinstance(layer, keras.Sequential) or _is_functional(layer) else None
    attributes = _attribute_names(layer) if names is None else names
    return lambda item: _stable_name(item, attributes)


def _is_functional(layer: Any) -> bool:
    return isinstance(layer, keras.Model) and hasattr(layer, "operations")


def names_within(model: Any) -> dict[int, str]:
    """Names of the layers and operations of a Functional model, by ``id``: those that Keras made up are counted within it."""
    return _names_in_model(model, model.operations)


def _names_in_model(model: Any, operations: Sequence[Any] = ()) -> dict[int, str]:
    layers = model._flatten_layers(include_self=False, recursive=False)
    items = list({id(item): item for item in (*layers, *operations)}.values())
    names = {id(item): item.name for item in items if not _made_up(item)}
    taken = set(names.values())
    for item in items:
        if id(item) not in names:
            names[id(item)] = name = unique_path(_stem(item), taken)
            taken.add(name)
    return names


def _stem(item: Any) -> str:
    return re.sub(r"_\d+$", "", item.name)


def _made_up(item: Any) -> bool:
    """Whether Keras named it, after its class, or as the half of a Bidirectional layer."""
    kind = "variable" if isinstance(item, keras.Variable) else type(item).__name__.strip("_").lower()
    return re.sub("^(forward|backward)_", "", _stem(item)).replace("_", "") == kind


def _stable_name(item: Any, known: Mapping[int, str]) -> str:
    return known.get(id(item), _stem(item)) if _made_up(item) else item.name


def _attribute_names(layer: Any) -> dict[int, str]:
    """The attribute that holds each object, for classes of users."""
    if is_builtin(layer):
        return {}
    held = vars(layer) | vars(layer).get("_modules", {})  # the torch backend keeps sub-layers apart
    names: dict[int, str] = {}
    for name, value in held.items():
        if not isinstance(value, (list, tuple, dict)):
            names.setdefault(id(value), name)
        elif not name.startswith("_"):  # frameworks keep lists of their own
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, item in items:
                names.setdefault(id(item), f"{name}/{key}")
    return names


def build_layer(layer: keras.layers.Layer, input_shape: Any) -> None:
    """Builds a layer from the shape of its first argument; one without a ``build`` of its own is traced.

    Raises:
        InputError: the layer is built from several inputs, or tracing it failed.
    """
    required = [p.name for p in inspect.signature(layer.build).parameters.values() if p.default is p.empty]
    if len(required) > 1:
        raise InputError(
            f"expected layer {layer.name!r} to be built, since it is built from several inputs ({', '.join(required)}); "
            "do call it once before wrapping it"
        )
    unbuilt = any(not child.built for child in layer._flatten_layers(include_self=False))
    if getattr(layer.build, "_is_default", False) and unbuilt:
        try:
            layer.compute_output_spec(keras.tree.map_shape_structure(keras.KerasTensor, input_shape))
        except Exception as error:
            raise InputError(
                f"expected layer {layer.name!r} to be built; tracing it on input_shape={input_shape} failed: {error}; "
                "do call it once before wrapping it"
            ) from error
    layer.build(input_shape)
    layer.built = True


def add_parameter(
    layer: keras.layers.Layer, name: str, value: np.ndarray, dtype: str = "float32", *, trainable: bool = False
) -> keras.Variable:
    """A variable of `layer` that mixed precision never casts; also after the layer is built."""
    array = np.asarray(value)
    locked = layer._tracker.locked
    layer._tracker.unlock()
    try:
        return layer.add_weight(
            name=name,
            shape=array.shape,
            initializer=lambda shape, dtype=None: keras.ops.convert_to_tensor(array, dtype=dtype),
            dtype=dtype,
            trainable=trainable,
            autocast=False,
        )
    finally:
        if locked:
            layer._lock_state()
