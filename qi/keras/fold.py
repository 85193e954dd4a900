"""Rewrites that leave the float function as it is: batch normalization folded, activations split off."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import keras
import numpy as np

from qi.core import IntGrid
from qi.keras.graph import Call, Graph, Value
from qi.keras.layers import NotRebuildableError, rebuild_layer, weight_values
from qi.quantizers import BaseInferableQuantizer, QuantizationMethod
from qi.typing import Shape

__all__ = [
    "FUSED_ACTIVATIONS",
    "activation_name",
    "fold_batch_norms",
    "fold_gain",
    "folds_into_scales",
    "split_activation",
    "split_activations",
]

FUSED_ACTIVATIONS = frozenset({"linear", "relu", "relu6"})

_CHANNELS_LAST_KERNEL = ("Dense", "Conv1D", "Conv2D", "Conv3D")
_TRANSPOSED = ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
_DEPTHWISE = ("DepthwiseConv1D", "DepthwiseConv2D")
_SEPARABLE = ("SeparableConv1D", "SeparableConv2D")
_FRAMEWORKS = ("keras", "tensorflow", "torch", "jax")


def activation_name(op: Any) -> str:
    """Name of the activation function that a layer applies: "linear" where it has none.

    Functions that don't come from a framework may do anything under a known name: theirs begin with "custom_".
    """
    function = getattr(op, "activation", None)
    if function is None:
        return "linear"
    known = str(getattr(function, "__module__", "")).partition(".")[0] in _FRAMEWORKS
    name = str(getattr(function, "__name__", type(function).__name__)).strip("<>")
    return name if known else f"custom_{name}"


Kept = Callable[[Call, Call], str]
Folded = Callable[[Any, Any, str, np.ndarray], None]


def fold_batch_norms(graph: Graph, keep: Kept | None = None, on_fold: Folded | None = None) -> dict[str, str]:
    """Folds every batch normalization that directly follows a linear layer into that layer's weights.

    ``g = gamma / sqrt(variance + epsilon)``; ``kernel' = kernel * g``, ``bias' = beta + (bias - mean) * g``, in float64. A pair
    that is called several times, always together, is folded as well.

    Args:
        graph: changed in place.
        keep: says of a (layer call, normalization call) that could be folded why it shall not be; "" to fold.
        on_fold: hears of every fold: the layer, the new one, the kernel's path, and g in a shape that broadcasts to the kernel.

    Returns:
        for each normalization that stays, by its path, why.

    Raises:
        InputError: a weight holds NaN or an infinity.
    """
    kept: dict[str, str] = {}
    norms = [calls for calls in graph.calls_of().values() if calls[0].builtin_kind == "BatchNormalization"]
    for calls in norms:
        why = _why_not(graph, calls)
        before = calls[0].inputs[0].producer
        if not why and keep is not None and before is not None:
            why = keep(before, calls[0])
        why = why or _fold(graph, calls, on_fold)
        if why:
            kept[calls[0].path] = why
    return kept


def _why_not(graph: Graph, norms: list[Call]) -> str:
    first = norms[0]
    before = first.inputs[0].producer
    if before is None or _kernel_axis(before) is None:
        what = "the model's input" if before is None else f"{before.kind} {before.path!r}"
        return f"it follows {what}, into which it can't be folded"
    if activation_name(before.op) != "linear":
        return f"it follows the activation {activation_name(before.op)!r} of {before.path!r}"
    if any(call.arguments(call.inputs)[1].get("training") for call in norms):
        return "it is called with training=True: it normalizes by each batch"
    if first.inputs[0].dtype != first.outputs[0].dtype:
        return f"it turns {first.inputs[0].dtype} into {first.outputs[0].dtype}"
    pairs = {id(call.inputs[0].producer) for call in norms}
    if pairs != {id(call) for call in graph.calls_of()[id(before.op)]}:
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
    kind = call.builtin_kind
    # Both change what the kernel is: additions of low rank, and integers.
    if getattr(call.op, "lora_enabled", False) or getattr(call.op, "quantization_mode", None):
        return None
    if kind in _CHANNELS_LAST_KERNEL or kind in _DEPTHWISE:
        return "kernel", -1
    if kind in _TRANSPOSED:
        return "kernel", -2
    if kind in _SEPARABLE:
        return "pointwise_kernel", -1
    if kind == "EinsumDense":
        kernel, result = call.op.equation.replace(" ", "").split(",")[1].split("->")
        fits = result[-1] in kernel and (not call.op.bias_axes or result[-1] in call.op.bias_axes)
        return ("kernel", kernel.index(result[-1])) if fits else None
    return None


def fold_gain(before: Call, norm: Any) -> tuple[str, np.ndarray] | None:
    """(kernel path, ``g`` in float64 and a shape that broadcasts to the kernel) of a pair; None where nothing folds."""
    location = _kernel_axis(before)
    if location is None:
        return None
    path, axis = location
    own, kernel = weight_values(norm), weight_values(before.op)[path]
    variance = own["moving_variance"].astype(np.float64)
    gain = own.get("gamma", np.ones_like(variance)) / np.sqrt(variance + norm.epsilon)
    # A depthwise kernel is [*window, channels, multiplier]; its output channels run over both.
    own_shape = [-1 if i == axis % kernel.ndim else 1 for i in range(kernel.ndim)]
    depthwise = (1,) * (kernel.ndim - 2) + kernel.shape[-2:]
    return path, gain.reshape(depthwise if before.kind in _DEPTHWISE else own_shape)


def folds_into_scales(quantizer: BaseInferableQuantizer, shape: Shape, gain: np.ndarray) -> bool:
    """Whether a fold leaves the codes of a kernel of `shape` alone: one scale for each channel, and the negative of each code."""
    if quantizer.quantization_method[0] is not QuantizationMethod.SYMMETRIC or quantizer.group_size is not None:
        return False
    params = quantizer.granularity(len(shape)).param_shape(shape)
    narrow = isinstance(quantizer.grid, IntGrid) and quantizer.grid.narrow
    return (narrow or bool(np.all(gain >= 0))) and np.broadcast_shapes(gain.shape, params) == params


def _folded(before: Call, norm: Any, path: str, gain: np.ndarray) -> Any:
    """The layer of `before` with the normalization in its weights."""
    own, weights = weight_values(norm), weight_values(before.op)
    mean = own["moving_mean"].astype(np.float64)
    shift = weights.get("bias", np.zeros_like(mean)).astype(np.float64) - mean
    bias = own.get("beta", 0.0) + shift * gain.reshape(-1)
    kernel, dtype = weights[path].astype(np.float64), weights[path].dtype
    values = {path: (kernel * gain).astype(dtype), "bias": bias.astype(dtype)}
    changes: dict[str, Any] = {"use_bias": True}
    if before.kind == "EinsumDense":
        changes = {"bias_axes": before.op.bias_axes or before.op.equation.replace(" ", "")[-1]}
    return rebuild_layer(before.op, changes, values)


def _fold(graph: Graph, norms: list[Call], on_fold: Folded | None) -> str:
    """Folds a normalization into the layer before it; says why where that layer can't be rebuilt."""
    pairs = [(before, call) for call in norms if (before := call.inputs[0].producer) is not None]
    first = pairs[0][0]
    found = fold_gain(first, norms[0].op)
    if found is None:
        return f"{first.path!r} takes no fold"
    try:
        folded = _folded(first, norms[0].op, *found)
    except NotRebuildableError as error:
        return f"{first.path!r} can't be copied: {error}"
    if on_fold is not None:
        on_fold(first.op, folded, *found)
    for before, call in pairs:
        before.op = folded
        before.fused.append(f"{call.kind} {call.path}")
        graph.calls.remove(call)
        graph.replace(call.outputs[0], call.inputs[0])
    return ""


def split_activations(graph: Graph, has_policy: Any, fused: Collection[str] = FUSED_ACTIVATIONS) -> None:
    """Gives an activation argument that integer kernels can't fuse (all but relu and relu6) a layer of its own.

    Args:
        graph: changed in place.
        has_policy: tells of a layer whether its weights are quantized.
        fused: the activations that stay arguments.
    """
    for op, calls in [(calls[0].op, calls) for calls in graph.calls_of().values()]:
        name = activation_name(op)
        # Whoever wrote a class of their own decides what it does with its activation.
        within = isinstance(op, keras.layers.RNN)  # its activation belongs to each step
        if name in fused or within or not calls[0].builtin_kind or not has_policy(op):
            continue
        try:
            linear = rebuild_layer(op, {"activation": "linear"})
        except NotRebuildableError:
            continue
        split_activation(graph, calls, op, linear)


def split_activation(graph: Graph, calls: list[Call], op: Any, linear: Any) -> None:
    """Puts a layer without an activation, and a layer for that, in the place of one.

    Args:
        graph: changed in place.
        calls: all of the layer's.
        op: the layer with the activation.
        linear: what is called in its place.
    """
    activation, name = op.activation, activation_name(op)
    if not isinstance(activation, keras.layers.Layer):
        activation = keras.layers.Activation(activation, name=f"{op.name}_{name}", dtype=op.dtype_policy)
    for call in calls:
        _split(graph, call, linear, activation, name)


def _split(graph: Graph, call: Call, linear: Any, activation: Any, name: str) -> None:
    call.op = linear
    result = call.outputs[0]
    middle = Value(result.shape, result.dtype, call)
    site = call.site.replace(call.path, f"{call.path}/{name}", 1)
    after = Call(activation, f"{call.path}/{name}", site, [middle], [result], split_from=call)
    call.outputs, result.producer = [middle], after
    graph.calls.insert(graph.calls.index(call) + 1, after)
