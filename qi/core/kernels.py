"""What happens to one tile of an array, in numpy: the formulas of `qi.core.affine` in a cache's worth of scratch.

Bit for bit what `qi.core.affine` gives, in fewer passes over memory:

* the least and the greatest ``u = x / scale`` of a tile tell whether anything has to be clipped or counted; NaN and
  infinities show in them too;
* adding ``1.5 * 2**23`` to ``|u| < 2**22`` rounds half to even, as float32 has no fractions there, and leaves the
  integer in the low bits. The zero point is added afterwards, among integers: before, it would move ties.
"""

from __future__ import annotations

from typing import NamedTuple

import ml_dtypes
import numpy as np

from qi.core.grid import IntGrid

__all__ = ["Counts", "NumpyKernels", "infinite", "load", "spread_of"]

MAGIC = np.float32(1.5 * 2**23)
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_FLOAT32 = np.dtype(np.float32)
_INFINITY = np.float32(np.inf)


class Counts(NamedTuple):
    """What `quantize` met on its way.

    Attributes:
        clipped: values that saturated, infinities among them: ``round(x / scale) + zero_point`` isn't on the grid.
        nans: values that are NaN, stored as the zero point.
        infs: values that are infinite in float32, in which QI computes: 1e300 is.
    """

    clipped: int = 0
    nans: int = 0
    infs: int = 0

    def plus(self, other: Counts) -> Counts:
        """The counts of two arrays together."""
        return Counts(self.clipped + other.clipped, self.nans + other.nans, self.infs + other.infs)


NOTHING = Counts()


def load(x: np.ndarray, out: np.ndarray) -> None:
    """Copies `x`, of any real dtype, to the contiguous float32 array `out`."""
    if x.dtype == _BFLOAT16:  # the upper half of a float32
        bits = out.view(np.uint32)
        np.copyto(bits, x.view(np.uint16))
        np.left_shift(bits, 16, out=bits)
    else:
        np.copyto(out, x, casting="unsafe")


def infinite(x: np.ndarray) -> int:
    """How many values are infinite in float32."""
    if x.dtype.kind in "iub":
        return 0
    return int(np.count_nonzero(np.isinf(x.astype(np.float32, copy=False))))


def _edges(low: int, high: int) -> tuple[np.float32, np.float32]:
    """The least and the greatest float32 that round (half to even) to an integer from `low` to `high`."""
    below, above = np.float32(low - 0.5), np.float32(high + 0.5)
    if low % 2:
        below = np.nextafter(below, _INFINITY)
    if high % 2:
        above = np.nextafter(above, -_INFINITY)
    return below, above


class NumpyKernels:
    """The three functions of one tile; an object belongs to one thread, whose scratch it holds.

    Args:
        grid: which codes exist.
        zero: the zero point, where all scales share it; else None, and every call brings an array of them.
        block: the most elements of a tile.

    All methods take arrays that broadcast against the tile `x`; `s` is float32, `z` float32 or None.
    """

    name = "numpy"

    def __init__(self, grid: IntGrid, zero: int | None, block: int) -> None:
        self._scratch = np.empty(block, np.float32)
        self.zero = zero
        qmin, qmax = (grid.qmin, grid.qmax) if zero is None else (grid.qmin - zero, grid.qmax - zero)
        self.low, self.high = np.float32(qmin), np.float32(qmax)
        self.edges = (self.low, self.high) if zero is None else _edges(qmin, qmax)
        self._shift = None if not zero else np.array(zero, np.int64).astype(grid.storage_dtype)

    def _steps(self, x: np.ndarray, s: np.ndarray, z: np.ndarray | None) -> np.ndarray:
        """``x / s``; with zero points of its own for each scale, those are added to the rounded steps."""
        u = self._scratch[: x.size].reshape(x.shape)
        if x.dtype == _FLOAT32:
            np.divide(x, s, out=u)
        else:
            load(x, u)
            np.divide(u, s, out=u)
        if z is not None:
            np.rint(u, out=u)
            np.add(u, z, out=u)
        return u

    def _settle(self, u: np.ndarray, x: np.ndarray) -> Counts:
        """Clips and counts where the tile needs it; NaN stays."""
        flat = self._scratch[: u.size]
        least, greatest = flat.min(), flat.max()
        below, above = self.edges
        if least >= below and greatest <= above:
            return NOTHING
        clipped = np.count_nonzero(flat < below) + np.count_nonzero(flat > above)
        nans = infs = 0
        if np.isnan(least):
            nans = int(np.count_nonzero(np.isnan(flat)))
            infs = infinite(x)
        elif np.isinf(least) or np.isinf(greatest):
            infs = infinite(x)
        np.maximum(flat, self.low, out=flat)
        np.minimum(flat, self.high, out=flat)
        return Counts(int(clipped), nans, infs)

    def quantize(self, x: np.ndarray, s: np.ndarray, z: np.ndarray | None, out: np.ndarray) -> Counts:
        """Writes codes to `out`."""
        u = self._steps(x, s, z)
        counts = self._settle(u, x)
        if counts.nans:
            np.copyto(u, 0 if z is None else z, where=np.isnan(u))
        np.add(u, MAGIC, out=u)
        np.copyto(out, u.view(np.int32), casting="unsafe")
        if self._shift is not None:
            np.add(out, self._shift, out=out)
        return counts

    def fake_quantize(self, x: np.ndarray, s: np.ndarray, z: np.ndarray | None, out: np.ndarray) -> Counts:
        """Writes what `quantize`, then `dequantize` give to `out`; NaN stays."""
        u = self._steps(x, s, z)
        counts = self._settle(u, x)
        if z is None:
            np.add(u, MAGIC, out=u)
            np.subtract(u, MAGIC, out=u)
        else:
            np.subtract(u, z, out=u)
        np.multiply(u, s, out=u)
        np.copyto(out, u, casting="unsafe")
        return counts

    def dequantize(self, x: np.ndarray, s: np.ndarray, z: np.ndarray | None, out: np.ndarray) -> Counts:
        """Writes real numbers to `out`."""
        direct = out.dtype == _FLOAT32
        u = out if direct else self._scratch[: x.size].reshape(x.shape)
        np.copyto(u, x, casting="unsafe")
        if z is not None:
            np.subtract(u, z, out=u)
        elif self.zero:
            np.subtract(u, np.float32(self.zero), out=u)
        np.multiply(u, s, out=u)
        if not direct:
            np.copyto(out, u, casting="unsafe")
        return NOTHING


def spread_of(x: np.ndarray, lo: np.ndarray, hi: np.ndarray) -> tuple[int, int]:
    """Widens `lo` and `hi` to the least and greatest finite values of a tile.

    Args:
        x: the tile, of any real dtype.
        lo: float64, 1 along axes that share a range, else x's size.
        hi: the same.

    Returns:
        how many values are NaN, and how many infinite in float32.
    """
    axes = tuple(axis for axis, n in enumerate(lo.shape) if n == 1 and x.shape[axis] != 1)
    if x.dtype.kind not in "iub" and x.dtype not in (_FLOAT32, np.float64):
        x = x.astype(np.float32)  # exact, and numpy compares float32 much faster
    least, greatest = x.min(axis=axes, keepdims=True), x.max(axis=axes, keepdims=True)
    nans = infs = 0
    if x.dtype.kind == "f" and not (np.isfinite(_narrow(least)).all() and np.isfinite(_narrow(greatest)).all()):
        narrow = _narrow(x)
        nans, infs = int(np.count_nonzero(np.isnan(narrow))), int(np.count_nonzero(np.isinf(narrow)))
        finite = np.isfinite(narrow)
        least = x.min(axis=axes, keepdims=True, initial=np.inf, where=finite)
        greatest = x.max(axis=axes, keepdims=True, initial=-np.inf, where=finite)
    np.minimum(lo, least, out=lo)
    np.maximum(hi, greatest, out=hi)
    return nans, infs


def _narrow(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32, copy=False)
