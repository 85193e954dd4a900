"""What tells a trained model from any other: a hash of its operations and float weights."""

from __future__ import annotations

import hashlib

import keras
import numpy as np

from qi.keras.graph import flatten_model
from qi.keras.variables import to_numpy, weights_of

__all__ = ["fingerprint"]


def fingerprint(model: keras.Model) -> str:
    """The SHA-256 of what a model computes with, as hexadecimal digits; saving and loading it changes nothing.

    The place and class of every operation enter it, and the path, shape, type and bytes of every float weight: a model
    that was trained on has another one.

    Args:
        model: a built Functional or Sequential model; it is only read.

    Raises:
        UnsupportedError: a call that can't be followed on symbolic tensors.
        InputError: not a model, or one that isn't built yet.
    """
    found = hashlib.sha256()
    seen: set[int] = set()
    for call in flatten_model(model).calls:
        found.update(f"{call.site}\0{call.kind}\0".encode())
        if id(call.op) in seen or not isinstance(call.op, keras.layers.Layer):
            continue
        seen.add(id(call.op))
        for path, variable in weights_of(call.op).items():
            array = np.ascontiguousarray(to_numpy(variable))
            if "float" in array.dtype.name:  # not the states of random generators, which every training step moves
                found.update(f"{path}\0{array.shape}\0{array.dtype.name}\0".encode())
                found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()
