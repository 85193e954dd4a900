"""Lowering of normalizations by what they are given; those by running statistics are folded before, or are products."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from qi.ir.graph import Tensor
from qi.torch.lowering import Laid, Site, lowering, plain_order

__all__: list[str] = []


def _array(site: Site, name: str, index: int) -> np.ndarray | None:
    """A parameter of a module, or a function's argument, if there is any."""
    if site.module is not None:
        return site.array(name) if site.has(name) else None
    given = site.option(name, index)
    if given is None:
        return None
    if not isinstance(given, Laid) or given.tensor.data is None:
        raise site.refuse(f"whose {name} depends on the input", "give it parameters")
    return np.asarray(given.tensor.values(), np.float32)


def _axes(site: Site) -> list[int]:
    shape = site.option("normalized_shape", 1)
    count = len(shape) if isinstance(shape, (tuple, list)) else 1
    rank = len(site.x.shape)
    return list(range(rank - count, rank))


@lowering("LayerNorm", "layer_norm")
def _layer_norm(site: Site) -> Laid:
    gamma, beta = _array(site, "weight", 2), _array(site, "bias", 3)
    epsilon = float(site.option("eps", 4, 1e-5))
    axes = _axes(site)
    x = site.ends_with(site.cast(site.x, "float32"), len(axes))
    given = [x.tensor, *_pair(site, gamma, beta)]
    return site.like(x, site.emit("layer_norm", given, x.tensor.shape, axes=axes, epsilon=epsilon))


def _pair(site: Site, gamma: np.ndarray | None, beta: np.ndarray | None) -> list[Tensor]:
    """Factor and shift, if there are any."""
    if gamma is None and beta is None:
        return []
    like: Any = gamma if gamma is not None else beta
    gamma, beta = (np.ones_like(like) if gamma is None else gamma), (np.zeros_like(like) if beta is None else beta)
    return [site.constant("gamma", gamma), site.constant("beta", beta)]


@lowering("RMSNorm", "rms_norm")
def _rms_norm(site: Site) -> Laid:
    axes = _axes(site)
    x = site.ends_with(site.cast(site.x, "float32"), len(axes))
    given, epsilon = _array(site, "weight", 2), site.option("eps", 3)
    scale = np.ones([site.shape[axis] or 1 for axis in axes], np.float32) if given is None else given
    epsilon = float(torch.finfo(torch.float32).eps if epsilon is None else epsilon)
    return site.like(
        x, site.emit("rms_norm", [x.tensor, site.constant("scale", scale)], x.tensor.shape, axes=axes, epsilon=epsilon)
    )


@lowering("GroupNorm", "group_norm")
def _group_norm(site: Site) -> Laid:
    """Channels, which lie last, are [groups, channels of one]; each group is normalized over all places."""
    x, rank = site.cast(site.x, "float32"), len(site.shape)
    groups, channels = int(site.option("num_groups", 1)), int(site.shape[1] or 0)
    apart = (groups, channels // groups)
    gamma, beta = _array(site, "weight", 2), _array(site, "bias", 3)
    pair = _pair(site, *(None if a is None else a.reshape(apart) for a in (gamma, beta)))
    order = (0, *range(2, rank), 1) if rank > 2 else plain_order(rank)
    given = site.laid(site.unflat(x), order)
    held = site.reshape(given, (*given.shape[:-1], *apart), "apart")
    epsilon, axes = float(site.option("eps", 4, 1e-5)), [*range(1, rank - 1), rank]
    y = site.emit("layer_norm", [held, *pair], held.shape, suffix="normalized", axes=axes, epsilon=epsilon)
    return site.gives(site.reshape(y, given.shape, ""), order)


@lowering("InstanceNorm1d", "InstanceNorm2d")
def _instance_norm(site: Site) -> Laid:
    """Each channel is normalized over its places."""
    layer, rank = site.module, len(site.shape)
    if layer.running_mean is not None:
        raise site.refuse("with track_running_stats=True", "use it without, or BatchNorm")
    x = site.last(site.cast(site.x, "float32"))
    axes = list(range(1, rank - 1))
    pair = _pair(site, _array(site, "weight", 0), _array(site, "bias", 0))
    y = site.emit("layer_norm", [x, *pair], x.shape, axes=axes, epsilon=float(layer.eps))
    return site.gives(y, (0, *range(2, rank), 1))
