"""Operations that only move values, as ONNX operations on the codes themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from qi.exporters.onnx_builder import FIRST, LAST, Builder, axis_in, constant_data, order, refused, writer
from qi.ir.graph import Op, Tensor

__all__: list[str] = []

_END = np.iinfo(np.int64).max


def _moved(b: Builder, op: Op, kind: str, more: Iterable[str] = (), layout: str = LAST, **attrs: Any) -> None:
    b.put(op.y, b.node(kind, [b.value(op.x, layout), *more], op.y.name, **attrs), layout)


def _layout(b: Builder, op: Op) -> str:
    return b.layout_of(op.inputs, len(op.y.shape))


@writer("reshape")
def _reshape(b: Builder, op: Op) -> None:
    """Channels stay first where only sizes of 1 come or go, as around convolutions of sequences."""
    x, y = op.x, op.y
    if b.layout_of([x], len(x.shape)) == FIRST and _same_but_ones(x, y):
        shape = b.sizes(y)
        _moved(b, op, "Reshape", [b.indices([shape[i] for i in order(len(shape))])], FIRST)
        return
    _moved(b, op, "Reshape", [b.indices(b.sizes(y))])


def _same_but_ones(x: Tensor, y: Tensor) -> bool:
    large_x, large_y = ([n for n in t.shape[1:-1] if n != 1] for t in (x, y))
    return len(y.shape) > 1 and x.shape[-1] == y.shape[-1] and large_x == large_y


@writer("transpose")
def _transpose(b: Builder, op: Op) -> None:
    perm = [int(a) for a in op.attrs["perm"]]
    at, layout = order(len(perm)), b.layout_of([op.x], len(perm))
    if layout == LAST and len(perm) > 2 and [perm[a] for a in at] == sorted(at):
        # Channels that are first go last, where convolutions want them first: they stay.
        b.put(op.y, b.value(op.x, LAST), FIRST)
        return
    if layout == FIRST and perm == at:
        b.put(op.y, b.value(op.x, FIRST), LAST)
        return
    if layout == FIRST:
        # What lies there in another order already is turned once.
        b.put(op.y, b.node("Transpose", [b.value(op.x, FIRST)], op.y.name, perm=[at.index(a) for a in perm]), LAST)
        return
    _moved(b, op, "Transpose", perm=perm)


@writer("pad")
def _pad(b: Builder, op: Op) -> None:
    layout, rank = _layout(b, op), len(op.x.shape)
    pairs = [op.attrs["pads"][a] for a in (order(rank) if layout == FIRST else range(rank))]
    pads = b.indices([int(before) for before, _ in pairs] + [int(after) for _, after in pairs])
    fill = b.scale_of(op.y)[1] if op.y.quantized else b.constant(np.float32(0))
    _moved(b, op, "Pad", [pads, fill], layout)


@writer("slice")
def _slice(b: Builder, op: Op) -> None:
    layout, rank = _layout(b, op), len(op.x.shape)
    entries = zip(op.attrs["begin"], op.attrs["end"], op.attrs["strides"], strict=True)
    cuts = [
        (int(begin), _END if end is None else int(end), axis_in(layout, rank, axis), int(stride))
        for axis, (begin, end, stride) in enumerate(entries)
        if (begin, end, stride) != (0, None, 1) and (begin, end, stride) != (0, op.x.shape[axis], 1)
    ]
    if not cuts:
        b.put(op.y, b.node("Identity", [b.value(op.x, layout)], op.y.name), layout)
        return
    _moved(b, op, "Slice", [b.indices(column) for column in zip(*cuts, strict=True)], layout)


@writer("reverse")
def _reverse(b: Builder, op: Op) -> None:
    """A Slice with steps of -1."""
    layout, rank = _layout(b, op), len(op.x.shape)
    cut = (-1, -_END, axis_in(layout, rank, op.attrs["axis"]), -1)
    _moved(b, op, "Slice", [b.indices([number]) for number in cut], layout)


@writer("concat")
def _concat(b: Builder, op: Op) -> None:
    rank = len(op.y.shape)
    layout = b.layout_of(op.inputs, rank)
    names = [b.value(t, layout) for t in op.inputs]
    b.put(op.y, b.node("Concat", names, op.y.name, axis=axis_in(layout, rank, op.attrs["axis"])), layout)


@writer("max_pool2d")
def _max_pool2d(b: Builder, op: Op) -> None:
    top, bottom, left, right = op.attrs["pads"]
    shapes = {"kernel_shape": list(op.attrs["pool"]), "strides": list(op.attrs["strides"])}
    _moved(b, op, "MaxPool", layout=FIRST, pads=[top, left, bottom, right], **shapes)


@writer("max")
def _max(b: Builder, op: Op) -> None:
    rank, keep = len(op.x.shape), bool(op.attrs["keepdims"])
    layout = b.layout_of([op.x], rank)
    axes = [int(a) for a in op.attrs["axes"]]
    # Without the axes between them, batch and channels lie alike in both layouts.
    if not keep and layout == FIRST and axes != list(range(1, rank - 1)):
        layout = LAST
    where = b.indices([axis_in(layout, rank, a) for a in axes])
    reduced = b.node("ReduceMax", [b.value(op.x, layout), where], op.y.name, keepdims=int(keep))
    b.put(op.y, reduced, layout if keep else LAST)


@writer("resize_nearest")
def _resize_nearest(b: Builder, op: Op) -> None:
    """Each pixel several times: with "asymmetric" and "floor", that of the output's place divided by the factor."""
    scales = b.constant(np.array([1, 1, *op.attrs["factors"]], np.float32), "factors")
    how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    _moved(b, op, "Resize", ["", scales], FIRST, **how)


@writer("tile")
def _tile(b: Builder, op: Op) -> None:
    layout, rank = _layout(b, op), len(op.x.shape)
    multiples = [int(op.attrs["multiples"][a]) for a in (order(rank) if layout == FIRST else range(rank))]
    _moved(b, op, "Tile", [b.indices(multiples)], layout)


@writer("broadcast")
def _broadcast(b: Builder, op: Op) -> None:
    shape = [1 if n is None else int(n) for n in op.attrs["shape"]]
    _moved(b, op, "Expand", [b.indices(shape)])


@writer("embedding")
def _embedding(b: Builder, op: Op) -> None:
    """Rows of codes; where the result is real, they become real after they are picked."""
    ids, table = op.inputs
    at = b.real(ids, LAST)
    if op.y.quantized or not table.quantized:
        b.put(op.y, b.node("Gather", [b.value(table, LAST), at], op.y.name, axis=0), LAST)
        return
    codes = constant_data(table)
    if table.qparams is None or table.qparams.zero_point.any() or not table.grid.signed:
        raise refused(op, "whose table has zero points", "quantize it symmetrically")
    scale = np.asarray(table.qparams.expanded(codes.shape)[0])
    picked = b.node("Gather", [b.constant(codes.astype(np.int8), table.name), at], axis=0)
    scale = scale.reshape((1,) * (2 - scale.ndim) + scale.shape)
    real = b.node("Cast", [picked], to=b.type_of(np.dtype(np.float32)))
    if scale.shape[0] > 1:
        factor = b.node("Gather", [b.constant(scale, f"{table.name}:scale"), at], axis=0)
    else:
        factor = b.constant(scale.reshape(-1), f"{table.name}:scale")
    b.put(op.y, b.node("Mul", [real, factor], op.y.name), LAST)
