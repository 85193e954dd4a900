"""Lowering of layers that are made of one or several others: each is lowered as if it stood in the graph itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from qi.ir.graph import Tensor
from qi.keras.lower_linear import back, depthwise_kernel
from qi.keras.lower_volumes import average_pool, convolve, max_pool
from qi.keras.lowering import LOWERINGS, Site, lowering

__all__: list[str] = []


def _within(site: Site, layer: Any, x: Tensor, shape: Any) -> Tensor:
    """The result of a layer that the call's own holds."""
    inner = site.within(layer, x, shape)
    if inner.kind not in LOWERINGS.names():
        raise inner.refuse("which has no lowering" if inner.kind else "which is no layer of Keras' own")
    inner.cast_inputs()
    result: Tensor = LOWERINGS.get(inner.kind)(inner)
    return result


@lowering("SpectralNormalization")
def _spectral(site: Site) -> Tensor:
    """In inference it changes nothing: its layer holds the kernel as it was divided in training."""
    return _within(site, site.layer.layer, site.x, site.shape)


@lowering("Pipeline", "Sequential")
def _one_by_one(site: Site) -> Tensor:
    x = site.x
    for layer in site.layer.layers:
        x = _within(site, layer, x, layer.compute_output_shape(x.shape))
    return x


# At each step -----------------------------------------------------------------------------------------------------------------

_ALONG_THE_LAST = frozenset(
    "Dense Activation ReLU LeakyReLU ELU Softmax LayerNormalization RMSNormalization UnitNormalization BatchNormalization "
    "Dropout SpatialDropout1D SpatialDropout2D GaussianDropout GaussianNoise AlphaDropout ActivityRegularization Identity "
    "Rescaling Embedding".split()
)
"""Layers that take any number of axes in front of the last, and treat them alike."""
_ROWS = frozenset("Conv1D DepthwiseConv1D SeparableConv1D MaxPooling1D AveragePooling1D ZeroPadding1D".split())
"""Layers on sequences, which are rows of an image here."""


@lowering("TimeDistributed")
def _time_distributed(site: Site) -> Tensor:
    """Steps aren't samples here: they stay an axis of their own."""
    layer = site.layer.layer
    inner = site.within(layer, site.x, site.shape)
    kind = inner.kind
    if kind in _ALONG_THE_LAST:
        axes = np.ravel(getattr(layer, "axis", -1))
        if any(axis >= 0 and axis != len(site.x.shape) - 2 for axis in axes) or (axes < -1).any():
            raise inner.refuse(f"over axes {axes.tolist()} of each step", "let it work along the last axis")
        return _within(site, layer, site.x, site.shape)
    if kind in ("Flatten", "Reshape"):
        return site.reshape(site.x, site.shape, "")
    if kind in _ROWS:
        return back(site, _within(site, layer, site.x, site.shape))
    if kind in ("Conv2D", "DepthwiseConv2D"):
        return _convolved(inner, kind)
    if kind in ("MaxPooling2D", "AveragePooling2D"):
        pool, strides = ([1, *(int(n) for n in v)] for v in (layer.pool_size, layer.strides))
        return (max_pool if kind.startswith("Max") else average_pool)(inner, pool, strides, layer.padding)
    if kind.startswith("Global") and kind[-2:] in ("1D", "2D"):
        return _global(inner, "max" if "Max" in kind else "mean")
    raise inner.refuse("at each step of TimeDistributed", "call it on parts of the sequence, as in x[:, 0]")


def _convolved(inner: Site, kind: str) -> Tensor:
    """A convolution of volumes whose window is one step deep."""
    layer = inner.layer
    kernel = inner.weight("kernel") if kind == "Conv2D" else depthwise_kernel(inner, "kernel")
    how = [[1, *(int(n) for n in v)] for v in (layer.kernel_size, layer.strides, layer.dilation_rate)]
    if kind == "Conv2D":
        return convolve(inner, "conv2d", kernel, how, layer.padding, int(layer.groups))
    return convolve(inner, "depthwise_conv2d", kernel, how, layer.padding)


def _global(inner: Site, kind: str) -> Tensor:
    """Over all places of each step, which lie in one row."""
    batch, steps, *_, channels = inner.x.shape
    x = inner.reshape(inner.x, (batch, steps, math.prod(inner.sizes(inner.x)[1:-1]), channels), "row")
    y = inner.emit(kind, [x], (batch, steps, channels), suffix="pool", axes=[2], keepdims=False)
    return inner.reshape(y, inner.shape, "")
