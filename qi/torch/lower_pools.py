"""Lowering of pools, means and maxima over axes, and of images that grow."""

from __future__ import annotations

from typing import Any

import numpy as np

from qi.torch.lower_linear import back, image, image_shape
from qi.torch.lowering import Laid, Site, lowering

__all__: list[str] = []


def _rows(value: Any, rank: int, one: int = 1) -> list[int]:
    """An option of each axis of an image; a sequence is one of height 1."""
    values = [int(v) for v in value] if isinstance(value, (tuple, list)) else [int(value)]
    if rank == 3:
        return [one, values[0]]
    return values if len(values) == 2 else values * 2


def _window(site: Site) -> tuple[list[int], list[int], list[int]]:
    """(size, strides, padding) of a pool's window."""
    rank = len(site.shape)
    size, stride = site.option("kernel_size", 1), site.option("stride", 2)
    pool = _rows(size, rank)
    strides = pool if stride is None or stride == [] else _rows(stride, rank)
    return pool, strides, _rows(site.option("padding", 3, 0), rank, 0)


def _behind(site: Site, pool: list[int], strides: list[int], padding: list[int]) -> list[int]:
    """Padding as [top, bottom, left, right]: behind, as much as the last window needs."""
    given, pads = _places(site, site.x), []
    for n, m, k, s, p in zip(given, image_shape(site)[1:3], pool, strides, padding, strict=True):
        pads += [p, max((int(m or 0) - 1) * s + k - n - p, 0)]
    return pads


def _places(site: Site, x: Laid) -> list[int]:
    sizes = site.sizes(x)[1:]
    return sizes if len(sizes) == 2 else [1, *sizes]


@lowering("MaxPool1d", "MaxPool2d", "max_pool1d", "max_pool2d")
def _max_pool(site: Site) -> Laid:
    """What lies outside of the image is left out of each window."""
    dilation, indices = site.option("dilation", 4, 1), site.option("return_indices", 6, False)
    if any(n != 1 for n in _rows(dilation, len(site.shape))):
        raise site.refuse(f"with dilation={dilation}", "use dilation=1")
    if indices:
        raise site.refuse("with return_indices=True", "use its values alone")
    pool, strides, padding = _window(site)
    pads = _behind(site, pool, strides, padding)
    x = image(site, site.x)
    return back(
        site, site.emit("max_pool2d", [x], image_shape(site), suffix="pool", pool=pool, strides=strides, pads=pads)
    )


@lowering("AvgPool1d", "AvgPool2d", "avg_pool1d", "avg_pool2d")
def _avg_pool(site: Site) -> Laid:
    """Padding is counted as zeros, as torch does by default: those are values then, in front of the pool."""
    pool, strides, padding = _window(site)
    if site.option("divisor_override", 6) is not None:
        raise site.refuse("with divisor_override", "leave it out")
    x, pads = image(site, site.x), _behind(site, pool, strides, padding)
    around = [n for n in padding for _ in range(2)]
    if site.option("ceil_mode", 4, False) and any(after > p for after, p in zip(pads, around, strict=True)):
        raise site.refuse(
            "with ceil_mode=True, which cuts the last windows", "pad the image before it, or use ceil_mode=False"
        )
    if any(padding):
        if not site.option("count_include_pad", 5, True):
            raise site.refuse(
                "with padding and count_include_pad=False, for which LiteRT has no pool", "use count_include_pad=True"
            )
        sizes = [n + 2 * p for n, p in zip(_places(site, site.x), padding, strict=True)]
        border = [[0, 0], *([p, p] for p in padding), [0, 0]]
        x = site.emit("pad", [x], (x.shape[0], *sizes, x.shape[3]), suffix="padded", pads=border)
    none: dict[str, Any] = {"pool": pool, "strides": strides, "pads": [0, 0, 0, 0]}
    return back(site, site.emit("avg_pool2d", [x], image_shape(site), suffix="pool", **none))


_ADAPTIVE = {
    "mean": ("AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d"),
    "max": ("AdaptiveMaxPool1d", "AdaptiveMaxPool2d", "adaptive_max_pool1d", "adaptive_max_pool2d"),
}


def _adaptive(kind: str) -> Any:
    """Over all places, or a pool by the number of windows, where they share the places evenly."""

    def run(site: Site) -> Laid:
        if site.option("return_indices", 2, False):
            raise site.refuse("with return_indices=True", "use its values alone")
        given, wanted = _places(site, site.x), [int(n or 0) for n in image_shape(site)[1:3]]
        if wanted == [1, 1]:
            x = site.last(site.x)
            axes = list(range(1, len(x.shape) - 1))
            shape = (x.shape[0], *[1] * len(axes), x.shape[-1])
            order = (0, *range(2, len(shape)), 1)
            return site.gives(site.emit(kind, [x], shape, suffix="pool", axes=axes, keepdims=True), order)
        if any(n % m for n, m in zip(given, wanted, strict=True)):
            raise site.refuse(
                f"whose windows of {given} places as {wanted} differ in size, which no runtime's pools do",
                "ask for output sizes that divide those of its input",
            )
        pool = [n // m for n, m in zip(given, wanted, strict=True)]
        name = "avg_pool2d" if kind == "mean" else "max_pool2d"
        how: dict[str, Any] = {"pool": pool, "strides": pool, "pads": [0, 0, 0, 0]}
        return back(site, site.emit(name, [image(site, site.x)], image_shape(site), suffix="pool", **how))

    return run


for _kind, _names in _ADAPTIVE.items():
    lowering(*_names)(_adaptive(_kind))


@lowering("mean", "amax")
def _reduce(site: Site) -> Laid:
    dim = site.option("dim", 1)
    if dim is None or dim == ():
        raise site.refuse("over all axes, the batch too", "name the axes")
    rank = len(site.x.shape)
    dims = sorted(int(d) % rank for d in (dim if isinstance(dim, (list, tuple)) else [dim]))
    if site.x.batch in dims:
        raise site.refuse("over the batch", "leave the batch alone")
    keep = bool(site.option("keepdim", 2, False))
    x = site.unflat(site.cast(site.x, "float32"))
    left = [axis for axis in x.order if keep or axis not in dims]
    order = [sorted(left).index(axis) for axis in left]
    shape = [site.shape[axis] for axis in order]
    kind = "mean" if site.kind == "mean" else "max"
    y = site.emit(kind, [x.tensor], shape, axes=sorted(x.axis(d) for d in dims), keepdims=keep)
    return site.gives(y, order)


@lowering("Upsample", "UpsamplingNearest2d", "UpsamplingBilinear2d", "interpolate")
def _upsample(site: Site) -> Laid:
    mode = site.kwargs.get("mode", site.args[3] if len(site.args) > 3 else "nearest")
    mode, aligned = (mode if site.module is None else site.module.mode), site.option("align_corners", 4)
    if aligned or site.option("antialias", 6, False):
        raise site.refuse("with align_corners=True or antialias=True", "use neither")
    x, given, wanted = image(site, site.x), _places(site, site.x), [int(n or 0) for n in image_shape(site)[1:3]]
    if mode in ("nearest", "nearest-exact"):
        if any(m % n for n, m in zip(given, wanted, strict=True)):
            raise site.refuse(f"from {given} to {wanted} by the nearest pixel", "resize by whole factors")
        factors = [m // n for n, m in zip(given, wanted, strict=True)]
        return back(site, site.emit("resize_nearest", [x], image_shape(site), suffix="image", factors=factors))
    if mode in ("bilinear", "linear"):
        return back(site, site.emit("resize_bilinear", [x], image_shape(site), suffix="image", size=wanted))
    raise site.refuse(f"with mode={mode!r}", "use 'nearest' or 'bilinear'")


@lowering("PixelShuffle", "pixel_shuffle")
def _pixel_shuffle(site: Site) -> Laid:
    """Channels are [channels, rows, columns] of a block each."""
    block = int(site.option("upscale_factor", 1))
    x = image(site, site.x)
    batch, height, width, _ = x.shape
    channels = site.shape[1]
    apart = site.reshape(x, (batch, height, width, channels, block, block), "blocks")
    shape = (batch, height, block, width, block, channels)
    y = site.emit("transpose", [apart], shape, suffix="rows", perm=[0, 1, 4, 2, 5, 3])
    return back(site, site.reshape(y, image_shape(site), "image"))


@lowering("ZeroPad1d", "ZeroPad2d", "ConstantPad1d", "ConstantPad2d", "pad")
def _pad(site: Site) -> Laid:
    mode, value = site.kwargs.get("mode", "constant"), site.kwargs.get("value", None)
    if site.module is None:
        mode = site.args[2] if len(site.args) > 2 else mode
        value = site.args[3] if len(site.args) > 3 else value
        amounts = list(site.option("pad", 1))
    else:
        value, amounts = getattr(site.module, "value", 0), list(site.module.padding)
    if mode != "constant" or value not in (None, 0):
        raise site.refuse(f"with mode={mode!r} and value={value}", "pad with zeros")
    if any(n < 0 for n in amounts):
        raise site.refuse(f"with amounts {amounts}", "cut by a slice")
    x = site.unflat(site.x)
    rank = len(x.shape)
    by_axis = np.zeros((rank, 2), int)
    for i in range(len(amounts) // 2):
        by_axis[rank - 1 - i] = amounts[2 * i : 2 * i + 2]
    if by_axis[x.batch].any():
        raise site.refuse("along the batch", "leave the batch alone")
    if (
        x.batch == 0 and rank in (3, 4) and not by_axis[1].any()
    ):  # as an image it may become a convolution's own padding
        places = by_axis[2:].tolist() if rank == 4 else [[0, 0], *by_axis[2:].tolist()]
        pads = [[0, 0], *places, [0, 0]]
        return back(site, site.emit("pad", [image(site, x)], image_shape(site), suffix="padded", pads=pads))
    pads = [by_axis[axis].tolist() for axis in x.order]
    shape = [site.shape[axis] for axis in x.order]
    return site.gives(site.emit("pad", [x.tensor], shape, pads=pads), x.order)
