"""Separable convolutions taken apart: runtimes run them as two operations, and the tensor in between has a grid too."""

from __future__ import annotations

from typing import Any

from keras import layers

from qi.keras.attention import ATTENTIONS
from qi.keras.graph import Call, Graph, Value
from qi.keras.layers import NotRebuildableError, rebuild_layer

__all__ = ["split_separable", "weight_in_rules"]

_PARTS: dict[str, tuple[Any, Any]] = {
    "SeparableConv1D": (layers.DepthwiseConv1D, layers.Conv1D),
    "SeparableConv2D": (layers.DepthwiseConv2D, layers.Conv2D),
}


def split_separable(graph: Graph) -> None:
    """Puts a depthwise and a pointwise convolution in the place of every separable one; the float function stays.

    Those of "block/sep" are called "block/sep/depthwise" and "block/sep/pointwise". The latter has the bias, the activation
    and what was folded. Classes of users stay as they are, and so do layers that their configuration can't rebuild.

    Args:
        graph: changed in place; the layers of the given model are only read.

    Raises:
        InputError: a weight holds NaN or an infinity.
    """
    for calls in graph.calls_of().values():
        if calls[0].builtin_kind not in _PARTS:
            continue
        try:
            depthwise, pointwise = _parts(calls[0])
        except NotRebuildableError:
            continue
        for call in calls:
            _split(graph, call, depthwise, pointwise)


def weight_in_rules(call: Call, weight: str) -> tuple[str, str, str]:
    """The (layer path, layer class, weight path) under which a recipe's rules know a weight: those of the given model."""
    given = call.split_from
    if given is None or given.builtin_kind not in (*_PARTS, *ATTENTIONS):
        return call.path, call.kind, weight
    part = call.path.rpartition("/")[2]
    if given.builtin_kind in ATTENTIONS:
        return given.path, given.kind, f"{part}/{weight}"
    return given.path, given.kind, f"{part}_{weight}" if weight == "kernel" else weight


def _parts(call: Call) -> tuple[Any, Any]:
    """The two layers, built, with the weights of the layer called."""
    given = rebuild_layer(call.op)  # a copy, so that its activation and regularizers aren't shared with the given model
    common = {"data_format": given.data_format, "dtype": given.dtype_policy, "trainable": given.trainable}
    depthwise_class, pointwise_class = _PARTS[call.builtin_kind]
    depthwise = depthwise_class(
        given.kernel_size,
        strides=given.strides,
        padding=given.padding,
        dilation_rate=given.dilation_rate,
        depth_multiplier=given.depth_multiplier,
        use_bias=False,
        depthwise_initializer=given.depthwise_initializer,
        depthwise_regularizer=given.depthwise_regularizer,
        depthwise_constraint=given.depthwise_constraint,
        name=f"{given.name}_depthwise",
        **common,
    )
    pointwise = pointwise_class(
        given.filters,
        1,
        activation=given.activation,
        use_bias=given.use_bias,
        kernel_initializer=given.pointwise_initializer,
        kernel_regularizer=given.pointwise_regularizer,
        kernel_constraint=given.pointwise_constraint,
        bias_initializer=given.bias_initializer,
        bias_regularizer=given.bias_regularizer,
        bias_constraint=given.bias_constraint,
        activity_regularizer=given.activity_regularizer,
        name=f"{given.name}_pointwise",
        **common,
    )
    shape = call.inputs[0].shape
    depthwise.build(shape)
    pointwise.build(depthwise.compute_output_shape(shape))
    depthwise.kernel.assign(given.depthwise_kernel)
    pointwise.kernel.assign(given.pointwise_kernel)
    if given.use_bias:
        pointwise.bias.assign(given.bias)
    return depthwise, pointwise


def _split(graph: Graph, call: Call, depthwise: Any, pointwise: Any) -> None:
    """Two calls for one, which stays behind as it is: rules speak of it."""
    paths = [f"{call.path}/{part}" for part in ("depthwise", "pointwise")]
    sites = [call.site.replace(call.path, path, 1) for path in paths]
    result = call.outputs[0]
    first = Call(depthwise, paths[0], sites[0], call.inputs, [], call.arguments, split_from=call)
    middle = Value(tuple(depthwise.compute_output_shape(call.inputs[0].shape)), depthwise.compute_dtype, first)
    first.outputs = [middle]
    second = Call(pointwise, paths[1], sites[1], [middle], [result], fused=call.fused, split_from=call)
    result.producer = second
    position = graph.calls.index(call)
    graph.calls[position : position + 1] = [first, second]
