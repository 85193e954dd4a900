"""What tells a trained model from any other: a hash of its operations and float weights."""

from __future__ import annotations

import hashlib
from typing import Any

import keras
import numpy as np

from qi.errors import UnsupportedError
from qi.keras.graph import flatten_model
from qi.keras.variables import to_numpy, weights_of

__all__ = ["fingerprint"]


def fingerprint(model: keras.Model) -> str:
    """The SHA-256 of what a model computes with, as hexadecimal digits; saving and loading it changes nothing.

    The place and class of every operation enter it, and the path, shape, type and bytes of every float weight: a model
    that was trained on has another one.

    Args:
        model: built; it is only read.

    Raises:
        InputError: not a model, or one that isn't built yet.
    """
    found = hashlib.sha256()
    seen: set[int] = set()
    for site, op in _operations(model):
        found.update(f"{site}\0{type(op).__name__}\0".encode())
        if id(op) in seen or not isinstance(op, keras.layers.Layer):
            continue
        seen.add(id(op))
        for path, variable in weights_of(op).items():
            array = np.ascontiguousarray(to_numpy(variable))
            if "float" in array.dtype.name:  # not the states of random generators, which every training step moves
                found.update(f"{path}\0{array.shape}\0{array.dtype.name}\0".encode())
                found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def _operations(model: keras.Model) -> list[tuple[str, Any]]:
    """The places and operations of a model; the model alone where its call can't be followed."""
    try:
        return [(call.site, call.op) for call in flatten_model(model).calls]
    except UnsupportedError:
        return [(model.name, model)]
