"""Lowering of functions of one number, as modules, functions and methods of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qi.torch.lowering import Laid, Site, lowering

__all__: list[str] = []


def _each(site: Site, kind: str, *more: Any, x: Laid | None = None, suffix: str = "", **attrs: Any) -> Laid:
    """An operation on each number, however the tensor lies."""
    x = site.cast(site.x, "float32") if x is None else x
    return site.like(x, site.emit(kind, [x.tensor, *more], x.tensor.shape, suffix=suffix, **attrs))


def _unary(function: str) -> Callable[[Site], Laid]:
    return lambda site: _each(site, "unary", function=function, alpha=None)


_UNARY = {
    "sigmoid": ("Sigmoid", "sigmoid"),
    "tanh": ("Tanh", "tanh"),
    "silu": ("SiLU", "silu"),
    "hard_sigmoid": ("Hardsigmoid", "hardsigmoid"),
    "hard_swish": ("Hardswish", "hardswish"),
    "exp": ("exp",),
    "abs": ("abs",),
    "negative": ("neg",),
    "sqrt": ("sqrt",),
    "rsqrt": ("rsqrt",),
    "square": ("square",),
    "log": ("log",),
}
"""Functions of `qi.ir`, and the modules and functions of torch that they are."""

for _name, _kinds in _UNARY.items():
    lowering(*_kinds)(_unary(_name))


@lowering("ReLU", "relu")
def _relu(site: Site) -> Laid:
    return _each(site, "relu", max_value=None)


@lowering("ReLU6", "relu6")
def _relu6(site: Site) -> Laid:
    return _each(site, "relu", max_value=6)


@lowering("LeakyReLU", "leaky_relu")
def _leaky_relu(site: Site) -> Laid:
    return _each(site, "unary", function="leaky_relu", alpha=float(site.option("negative_slope", 1, 0.01)))


@lowering("ELU", "elu")
def _elu(site: Site) -> Laid:
    return _each(site, "unary", function="elu", alpha=float(site.option("alpha", 1, 1.0)))


@lowering("GELU", "gelu")
def _gelu(site: Site) -> Laid:
    tanh = site.kwargs.get("approximate", getattr(site.module, "approximate", "none")) == "tanh"
    return _each(site, "unary", function="gelu_tanh" if tanh else "gelu", alpha=None)


@lowering("Softplus", "softplus")
def _softplus(site: Site) -> Laid:
    beta = site.option("beta", 1, 1.0)
    if beta != 1:
        raise site.refuse(f"with beta={beta}", "use beta=1")
    return _each(site, "unary", function="softplus", alpha=None)


@lowering("PReLU", "prelu")
def _prelu(site: Site) -> Laid:
    given = site.option("weight", 1)
    alpha = site.array("weight") if site.module is not None else _values(site, given)
    if alpha.size == 1:
        return _each(site, "unary", function="leaky_relu", alpha=float(alpha.reshape(())))
    x = site.unflat(site.cast(site.x, "float32"))
    shape = [alpha.size if axis == 1 else 1 for axis in x.order]
    return _each(site, "prelu", site.constant("alpha", alpha.reshape(shape[1:])), x=x)


def _values(site: Site, given: Any) -> np.ndarray:
    if not isinstance(given, Laid) or given.tensor.data is None:
        raise site.refuse("with slopes that depend on the input", "use PReLU")
    return np.asarray(given.tensor.values(), np.float32)


@lowering("Softmax", "softmax")
def _softmax(site: Site) -> Laid:
    dim = site.option("dim", 1)
    if dim is None:
        raise site.refuse("without a dim", "name the axis, as in dim=-1")
    x = site.unflat(site.cast(site.x, "float32"))
    if int(dim) % len(x.shape) == x.batch:
        raise site.refuse("over the batch", "use another axis")
    return _each(site, "softmax", x=x, axis=x.axis(int(dim)))


@lowering("Hardtanh", "hardtanh")
def _hardtanh(site: Site) -> Laid:
    return _clipped(site, site.option("min_val", 1, -1.0), site.option("max_val", 2, 1.0))


@lowering("clamp", "clamp_min", "clamp_max")
def _clamp(site: Site) -> Laid:
    low = None if site.kind == "clamp_max" else site.option("min", 1)
    return _clipped(site, low, site.option("max", 1 if site.kind == "clamp_max" else 2))


def _clipped(site: Site, low: Any, high: Any) -> Laid:
    """A ReLU where the lower bound is 0; else the larger and the smaller of two numbers."""
    if isinstance(low, Laid) or isinstance(high, Laid):
        raise site.refuse("with bounds that are tensors", "clip to numbers")
    if low is not None and float(low) == 0 and (high is None or float(high) > 0):
        return _each(site, "relu", max_value=None if high is None else float(high))
    y = site.cast(site.x, "float32")
    for kind, bound in (("maximum", low), ("minimum", high)):
        if bound is not None:
            limit = site.constant(kind, np.full((1,) * len(y.shape), bound, np.float32))
            y = _each(site, kind, limit, x=y)
    return y


@lowering("pow")
def _pow(site: Site) -> Laid:
    exponent = site.option("exponent", 1)
    functions = {2: "square", 0.5: "sqrt", -0.5: "rsqrt"}
    if not isinstance(exponent, (int, float)) or exponent not in functions:
        raise site.refuse(f"with exponent={exponent}", "use squares and roots")
    return _each(site, "unary", function=functions[exponent], alpha=None)


_KEPT = (
    "Identity Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout dropout dropout1d dropout2d dropout3d "
    "alpha_dropout feature_alpha_dropout contiguous clone detach requires_grad alias positive"
).split()


@lowering(*_KEPT)
def _identity(site: Site) -> Laid:
    """What changes nothing in inference."""
    if site.module is None and "dropout" in site.kind and site.option("training", 2, True):
        raise site.refuse("which drops values in inference too", "give it training=self.training")
    return site.x


@lowering("float", "to", "type", "type_as", "half", "bfloat16", "double")
def _to_type(site: Site) -> Laid:
    """Real numbers are float32 in any case."""
    return site.cast(site.x, site.dtype)
