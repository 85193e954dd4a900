"""Lowering of what joins two tensors or more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qi.ir.graph import Tensor
from qi.ir.softmax import UNSEEN
from qi.torch.lowering import Laid, Site, lowering, plain_order

__all__ = ["HIDDEN"]

HIDDEN = np.float32(-1e9)
"""What is added to a score that gets no share."""


def _operand(site: Site, value: Any) -> Laid:
    """A tensor of real numbers, or a number as one."""
    if "float" not in site.dtype:
        raise site.refuse(f"which gives {site.dtype}", "reckon with real numbers, or in front of the model")
    if isinstance(value, Laid):
        return site.cast(value, "float32")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise site.refuse(f"with an operand of type {type(value).__name__}", "use tensors and numbers")
    rank = len(site.shape)
    return Laid(site.constant("constant", np.full((1,) * rank, value, np.float32)), (1,) * rank, plain_order(rank))


def together(site: Site, operands: Sequence[Laid]) -> tuple[list[Tensor], Laid]:
    """(tensors whose axes lie alike, the operand that they lie like)."""
    flat = operands[0].flat
    if flat is not None and all(x.flat == flat for x in operands):
        return [x.tensor for x in operands], operands[0]
    rank = len(site.shape)
    full = [_of_rank(site, x, rank) for x in operands]
    guide = next((x for x in full if not x.constant and not x.plain), full[0])
    guide = guide if not guide.constant else next(x for x in full if not x.constant)
    return [site.laid(x, guide.order) for x in full], guide


def _of_rank(site: Site, x: Laid, rank: int) -> Laid:
    """A tensor with sizes of 1 in front, as torch makes it; only constants have no batch there."""
    x = site.unflat(x)
    missing = rank - len(x.shape)
    if not missing:
        return x
    shape = (*[1] * missing, *x.shape)
    return Laid(site.reshape(site.plain(x), shape, "expanded"), shape, plain_order(rank))


def _binary(site: Site, kind: str, a: Any, b: Any, **attrs: Any) -> Laid:
    operands = [_operand(site, value) for value in (a, b)]
    if kind == "add":
        operands = [_finite(site, x) for x in operands]
    (x, y), guide = together(site, operands)
    shape = tuple(site.shape[axis] for axis in guide.order)
    result = site.emit(kind, [x, y], shape, **attrs)
    return Laid(result, site.shape, guide.order, guide.flat)


def _finite(site: Site, x: Laid) -> Laid:
    """A constant mask with numbers that leave a score no share in the place of negative infinity."""
    data = x.tensor.data
    if data is None or x.tensor.quantized or not np.isneginf(data).any():
        return x
    return site.like(x, site.constant("mask", np.maximum(data, HIDDEN)))


@lowering("masked_fill")
def _masked_fill(site: Site) -> Laid:
    """Scores that get no share: a sum with a mask of large negative numbers."""
    mask, value = site.option("mask", 1), site.option("value", 2)
    value = float(value.tensor.values().reshape(())) if isinstance(value, Laid) and value.constant else value
    if not isinstance(mask, Laid) or mask.tensor.data is None or not isinstance(value, (int, float)) or value > UNSEEN:
        raise site.refuse(
            "which isn't a mask that is known beforehand, filled with a large negative number",
            "add a constant mask to the scores",
        )
    added = np.where(mask.tensor.data, np.float32(max(value, HIDDEN)), np.float32(0))
    return _binary(site, "add", site.x, site.like(mask, site.constant("mask", added)), activation="none")


def _both(site: Site) -> tuple[Any, Any]:
    return site.args[0], site.option("other", 1)


def _merge(kind: str) -> Callable[[Site], Laid]:
    def run(site: Site) -> Laid:
        if site.kwargs.get("alpha", 1) != 1:
            raise site.refuse(f"with alpha={site.kwargs['alpha']}", "multiply before it")
        return _binary(site, kind, *_both(site), activation="none")

    return run


for _kind in ("add", "sub", "mul"):
    lowering(_kind)(_merge(_kind))


@lowering("rsub")
def _rsub(site: Site) -> Laid:
    a, b = _both(site)
    return _binary(site, "sub", b, a, activation="none")


@lowering("maximum", "minimum")
def _extreme(site: Site) -> Laid:
    return _binary(site, site.kind, *_both(site))


@lowering("div")
def _divide(site: Site) -> Laid:
    """By constants it is a product, which integers can do."""
    if site.kwargs.get("rounding_mode") is not None:
        raise site.refuse(f"with rounding_mode={site.kwargs['rounding_mode']!r}", "leave it out")
    a, b = _both(site)
    divisor = _operand(site, b)
    if divisor.tensor.data is not None and divisor.tensor.qparams is None and divisor.tensor.data.all():
        values = 1 / np.asarray(divisor.tensor.data, np.float64)
        reciprocal = Laid(site.constant("reciprocal", values), divisor.shape, divisor.order)
        return _binary(site, "mul", a, reciprocal, activation="none")
    return _binary(site, "div", a, divisor, activation="none")


@lowering("reciprocal")
def _reciprocal(site: Site) -> Laid:
    return _binary(site, "div", 1.0, site.x, activation="none")


def _joined(site: Site, axis: int) -> list[Laid]:
    given = site.option("tensors", 0)
    found = [item for item in given if isinstance(item, Laid)] if isinstance(given, (list, tuple)) else []
    if not found or len(found) != len(given):
        raise site.refuse("of something other than tensors", "give it a list of tensors")
    if site.shape[axis] is None or len({item.batch for item in found if not item.constant}) > 1:
        raise site.refuse("along the batch", "leave the batch in front")
    found = [site.cast(item, site.dtype) for item in found]
    model = next(item for item in found if not item.constant)
    return [_for_each(site, item, model, axis) if item.constant else item for item in found]


def _for_each(site: Site, x: Laid, model: Laid, axis: int) -> Laid:
    """A constant for each sample: ``max(min(part, x), x)`` is x whatever that part of another tensor holds, NaN aside.

    No operation of a graph knows the size of a batch, so the part brings it.
    """
    size = int(x.shape[axis] or 1)
    if size > int(model.shape[axis] or 1) or x.shape[0] not in (None, 1):
        raise site.refuse(
            "with a constant that is larger than what it is joined with", "put the larger one in front of it"
        )
    part, order = site.plain(model), range(len(model.shape))
    end = [size if i == axis else None for i in order]
    shape = [size if i == axis else n for i, n in enumerate(model.shape)]
    if size < int(model.shape[axis] or 1):
        how = {"begin": [0 for _ in order], "end": end, "strides": [1 for _ in order]}
        part = site.emit("slice", [part], shape, suffix="part", dtype=part.dtype, **how)
    for kind in ("minimum", "maximum"):
        part = site.emit(kind, [part, site.plain(x)], shape, suffix=kind)
    return Laid(part, tuple(shape), tuple(order))


@lowering("cat")
def _concat(site: Site) -> Laid:
    axis = int(site.option("dim", 1, 0)) % len(site.shape)
    parts = [site.unflat(x) for x in _joined(site, axis)]
    tensors, guide = together(site, parts)
    shape = [site.shape[i] for i in guide.order]
    return Laid(site.emit("concat", tensors, shape, axis=guide.axis(axis)), site.shape, guide.order)


@lowering("stack")
def _stack(site: Site) -> Laid:
    axis = int(site.option("dim", 1, 0)) % len(site.shape)
    shape = (*site.shape[:axis], 1, *site.shape[axis + 1 :])
    given = _joined(site, axis)
    parts = [site.reshape(site.plain(x), shape, "apart") for x in given]
    return site.gives(site.emit("concat", parts, site.shape, axis=axis))
