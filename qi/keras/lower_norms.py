"""Lowering of normalizations by what they are given; those by running statistics are folded before."""

from __future__ import annotations

import math

import numpy as np

from qi.ir.graph import Tensor
from qi.keras.lowering import Site, lowering

__all__: list[str] = []


def _axes(site: Site) -> list[int]:
    """The axes that a layer normalizes over, in order."""
    axis = site.layer.axis
    return sorted(a % len(site.shape) for a in ([axis] if isinstance(axis, int) else axis))


@lowering("LayerNormalization")
def _layer_norm(site: Site) -> Tensor:
    layer, rank, axes = site.layer, len(site.shape), _axes(site)
    if getattr(layer, "rms_scaling", False):
        raise site.refuse("with rms_scaling")
    sizes = [n if i in axes else 1 for i, n in enumerate(site.shape)]
    apart = axes != list(range(axes[0], rank))  # then they need sizes of 1 between and behind them to broadcast
    change = (lambda array: array.reshape(sizes[1:])) if apart else (lambda array: array)
    weights = [site.weight(path, change) for path in ("gamma", "beta") if site.has(path)]
    if weights and len(weights) < 2:
        gamma = weights[0] if site.has("gamma") else site.constant("gamma", np.ones(weights[0].shape, np.float32))
        beta = weights[0] if site.has("beta") else site.constant("beta", np.zeros(weights[0].shape, np.float32))
        weights = [gamma, beta]
    return site.emit("layer_norm", [site.x, *weights], axes=axes, epsilon=float(layer.epsilon))


@lowering("RMSNormalization")
def _rms_norm(site: Site) -> Tensor:
    axes = _axes(site)
    sizes = [n if i in axes else 1 for i, n in enumerate(site.sizes(site.x), 1)]
    scale = site.weight("scale", lambda array: array.reshape(sizes))
    return site.emit("rms_norm", [site.x, scale], axes=axes, epsilon=float(site.layer.epsilon))


@lowering("UnitNormalization")
def _unit_norm(site: Site) -> Tensor:
    """``x / sqrt(sum(x * x))`` by the mean of squares. Keras' least sum, 1e-12, is added; no code is so small as to tell."""
    axes = _axes(site)
    sizes = site.sizes(site.x)
    count = math.prod(sizes[axis - 1] for axis in axes)
    factor = site.constant("factor", np.full(1, 1 / math.sqrt(count), np.float32))
    return site.emit("rms_norm", [site.x, factor], axes=axes, epsilon=1e-12 / count)


@lowering("GroupNormalization")
def _group_norm(site: Site) -> Tensor:
    """Channels lie apart as [groups, channels of one]; each group is normalized over all places."""
    layer, shape = site.layer, site.shape
    rank, sizes = len(shape), site.sizes(site.x)
    if layer.axis % rank != rank - 1:
        raise site.refuse(f"with axis={layer.axis}", "put the channels last")
    groups = sizes[-1] if layer.groups == -1 else int(layer.groups)
    apart = (groups, sizes[-1] // groups)
    x = site.reshape(site.x, (*shape[:-1], *apart), "apart")
    change = lambda array: array.reshape(apart)
    gamma = site.weight("gamma", change) if site.has("gamma") else site.constant("gamma", np.ones(apart, np.float32))
    beta = site.weight("beta", change) if site.has("beta") else site.constant("beta", np.zeros(apart, np.float32))
    axes = [*range(1, rank - 1), rank]
    y = site.emit("layer_norm", [x, gamma, beta], x.shape, suffix="normalized", axes=axes, epsilon=float(layer.epsilon))
    return site.reshape(y, shape, "")
