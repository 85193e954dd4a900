"""Quantizers within a model whose ``call`` can't be followed: each of its layers is hooked where it is.

A subclassed model may do anything in its ``call``: branches on values, loops, code of other frameworks. Its graph isn't
known, but its layers are. A copy of the model keeps its class, its methods and its ``train_step``; the ``call`` of each of
its layers is replaced by one that runs the layer in a `KerasQuantizationWrapper`, wherever and however often it is called.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras

from qi.keras.dispatcher import KerasNodeQuantizationDispatcher
from qi.keras.hooks import Hook
from qi.keras.layers import build_by, build_configs, config_of, rebuild_layer
from qi.keras.parts import parts_of
from qi.keras.variables import is_builtin, own_variables, sub_layers
from qi.keras.wrapper import KerasQuantizationWrapper

__all__ = ["InPlaceModel", "attach", "copy_model", "detached", "unregistered", "wrappers_of"]


class _Parts(keras.layers.Layer):
    """Holds the wrappers of a model, so that Keras finds their variables."""

    def __init__(self, wrappers: Iterable[KerasQuantizationWrapper]) -> None:
        super().__init__(name="quantized_parts")
        self.wrappers = list(wrappers)
        self.built = True


class InPlaceModel(keras.Model):
    """What models that are quantized in place have in common; each is of its own class besides.

    Attributes:
        quantized_in_place: True.
    """

    quantized_in_place = True

    def get_config(self) -> dict[str, Any]:
        """The float model's record, how it was built, and what was put into it."""
        return {
            "model": self._qi_record,
            "build": self._qi_build,
            "parts": [
                {"path": path, "name": w.name, "frozen": w.frozen, "dispatcher": w.get_config()["dispatcher"]}
                for path, w in wrappers_of(self).items()
            ],
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> keras.Model:
        """The model again; the user's class has to be known to Keras."""
        model = keras.saving.deserialize_keras_object(config["model"], custom_objects=custom_objects)
        build_by(model, config["build"])
        parts = parts_of(model)
        wrappers = {}
        for record in config["parts"]:
            dispatcher = KerasNodeQuantizationDispatcher.from_config(record["dispatcher"])
            wrappers[record["path"]] = KerasQuantizationWrapper(
                parts[record["path"]], dispatcher, name=record["name"], frozen=record["frozen"]
            )
        return attach(model, wrappers, config["model"], config["build"])

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Nothing: `from_config` has built it."""


def wrappers_of(model: Any) -> dict[str, KerasQuantizationWrapper]:
    """The wrappers within a model that is quantized in place, by path."""
    return dict(zip(model._qi_paths, model._qi_parts.wrappers, strict=True))


def attach(
    model: keras.Model, wrappers: Mapping[str, KerasQuantizationWrapper], record: dict[str, Any], build: dict[str, Any]
) -> keras.Model:
    """Hooks wrappers into the layers that they wrap.

    Args:
        model: changed in place, its class too.
        wrappers: by path, around parts of the model.
        record: of the float model, as Keras serializes it.
        build: how that was built, by path.
    """
    for wrapper in wrappers.values():
        if not wrapper.built:
            wrapper.build(None)
    for path, wrapper in wrappers.items():
        layer, stored, within = wrapper.layer, None, []
        if sub_layers(layer) and not is_builtin(layer):  # what these hold, their own wrappers store, or Keras
            mine = {id(variable) for variable in own_variables(layer)}
            stored = [name for name, variable in wrapper.layer_weights.items() if id(variable) in mine]
            within = [v for name, w in wrappers.items() if name.startswith(f"{path}/") for v in w.variables]
        hook = Hook(layer, wrapper)
        wrapper.hooked(functools.partial(_run, hook.original), stored, within)
        layer.call = hook
        # What the wrapper stores packed isn't stored once more in float.
        layer.save_own_variables = layer.load_own_variables = _nothing
    model._tracker.unlock()
    model._qi_parts = _Parts(wrappers.values())
    model._tracker.lock()
    model._qi_paths = tuple(wrappers)
    model._qi_record, model._qi_build = _Plain(record), _Plain(build)
    cls: Any = type(model)
    model.__class__ = _class_of(cls)
    return model


class _Plain(dict):
    """A dict that Keras leaves alone: its own would be tracked, and looked through for layers when saved."""


def _nothing(store: Any) -> None:
    """In place of a layer's own storing and reading of variables."""


def _run(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A layer's own ``call``, without the word about training if it doesn't take one."""
    if "training" in kwargs and "training" not in inspect.signature(call).parameters:
        del kwargs["training"]
    return call(*args, **kwargs)


@functools.cache
def _class_of(cls: Any) -> Any:
    """A user's class, quantized in place; all go by one name with Keras, for any of them reads the others' records."""
    made = type(cls.__name__, (InPlaceModel, cls), {"__module__": __name__})
    return keras.saving.register_keras_serializable(package="qi", name="InPlaceModel")(made)


keras.saving.register_keras_serializable(package="qi", name="InPlaceModel")(InPlaceModel)


def detached(model: Any) -> tuple[keras.Model, dict[str, Any], dict[str, Any]]:
    """The float model of one that is quantized in place, with weights of its own, its record and how it was built.

    It is of the model's own classes, whether or not Keras knows them by name.
    """
    record, build = dict(model._qi_record), dict(model._qi_build)
    with keras.saving.custom_object_scope(_made_of(model)):
        copy = keras.saving.deserialize_keras_object(record)
    build_by(copy, build)
    return copy, record, build


def _made_of(model: keras.Model) -> dict[str, Any]:
    """The user's classes that a model and its layers are of and the functions that they hold, by their names with Keras."""
    layers = [layer for layer in model._flatten_layers() if layer is not model]
    held = (value for part in (model, *layers) for value in vars(part).values())
    found: list[Any] = [value for value in held if inspect.isfunction(value)]
    found += [*(type(layer) for layer in layers), type(model).__bases__[-1]]  # what `_class_of` made that of
    return {keras.saving.get_registered_name(thing): thing for thing in found if not _is_kerases(thing.__module__)}


def _is_kerases(module: Any) -> bool:
    return str(module).partition(".")[0] in ("keras", "keras_cv", "keras_hub", "keras_nlp")  # found by these names


def unregistered(model: Any) -> str:
    """What reading a file of a model that is quantized in place will need, where its classes aren't registered; "" else."""
    names: dict[str, None] = {}

    def walk(record: Any) -> None:
        if isinstance(record, Mapping):
            if "class_name" in record and (name := _unknown(record)):
                names[name] = None
            record = list(record.values())
        for value in record if isinstance(record, list | tuple) else ():
            walk(value)

    walk(model._qi_record)
    objects = ", ".join(f"{name!r}: {name.rpartition('>')[2]}" for name in names)
    return objects and (
        f"a file of this model will name what isn't registered with Keras ({', '.join(names)}); do decorate it with "
        f"keras.saving.register_keras_serializable(), or read the file by load_model(path, custom_objects={{{objects}}})"
    )


def _unknown(record: Mapping[str, Any]) -> str:
    """The name of a class or function, by its record, where Keras doesn't know it; else ""."""
    if record["class_name"] != "function":
        name = str(record.get("registered_name") or "")
        known = _is_kerases(record.get("module")) or keras.saving.get_registered_object(name) is not None
        return "" if known else name
    try:
        keras.saving.deserialize_keras_object(dict(record))
    except (TypeError, ValueError):
        return str(record.get("config"))
    return ""


def copy_model(model: keras.Model) -> tuple[keras.Model, dict[str, Any], dict[str, Any]]:
    """A copy of a float model with the same weights, its record and how it was built.

    Raises:
        NotRebuildableError: its configuration doesn't give it again.
    """
    copy = rebuild_layer(model)
    record = keras.saving.serialize_keras_object(model)
    for name in ("compile_config", "build_config"):
        record.pop(name, None)
    record["config"] = {key: value for key, value in record["config"].items() if key in config_of(model)}
    return copy, record, build_configs(model)
