"""Lowering of convolutions, products with weights, look-ups, and normalizations that weren't folded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qi.core import PerGroup
from qi.ir.graph import Tensor
from qi.torch.lowering import Laid, Site, channels_last, lowering

__all__ = ["back", "image", "image_shape"]


def image(site: Site, x: Laid) -> Tensor:
    """A tensor as an image with its channels last; a sequence is one of height 1."""
    if len(x.shape) not in (3, 4):
        raise site.refuse(f"with an input of rank {len(x.shape)}", "give it images or sequences in batches")
    held = site.last(x)
    return held if len(x.shape) == 4 else site.reshape(held, (held.shape[0], 1, *held.shape[1:]), "image")


def image_shape(site: Site) -> tuple[int | None, ...]:
    """The shape of the call's output as an image with its channels last."""
    shape = tuple(site.shape[axis] for axis in channels_last(len(site.shape)))
    return shape if len(shape) == 4 else (shape[0], 1, *shape[1:])


def back(site: Site, y: Tensor) -> Laid:
    """An image with its channels last as the output of the call."""
    rank = len(site.shape)
    held = y if rank == 4 else site.reshape(y, (y.shape[0], *y.shape[2:]), "sequence")
    return site.gives(held, channels_last(rank))


def _pair(value: Any) -> list[int]:
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    return [int(v) for v in values]


def _rows(value: Any, rank: int) -> list[int]:
    """Options of each axis, with that of an image's height where there are sequences."""
    values = _pair(value)
    return [1, *values] if rank == 3 else values


def _pads(site: Site, kernel: list[int], dilation: list[int]) -> list[int]:
    """Padding as [top, bottom, left, right]."""
    padding = site.module.padding
    if padding == "valid":
        return [0, 0, 0, 0]
    if padding == "same":
        totals = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
        return [n for total in totals for n in (total // 2, total - total // 2)]
    amounts = _pair(padding)
    amounts = [0, *amounts] if len(site.shape) == 3 else amounts
    return [n for amount in amounts for n in (amount, amount)]


def _square(array: np.ndarray) -> np.ndarray:
    """A kernel of a 1-D convolution as that of a 2-D one."""
    return array[:, :, None] if array.ndim == 3 else array


@lowering("Conv1d", "Conv2d")
def _conv(site: Site) -> Laid:
    layer, rank = site.module, len(site.shape)
    if layer.padding_mode != "zeros" and any(_pair(layer.padding) if layer.padding != "valid" else ()):
        raise site.refuse(f"with padding_mode={layer.padding_mode!r}", "pad with zeros")
    kernel, strides, dilation = (_rows(v, rank) for v in (layer.kernel_size, layer.stride, layer.dilation))
    x = image(site, site.x)
    how: dict[str, Any] = {
        "strides": strides,
        "pads": _pads(site, kernel, dilation),
        "dilation": dilation,
        "activation": "none",
    }
    depthwise = layer.groups > 1 and layer.groups == layer.in_channels
    if depthwise:
        weights = site.weight("weight", _depthwise(site))
    else:
        weights = site.weight("weight", lambda a: _square(a).transpose(2, 3, 1, 0))
        how["groups"] = int(layer.groups)
    kind = "depthwise_conv2d" if depthwise else "conv2d"
    return back(site, site.emit(kind, [x, weights, *site.bias()], image_shape(site), suffix="linear", **how))


def _depthwise(site: Site) -> Callable[[np.ndarray], np.ndarray]:
    """From [channels * multiplier, 1, height, width] to [height, width, channels * multiplier]."""
    granularity = site.granularity("weight")
    if isinstance(granularity, PerGroup) and granularity.size > 1:
        raise site.refuse(f"with scales of {granularity}", "give its weights one scale for each channel")
    return lambda a: _square(a).transpose(2, 3, 0, 1)[..., 0]


@lowering("ConvTranspose1d", "ConvTranspose2d")
def _transposed(site: Site) -> Laid:
    layer, rank = site.module, len(site.shape)
    if layer.groups != 1:
        raise site.refuse(f"with groups={layer.groups}", "use groups=1")
    if len(site.args) > 1 or site.kwargs.get("output_size") is not None:
        raise site.refuse("with an output_size", "give it output_padding")
    kernel, strides, dilation = (_rows(v, rank) for v in (layer.kernel_size, layer.stride, layer.dilation))
    x, shape = image(site, site.x), image_shape(site)
    padding = _pair(layer.padding)
    pads: list[int] = []
    for axis, (k, s, d, p) in enumerate(
        zip(kernel, strides, dilation, [0, *padding] if rank == 3 else padding, strict=True), 1
    ):
        full = (int(x.shape[axis] or 0) - 1) * s + (k - 1) * d + 1
        pads += [p, full - int(shape[axis] or 0) - p]
    weights = site.weight("weight", lambda a: _square(a).transpose(2, 3, 1, 0))
    how: dict[str, Any] = {"strides": strides, "pads": pads, "dilation": dilation, "activation": "none"}
    return back(site, site.emit("conv2d_transpose", [x, weights, *site.bias()], shape, suffix="linear", **how))


@lowering("Linear")
def _linear(site: Site) -> Laid:
    """Behind a flattened image, the weights' columns are put in the order in which it lies."""
    x = site.x
    change: Callable[[np.ndarray], np.ndarray] = np.transpose
    granularity = site.granularity("weight")
    if len(x.shape) < 2:
        raise site.refuse("with an input of rank 1", "give it samples in batches")
    if x.flat is not None and not (isinstance(granularity, PerGroup) and granularity.size > 1):
        change = _columns(x.flat)
    else:
        x = site.ends_with(x, 1)
    weights = site.weight("weight", change)
    shape = [site.shape[axis] for axis in x.order]
    y = site.emit("dense", [x.tensor, weights, *site.bias()], shape, suffix="linear", activation="none")
    return site.gives(y, x.order)


def _columns(image: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """From [out, channels * places] to [places * channels, out]."""

    def change(array: np.ndarray) -> np.ndarray:
        if array.shape[1] == 1:  # scales of rows
            return array.T
        return np.moveaxis(array.reshape(len(array), *image), 1, -1).reshape(len(array), -1).T

    return change


@lowering("linear")
def _functional_linear(site: Site) -> Laid:
    """With weights that are a parameter of the model, in real numbers."""
    weight, bias = site.option("weight", 1), site.option("bias", 2)
    if not isinstance(weight, Laid) or weight.tensor.data is None:
        raise site.refuse("whose weights depend on the input", "use matmul")
    given = [site.plain(site.x), site.constant("weight", np.asarray(weight.tensor.values()).T)]
    if isinstance(bias, Laid):
        given.append(site.constant("bias", np.asarray(bias.tensor.values())))
    return site.gives(site.emit("dense", given, site.shape, suffix="linear", activation="none"))


@lowering("Embedding")
def _embedding(site: Site) -> Laid:
    if site.module.max_norm is not None:
        raise site.refuse("with max_norm", "leave it out once the model is trained")
    ids = site.x if site.x.tensor.dtype in ("int32", "int64") else site.cast(site.x, "int32")
    order = (*ids.order, len(ids.shape))
    shape = [site.shape[axis] for axis in order]
    return site.gives(site.emit("embedding", [ids.tensor, site.weight("weight")], shape), order)


@lowering("BatchNorm1d", "BatchNorm2d")
def _batch_norm(site: Site) -> Laid:
    """One that couldn't be folded: a factor and a shift for each channel, in real numbers."""
    layer = site.module
    if layer.running_mean is None:
        raise site.refuse("with track_running_stats=False", "use GroupNorm or LayerNorm")
    mean, variance = (site.array(path).astype(np.float64) for path in ("running_mean", "running_var"))
    gain = 1 / np.sqrt(variance + layer.eps)
    gain = gain * site.array("weight") if site.has("weight") else gain
    shift = (site.array("bias") if site.has("bias") else 0) - mean * gain
    x = site.unflat(site.x)
    shape = [-1 if axis == 1 else 1 for axis in x.order]
    factor, offset = (site.constant(name, a.reshape(shape)) for name, a in (("gain", gain), ("shift", shift)))
    y = site.emit("mul", [x.tensor, factor], x.tensor.shape, suffix="scaled", activation="none")
    return site.like(x, site.emit("add", [y, offset], x.tensor.shape, activation="none"))
