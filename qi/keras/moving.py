"""Weights that a layer's own call changes in inference: frozen, they would leave their grid."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import keras

from qi.keras.graph import Call
from qi.keras.variables import is_builtin, weights_of

__all__ = ["MOVES", "moved_by"]

MOVES = "its layer's call changes it, also in inference: it would leave any grid"


class _Watched(keras.Operation):
    """Runs a layer, and remembers what it assigned to."""

    def __init__(self, layer: keras.layers.Layer) -> None:
        super().__init__()
        self.layer = layer
        self.changed: set[str] = set()

    def call(self, *args: Any, **kwargs: Any) -> Any:
        with keras.StatelessScope() as scope:
            outputs = self.layer(*args, **kwargs)
        self.changed |= {p for p, v in weights_of(self.layer).items() if scope.get_current_value(v) is not None}
        return outputs


def moved_by(call: Call) -> set[str]:
    """The paths of the weights that a layer of the user's own assigns to when it is called; it is tried on symbolic tensors.

    Args:
        call: of a built layer, which stays as it is. Of one that can't run on the shapes of its inputs, nothing is known.
    """
    layer = call.op
    if not isinstance(layer, keras.layers.Layer) or all(is_builtin(part) for part in layer._flatten_layers()):
        return set()
    watched = _Watched(layer)
    given = [keras.KerasTensor(value.shape, dtype=value.dtype) for value in call.inputs]
    with suppress(Exception):  # of users' code
        args, kwargs = call.arguments(given)
        watched.compute_output_spec(*args, **kwargs)
    return watched.changed
