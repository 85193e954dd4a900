"""Operations that only move values, in a LiteRT file: nothing in them holds the size of the batch."""

from __future__ import annotations

from typing import Any

import numpy as np

from qi.core import IntGrid, PerGroup, QParams
from qi.exporters.litert_file import Draft
from qi.exporters.litert_ops import refuse, strided_slice, writer
from qi.ir.graph import Op, Tensor

__all__: list[str] = []


def _one(draft: Draft, op: Op, code: str, *further: int, version: int = 0, options: object = None) -> None:
    version = version or (2 if op.quantized else 1)
    draft.operator(code, [draft.tensor(op.x), *further], [draft.tensor(op.y)], version, options)


@writer("reshape")
def _reshape(draft: Draft, op: Op) -> None:
    shape = [-1 if n is None else int(n) for n in op.attrs["shape"]]
    further = draft.numbers(f"{op.y.name}/shape", shape)
    _one(draft, op, "RESHAPE", further, version=1, options=draft.options("ReshapeOptions", newShape=shape))


@writer("transpose")
def _transpose(draft: Draft, op: Op) -> None:
    order = draft.numbers(f"{op.y.name}/perm", op.attrs["perm"])
    _one(draft, op, "TRANSPOSE", order, options=draft.options("TransposeOptions"))


@writer("pad")
def _pad(draft: Draft, op: Op) -> None:
    amounts = draft.constant(f"{op.y.name}/pads", np.asarray(op.attrs["pads"], np.int32))
    _one(draft, op, "PAD", amounts, options=draft.options("PadOptions"))


@writer("slice")
def _slice(draft: Draft, op: Op) -> None:
    strided_slice(draft, op, draft.tensor(op.x), *(op.attrs[key] for key in ("begin", "end", "strides")))


@writer("reverse")
def _reverse(draft: Draft, op: Op) -> None:
    axis = draft.numbers(f"{op.y.name}/axis", [op.attrs["axis"]])
    _one(draft, op, "REVERSE_V2", axis, version=3 if op.quantized else 1, options=draft.options("ReverseV2Options"))


@writer("concat")
def _concat(draft: Draft, op: Op) -> None:
    options = draft.options("ConcatenationOptions", axis=op.attrs["axis"])
    inputs = [draft.tensor(t) for t in op.inputs]
    draft.operator("CONCATENATION", inputs, [draft.tensor(op.y)], 2 if op.quantized else 1, options)


@writer("resize_nearest")
def _resize_nearest(draft: Draft, op: Op) -> None:
    if None in op.y.shape[1:3]:
        raise refuse(op, f"on an image of open size {op.x.shape}", "give the model an Input of fixed sizes")
    size = draft.numbers(f"{op.y.name}/size", [int(n or 0) for n in op.y.shape[1:3]])
    # Half-pixel centres lie in the middle of what a source pixel covers: no rounding can move them to its neighbour.
    _one(
        draft,
        op,
        "RESIZE_NEAREST_NEIGHBOR",
        size,
        version=3,
        options=draft.options("ResizeNearestNeighborOptions", halfPixelCenters=True),
    )


@writer("tile")
def _tile(draft: Draft, op: Op) -> None:
    _one(
        draft,
        op,
        "TILE",
        draft.numbers(f"{op.y.name}/multiples", op.attrs["multiples"]),
        version=2 if op.quantized else 1,
    )


@writer("broadcast")
def _broadcast(draft: Draft, op: Op) -> None:
    """As a tile, which needs no size of the batch."""
    shape = op.attrs["shape"]
    given = [1] * (len(shape) - len(op.x.shape)) + list(op.x.shape)
    multiples = [1 if n == m or n is None else int(n) for n, m in zip(shape, given, strict=True)]
    if len(given) != len(op.x.shape):
        raise refuse(op, "to a higher rank", "add the axes by a reshape")
    _one(draft, op, "TILE", draft.numbers(f"{op.y.name}/multiples", multiples), version=2 if op.quantized else 1)


@writer("embedding")
def _embedding(draft: Draft, op: Op) -> None:
    """Rows of codes; where the result is real, they become real after they are picked."""
    ids, table = op.inputs
    options = draft.options("GatherOptions", axis=0)
    if not op.quantized and _is_small(table):
        _picked(draft, op, options)
        return
    number = draft.tensor(table) if op.quantized else draft.constant(table.name, table.values())
    draft.operator("GATHER", [number, draft.tensor(ids)], [draft.tensor(op.y)], 2 if op.quantized else 1, options)


def _is_small(table: Tensor) -> bool:
    """Whether int8 holds the codes, and a scale for each row, each column or all makes them real."""
    if table.data is None or table.qparams is None or table.qparams.zero_point.any():
        return False
    grid, granularity = table.qparams.grid, table.qparams.granularity
    return isinstance(grid, IntGrid) and grid.signed and grid.bits <= 8 and not isinstance(granularity, PerGroup)


def _picked(draft: Draft, op: Op, options: Any) -> None:
    """GATHER of codes at a scale of one, DEQUANTIZE, a product with their scales."""
    (ids, table), name, shape = op.inputs, op.y.name, op.y.shape
    one = QParams(np.ones(()), np.zeros(()), IntGrid(8))
    codes = draft.new(f"{name}/codes", shape, Tensor("", shape, qparams=one))
    number = draft.constant(table.name, np.asarray(table.data, np.int8), one)
    draft.operator("GATHER", [number, draft.tensor(ids)], [codes], 2, options)
    real = draft.real(f"{name}/units", shape)
    draft.operator("DEQUANTIZE", [codes], [real], 2)
    scale = table.qparams.scale if table.qparams is not None else np.ones(1, np.float32)
    factors = draft.constant(f"{table.name}/scales", scale if scale.ndim == 2 else scale.reshape(1, 1))
    if scale.ndim == 2 and scale.shape[0] > 1:
        rows = draft.real(f"{name}/scales", (*ids.shape, 1))
        draft.operator("GATHER", [factors, draft.tensor(ids)], [rows], 1, options)
        factors = rows
    draft.operator("MUL", [real, factors], [draft.tensor(op.y)], 1, draft.options("MulOptions"))
