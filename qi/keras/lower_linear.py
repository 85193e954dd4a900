"""Lowering of convolutions, products and what is folded into them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from qi.core import PerChannel, PerGroup, QParams
from qi.ir.graph import Tensor
from qi.keras.lowering import Site, lowering
from qi.keras.variables import to_numpy, weights_of

__all__ = ["back", "bias_of", "channels_last", "depthwise_kernel", "image", "pads_of", "same_pads"]


def _pair(value: Any) -> list[int]:
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    return [int(v) for v in ([1, *values] if len(values) == 1 else values)]


def same_pads(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """What "same" adds before and after: as much as a window needs, the odd one after."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def pads_of(
    site: Site, sizes: tuple[int, ...], kernel: list[int], strides: list[int], dilation: list[int], padding: str
) -> list[int]:
    """Padding as [top, bottom, left, right].

    Args:
        site: for errors.
        sizes: height and width of the input.
        kernel: of the window: height and width.
        strides: likewise.
        dilation: likewise.
        padding: "valid", "same" or "causal" (along the width only).
    """
    if padding == "valid":
        return [0, 0, 0, 0]
    if padding == "causal":
        return [0, 0, (kernel[1] - 1) * dilation[1], 0]
    if padding != "same":
        raise site.refuse(f"with padding={padding!r}")
    return [pad for axis in range(2) for pad in same_pads(sizes[axis], kernel[axis], strides[axis], dilation[axis])]


def channels_last(site: Site) -> None:
    """Refuses layers that take their channels first."""
    if getattr(site.layer, "data_format", "channels_last") != "channels_last":
        raise site.refuse("with data_format='channels_first'", "use data_format='channels_last'")


def image(site: Site, x: Tensor) -> Tensor:
    """A sequence as an image of height 1; images as they are."""
    channels_last(site)
    if len(x.shape) == 4:
        return x
    if len(x.shape) != 3:
        raise site.refuse(f"with an input of rank {len(x.shape)}")
    batch, width, channels = x.shape
    return site.reshape(x, (batch, 1, width, channels), "image")


def back(site: Site, y: Tensor) -> Tensor:
    """An image of height 1 as the sequence that the call gives."""
    return y if len(y.shape) == len(site.shape) else site.reshape(y, site.shape, "sequence")


def _image_shape(site: Site) -> tuple[int | None, ...]:
    shape = site.shape
    return shape if len(shape) == 4 else (shape[0], 1, *shape[1:])


def bias_of(site: Site, path: str = "bias") -> list[Tensor]:
    """The bias, if the layer has one."""
    return [site.weight(path)] if site.has(path) else []


def _to_image(array: np.ndarray) -> np.ndarray:
    """A kernel of a 1-D convolution as that of a 2-D one."""
    return array[None] if array.ndim == 3 else array


def _convolved(site: Site, x: Tensor, kind: str, kernel: Tensor, size: Any, **attrs: Any) -> Tensor:
    layer = site.layer
    x = image(site, x)
    strides, dilation, size = _pair(layer.strides), _pair(layer.dilation_rate), _pair(size)
    if len(site.x.shape) == 3:
        strides[0] = dilation[0] = size[0] = 1
    pads = pads_of(site, site.sizes(x), size, strides, dilation, layer.padding)
    shape = (*_image_shape(site)[:3], kernel.shape[-1])
    y = site.emit(
        kind,
        [x, kernel, *bias_of(site)],
        shape,
        suffix="linear",
        strides=strides,
        pads=pads,
        dilation=dilation,
        activation="none",
        **attrs,
    )
    return site.activate(back(site, y))


@lowering("Conv1D", "Conv2D")
def _conv(site: Site) -> Tensor:
    kernel = site.weight("kernel", _to_image)
    return _convolved(site, site.x, "conv2d", kernel, site.layer.kernel_size, groups=int(site.layer.groups))


@lowering("DepthwiseConv1D", "DepthwiseConv2D")
def _depthwise(site: Site) -> Tensor:
    return _convolved(site, site.x, "depthwise_conv2d", depthwise_kernel(site, "kernel"), site.layer.kernel_size)


def depthwise_kernel(site: Site, path: str) -> Tensor:
    """[height, width, channels, multiplier] as [height, width, channels * multiplier], a scale for each of the last."""
    kernel = site.weight(path, _to_image)
    codes, qparams = np.asarray(kernel.data), kernel.qparams
    height, width, channels, multiplier = codes.shape
    data = codes.reshape(height, width, channels * multiplier)
    if qparams is not None and isinstance(qparams.granularity, PerGroup) and qparams.granularity.size > 1:
        raise site.refuse(f"with scales of {qparams.granularity}", "give its weights one scale for each channel")
    if qparams is not None and qparams.scale.size > 1:
        expand: Callable[[np.ndarray], np.ndarray] = lambda a: np.broadcast_to(a, (1, 1, channels, multiplier)).reshape(
            1, 1, -1
        )
        qparams = QParams(expand(qparams.scale), expand(qparams.zero_point), qparams.grid, PerChannel(2))
    return Tensor(kernel.name, data.shape, kernel.dtype, qparams, data)


@lowering("SeparableConv1D", "SeparableConv2D")
def _separable(site: Site) -> Tensor:
    """One that wasn't taken apart before it was quantized."""
    layer = site.layer
    x, kernel = image(site, site.x), depthwise_kernel(site, "depthwise_kernel")
    strides, dilation, size = _pair(layer.strides), _pair(layer.dilation_rate), _pair(layer.kernel_size)
    if len(site.x.shape) == 3:
        strides[0] = dilation[0] = size[0] = 1
    pads = pads_of(site, site.sizes(x), size, strides, dilation, layer.padding)
    shape = (*_image_shape(site)[:3], kernel.shape[-1])
    middle = site.emit(
        "depthwise_conv2d",
        [x, kernel],
        shape,
        suffix="depthwise",
        strides=strides,
        pads=pads,
        dilation=dilation,
        activation="none",
    )
    pointwise = site.weight("pointwise_kernel", _to_image)
    one: dict[str, Any] = {
        "strides": [1, 1],
        "pads": [0, 0, 0, 0],
        "dilation": [1, 1],
        "groups": 1,
        "activation": "none",
    }
    y = site.emit("conv2d", [middle, pointwise, *bias_of(site)], _image_shape(site), suffix="pointwise", **one)
    return site.activate(back(site, y))


@lowering("Conv1DTranspose", "Conv2DTranspose")
def _transposed(site: Site) -> Tensor:
    layer = site.layer
    x, kernel = image(site, site.x), site.weight("kernel", _to_image)
    strides, dilation, size = _pair(layer.strides), _pair(layer.dilation_rate), _pair(layer.kernel_size)
    if len(site.x.shape) == 3:
        strides[0] = dilation[0] = size[0] = 1
    pads: list[int] = []
    wanted = site.sizes(Tensor("", _image_shape(site)))
    for n, k, s, d, m in zip(site.sizes(x), size, strides, dilation, wanted, strict=False):
        full = (n - 1) * s + (k - 1) * d + 1
        before = max(full - m, 0) // 2
        pads += [before, full - m - before]
    y = site.emit(
        "conv2d_transpose",
        [x, kernel, *bias_of(site)],
        _image_shape(site),
        suffix="linear",
        strides=strides,
        pads=pads,
        dilation=dilation,
        activation="none",
    )
    return site.activate(back(site, y))


@lowering("Dense")
def _dense(site: Site) -> Tensor:
    y = site.emit("dense", [site.x, site.weight("kernel"), *bias_of(site)], suffix="linear", activation="none")
    return site.activate(y)


@lowering("BatchNormalization")
def _batch_norm(site: Site) -> Tensor:
    """One that couldn't be folded: a factor and a shift for each channel, in real numbers."""
    layer = site.layer
    axis = layer.axis if isinstance(layer.axis, int) else layer.axis[0]
    mean, variance = (site.array(path).astype(np.float64) for path in ("moving_mean", "moving_variance"))
    gain = 1 / np.sqrt(variance + layer.epsilon)
    gain = gain * site.array("gamma") if site.has("gamma") else gain
    shift = (site.array("beta") if site.has("beta") else 0) - mean * gain
    shape = [-1 if i == axis % len(site.shape) else 1 for i in range(len(site.shape))]
    factor, offset = (
        site.constant(name, a.reshape(shape).astype(np.float32)) for name, a in (("gain", gain), ("shift", shift))
    )
    y = site.emit("mul", [site.x, factor], suffix="scaled", activation="none")
    return site.emit("add", [y, offset], activation="none")


@lowering("LayerScale")
def _layer_scale(site: Site) -> Tensor:
    """Of keras.applications' ConvNeXt: a factor for each channel."""
    (path,) = weights_of(site.layer)
    return site.emit("mul", [site.x, site.constant("gamma", site.weight(path).values())], activation="none")


@lowering("Normalization")
def _normalization(site: Site) -> Tensor:
    """By the mean and variance of the data, known beforehand: a factor and a shift."""
    layer = site.layer
    mean, variance = (to_numpy(value).astype(np.float64) for value in (layer.mean, layer.variance))
    deviation = np.maximum(np.sqrt(variance), keras.config.epsilon())
    factor, shift = (deviation, mean) if layer.invert else (1 / deviation, -mean / deviation)
    y = site.emit("mul", [site.x, site.constant("factor", factor)], suffix="scaled", activation="none")
    return site.emit("add", [y, site.constant("shift", shift)], activation="none")
