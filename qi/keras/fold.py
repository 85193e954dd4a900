"""Rewrites that leave the float function as it is: batch normalization folded, activations split off."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from qi.keras.graph import Call, Graph, Value
from qi.keras.layers import rebuild_layer, weight_values

__all__ = ["FUSED_ACTIVATIONS", "activation_name", "fold_batch_norms", "split_activations"]

FUSED_ACTIVATIONS = frozenset({"linear", "relu", "relu6"})

_CHANNELS_LAST_KERNEL = ("Dense", "Conv1D", "Conv2D", "Conv3D")
_TRANSPOSED = ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
_DEPTHWISE = ("DepthwiseConv1D", "DepthwiseConv2D")
_SEPARABLE = ("SeparableConv1D", "SeparableConv2D")


def activation_name(op: Any) -> str:
    """Name of the activation function that a layer applies: "linear" where it has none."""
    function = getattr(op, "activation", None)
    return "linear" if function is None else str(getattr(function, "__name__", type(function).__name__))


def fold_batch_norms(graph: Graph) -> dict[str, str]:
    """Folds every batch normalization that directly follows a linear layer into that layer's weights.

    ``g = gamma / sqrt(variance + epsilon)``; ``kernel' = kernel * g``, ``bias' = beta + (bias - mean) * g``, in float64. A pair
    that is called several times, always together, is folded as well.

    Returns:
        for each normalization that stays, by its path, why.
    """
    kept: dict[str, str] = {}
    norms = [calls for calls in graph.calls_of().values() if calls[0].kind == "BatchNormalization"]
    for calls in norms:
        why = _why_not(graph, calls)
        if why:
            kept[calls[0].path] = why
        else:
            _fold(graph, calls)
    return kept


def _why_not(graph: Graph, norms: list[Call]) -> str:
    first = norms[0]
    before = first.inputs[0].producer
    if before is None or _kernel_axis(before) is None:
        what = "the model's input" if before is None else f"{before.kind} {before.path!r}"
        return f"it follows {what}, into which it can't be folded"
    if activation_name(before.op) != "linear":
        return f"it follows the activation {activation_name(before.op)!r} of {before.path!r}"
    pairs = {id(call.inputs[0].producer) for call in norms}
    if pairs != {id(call) for call in graph.calls_of()[id(before.op)]} or len(pairs) != len(norms):
        return f"it or {before.path!r} is called without the other elsewhere"
    consumers, outputs = graph.consumers(), {id(value) for value in graph.flat_outputs()}
    if any(len(consumers[id(call.inputs[0])]) > 1 or id(call.inputs[0]) in outputs for call in norms):
        return f"the output of {before.path!r} is used elsewhere too"
    rank = len(first.inputs[0].shape)
    axis = first.op.axis if isinstance(first.op.axis, int) else first.op.axis[0]
    channel = 1 if getattr(before.op, "data_format", "channels_last") == "channels_first" else rank - 1
    return "" if axis % rank == channel else f"it normalizes axis {axis}, not the channels of {before.path!r}"


def _kernel_axis(call: Call) -> tuple[str, int] | None:
    """(weight path, axis of the output channels) of a layer that takes a fold; None for others."""
    kind = call.kind
    if kind in _CHANNELS_LAST_KERNEL or kind in _DEPTHWISE:
        return "kernel", -1
    if kind in _TRANSPOSED:
        return "kernel", -2
    if kind in _SEPARABLE:
        return "pointwise_kernel", -1
    if kind == "EinsumDense":
        kernel, result = call.op.equation.replace(" ", "").split(",")[1].split("->")
        fits = result[-1] in kernel and call.op.bias_axes in (None, result[-1])
        return ("kernel", kernel.index(result[-1])) if fits else None
    return None


def _folded(before: Call, norm: Any) -> Any:
    """The layer of `before` with the normalization in its weights."""
    own, weights = weight_values(norm), weight_values(before.op)
    mean, variance = own["moving_mean"].astype(np.float64), own["moving_variance"].astype(np.float64)
    gain = own.get("gamma", np.ones_like(mean)) / np.sqrt(variance + norm.epsilon)
    bias = own.get("beta", 0.0) + (weights.get("bias", np.zeros_like(mean)).astype(np.float64) - mean) * gain
    located = _kernel_axis(before)
    path, axis = located if located is not None else ("kernel", -1)
    kernel = weights[path].astype(np.float64)
    # A depthwise kernel is [*window, channels, multiplier]; its output channels run over both.
    own_shape = [-1 if i == axis % kernel.ndim else 1 for i in range(kernel.ndim)]
    shape = kernel.shape[-2:] if before.kind in _DEPTHWISE else own_shape
    values = {path: (kernel * gain.reshape(shape)).astype(np.float32), "bias": bias.astype(np.float32)}
    changes: dict[str, Any] = {"use_bias": True}
    if before.kind == "EinsumDense":
        changes = {"bias_axes": before.op.equation.replace(" ", "").split("->")[1][-1]}
    return rebuild_layer(before.op, changes, values)


def _fold(graph: Graph, norms: list[Call]) -> None:
    pairs = [(call.inputs[0].producer, call) for call in norms]
    folded = _folded(pairs[0][0], norms[0].op) if pairs[0][0] is not None else None
    for before, call in pairs:
        if before is not None:
            before.op = folded
            before.fused.append(f"{call.kind} {call.path}")
        graph.calls.remove(call)
        graph.replace(call.outputs[0], call.inputs[0])


def split_activations(graph: Graph, has_policy: Any) -> None:
    """Gives an activation argument that integer kernels can't fuse (all but relu and relu6) a layer of its own.

    Args:
        graph: changed in place.
        has_policy: tells of a layer whether its weights are quantized.
    """
    for op, calls in [(calls[0].op, calls) for calls in graph.calls_of().values()]:
        name = activation_name(op)
        if name in FUSED_ACTIVATIONS or not isinstance(op, keras.layers.Layer) or not has_policy(op):
            continue
        linear = rebuild_layer(op, {"activation": "linear"})
        activation = keras.layers.Activation(
            op.get_config()["activation"], name=f"{op.name}_{name}", dtype=op.dtype_policy
        )
        for call in calls:
            call.op = linear
            result = call.outputs[0]
            middle = Value(result.shape, result.dtype, call)
            site = call.site.replace(call.path, f"{call.path}/{name}", 1)
            after = Call(activation, f"{call.path}/{name}", site, [middle], [result])
            call.outputs, result.producer = [middle], after
            graph.calls.insert(graph.calls.index(call) + 1, after)
