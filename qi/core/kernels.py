"""What happens to one tile of an array, in numpy: the formulas of `qi.core.affine` in a cache's worth of scratch.

Bit for bit what `qi.core.affine` gives, in fewer passes over memory:

* the least and the greatest ``u = x / scale`` of a tile tell whether anything has to be clipped or counted; NaN and
  infinities show in them too;
* adding ``1.5 * 2**23`` to ``|u| < 2**22`` rounds half to even, as float32 has no fractions there, and leaves the
  integer in the low bits. The zero point is added afterwards, among integers: before, it would move ties.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from qi.core.grid import IntGrid
from qi.typing import Shape

__all__ = ["Counts", "NumpyKernels", "infinite", "load", "spread_of"]

MAGIC = np.float32(1.5 * 2**23)
_FLOAT32 = np.dtype(np.float32)
_INFINITY = np.float32(np.inf)
_HALF_END = np.float32(2.0**16)


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
    if x.dtype.name == "bfloat16":  # the upper half of a float32
        bits = out.view(np.uint32)
        np.copyto(bits, x.view(np.uint16))
        np.left_shift(bits, 16, out=bits)
    elif x.dtype == np.float16:
        _load_half(x, out)
    else:
        np.copyto(out, x, casting="unsafe")


def _load_half(x: np.ndarray, out: np.ndarray) -> None:
    """float16 to float32 in half of numpy's time: its bits, moved to their places, are the number by 2**-112."""
    bits = out.view(np.int32)
    np.copyto(bits, x.view(np.int16))
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, np.int32(-0x70002000), out=bits)  # without the copies of the sign below it
    np.multiply(out, np.float32(2.0**112), out=out)
    if out.size and (out.max() >= _HALF_END or out.min() <= -_HALF_END):  # the exponent of NaN and infinities
        np.copyto(out, x)


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


@lru_cache(maxsize=256)
def _limits(
    grid: IntGrid, zero: int | None
) -> tuple[np.float32, np.float32, tuple[np.float32, np.float32], np.ndarray | None]:
    """Where steps end, which of them count as clipped, and what is added to them in the type of codes."""
    qmin, qmax = (grid.qmin, grid.qmax) if zero is None else (grid.qmin - zero, grid.qmax - zero)
    low, high = np.float32(qmin), np.float32(qmax)
    shift = np.array(zero, np.int64).astype(grid.storage_dtype) if zero else None
    return low, high, (low, high) if zero is None else _edges(qmin, qmax), shift


class NumpyKernels:
    """The three functions of one tile; an object belongs to one thread, whose scratch it holds.

    Args:
        grid: which codes exist.
        zero: the zero point, where all scales share it; else None, and every call brings an array of them.

    All methods take arrays that broadcast against the tile `x`; `s` is float32, `z` float32 or None.
    """

    name = "numpy"

    def __init__(self, grid: IntGrid, zero: int | None) -> None:
        self._scratch = np.empty(0, np.float32)
        self.zero = zero
        self.low, self.high, self.edges, self._shift = _limits(grid, zero)

    def _buffer(self, shape: Shape) -> np.ndarray:
        """Contiguous scratch, the same at every call."""
        size = math.prod(shape)
        if self._scratch.size < size:
            self._scratch = np.empty(size, np.float32)
        return self._scratch[:size].reshape(shape)

    def _steps(self, x: np.ndarray, s: np.ndarray, z: np.ndarray | None) -> np.ndarray:
        """``x / s``; with zero points of its own for each scale, those are added to the rounded steps."""
        u = self._buffer(x.shape)
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
        flat = u.reshape(-1)
        least, greatest = flat.min(), flat.max()
        below, above = self.edges
        if least >= below and greatest <= above:
            return NOTHING
        clipped = 0 if least >= below else np.count_nonzero(flat < below)
        clipped += 0 if greatest <= above else np.count_nonzero(flat > above)
        nans = infs = 0
        if np.isnan(least):
            nans = int(np.count_nonzero(np.isnan(flat)))
            infs = infinite(x)
        elif np.isinf(least) or np.isinf(greatest):
            infs = infinite(x)
        np.clip(flat, self.low, self.high, out=flat)  # in a quarter of the time of `maximum` and `minimum`
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
        u = out if direct else self._buffer(x.shape)
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
    if x.dtype.kind not in "iubf" or x.dtype == np.float16:
        real = np.empty(x.shape, np.float32)  # exact, and numpy compares float32 much faster
        load(x, real)
        x = real
    least, greatest = x.min(axis=axes, keepdims=True), x.max(axis=axes, keepdims=True)
    nans = infs = 0
    if x.dtype.kind == "f" and not (_finite(least).all() and _finite(greatest).all()):
        finite = _finite(x)
        nans = int(np.count_nonzero(np.isnan(x)))
        infs = x.size - int(np.count_nonzero(finite)) - nans
        least = x.min(axis=axes, keepdims=True, initial=np.inf, where=finite)
        greatest = x.max(axis=axes, keepdims=True, initial=-np.inf, where=finite)
    np.minimum(lo, least, out=lo)
    np.maximum(hi, greatest, out=hi)
    return nans, infs


def _finite(x: np.ndarray) -> np.ndarray:
    """Which values are finite in float32."""
    return np.isfinite(x.astype(np.float32, copy=False))
