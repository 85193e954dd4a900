"""Keras' hidden masks: which steps of a sequence count, handed on beside tensors (``_keras_mask``), unseen by any graph.

`Embedding(mask_zero=True)`, `Masking` and layers of users make them; most layers hand them on. What is taken apart here has to
say where they go: three layers turn a hidden mask into a tensor, leave it behind, and give it back.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from qi.keras.graph import Call, Graph

__all__ = ["HiddenMask", "MaskedAs", "Unmasked", "masked_values", "running_order"]

_ALL_OR_NONE = frozenset("Add Subtract Multiply Average Maximum Minimum".split())


@keras.saving.register_keras_serializable(package="qi")
class HiddenMask(layers.Layer):
    """The hidden mask of a sequence [batch, steps, ...] as truth values [batch, steps]; where it has none, every step counts.

    Args:
        repeats: how often the steps come one behind the other, [batch, repeats * steps].

    Example:
        >>> import keras, numpy as np
        >>> rows = keras.layers.Embedding(5, 2, mask_zero=True)(np.array([[3, 1, 0]]))
        >>> np.asarray(HiddenMask()(rows)).tolist()
        [[True, True, False]]
    """

    def __init__(self, repeats: int = 1, **kwargs: Any) -> None:
        # Of another type than its input, so Keras fills the mask in for the call alone: a graph would keep what makes it, too.
        super().__init__(**{"dtype": "bool", "autocast": False} | kwargs)
        self.repeats = repeats
        self.supports_masking = True

    def call(self, x: Any, mask: Any = None) -> Any:
        """The mask, which Keras hands in itself."""
        counts = keras.ops.ones(keras.ops.shape(x)[:2], "bool")
        if mask is not None:
            counts = keras.ops.logical_and(counts, keras.ops.cast(mask, "bool"))
        return counts if self.repeats == 1 else keras.ops.tile(counts, (1, self.repeats))

    def compute_output_spec(self, x: Any, mask: Any = None) -> Any:
        """Truth values for batch and steps."""
        batch, steps = x.shape[:2]
        return keras.KerasTensor((batch, None if steps is None else self.repeats * steps), "bool")

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        """None: a mask has none."""

    def get_config(self) -> dict[str, Any]:
        """With `repeats`."""
        return super().get_config() | {"repeats": self.repeats}


@keras.saving.register_keras_serializable(package="qi")
class Unmasked(layers.Layer):
    """Its input, without the hidden mask."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", "autocast": False} | kwargs)
        self.supports_masking = True  # knowingly

    def call(self, x: Any) -> Any:
        """A tensor of its own: the mask hangs on the given one."""
        return keras.ops.copy(x)

    def compute_output_spec(self, x: Any) -> Any:
        """As the input."""
        return keras.KerasTensor(x.shape, x.dtype)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        """None: that is what it is for."""


@keras.saving.register_keras_serializable(package="qi")
class MaskedAs(layers.Layer):
    """The first of two tensors, with the hidden mask of the second, if that has one."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", "autocast": False} | kwargs)
        self.supports_masking = True

    def call(self, inputs: Any) -> Any:
        """A tensor of its own, for the mask to hang on."""
        return keras.ops.copy(inputs[0])

    def compute_output_spec(self, inputs: Any) -> Any:
        """As the first input."""
        return keras.KerasTensor(inputs[0].shape, inputs[0].dtype)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        """The second input's."""
        return None if previous_mask is None else previous_mask[1]


def masked_values(graph: Graph) -> set[int]:
    """The ids of the values that may have a hidden mask; of all others it is known that they have none."""
    found: set[int] = set()
    for call in graph.calls:
        if isinstance(call.op, layers.Layer) and _gives_mask(call, [id(value) in found for value in call.inputs]):
            found |= {id(value) for value in call.outputs}
    return found


def _gives_mask(call: Call, masked: list[bool]) -> bool:
    """Whether what a layer gives may have a mask; `masked` says it of each input."""
    op: Any = call.op
    if isinstance(op, (HiddenMask, Unmasked)):
        return False
    if isinstance(op, MaskedAs):
        return masked[1]
    if call.builtin_kind in _ALL_OR_NONE:
        return all(masked)
    within = op._flatten_layers()
    if any(map(_makes_mask, within)):
        return True
    ends = bool(call.builtin_kind) and len(within) == 1 and not op.supports_masking
    return any(masked) and not ends


def _makes_mask(layer: Any) -> bool:
    if isinstance(layer, (layers.Embedding, layers.Masking)):
        return bool(getattr(layer, "mask_zero", True))
    owner = next(cls for cls in type(layer).__mro__ if "compute_mask" in vars(cls))
    return owner.__module__.partition(".")[0] != "keras"


def running_order(graph: Graph) -> list[Call]:
    """The calls in the order in which a Functional model of them runs, which tells who sees a mask that a layer erases.

    Keras goes by depth, the most calls that lead from one to an output; a shared layer's calls count as deep as any before.
    """
    makers = {id(value): call for call in graph.calls for value in call.outputs}
    calls = {id(call): call for call in graph.calls}
    depths: dict[int, int] = {}
    of_op: dict[int, int] = {}
    for call in reversed(graph.calls):
        depth = max(depths.get(id(call), 0), of_op.get(id(call.op), 0))
        depths[id(call)] = of_op[id(call.op)] = depth
        for maker in (makers[id(value)] for value in call.inputs if id(value) in makers):
            depths[id(maker)] = max(depth + 1, depths.get(id(maker), 0))
    return sorted(
        (calls[key] for key in depths), key=lambda call: -depths[id(call)]
    )  # as they came, where equally deep
