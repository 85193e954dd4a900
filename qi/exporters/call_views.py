"""What a call of a Keras layer or operation computes, in the words of `qi.exporters.vendor`: the table behind matching."""

from __future__ import annotations

from typing import Any

import numpy as np

from qi.exporters.match_graph import CallView

__all__ = ["view_of"]

_MOVES = frozenset(
    "Reshape Flatten Permute Transpose Swapaxes Moveaxis Ravel Squeeze ExpandDims ZeroPadding1D ZeroPadding2D ZeroPadding3D "
    "Dropout SpatialDropout1D SpatialDropout2D SpatialDropout3D AlphaDropout GaussianDropout GaussianNoise "
    "ActivityRegularization Identity StopGradient Masking Cast".split()
)
_KINDS = {
    kind: name
    for name, kinds in {
        "add": "Add",
        "sub": "Subtract",
        "mul": "Multiply",
        "div": "Divide TrueDivide",
        "maximum": "Maximum",
        "minimum": "Minimum",
        "concat": "Concatenate",
        "matmul": "Matmul Dot Einsum",
        "max": "MaxPooling1D MaxPooling2D MaxPooling3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D Max Amax",
        "average": "AveragePooling1D AveragePooling2D AveragePooling3D GlobalAveragePooling1D GlobalAveragePooling2D "
        "GlobalAveragePooling3D Mean",
        "relu": "ReLU Relu Relu6 Clip",
        "leaky_relu": "LeakyReLU LeakyRelu",
        "prelu": "PReLU",
        "elu": "ELU Elu",
        "softmax": "Softmax BandSoftmax",
        "sigmoid": "Sigmoid",
        "tanh": "Tanh",
        "norm": "LayerNormalization",
        "gelu": "Gelu",
        "hard_swish": "HardSilu",
        "resize": "UpSampling1D UpSampling2D UpSampling3D Resizing",
        "slice": "Cropping1D Cropping2D Cropping3D GetItem Slice",
        "split": "Split",
    }.items()
    for kind in kinds.split()
}
_FUNCTIONS = {
    "linear": "move",
    "relu": "relu",
    "relu6": "relu",
    "softmax": "softmax",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "gelu": "gelu",
    "elu": "elu",
    "leaky_relu": "leaky_relu",
    "hard_swish": "hard_swish",
    "hard_silu": "hard_swish",
}


def view_of(call: Any) -> CallView:
    """What matching has to know of a `qi.keras.graph.Call`."""
    from qi.keras.fold import activation_name
    from qi.keras.layers import weight_values
    from qi.keras.weights import layer_policy

    policy, kind = layer_policy(call.op), call.builtin_kind
    if policy is not None and policy.slots and hasattr(call.op, "weights"):
        slot, values = policy.slots[0], weight_values(call.op)
        if slot.path in values and "/" not in slot.path:  # a part of the layer multiplies with the others
            axes = (slot.channel_axis, -1) if "Depthwise" in policy.layer_type else (slot.channel_axis,)
            name = "embedding" if slot.path == "embeddings" else "linear"
            bias = values["bias"].astype(np.float32) if "bias" in values else None
            return CallView(call, name, slot.path, values[slot.path].astype(np.float32), axes, bias)
    if kind == "Activation":
        return CallView(call, _FUNCTIONS.get(activation_name(call.op), ""))
    if kind == "Rescaling":
        return CallView(call, "" if np.any(call.op.offset) else "mul")
    if kind == "ReLU" and call.op.negative_slope:
        return CallView(call, "leaky_relu")
    if kind in _MOVES and len(call.inputs) == 1:
        return CallView(call, "move")
    return CallView(call, _KINDS.get(kind or call.kind, "") if kind or call.kind == "BandSoftmax" else "")
