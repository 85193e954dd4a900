"""Lowering of layers on volumes as operations on images, which have integer kernels on every runtime.

A convolution of volumes sums over the places of an image and over slices: slices that a window sees lie side by side as channels,
and the images of all results one below the other, so far apart that no window of theirs sees two. The sums are the same integers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qi.ir.graph import Tensor
from qi.keras.lower_linear import bias_of, channels_last, same_pads
from qi.keras.lower_shapes import even_windows
from qi.keras.lowering import Site, lowering

__all__ = ["average_pool", "convolve", "max_pool"]

Three = Sequence[int]
Pads = list[tuple[int, int]]


def _joined(a: int | None, b: int | None) -> int:
    return (a or 0) * (b or 0)


def _tall(site: Site, x: Tensor, suffix: str) -> Tensor:
    """[batch, depth, height, width, channels] as images one below the other."""
    batch, depth, height, width, channels = x.shape
    return site.reshape(x, (batch, _joined(depth, height), width, channels), suffix)


def _wide(site: Site, x: Tensor, suffix: str) -> Tensor:
    """[batch, depth, height, width, channels] as one image of depth and height, whose channels are those of a row."""
    batch, depth, height, width, channels = x.shape
    return site.reshape(x, (batch, depth, height, _joined(width, channels)), suffix)


def _pads(site: Site, kernel: Three, strides: Three, dilation: Three, padding: str) -> Pads:
    if padding not in ("valid", "same"):
        raise site.refuse(f"with padding={padding!r}", "use 'valid' or 'same'")
    if padding == "valid":
        return [(0, 0)] * 3
    sizes = site.sizes(site.x)[:3]
    return [same_pads(n, k, s, d) for n, k, s, d in zip(sizes, kernel, strides, dilation, strict=True)]


def _padded(site: Site, x: Tensor, pads: list[list[int]], suffix: str = "padded") -> Tensor:
    if not any(map(any, pads)):
        return x
    shape = [n if n is None else n + sum(p) for n, p in zip(x.shape, pads, strict=True)]
    return site.emit("pad", [x], shape, suffix=suffix, pads=pads)


def _rows(out: int, size: int, stride: int) -> int:
    """How many rows each of several images is given one below the other: windows of neighbours neither meet nor shift."""
    return -(-max(out * stride, (out - 1) * stride + size) // stride) * stride


def _taps(site: Site, x: Tensor, depth: Sequence[tuple[int, int, int]], above: int, rows: int) -> list[Tensor]:
    """For each place along a window's depth, the slices that it sees: [batch, slices, rows, width * channels].

    Args:
        site: the call.
        x: [batch, depth, height, width * channels].
        depth: of each place: the first slice, how many, the step.
        above: rows of zeros above each.
        rows: of each, filled up with zeros below or cut.
    """
    height = x.shape[2] or 0
    x = _padded(site, x, [[0, 0], [0, 0], [above, max(rows - above - height, 0)], [0, 0]])
    return [
        site.cut(x, [0, first, 0, 0], [None, first + (n - 1) * step + 1, rows, None], [1, step, 1, 1], f"slices_{i}")
        for i, (first, n, step) in enumerate(depth)
    ]


def _beside(site: Site, taps: list[Tensor], width: int, channels: int, groups: int = 1) -> Tensor:
    """What a window sees along its depth as channels of one tall image: those of one group side by side."""
    batch, depth, rows, _ = taps[0].shape
    tall = [site.reshape(t, (batch, _joined(depth, rows), width, channels), f"tall_{i}") for i, t in enumerate(taps)]
    if len(tall) == 1:
        return tall[0]
    each, parts = channels // groups, []
    for first in range(0, channels, each):
        for i, t in enumerate(tall):
            end = [None, None, None, first + each]
            parts.append(site.cut(t, [0, 0, 0, first], end, [1] * 4, f"group_{first}_{i}"))
    return site.emit("concat", parts, (*tall[0].shape[:3], len(taps) * channels), suffix="beside", axis=3)


def _apart(site: Site, y: Tensor, rows: int, first: int = 0) -> Tensor:
    """The tall image of results as volumes, of `rows` rows an image, of which those from `first` on are wanted."""
    batch, depth, height, width, channels = site.shape
    y = site.reshape(y, (batch, depth, rows, _joined(width, channels)), "apart")
    y = site.cut(y, [0, 0, first, 0], [None, None, first + (height or 0), None], [1] * 4, "rows")
    return site.reshape(y, site.shape, "")


# Convolutions -----------------------------------------------------------------------------------------------------------------


def convolve(
    site: Site, kind: str, kernel: Tensor, window: Sequence[Three], padding: str, groups: int | None = None
) -> Tensor:
    """A convolution of volumes, and the layer's activation.

    Args:
        site: the call; its input has open sizes along the batch alone.
        kind: of the operation on images that does it.
        kernel: for that: [height, width, depth * channels, filters].
        window: its sizes, its strides and its dilation, each of depth, height and width.
        padding: "valid" or "same".
        groups: of channels, where the operation has them.
    """
    channels_last(site)
    size, strides, dilation = window
    attrs: dict[str, Any] = {} if groups is None else {"groups": groups}
    step_d, step_h, step_w = strides
    width, channels = site.sizes(site.x)[2:]
    out_d, out_h, out_w = site.sizes(Tensor("", site.shape))[:3]
    (front, behind), (above, _), sides = _pads(site, size, strides, dilation, padding)
    span = (size[1] - 1) * dilation[1] + 1
    rows = _rows(out_h, span, step_h)
    x = _padded(site, _wide(site, site.x, "wide"), [[0, 0], [front, behind], [0, 0], [0, 0]], "deeper")
    taps = _taps(site, x, [(i * dilation[0], out_d, step_d) for i in range(size[0])], above, rows)
    x = _beside(site, taps, width, channels, groups or 1)
    y = site.emit(
        kind,
        [x, kernel, *bias_of(site)],
        (site.shape[0], out_d * rows // step_h, out_w, kernel.shape[-1]),
        suffix="linear",
        strides=[step_h, step_w],
        pads=[0, max(span - step_h, 0), *sides],
        dilation=list(dilation[1:]),
        activation="none",
        **attrs,
    )
    return _apart(site, site.activate(y), rows // step_h)


@lowering("Conv3D")
def _conv3d(site: Site) -> Tensor:
    layer = site.layer
    beside: Callable[[np.ndarray], np.ndarray] = lambda a: a.transpose(1, 2, 0, 3, 4).reshape(
        *a.shape[1:3], -1, a.shape[4]
    )
    how = [[int(n) for n in v] for v in (layer.kernel_size, layer.strides, layer.dilation_rate)]
    kernel = site.weight("kernel", beside)
    return convolve(site, "conv2d", kernel, how, layer.padding, int(layer.groups))


@lowering("Conv3DTranspose")
def _transposed(site: Site) -> Tensor:
    """Along the depth a convolution of slices with zeros between them, by the kernel the other way round."""
    channels_last(site)
    layer = site.layer
    size, strides, dilation = ([int(n) for n in v] for v in (layer.kernel_size, layer.strides, layer.dilation_rate))
    (depth, height, width, channels), batch = site.sizes(site.x), site.shape[0]
    wanted = site.sizes(Tensor("", site.shape))[:3]
    spans = [(k - 1) * d + 1 for k, d in zip(size, dilation, strict=True)]
    full = [(n - 1) * s + span for n, s, span in zip((depth, height, width), strides, spans, strict=True)]
    before = [max(n - m, 0) // 2 for n, m in zip(full, wanted, strict=True)]

    x = site.reshape(site.x, (batch, depth, 1, height * width * channels), "slices")
    x = _padded(site, x, [[0, 0], [0, 0], [0, strides[0] - 1], [0, 0]], "between")
    x = site.reshape(x, (batch, depth * strides[0], height, width * channels), "wide")
    front, behind = spans[0] - 1, max(before[0] + wanted[0] - depth * strides[0], 0)
    x = _padded(site, x, [[0, 0], [front, behind], [0, 0], [0, 0]], "deeper")
    rows = -(-max(full[1], before[1] + wanted[1]) // strides[1])
    places = [(front + before[0] - i * dilation[0], wanted[0], 1) for i in range(size[0])]
    x = _beside(site, _taps(site, x, places, 0, rows), width, channels)

    beside: Callable[[np.ndarray], np.ndarray] = lambda a: a.transpose(1, 2, 3, 0, 4).reshape(*a.shape[1:4], -1)
    y = site.emit(
        "conv2d_transpose",
        [x, site.weight("kernel", beside), *bias_of(site)],
        (batch, wanted[0] * rows * strides[1], wanted[2], site.shape[-1]),
        suffix="linear",
        strides=strides[1:],
        pads=[0, spans[1] - strides[1], before[2], full[2] - before[2] - wanted[2]],
        dilation=dilation[1:],
        activation="none",
    )
    return _apart(site, site.activate(y), rows * strides[1], before[1])


# Pools ------------------------------------------------------------------------------------------------------------------------


def max_pool(site: Site, pool: Three, strides: Three, padding: str) -> Tensor:
    """The largest along the width, and of these along depth and height."""
    channels_last(site)
    batch, depth, height, _, channels = site.x.shape
    site.sizes(site.x)
    deep, high, wide = _pads(site, pool, strides, (1, 1, 1), padding)
    out_d, out_h, out_w = site.sizes(Tensor("", site.shape))[:3]
    x = _tall(site, site.x, "tall")
    along: dict[str, Any] = {"pool": [1, pool[2]], "strides": [1, strides[2]], "pads": [0, 0, *wide]}
    x = site.emit("max_pool2d", [x], (batch, x.shape[1], out_w, channels), suffix="across", **along)
    x = site.reshape(x, (batch, depth, height, out_w * (channels or 0)), "wide")
    across: dict[str, Any] = {"pool": list(pool[:2]), "strides": list(strides[:2]), "pads": [*deep, *high]}
    x = site.emit("max_pool2d", [x], (batch, out_d, out_h, x.shape[-1]), suffix="pool", **across)
    return site.reshape(x, site.shape, "")


def average_pool(site: Site, pool: Three, strides: Three, padding: str) -> Tensor:
    """A pool of images in whose rows those of all slices that a window sees take turns."""
    channels_last(site)
    if any(map(any, _pads(site, pool, strides, (1, 1, 1), padding))):
        raise site.refuse("which averages over its input's border", "use padding='valid'")
    width, channels = site.sizes(site.x)[2:]
    (batch, *_), (out_d, out_h, out_w) = site.shape, site.sizes(Tensor("", site.shape))[:3]
    rows, deep = _rows(out_h, pool[1], strides[1]), int(pool[0])
    taps = _taps(site, _wide(site, site.x, "wide"), [(i, out_d, strides[0]) for i in range(deep)], 0, rows)
    turns = [site.reshape(t, (batch, out_d * rows, 1, width * channels), f"turn_{i}") for i, t in enumerate(taps)]
    x = turns[0]
    if deep > 1:
        x = site.emit("concat", turns, (batch, out_d * rows, deep, width * channels), suffix="turns", axis=2)
    x = site.reshape(x, (batch, out_d * rows * deep, width, channels), "tall")
    x = _padded(site, x, [[0, 0], [0, max(pool[1] - strides[1], 0) * deep], [0, 0], [0, 0]], "last")
    y = site.emit(
        "avg_pool2d",
        [x],
        (batch, out_d * rows // strides[1], out_w, channels),
        suffix="pool",
        pool=[pool[1] * deep, pool[2]],
        strides=[strides[1] * deep, strides[2]],
        pads=[0, 0, 0, 0],
    )
    return _apart(site, y, rows // strides[1])


def _pool(pooled: Callable[..., Tensor]) -> Callable[[Site], Tensor]:
    def run(site: Site) -> Tensor:
        layer = site.layer
        return pooled(site, [int(n) for n in layer.pool_size], [int(n) for n in layer.strides], layer.padding)

    return run


def _adaptive(pooled: Callable[..., Tensor]) -> Callable[[Site], Tensor]:
    def run(site: Site) -> Tensor:
        channels_last(site)
        windows = even_windows(site)
        return pooled(site, windows, windows, "valid")

    return run


for _name, _pooled in (("Max", max_pool), ("Average", average_pool)):
    lowering(f"{_name}Pooling3D")(_pool(_pooled))
    lowering(f"Adaptive{_name}Pooling3D")(_adaptive(_pooled))


def _global(kind: str) -> Callable[[Site], Tensor]:
    def run(site: Site) -> Tensor:
        channels_last(site)
        site.sizes(site.x)
        flat = (site.shape[0], site.shape[-1])
        y = site.emit(kind, [_tall(site, site.x, "tall")], flat, suffix="pool", axes=[1, 2], keepdims=False)
        return site.reshape(y, site.shape, "")

    return run


lowering("GlobalAveragePooling3D")(_global("mean"))
lowering("GlobalMaxPooling3D")(_global("max"))


@lowering("UpSampling3D")
def _upsampling(site: Site) -> Tensor:
    """Along the width, and then along depth and height."""
    channels_last(site)
    batch, depth, height, width, channels = site.shape
    deep, high, wide = (int(n) for n in site.layer.size)
    x = _tall(site, site.x, "tall")
    x = site.emit("resize_nearest", [x], (batch, x.shape[1], width, channels), suffix="across", factors=[1, wide])
    x = site.reshape(x, (batch, *site.x.shape[1:3], _joined(width, channels)), "wide")
    x = site.emit("resize_nearest", [x], (batch, depth, height, x.shape[-1]), suffix="image", factors=[deep, high])
    return site.reshape(x, site.shape, "")
