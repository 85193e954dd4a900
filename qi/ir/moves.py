"""Operations that only move or choose values: the same on codes as on real numbers, on every runtime.

Their inputs and their output share one scale, which `qi.ir.validate` checks.
"""

from __future__ import annotations

import numpy as np

from qi.ir.graph import Op
from qi.ir.kinds import real_kind
from qi.ir.windows import windows

__all__ = ["strided"]


@real_kind("reshape", attrs="shape", moves=True)
def _reshape(op: Op, x: np.ndarray, fill: float = 0) -> np.ndarray:
    """To ``shape``, whose first entry, the batch, is None."""
    del fill
    shape = [len(x) if n is None else n for n in op.attrs["shape"]]
    return x.reshape(shape)


@real_kind("transpose", attrs="perm", moves=True)
def _transpose(op: Op, x: np.ndarray, fill: float = 0) -> np.ndarray:
    """Axes in the order of ``perm``."""
    del fill
    return x.transpose(op.attrs["perm"])


@real_kind("pad", attrs="pads", moves=True)
def _pad(op: Op, x: np.ndarray, fill: float = 0) -> np.ndarray:
    """With real zeros: ``pads`` has (before, after) for each axis."""
    return np.pad(x, op.attrs["pads"], constant_values=fill)


def strided(op: Op) -> tuple[slice, ...]:
    """The slices that a "slice" operation takes."""
    return tuple(slice(b, e, s) for b, e, s in zip(*(op.attrs[k] for k in ("begin", "end", "strides")), strict=True))


@real_kind("slice", attrs="begin end strides", moves=True)
def _slice(op: Op, x: np.ndarray, fill: float = 0) -> np.ndarray:
    """From ``begin`` to ``end`` (None: as far as it goes) by ``strides``, for each axis; strides are positive."""
    del fill
    return x[strided(op)]


@real_kind("reverse", attrs="axis", moves=True)
def _reverse(op: Op, x: np.ndarray, fill: float = 0) -> np.ndarray:
    """From the last to the first along ``axis``."""
    del fill
    return np.flip(x, op.attrs["axis"])


@real_kind("concat", (1, 2**31), attrs="axis", moves=True)
def _concat(op: Op, *arrays: np.ndarray, fill: float = 0) -> np.ndarray:
    """One after the other along ``axis``."""
    del fill
    return np.concatenate(arrays, axis=op.attrs["axis"])


@real_kind("max_pool2d", attrs="pool strides pads", moves=True)
def _max_pool2d(op: Op, x: np.ndarray, fill: float = 0) -> np.ndarray:
    """The largest of each window; what lies outside of x is left out."""
    del fill
    lowest = np.iinfo(x.dtype).min if x.dtype.kind in "iu" else -np.inf
    return np.asarray(windows(op, x, lowest).max(axis=(3, 4)))


@real_kind("max", attrs="axes keepdims", moves=True)
def _max(op: Op, x: np.ndarray, fill: float = 0) -> np.ndarray:
    """The largest along ``axes``."""
    del fill
    return np.asarray(x.max(axis=tuple(op.attrs["axes"]), keepdims=op.attrs["keepdims"]))


@real_kind("resize_nearest", attrs="factors", moves=True)
def _resize_nearest(op: Op, x: np.ndarray, fill: float = 0) -> np.ndarray:
    """Each pixel ``factors`` times down and across."""
    del fill
    return x.repeat(op.attrs["factors"][0], axis=1).repeat(op.attrs["factors"][1], axis=2)


@real_kind("tile", attrs="multiples", moves=True)
def _tile(op: Op, x: np.ndarray, fill: float = 0) -> np.ndarray:
    """The whole, ``multiples`` times along each axis."""
    del fill
    return np.tile(x, op.attrs["multiples"])


@real_kind("broadcast", attrs="shape", moves=True)
def _broadcast(op: Op, x: np.ndarray, fill: float = 0) -> np.ndarray:
    """To ``shape``; the batch is None."""
    del fill
    return np.broadcast_to(x, [len(x) if n is None else n for n in op.attrs["shape"]])


@real_kind("embedding", 2, moves=True)
def _embedding(op: Op, ids: np.ndarray, table: np.ndarray, fill: float = 0) -> np.ndarray:
    """Rows of the second input by the indices in the first."""
    del op, fill
    return np.asarray(table[ids])
