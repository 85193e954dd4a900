"""Lowering of what moves values and cuts them: free where only the account of the axes changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from qi.ir.graph import Tensor
from qi.torch.lowering import Laid, Shape, Site, channels_last, lowering, plain_order

__all__: list[str] = []


def reshaped(site: Site, x: Laid, shape: Shape) -> Laid:
    """A tensor of another shape. Where channels lie last and stay an axis of their own, they stay last.

    An image that is flattened stays as it lies, which a product with weights can make up for.
    """
    if shape == x.shape:
        return x
    if x.flat is None and not x.batch and x.order == channels_last(len(x.shape)) and not x.plain:
        channels, places = x.shape[1], math.prod(site.sizes(x)[1:])
        if len(shape) > 1 and shape[1] == channels and (len(shape) > 2 or places == 1):
            order = channels_last(len(shape))
            return Laid(site.reshape(x.tensor, [shape[axis] for axis in order], "places"), shape, order)
        if len(shape) == 2:
            flat = tuple(site.sizes(x))
            return Laid(site.reshape(x.tensor, shape, "flat"), shape, (0, 1), flat)
    if x.flat is None and [n for n in x.shape if n != 1] == [n for n in shape if n != 1]:
        return _with_ones(site, x, shape)
    return site.gives(site.reshape(site.plain(x), shape, ""), shape=shape)


def _with_ones(site: Site, x: Laid, shape: Shape) -> Laid:
    """A tensor with other axes of size 1; the rest lies as it did."""
    old, new = ([axis for axis, n in enumerate(sizes) if n != 1] for sizes in (x.shape, shape))
    kept = [new[old.index(axis)] for axis in x.order if axis in old]
    rank = len(shape)
    likely = (plain_order(rank), channels_last(rank))
    order = next((o for o in likely if [a for a in o if a in new] == kept), None)
    order = order or (*kept, *(axis for axis in range(rank) if axis not in new))
    return site.gives(site.reshape(x.tensor, [shape[axis] for axis in order], ""), order, shape)


@lowering(
    "Flatten", "Unflatten", "flatten", "unflatten", "view", "reshape", "squeeze", "unsqueeze", "view_as", "reshape_as"
)
def _reshape(site: Site) -> Laid:
    return reshaped(site, site.x, site.shape)


@lowering("ravel")
def _ravel(site: Site) -> Laid:
    raise site.refuse("which joins the samples of a batch", "use flatten(1)")


# Axes in another order --------------------------------------------------------------------------------------------------------


def permuted(site: Site, x: Laid, dims: Sequence[int]) -> Laid:
    """A tensor whose axes torch counts in another order."""
    x = site.unflat(x)
    order = [list(dims).index(axis) for axis in x.order]
    return site.gives(x.tensor, order)


@lowering("permute")
def _permute(site: Site) -> Laid:
    rank = len(site.x.shape)
    return permuted(site, site.x, [d % rank for d in site.numbers("dims")])


@lowering("transpose")
def _transpose(site: Site) -> Laid:
    rank = len(site.x.shape)
    dims = list(range(rank))
    if isinstance(site.option("dim0", 1), str):  # x.T and x.mT
        a, b = (rank - 2, rank - 1) if site.args[1] in ("mT", "mH") else (0, 1)
    else:
        a, b = (int(site.option(f"dim{i}", i + 1, site.kwargs.get(f"axis{i}"))) % rank for i in range(2))
    dims[a], dims[b] = b, a
    return permuted(site, site.x, dims)


@lowering("movedim")
def _movedim(site: Site) -> Laid:
    rank = len(site.x.shape)
    source, destination = site.option("source", 1), site.option("destination", 2)
    moved = np.moveaxis(np.empty([i + 2 for i in range(rank)]), source, destination)
    return permuted(site, site.x, [n - 2 for n in moved.shape])


# Parts ------------------------------------------------------------------------------------------------------------------------


def _cut(site: Site, x: Laid, keys: Sequence[slice], suffix: str = "") -> Laid:
    """The part that a slice of each axis takes; x itself, where that is all of it."""
    begin: list[int] = []
    end: list[int | None] = []
    strides: list[int] = []
    shape: list[int | None] = []
    for n, key in zip(x.shape, keys, strict=True):
        if n is None and key == slice(None):
            start, stop, step, size = 0, None, 1, None
        elif n is None:
            raise site.refuse("which takes some samples of the batch", "leave the batch alone")
        else:
            start, stop, step = key.indices(n)
            size = len(range(start, stop, step))
        if step < 1:
            raise site.refuse(f"with step {step}", "use flip")
        begin, end, strides, shape = [*begin, start], [*end, stop], [*strides, step], [*shape, size]
    if tuple(shape) == x.shape:
        return x
    x = site.unflat(x)
    how = {
        name: [values[axis] for axis in x.order]
        for name, values in (("begin", begin), ("end", end), ("strides", strides))
    }
    laid = tuple(shape[axis] for axis in x.order)
    return Laid(site.emit("slice", [x.tensor], laid, suffix=suffix, dtype=x.tensor.dtype, **how), tuple(shape), x.order)


@lowering("getitem")
def _get_item(site: Site) -> Laid:
    key = site.args[1]
    keys = list(key) if isinstance(key, tuple) else [key]
    if not all(k is None or isinstance(k, (slice, int, type(...))) for k in keys) or any(
        isinstance(k, bool) for k in keys
    ):
        raise site.refuse(f"with key {key!r}", "slice all but the batch by numbers")
    taken, rank = [k for k in keys if k is not None], len(site.x.shape)  # new axes come of a reshape
    at = next((i for i, k in enumerate(taken) if k is Ellipsis), len(taken))
    taken[at : at + 1] = [slice(None)] * (rank - sum(k is not Ellipsis for k in taken))
    if isinstance(taken[site.x.batch], int):
        raise site.refuse("which takes one sample of the batch", "leave the batch alone")
    slices = [
        slice(k % (n or 1), k % (n or 1) + 1) if isinstance(k, int) else k
        for k, n in zip(taken, site.x.shape, strict=True)
    ]
    slices = [_whole(s, n) for s, n in zip(slices, site.x.shape, strict=True)]
    return reshaped(site, _cut(site, site.x, slices, "slice"), site.shape)


def _whole(key: slice, size: int | None) -> slice:
    """The same, in one form where it takes a whole batch."""
    return (
        slice(None) if size is None and key.start in (None, 0) and key.stop is None and key.step in (None, 1) else key
    )


def _parts(site: Site, axis: int, sizes: Sequence[int | None]) -> list[Laid]:
    """Parts of those sizes along an axis, one after the other."""
    if axis == site.x.batch:
        raise site.refuse("along the batch", "leave the batch alone")
    found, start = [], 0
    for i, size in enumerate(sizes):
        keys = [slice(None)] * len(site.x.shape)
        keys[axis] = slice(start, start + int(size or 0))
        start += int(size or 0)
        found.append(_cut(site, site.x, keys, f"part_{i}"))
    return found


@lowering("chunk", "split", "tensor_split", "split_with_sizes")
def _split(site: Site) -> list[Laid]:
    axis = int(site.option("dim", 2, 0)) % len(site.x.shape)
    return _parts(site, axis, [shape[axis] for shape, _ in site.outputs])


@lowering("unbind")
def _unbind(site: Site) -> list[Laid]:
    axis = int(site.option("dim", 1, 0)) % len(site.x.shape)
    parts = _parts(site, axis, [1] * len(site.outputs))
    return [reshaped(site, part, shape) for part, (shape, _) in zip(parts, site.outputs, strict=True)]


@lowering("narrow", "select")
def _narrow(site: Site) -> Laid:
    axis, start = int(site.option("dim", 1)) % len(site.x.shape), int(site.option("start", 2, site.kwargs.get("index")))
    if axis == site.x.batch:
        raise site.refuse("which takes some samples of the batch", "leave the batch alone")
    start %= int(site.x.shape[axis] or 1)
    keys = [slice(None)] * len(site.x.shape)
    keys[axis] = slice(start, start + (int(site.option("length", 3)) if site.kind == "narrow" else 1))
    return reshaped(site, _cut(site, site.x, keys, "slice"), site.shape)


@lowering("flip")
def _flip(site: Site) -> Laid:
    x, rank = site.unflat(site.x), len(site.x.shape)
    y = x.tensor
    for axis in (d % rank for d in site.numbers("dims")):
        if axis == x.batch:
            raise site.refuse("along the batch", "leave the batch alone")
        y = site.emit("reverse", [y], y.shape, suffix="flipped", dtype=y.dtype, axis=x.axis(axis))
    return site.like(x, y)


# Copies -----------------------------------------------------------------------------------------------------------------------


def _tiled(site: Site, x: Tensor, shape: Shape) -> Laid:
    multiples = [1 if n is None else int(n) // int(m or 1) for n, m in zip(shape, x.shape, strict=True)]
    if all(n == 1 for n in multiples):
        return site.gives(x)
    return site.gives(site.emit("tile", [x], shape, dtype=x.dtype, multiples=multiples))


def _copies(how: str) -> Callable[[Site], Laid]:
    """Sizes of 1 (`expand`), or any (`repeat`), several times over."""

    def run(site: Site) -> Laid:
        x, missing = site.plain(site.x), len(site.shape) - len(site.x.shape)
        if missing or site.shape[0] is not None:
            raise site.refuse(f"to shape {site.shape}", f"leave the batch in front, and add axes before {how}")
        return _tiled(site, x, site.shape)

    return run


for _how in ("expand", "expand_as", "repeat", "tile", "broadcast_to"):
    lowering(_how)(_copies(_how))
