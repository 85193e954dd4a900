"""Lowering of what picks values: slices, and rows of tables."""

from __future__ import annotations

from typing import Any

import numpy as np

from qi.core import PerChannel
from qi.ir.graph import Tensor
from qi.keras.lower_linear import channels_last
from qi.keras.lowering import Site, lowering

__all__: list[str] = []


@lowering("GetItem")
def _get_item(site: Site) -> Tensor:
    key = site.arguments[0][1] if len(site.arguments[0]) > 1 else site.arguments[1]["key"]
    keys = list(key) if isinstance(key, tuple) else [key]
    if not all(k is None or isinstance(k, (slice, int, type(...))) for k in keys) or keys[0] is None:
        raise site.refuse(f"with key {key!r}", "slice all but the batch by numbers")
    taken, rank = [k for k in keys if k is not None], len(site.x.shape)  # new axes come of a reshape
    if Ellipsis in taken:
        at = taken.index(Ellipsis)
        taken[at : at + 1] = [slice(None)] * (rank - len(taken) + 1)
    taken += [slice(None)] * (rank - len(taken))
    if taken[0] != slice(None):
        raise site.refuse(f"with key {key!r}", "slice all but the batch by numbers")
    y = _sliced(site, taken, "slice")
    return y if len(taken) == len(keys) and y.shape == site.shape else site.reshape(y, site.shape, "")


def _sliced(site: Site, keys: list[Any], suffix: str = "") -> Tensor:
    """The part that a key for each axis takes, with a size of 1 where that is a number; x itself, where that is all of it."""
    begin: list[int] = []
    end: list[int | None] = []
    strides: list[int] = []
    for n, k in zip(site.x.shape, keys, strict=True):
        if n is None and k == slice(None):
            begin, end, strides = [*begin, 0], [*end, None], [*strides, 1]
            continue
        if n is None:
            raise site.refuse("along an open size", "give the model an Input of fixed sizes")
        start, stop, step = (k % n, k % n + 1, 1) if isinstance(k, int) else k.indices(n)
        if step < 1:
            raise site.refuse(f"with step {step}")
        begin, end, strides = [*begin, start], [*end, stop], [*strides, step]
    return site.cut(site.x, begin, end, strides, suffix, dtype=site.x.dtype)


@lowering("Split", "Unstack")
def _split(site: Site) -> list[Tensor]:
    """A slice for each part; parts of one place lose their axis where they were stacked."""
    axis, rank = int(site.layer.axis) % len(site.x.shape), len(site.x.shape)
    if axis == 0:
        raise site.refuse("along the batch")
    n = site.sizes(site.x)[axis - 1]
    parts = site.layer.indices_or_sections if site.kind == "Split" else n
    at = list(range(0, n, n // parts)) if isinstance(parts, int) else [0, *(int(i) for i in parts)]
    keys = [[slice(None)] * rank for _ in at]
    for key, first, last in zip(keys, at, [*at[1:], n], strict=True):
        key[axis] = slice(first, last)
    cut = [_sliced(site, key, f"part_{i}") for i, key in enumerate(keys)]
    if site.kind == "Split":
        return cut
    return [
        site.reshape(y, out.shape, f"piece_{i}") for i, (y, out) in enumerate(zip(cut, site.call.outputs, strict=True))
    ]


@lowering("CenterCrop")
def _center_crop(site: Site) -> Tensor:
    channels_last(site)
    given, wanted = site.sizes(site.x)[:2], (int(site.layer.height), int(site.layer.width))
    if any(n < m for n, m in zip(given, wanted, strict=True)):
        raise site.refuse(
            f"which makes {wanted} of smaller images {given}", "crop to what images have, or use Resizing"
        )
    starts = [(n - m) // 2 for n, m in zip(given, wanted, strict=True)]
    keys = [slice(None), *(slice(s, s + m) for s, m in zip(starts, wanted, strict=True)), slice(None)]
    return _sliced(site, keys)


# Tables -----------------------------------------------------------------------------------------------------------------------


@lowering("Embedding")
def _embedding(site: Site) -> Tensor:
    ids = site.x
    if ids.dtype.startswith("float"):
        raise site.refuse(f"with indices of dtype {ids.dtype}", "give the model an Input of dtype 'int32'")
    ids = ids if ids.dtype in ("int32", "int64") else site.cast(ids, "int32")  # no runtime looks up by other types
    return site.emit("embedding", [ids, site.weight("embeddings")])


@lowering("ReversibleEmbedding")
def _reversible_embedding(site: Site) -> Tensor:
    """A look-up, or the product with the table turned round, in each of the calls of one layer."""
    args, kwargs = site.arguments
    if not (args[1] if len(args) > 1 else kwargs.get("reverse", False)):
        return _embedding(site)
    layer = site.layer
    path, change = ("embeddings", np.transpose) if layer.tie_weights else ("reverse_embeddings", np.asarray)
    w = site.weight(path, change)
    granularity = w.qparams.granularity if w.qparams is not None else None
    if isinstance(granularity, PerChannel) and granularity.axis % 2 != 1:
        raise site.refuse(
            "whose table has a scale for each feature, over which its product sums",
            "give its weights one scale, or one for each token (axis 0), by a rule of the recipe",
        )
    y = site.emit("dense", [site.x, w], suffix="product", activation="none")
    if layer.logit_soft_cap is None:
        return y
    cap = float(layer.logit_soft_cap)
    y = site.emit("mul", [y, site.constant("reciprocal", np.float32(1 / cap))], suffix="within", activation="none")
    y = site.emit("unary", [y], suffix="tanh", function="tanh", alpha=None)
    return site.emit("mul", [y, site.constant("cap", np.float32(cap))], suffix="capped", activation="none")
