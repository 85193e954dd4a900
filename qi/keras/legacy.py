"""Models of older Keras versions: the records in their ``.h5`` files, said as Keras 3 takes them.

Keras 2 wrote entries that Keras 3 refuses, most of them at values that mean nothing: ``groups: 1`` of a depthwise convolution
has kept MobileNets from being loaded. They are taken out of the records; the layers are Keras' own.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras

from qi.errors import UnsupportedError, warn

__all__ = ["load_h5", "renewed", "who_wrote"]

_ANYTHING = object()
_GROUPS = {"groups": 1}
_UNUSED = {"kernel_initializer": _ANYTHING, "kernel_regularizer": None, "kernel_constraint": None}
_SHAPES = dict.fromkeys(["query_shape", "key_shape", "value_shape", "softmax_robust_masking"], _ANYTHING)
_RANDOM = "RandomBrightness RandomContrast RandomCrop RandomFlip RandomRotation RandomTranslation RandomZoom"
_CHANGED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("Conv1DTranspose Conv2DTranspose Conv3DTranspose DepthwiseConv1D DepthwiseConv2D", _GROUPS),
    ("SeparableConv1D SeparableConv2D", _GROUPS | _UNUSED),
    ("RNN SimpleRNN GRU LSTM ConvLSTM1D ConvLSTM2D ConvLSTM3D", {"time_major": False}),
    ("MultiHeadAttention", _SHAPES),
    (_RANDOM, {"rng_type": _ANYTHING}),
    ("SpatialDropout1D SpatialDropout2D SpatialDropout3D", {"trainable": _ANYTHING, "noise_shape": None}),
    ("Discretization", {"trainable": _ANYTHING}),
)
_MEANINGLESS = {name: entries for names, entries in _CHANGED for name in names.split()}
"""Entries of a class' record that Keras 3 doesn't take, with the value at which they mean nothing."""

_OPERATIONS = ("TFOpLambda", "SlicingOpLambda")


def renewed(record: Any) -> Any:
    """The record of a model or layer, or a part of one, as Keras 3 takes it; what is given stays as it is.

    Raises:
        UnsupportedError: a layer that Keras 3 can't be told of.

    Example:
        >>> renewed({"class_name": "DepthwiseConv2D", "config": {"kernel_size": [3, 3], "groups": 1}})
        {'class_name': 'DepthwiseConv2D', 'config': {'kernel_size': [3, 3]}}
    """
    if isinstance(record, list):
        return [renewed(item) for item in record]
    if not isinstance(record, dict):
        return record
    result = {key: renewed(value) for key, value in record.items()}
    kind, config = result.get("class_name"), result.get("config")
    if not isinstance(kind, str) or not isinstance(config, dict):
        return result
    entries = _MEANINGLESS.get(kind, {})
    meant = {k: config[k] for k, v in entries.items() if k in config and v is not _ANYTHING and config[k] != v}
    if meant or kind in _OPERATIONS:
        what = f"with {meant}" if meant else "which is an operation of TensorFlow's"
        raise UnsupportedError(
            f"expected layers that Keras 3 has; received {config.get('name')!r} of class {kind}, {what}; do build the model "
            "anew in Keras 3, with keras.ops in place of TensorFlow's operations, and set its weights"
        )
    result["config"] = {key: value for key, value in config.items() if key not in entries}
    if "inbound_nodes" in result:
        result["inbound_nodes"] = [_node(node) for node in result["inbound_nodes"]]
    return result


def _node(node: Any) -> Any:
    """A call of a layer; Keras 3 reads tensors among the keyword arguments in its own words only."""
    if not isinstance(node, list) or len(node) != 1 or not isinstance(node[0], list) or len(node[0]) != 4:
        return node
    *source, kwargs = node[0]
    if not isinstance(kwargs, dict) or not any(_is_tensor(value) for value in kwargs.values()):
        return node
    named = {key: _tensor(value) if _is_tensor(value) else value for key, value in kwargs.items()}
    return {"args": [_tensor(source)], "kwargs": named}


def _is_tensor(value: Any) -> bool:
    """Whether it stands for the output of a layer: its name, the call, which of its outputs."""
    return isinstance(value, list) and len(value) == 3 and [type(item) for item in value] == [str, int, int]


def _tensor(source: list[Any]) -> dict[str, Any]:
    config = {"shape": [], "dtype": "float32", "keras_history": source}  # of these, the last alone is read
    return {"class_name": "__keras_tensor__", "config": config}


def _stand_in(cls: Any) -> Any:
    """A class to Keras: makes one of its own models of a record in older words."""

    def from_config(config: dict[str, Any], custom_objects: Any = None) -> Any:
        return cls.from_config(renewed(config), custom_objects=custom_objects)

    return type(cls.__name__, (), {"from_config": staticmethod(from_config)})


def load_h5(path: Path, load: Callable[..., Any], **kwargs: Any) -> Any:
    """Loads an ``.h5`` file of this Keras, or of Keras 2.

    Args:
        path: of the file.
        load: ``keras.models.load_model``.
        **kwargs: for `load`. Where they don't say whether to compile, a model whose losses or metrics this Keras can't read
            comes back as it was before ``compile``, with a warning.

    Raises:
        UnsupportedError: a layer of Keras 2 that Keras 3 doesn't have.
        Exception: what `load` raises.
    """
    if not _version(path).startswith("3"):
        models = {"Functional": keras.Model, "Model": keras.Model, "Sequential": keras.Sequential}
        stand_ins = {name: _stand_in(cls) for name, cls in models.items()}
        kwargs["custom_objects"] = stand_ins | dict(kwargs.get("custom_objects") or {})
    if "compile" in kwargs:
        return load(path, **kwargs)
    try:
        return load(path, **kwargs)
    except Exception as error:  # any: of the losses and metrics, unless it comes again without them
        model = load(path, compile=False, **kwargs)
        told = " ".join(str(error).split())[:200]
        warn(
            f"{str(path)!r} is loaded without its losses and metrics, which this Keras can't read ({told}); do compile it "
            "before training"
        )
        return model


def who_wrote(path: Path) -> str:
    """What to say of a ``.keras`` file that can't be read because Keras 2 wrote it; "" of others."""
    try:
        with zipfile.ZipFile(path) as archive:
            version = str(json.loads(archive.read("metadata.json"))["keras_version"])
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile):
        return ""
    return f" (Keras {version} wrote it; do save it there as .h5, which is read)" if version.startswith("2.") else ""


def _version(path: Path) -> str:
    """The version of Keras that wrote a file; "" where it doesn't say."""
    with h5py.File(path, "r") as file:
        version = file.attrs.get("keras_version", "")
    return version.decode() if isinstance(version, bytes) else str(version)
