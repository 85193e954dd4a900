"""Which weights of a layer are quantized, and why the others are not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from qi.dispatch import Slot
from qi.keras.slots import SlotChoice, layer_policy, slots_of
from qi.quantizers import BaseInferableQuantizer
from qi.recipes import RuleBook, TensorSpec
from qi.recipes.choose import weight_quantizer

__all__ = ["has_policy", "layer_policy", "weight_quantizers", "weight_specs"]

WeightName = tuple[str, str, str]
"""What rules know a weight by: the path of a layer in the model, its class, the path of the weight within it."""


def has_policy(op: Any) -> bool:
    """Whether any weight of a built layer can be quantized."""
    return isinstance(op, keras.layers.Layer) and any(choice.slot is not None for choice in slots_of(op).values())


def weight_quantizers(
    op: Any,
    path: str,
    weights: Mapping[str, np.ndarray],
    book: RuleBook,
    kept: str,
    in_rules: Callable[[str], WeightName] | None = None,
    made: Mapping[str, BaseInferableQuantizer] | None = None,
) -> tuple[dict[str, BaseInferableQuantizer], dict[str, str]]:
    """The quantizer of each weight path that gets one, and the reason of each that doesn't.

    Args:
        op: as of `weight_specs`, and so are the five below.
        path: likewise.
        weights: likewise.
        book: likewise.
        kept: likewise.
        in_rules: likewise.
        made: quantizers by weight path that algorithms have chosen already.
    """
    specs, reasons = weight_specs(op, path, weights, book, kept, in_rules)
    known = made or {}
    quantizers = {
        name: known[name] if name in known else weight_quantizer(weights[name], spec, slot)
        for name, (spec, slot) in specs.items()
    }
    return quantizers, reasons


def weight_specs(
    op: Any,
    path: str,
    weights: Mapping[str, np.ndarray],
    book: RuleBook,
    kept: str,
    in_rules: Callable[[str], WeightName] | None = None,
) -> tuple[dict[str, tuple[TensorSpec, Slot]], dict[str, str]]:
    """How each weight path is quantized that is, and the reason of each that isn't.

    Rules may speak of the layer ("rnn", "RNN", "lstm_cell/kernel") or of any layer within it that holds the weight
    ("rnn/lstm_cell", "LSTMCell", "kernel"): the first rule that matches one of these decides.

    Args:
        op: the layer, built.
        path: its place in the model.
        weights: its float weights by path.
        book: the recipe's decisions.
        kept: why it wasn't folded or taken apart, where it is a batch normalization or an attention.
        in_rules: gives for a weight path the (layer path, layer class, weight path) that rules know it by, where these
            aren't its own.
    """
    choices = slots_of(op)
    specs: dict[str, tuple[TensorSpec, Slot]] = {}
    reasons: dict[str, str] = {}
    for name, array in weights.items():
        choice = choices[name]
        reason = _own_reason(name, array, choice, kept if isinstance(op, keras.layers.BatchNormalization) else "")
        spec = None
        if not reason:
            spec, reason = book.weights_for(*_names(name, path, choice, in_rules))
        if spec is None:
            reasons[name] = reason
        elif choice.slot is None:
            reasons[name] = f"attention is kept whole: {kept}" if kept else _priced(choice.why, array)
        elif array.size == 0:
            reasons[name] = "has no elements"
        else:
            specs[name] = spec, choice.slot
    return specs, reasons


def _names(
    name: str, path: str, choice: SlotChoice, in_rules: Callable[[str], WeightName] | None
) -> tuple[str, str, str, list[WeightName]]:
    """What rules know a weight by: first by the layer of the model, then by each layer within that."""
    first, *inner = choice.place.owners
    own = (path, type(first[0]).__name__, name)
    known = in_rules(name) if in_rules is not None else own
    found = [known]
    if known != own and "/" in known[2]:  # a part of a layer that was taken apart is a layer itself
        found.append(own)
    found += [(f"{path}/{first[1].removesuffix('/' + below)}", type(layer).__name__, below) for layer, below in inner]
    return (*known, found[1:])


def _own_reason(name: str, array: np.ndarray, choice: SlotChoice, unfolded: str) -> str:
    """Why a weight stays in float whatever the recipe says; "" where the recipe decides."""
    if "float" not in array.dtype.name:
        return f"holds {array.dtype}, not real numbers"
    if unfolded:
        return f"batch normalization is kept: {unfolded}"
    return choice.why if choice.slot is None and name.rpartition("/")[2] == "bias" else ""


def _priced(why: str, array: np.ndarray) -> str:
    """A reason with what 8 bits would bring."""
    return f"{why}; 8 bits would save {array.nbytes - array.size} bytes"
