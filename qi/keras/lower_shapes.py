"""Lowering of what joins, pools and moves values."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from qi.ir.graph import Tensor
from qi.keras.lower_linear import back, channels_last, image, pads_of
from qi.keras.lowering import Site, lowering
from qi.keras.variables import to_numpy

__all__ = ["AUGMENTING", "even_windows"]


# Two or more tensors ----------------------------------------------------------------------------------------------------


def _operands(site: Site) -> list[Tensor]:
    """The operands of a layer that merges or of a binary ``keras.ops`` function; numbers become constants."""
    if isinstance(site.layer, keras.Layer):
        rank = max(len(tensor.shape) for tensor in site.inputs)
        return [_of_rank(site, tensor, rank) for tensor in site.arguments[0][0]]
    args, kwargs = site.arguments
    return [a if isinstance(a, Tensor) else _number(site, a) for a in (*args, *kwargs.values())]


def _of_rank(site: Site, x: Tensor, rank: int) -> Tensor:
    """What a layer that merges makes of a tensor of a lower rank: sizes of 1 behind the batch."""
    missing = rank - len(x.shape)
    return site.reshape(x, (x.shape[0], *[1] * missing, *x.shape[1:]), "expanded") if missing else x


def _joint(a: tuple[int | None, ...], b: tuple[int | None, ...]) -> tuple[int | None, ...]:
    """The shape of two tensors of one rank together."""
    return tuple(m if n == 1 else n for n, m in zip(a, b, strict=True))


def _number(site: Site, value: Any) -> Tensor:
    dtype = site.call.outputs[0].dtype
    return site.constant("constant", to_numpy(value).astype("float32" if "float" in dtype else dtype))


def _chain(kind: str, suffix: str = "", **attrs: Any) -> Any:
    """From left to right, as Keras goes."""

    def run(site: Site) -> Tensor:
        operands = _operands(site)
        y = operands[0]
        for i, other in enumerate(operands[1:], 2):
            shape = site.shape if i == len(operands) else _joint(y.shape, other.shape)
            y = site.emit(kind, [y, other], shape, suffix=suffix, **attrs)
        return y

    return run


for _kind, _name in {"add": "Add", "sub": "Subtract", "mul": "Multiply"}.items():
    lowering(_name)(_chain(_kind, activation="none"))
for _kind in ("maximum", "minimum"):
    lowering(_kind.capitalize())(_chain(_kind))


@lowering("Divide", "TrueDivide")
def _divide(site: Site) -> Tensor:
    """By a number it is a product, which integers can do."""
    a, b = _operands(site)
    if b.data is not None and b.data.all():
        return site.emit("mul", [a, site.constant("reciprocal", 1 / b.data.astype(np.float64))], activation="none")
    return site.emit("div", [a, b], activation="none")


@lowering("Average")
def _average(site: Site) -> Tensor:
    y = _chain("add", "sum", activation="none")(site)
    count = len(site.inputs)
    if count == 2:
        return site.emit("mul", [y, site.constant("half", np.float32(0.5))], activation="none")
    return site.emit("div", [y, site.constant("count", np.float32(count))], activation="none")


@lowering("Rescaling")
def _rescaling(site: Site) -> Tensor:
    layer, shape = site.layer, (1,)
    scale, offset = (np.asarray(v, np.float32).reshape(np.shape(v) or shape) for v in (layer.scale, layer.offset))
    y = site.emit("mul", [site.x, site.constant("scale", scale)], suffix="scaled", activation="none")
    return site.emit("add", [y, site.constant("offset", offset)], activation="none") if offset.any() else y


@lowering("Concatenate")
def _concat(site: Site) -> Tensor:
    axis = int(site.layer.axis) % len(site.shape)
    if axis == 0:
        raise site.refuse("along the batch")
    return site.emit("concat", _operands_of_list(site), axis=axis)


def _operands_of_list(site: Site) -> list[Tensor]:
    return list(site.inputs)


# Pooling ----------------------------------------------------------------------------------------------------------------


def _pooled(site: Site, kind: str, pool: list[int], strides: list[int], padding: str) -> Tensor:
    """A pool along the last axes of places: those of an image, or the one of a sequence."""
    x = image(site, site.x)
    if len(pool) == 1:
        pool, strides = [1, *pool], [1, *strides]
    pads = pads_of(site, site.sizes(x), pool, strides, [1, 1], padding)
    shape = site.shape if len(site.shape) == 4 else (site.shape[0], 1, *site.shape[1:])
    return back(site, site.emit(kind, [x], shape, suffix="pool", pool=pool, strides=strides, pads=pads))


def _numbers(value: Any) -> list[int]:
    return [int(n) for n in (value if isinstance(value, (tuple, list)) else [value])]


def _pool(kind: str) -> Any:
    def run(site: Site) -> Tensor:
        layer = site.layer
        return _pooled(site, kind, _numbers(layer.pool_size), _numbers(layer.strides), layer.padding)

    return run


def _adaptive_pool(kind: str) -> Any:
    """A pool by the number of windows, where they share the places evenly."""

    def run(site: Site) -> Tensor:
        channels_last(site)
        pool = even_windows(site)
        return _pooled(site, kind, pool, pool, "valid")

    return run


def even_windows(site: Site) -> list[int]:
    """The size of an adaptive pool's windows.

    Raises:
        UnsupportedError: they differ.
    """
    given, wanted = site.sizes(site.x)[:-1], _numbers(site.layer.output_size)
    if any(n % m for n, m in zip(given, wanted, strict=True)):
        raise site.refuse(
            f"whose windows of {given} places as {tuple(wanted)} differ in size, which no runtime's pools do",
            "ask for output sizes that divide those of its input",
        )
    return [n // m for n, m in zip(given, wanted, strict=True)]


for _dims in ("1D", "2D"):
    lowering(f"MaxPooling{_dims}")(_pool("max_pool2d"))
    lowering(f"AveragePooling{_dims}")(_pool("avg_pool2d"))
    lowering(f"AdaptiveMaxPooling{_dims}")(_adaptive_pool("max_pool2d"))
    lowering(f"AdaptiveAveragePooling{_dims}")(_adaptive_pool("avg_pool2d"))


def _global_pool(kind: str) -> Any:
    def run(site: Site) -> Tensor:
        channels_last(site)
        if len(site.inputs) > 1:
            raise site.refuse("with a mask", "give Embedding mask_zero=False, and no masks")
        site.sizes(site.x)
        axes = list(range(1, len(site.x.shape) - 1))
        return site.emit(kind, [site.x], axes=axes, keepdims=bool(site.layer.keepdims))

    return run


for _dims in ("1D", "2D"):
    lowering(f"GlobalAveragePooling{_dims}")(_global_pool("mean"))
    lowering(f"GlobalMaxPooling{_dims}")(_global_pool("max"))


def _reduction(kind: str) -> Any:
    def run(site: Site) -> Tensor:
        rank, axis = len(site.x.shape), site.layer.axis
        axes = list(range(rank)) if axis is None else [axis] if isinstance(axis, int) else list(axis)
        axes = sorted(a % rank for a in axes)
        if 0 in axes:
            raise site.refuse("over the batch")
        return site.emit(kind, [site.x], axes=axes, keepdims=bool(site.layer.keepdims))

    return run


lowering("Mean")(_reduction("mean"))
lowering("Max", "Amax")(_reduction("max"))


# Moving values ----------------------------------------------------------------------------------------------------------


AUGMENTING = (
    "AugMix RandAugment RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast RandomElasticTransform "
    "RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale RandomHue RandomInvert RandomPerspective "
    "RandomPosterization RandomRotation RandomSaturation RandomSharpness RandomShear RandomTranslation RandomZoom "
    "Solarization"
).split()
"""Layers that change images in training alone."""


@lowering(
    *AUGMENTING,
    "Dropout",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "SpatialDropout3D",
    "AlphaDropout",
    "GaussianDropout",
    "GaussianNoise",
    "ActivityRegularization",
    "Identity",
    "StopGradient",
)
def _identity(site: Site) -> Tensor:
    return site.x


@lowering("Reshape", "Flatten", "Squeeze", "ExpandDims", "Ravel")
def _reshape(site: Site) -> Tensor:
    if site.kind == "Flatten" and len(site.x.shape) > 2:
        channels_last(site)
    if site.x.shape[0] != site.shape[0]:
        raise site.refuse("which changes the batch")
    return site.reshape(site.x, site.shape, "")


@lowering("Cast")
def _cast(site: Site) -> Tensor:
    return site.cast(site.x, site.call.outputs[0].dtype)


@lowering("Permute")
def _permute(site: Site) -> Tensor:
    return site.emit("transpose", [site.x], perm=[0, *(int(d) for d in site.layer.dims)])


@lowering("Transpose", "Swapaxes", "Moveaxis")
def _transpose(site: Site) -> Tensor:
    axes = np.arange(len(site.shape))
    if site.kind == "Swapaxes":
        axes[[site.layer.axis1, site.layer.axis2]] = axes[[site.layer.axis2, site.layer.axis1]]
    elif site.kind == "Moveaxis":
        moved = np.moveaxis(np.empty([i + 2 for i in range(len(axes))]), site.layer.source, site.layer.destination)
        axes = np.asarray(moved.shape) - 2
    else:
        axes = np.asarray(site.layer.axes or axes[::-1]) % len(axes)
    if axes[0] != 0:
        raise site.refuse("which moves the batch")
    return site.emit("transpose", [site.x], perm=[int(a) for a in axes])


@lowering("RepeatVector")
def _repeat_vector(site: Site) -> Tensor:
    batch, features = site.x.shape
    x = site.reshape(site.x, (batch, 1, features))
    return site.emit("tile", [x], multiples=[1, int(site.layer.n), 1])


@lowering("ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D")
def _zero_padding(site: Site) -> Tensor:
    pads = _per_axis(site, site.layer.padding)
    if len(pads) > 3:
        return site.emit("pad", [site.x], pads=pads)
    shape = (site.shape[0], 1, *site.shape[1:])  # as an image it may become a convolution's own padding
    y = site.emit("pad", [image(site, site.x)], shape, suffix="padded", pads=[pads[0], [0, 0], *pads[1:]])
    return back(site, y)


@lowering("Cropping1D", "Cropping2D", "Cropping3D")
def _cropping(site: Site) -> Tensor:
    crops = _per_axis(site, site.layer.cropping)
    end = [None if n is None else n - after for n, (_, after) in zip(site.x.shape, crops, strict=True)]
    return site.emit("slice", [site.x], begin=[b for b, _ in crops], end=end, strides=[1] * len(crops))


def _per_axis(site: Site, amounts: Any) -> list[list[int]]:
    channels_last(site)
    pairs = [amounts] if isinstance(amounts[0], int) else amounts
    return [[0, 0], *([int(a), int(b)] for a, b in pairs), [0, 0]]


@lowering("Stack")
def _stack(site: Site) -> Tensor:
    axis = int(site.layer.axis) % len(site.shape)
    if axis == 0:
        raise site.refuse("along the batch")
    shape = (*site.shape[:axis], 1, *site.shape[axis + 1 :])
    return site.emit("concat", [site.reshape(x, shape, "apart") for x in site.inputs], axis=axis)


@lowering("DepthToSpace")
def _depth_to_space(site: Site) -> Tensor:
    """Channels are [rows, columns, channels] of a block each."""
    channels_last(site)
    (batch, height, width, _), block = site.x.shape, int(site.layer.block_size)
    channels = site.shape[-1]
    x = site.reshape(site.x, (batch, height, width, block, block * (channels or 0)), "blocks")
    y = site.emit("transpose", [x], (batch, height, block, width, x.shape[-1]), suffix="rows", perm=[0, 1, 3, 2, 4])
    return site.reshape(y, site.shape, "")


@lowering("SpaceToDepth")
def _space_to_depth(site: Site) -> Tensor:
    channels_last(site)
    (batch, height, width, _), block = site.shape, int(site.layer.block_size)
    channels = site.x.shape[-1]
    x = site.reshape(site.x, (batch, height, block, width, block * (channels or 0)), "rows")
    y = site.emit("transpose", [x], (batch, height, width, block, x.shape[-1]), suffix="blocks", perm=[0, 1, 3, 2, 4])
    return site.reshape(y, site.shape, "")


@lowering("UpSampling1D")
def _upsampling1d(site: Site) -> Tensor:
    x = image(site, site.x)
    shape = (site.shape[0], 1, *site.shape[1:])
    return back(site, site.emit("resize_nearest", [x], shape, suffix="image", factors=[1, int(site.layer.size)]))


@lowering("UpSampling2D")
def _upsampling2d(site: Site) -> Tensor:
    layer, x = site.layer, image(site, site.x)
    if layer.interpolation == "nearest":
        return site.emit("resize_nearest", [x], factors=[int(n) for n in layer.size])
    if layer.interpolation == "bilinear":
        return site.emit("resize_bilinear", [x], size=list(site.sizes(Tensor("", site.shape))[:2]))
    raise site.refuse(f"with interpolation={layer.interpolation!r}", "use 'nearest' or 'bilinear'")


@lowering("Resizing")
def _resizing(site: Site) -> Tensor:
    """As an upsampling, where it is one, and linear between pixels to any size."""
    layer, x = site.layer, image(site, site.x)
    for option in ("crop_to_aspect_ratio", "pad_to_aspect_ratio", "antialias"):
        if getattr(layer, option, False):
            raise site.refuse(f"with {option}=True", f"resize with {option}=False")
    given, wanted = site.sizes(x)[:2], [int(layer.height), int(layer.width)]
    if layer.interpolation == "bilinear":
        return site.emit("resize_bilinear", [x], size=wanted)
    if layer.interpolation != "nearest":
        raise site.refuse(f"with interpolation={layer.interpolation!r}", "use 'nearest' or 'bilinear'")
    if any(m % n for n, m in zip(given, wanted, strict=True)):
        raise site.refuse(f"from {given} to {tuple(wanted)} by the nearest pixel", "resize by whole factors")
    return site.emit("resize_nearest", [x], factors=[m // n for n, m in zip(given, wanted, strict=True)])
