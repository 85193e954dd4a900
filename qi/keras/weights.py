"""Which weights of a layer are quantized, and why the others are not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from qi.dispatch import LayerPolicy, Slot, policy_for
from qi.keras.choose import weight_quantizer
from qi.keras.variables import class_names
from qi.quantizers import BaseInferableQuantizer
from qi.recipes import RuleBook

__all__ = ["has_policy", "layer_policy", "weight_quantizers"]


def layer_policy(op: Any) -> LayerPolicy | None:
    """The policy of a layer's class or its nearest ancestor."""
    return policy_for(class_names(op))


def has_policy(op: Any) -> bool:
    """Whether any weight of a layer can be quantized."""
    return layer_policy(op) is not None


def weight_quantizers(
    op: Any,
    path: str,
    weights: Mapping[str, np.ndarray],
    book: RuleBook,
    kept: str,
    in_rules: Callable[[str], tuple[str, str, str]] | None = None,
) -> tuple[dict[str, BaseInferableQuantizer], dict[str, str]]:
    """The quantizer of each weight path that gets one, and the reason of each that doesn't.

    Args:
        op: the layer.
        path: its place in the model.
        weights: its float weights by path.
        book: the recipe's decisions.
        kept: why it wasn't folded or taken apart, where it is a batch normalization or an attention.
        in_rules: gives for a weight path the (layer path, layer class, weight path) that rules know it by, where these
            aren't its own.
    """
    policy = layer_policy(op)
    quantizers: dict[str, BaseInferableQuantizer] = {}
    reasons: dict[str, str] = {}
    for name, array in weights.items():
        slot = policy.slot(name) if policy is not None else None
        reason = _own_reason(op, name, array, slot, kept if isinstance(op, keras.layers.BatchNormalization) else "")
        spec = None
        if not reason:
            spec, reason = book.weights_for(*(in_rules(name) if in_rules else (path, type(op).__name__, name)))
        if spec is None:
            reasons[name] = reason
        elif slot is None:
            reasons[name] = f"attention is kept whole: {kept}" if kept else _no_slot(op, policy)
        elif array.size == 0:
            reasons[name] = "has no elements"
        else:
            quantizers[name] = weight_quantizer(array, spec, _placed(op, slot))
    return quantizers, reasons


def _placed(op: Any, slot: Slot) -> Slot:
    """The slot with the axes of this very layer: an EinsumDense's equation says where its channels lie."""
    if not isinstance(op, keras.layers.EinsumDense):
        return slot
    kernel, result = op.equation.replace(" ", "").split(",")[1].split("->")
    channels = [label for label in result if label in kernel]
    summed = [label for label in kernel if label not in result]
    return replace(
        slot,
        channel_axis=kernel.index(channels[-1]) if channels else slot.channel_axis,
        input_axis=kernel.index(summed[0]) if summed else None,
    )


def _own_reason(op: Any, name: str, array: np.ndarray, slot: Slot | None, unfolded: str) -> str:
    """Why a weight stays in float whatever the recipe says; "" where the recipe decides."""
    if "float" not in array.dtype.name:
        return f"holds {array.dtype}, not real numbers"
    if unfolded:
        return f"batch normalization is kept: {unfolded}"
    if slot is None and name.rpartition("/")[2] == "bias":
        if isinstance(op, (keras.layers.RNN, keras.layers.Bidirectional)):
            return "bias: float32, as what recurrent layers add it to"
        return "bias: float32 here, int32 at input scale x weight scale in an integer file"
    return ""


def _no_slot(op: Any, policy: LayerPolicy | None) -> str:
    if policy is None:
        return f"{type(op).__name__} has no policy that says which of its weights to quantize"
    return f"the policy of {policy.layer_type} doesn't quantize it"
