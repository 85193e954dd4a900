"""What no model that is given may have: found before anything is made of it, and said in its own words."""

from __future__ import annotations

import re
from collections.abc import Mapping

import keras

from qi.errors import InputError, UnsupportedError
from qi.keras.graph import Graph

__all__ = ["check_copied", "check_graph", "check_layers"]

_NAMES = re.compile(r"[A-Za-z0-9_.\\/>-]*")  # those that TensorFlow has scopes for


def check_layers(model: keras.Model) -> None:
    """Refuses layers that ``model.quantize`` of Keras has quantized: what they compute with isn't their weights.

    Raises:
        UnsupportedError: there are some.
    """
    done = [(layer.name, mode) for layer in model._flatten_layers() if (mode := _mode(layer))]
    if done:
        name, mode = done[0]
        raise UnsupportedError(
            f"expected a float model; received {model.name!r}, in which Keras has quantized {len(done)} layers ({name!r} to "
            f"{mode}...); do start from the model as it was before model.quantize({mode!r})"
        )


def _mode(layer: keras.layers.Layer) -> str:
    """How Keras has quantized a layer; "" where it hasn't. The policy alone, given by a user, makes no codes of weights."""
    return str(getattr(layer, "quantization_mode", None) or "")


def check_graph(graph: Graph) -> None:
    """Refuses tensors without values, on which kernels may end the process, and names that TensorFlow can't run.

    Raises:
        InputError: there are some.
    """
    places = [(value.name, value) for value in graph.flat_inputs()]
    places += [(call.path, value) for call in graph.calls for value in call.outputs]
    for name, value in places:
        if value.shape is not None and 0 in value.shape:
            raise InputError(
                f"expected tensors with values in them; received one of shape {tuple(value.shape)} from {name!r}; do take it "
                "out of the model"
            )
    if keras.backend.backend() == "tensorflow":
        for call in graph.calls:
            if isinstance(call.op, keras.layers.Layer) and not _NAMES.fullmatch(call.op.name):
                raise InputError(
                    f"expected names of letters, digits and '_.-/' for layers, for TensorFlow runs no others; received "
                    f"{call.path!r}; do set another name"
                )


def check_copied(graph: Graph, notes: Mapping[str, str]) -> None:
    """Refuses to train layers that couldn't be copied: it would train the given model.

    Args:
        graph: of copies.
        notes: why layers aren't, by path.

    Raises:
        InputError: there are some with weights that train.
    """
    for call in graph.calls:
        if call.path in notes and getattr(call.op, "trainable_variables", None):
            raise InputError(
                f"expected layers that can be copied, for training must leave the given model as it is; {call.path!r} of class "
                f"{call.kind} is {notes[call.path]}; or do set its trainable to False"
            )
