"""What the policies say of each weight of a layer, however deep within it the weight lies."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import keras

from qi.dispatch import LayerPolicy, Slot, policy_for
from qi.keras.variables import Place, class_names, places_of

__all__ = ["SlotChoice", "layer_policy", "slots_of"]

_CELLS = (keras.layers.LSTMCell, keras.layers.GRUCell, keras.layers.SimpleRNNCell)
_RECURRENT = (keras.layers.RNN, keras.layers.Bidirectional, *_CELLS)


@dataclass(frozen=True, eq=False)
class SlotChoice:
    """The slot of a weight; where it has none, `why` it stays in float."""

    place: Place
    slot: Slot | None
    why: str = ""


def layer_policy(op: Any) -> LayerPolicy | None:
    """The policy of a layer's class or its nearest ancestor."""
    return policy_for(class_names(op))


def slots_of(layer: keras.layers.Layer) -> dict[str, SlotChoice]:
    """The slot of every variable of a built layer by path, or why it has none.

    Of the layers that hold a variable the outermost counts whose policy names it. What no policy names goes by its shape:
    the last axis is that of the channels, and whatever has one number a channel is no matrix.
    """
    return {path: _choice(place) for path, place in places_of(layer).items()}


def _choice(place: Place) -> SlotChoice:
    for layer, path in place.owners:
        policy = layer_policy(layer)
        slot, why = (policy.slot(path), policy.why_float(path)) if policy is not None else (None, "")
        if slot is not None:
            return SlotChoice(place, _placed(layer, slot))
        if why:
            return SlotChoice(place, None, why)
    owner, name = place.owners[-1]
    policy, shape = layer_policy(owner), tuple(place.variable.shape)
    if name == "bias" and (policy is not None or any(isinstance(layer, _RECURRENT) for layer, _ in place.owners)):
        return SlotChoice(place, None, _bias(place))
    if policy is not None and policy.layer_type == type(owner).__name__:
        return SlotChoice(place, None, f"the policy of {policy.layer_type} doesn't quantize it")
    if name != "bias" and len(shape) > 1 and prod(shape[:-1]) != 1:
        return SlotChoice(place, Slot(name, input_axis=-2 if len(shape) == 2 else None))
    numbers = "one number" if prod(shape) == 1 else "one number for each channel" if name != "bias" else "a bias"
    return SlotChoice(place, None, f"{numbers}, which {type(owner).__name__} uses in float")


def _bias(place: Place) -> str:
    if any(isinstance(layer, _RECURRENT) for layer, _ in place.owners):
        return "bias: float32, as what recurrent layers add it to"
    return "bias: float32 here, int32 at input scale x weight scale in an integer file"


def _placed(layer: Any, slot: Slot) -> Slot:
    """The slot with the axes of this very layer: an EinsumDense's equation says where its channels lie."""
    if not isinstance(layer, keras.layers.EinsumDense):
        return slot
    kernel, result = layer.equation.replace(" ", "").split(",")[1].split("->")
    channels = [label for label in result if label in kernel]
    summed = [label for label in kernel if label not in result]
    return replace(
        slot,
        channel_axis=kernel.index(channels[-1]) if channels else slot.channel_axis,
        input_axis=kernel.index(summed[0]) if summed else None,
    )
