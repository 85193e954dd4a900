"""Lowering of activation functions, as layers, as ``keras.ops`` and within other layers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from qi.ir.graph import Tensor
from qi.keras.fold import activation_name
from qi.keras.lowering import Site, lowering

__all__ = ["CARRIED", "activate"]

# Functions that are one of qi.ir's by another name.
_UNARY = {
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "silu": "silu",
    "swish": "silu",
    "hard_sigmoid": "hard_sigmoid",
    "hard_silu": "hard_swish",
    "hard_swish": "hard_swish",
    "exponential": "exp",
    "exp": "exp",
    "softplus": "softplus",
    "abs": "abs",
    "absolute": "abs",
    "negative": "negative",
    "sqrt": "sqrt",
    "rsqrt": "rsqrt",
    "square": "square",
    "log": "log",
}
_WITH_OPTIONS = ("linear", "relu", "relu6", "gelu", "elu", "leaky_relu", "softmax")

CARRIED = tuple(sorted(name for name in (*_WITH_OPTIONS, *_UNARY) if hasattr(keras.activations, name)))
"""The functions of `keras.activations` that have a lowering."""


def activate(site: Site, x: Tensor, name: str, **options: Any) -> Tensor:
    """Adds an activation function by its Keras name.

    Args:
        site: the call.
        x: what to apply it to.
        name: as of `keras.activations`.
        options: its parameters where they differ from Keras' defaults.

    Raises:
        UnsupportedError: a function without a lowering.
    """
    if name == "linear":
        return x
    emit = lambda kind, **attrs: site.emit(kind, [x], x.shape, suffix=name, **attrs)
    if name in ("relu", "relu6"):
        return emit("relu", max_value=6 if name == "relu6" else None)
    if name in _UNARY:
        return emit("unary", function=_UNARY[name], alpha=None)
    if name == "gelu":
        return emit("unary", function="gelu_tanh" if options.get("approximate", False) else "gelu", alpha=None)
    if name == "elu":
        return emit("unary", function="elu", alpha=float(options.get("alpha", 1.0)))
    if name == "leaky_relu":
        return emit("unary", function="leaky_relu", alpha=float(options.get("negative_slope", 0.2)))
    if name == "softmax":
        return emit("softmax", axis=_axis(site, x, options.get("axis", -1)))
    raise site.refuse(f"whose activation {name!r} has no integer form", f"use one of {', '.join(CARRIED)}")


def _axis(site: Site, x: Tensor, axis: Any) -> int:
    if not isinstance(axis, int):
        raise site.refuse(f"a softmax over several axes {axis}")
    return axis % len(x.shape)


@lowering("Activation")
def _activation(site: Site) -> Tensor:
    return activate(site, site.x, activation_name(site.layer))


@lowering("ReLU")
def _relu(site: Site) -> Tensor:
    layer = site.layer
    if layer.threshold:
        raise site.refuse(f"with threshold={layer.threshold}", "train it with threshold=0")
    top = None if layer.max_value is None else float(layer.max_value)
    if layer.negative_slope:
        if top is not None:
            raise site.refuse("with negative_slope and max_value", "use LeakyReLU, and keras.ops.minimum behind it")
        return activate(site, site.x, "leaky_relu", negative_slope=layer.negative_slope)
    return site.emit("relu", [site.x], max_value=top)


@lowering("LeakyReLU")
def _leaky_relu(site: Site) -> Tensor:
    return activate(site, site.x, "leaky_relu", negative_slope=float(site.layer.negative_slope))


@lowering("ELU")
def _elu(site: Site) -> Tensor:
    return activate(site, site.x, "elu", alpha=float(site.layer.alpha))


@lowering("PReLU")
def _prelu(site: Site) -> Tensor:
    return site.emit("prelu", [site.x, site.weight("alpha")])


@lowering("ChannelCap")
def _channel_cap(site: Site) -> Tensor:
    """Of codes, the caps' codes on the same grid: rounding keeps the order, so the least of both is what is wanted."""
    caps = site.constant("caps", site.array("caps"))
    if site.x.qparams is not None:
        caps.qparams, caps.data = site.x.qparams, site.x.qparams.quantize(caps.data).codes
    return site.emit("minimum", [site.x, caps])


@lowering("Softmax")
def _softmax(site: Site) -> Tensor:
    if len(site.inputs) > 1:
        raise site.refuse("with a mask")
    return activate(site, site.x, "softmax", axis=site.layer.axis)


def _function(name: str) -> Any:
    def run(site: Site) -> Tensor:
        options = {
            key: getattr(site.layer, key)
            for key in ("alpha", "negative_slope", "axis", "approximate")
            if hasattr(site.layer, key)
        }
        return activate(site, site.x, name, **options)

    return run


# Operations of keras.ops, by class name.
_OPS = {
    "Relu": "relu",
    "Relu6": "relu6",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Silu": "silu",
    "HardSigmoid": "hard_sigmoid",
    "HardSilu": "hard_silu",
    "Gelu": "gelu",
    "Elu": "elu",
    "LeakyRelu": "leaky_relu",
    "Exp": "exp",
    "Softplus": "softplus",
    "Absolute": "abs",
    "Abs": "abs",
    "Negative": "negative",
    "Sqrt": "sqrt",
    "Rsqrt": "rsqrt",
    "Square": "square",
    "Log": "log",
}
for _kind, _name in _OPS.items():
    lowering(_kind)(_function(_name))
# keras.ops.softmax is a class of the same name as the layer: both have `axis`.


@lowering("Clip")
def _clip(site: Site) -> Tensor:
    low, high = float(site.layer.x_min), float(site.layer.x_max)
    if low != 0 or not np.isfinite(high):
        raise site.refuse(f"which clips to {low}..{high}", "clip at 0 below, as ReLU does")
    return site.emit("relu", [site.x], max_value=high)
