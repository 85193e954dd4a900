"""The distribution that a histogram stands for: what every choice of a range reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qi.observers.histogram import Histogram

__all__ = ["Cells", "cells_of"]


@dataclass(frozen=True)
class Cells:
    """Intervals in ascending order, in each of which the values are taken to lie evenly.

    A cell of no width is a point: exact zeros, and constants. The outermost cells end at the exact extremes.

    Attributes:
        left: float64 ``[n]``, lower ends.
        right: float64 ``[n]``, upper ends.
        mass: float64 ``[n]``, how many values lie in each, all above 0.
        width: Of a whole bin.
    """

    left: np.ndarray
    right: np.ndarray
    mass: np.ndarray
    width: float

    @property
    def lo(self) -> float:
        """The least value."""
        return float(self.left[0])

    @property
    def hi(self) -> float:
        """The greatest value."""
        return float(self.right[-1])

    @property
    def total(self) -> float:
        """How many values there are."""
        return float(self.mass.sum())

    def quantile(self, share: float) -> float:
        """The value below which a share from 0 to 1 lies: `numpy.quantile`, to within one bin."""
        cumulated = np.cumsum(self.mass)
        position = share * (round(float(cumulated[-1])) - 1)
        below = self._ranked(np.floor(position), cumulated)
        above = self._ranked(np.ceil(position), cumulated)
        return below + (above - below) * (position - float(np.floor(position)))

    def _ranked(self, rank: float, cumulated: np.ndarray) -> float:
        """The value of a rank (0 is the least), by its place among those of its cell."""
        if rank <= 0:
            return self.lo
        if rank >= round(float(cumulated[-1])) - 1:
            return self.hi
        i = min(int(np.searchsorted(cumulated, rank, side="right")), len(cumulated) - 1)
        place = (rank - (cumulated[i] - self.mass[i]) + 0.5) / self.mass[i]
        return float(self.left[i] + (self.right[i] - self.left[i]) * np.clip(place, 0.0, 1.0))

    def outside(self, lo: float, hi: float) -> float:
        """How many values lie below `lo` or above `hi`; exactly 0 when the range holds both extremes."""
        width = self.right - self.left
        safe = np.where(width > 0, width, 1.0)
        below = np.where(width > 0, np.clip((lo - self.left) / safe, 0.0, 1.0), self.left < lo)
        above = np.where(width > 0, np.clip((self.right - hi) / safe, 0.0, 1.0), self.right > hi)
        return float(np.sum(self.mass * np.minimum(below + above, 1.0)))


def cells_of(histogram: Histogram, channel: int = 0, *, magnitudes: bool = False) -> Cells | None:
    """The distribution of one channel, or of its values' magnitudes.

    Args:
        histogram: What was seen.
        channel: Its index; 0 per tensor.
        magnitudes: Whether to take |x| for x.

    Returns:
        The cells; None when the channel had no finite value.
    """
    counts, zeros, lo, hi, width = histogram.row(channel)
    if lo > hi:
        return None
    middle = len(counts) // 2
    if magnitudes:
        upper = counts[middle:].copy()
        upper[1:] += counts[middle - 1 : 0 : -1]
        counts = np.concatenate((np.zeros_like(upper), upper))
        lo, hi = max(0.0, lo, -hi), max(-lo, hi)
    counts[middle] -= zeros
    places = np.flatnonzero(counts)
    number, mass = places - middle, counts[places].astype(np.float64)
    left = np.maximum(np.where(number > 0, number, number - 1) * width, lo)
    right = np.minimum(np.where(number < 0, number, number + 1) * width, hi)
    return _with_zeros(Cells(left, right, mass, width), zeros)


def _with_zeros(cells: Cells, zeros: int) -> Cells:
    """Cut a cell around 0 in two, and put the exact zeros between them."""
    left, right, mass = cells.left, cells.right, cells.mass
    cut = int(np.searchsorted(right, 0.0, side="right"))  # cells that end at or below 0
    around = cut < len(left) and left[cut] < 0.0
    if around:
        parts = np.array([-left[cut], right[cut]]) * (mass[cut] / (right[cut] - left[cut]))
        left, right = np.insert(left, cut + 1, 0.0), np.insert(right, cut, 0.0)
        mass = np.concatenate((mass[:cut], parts, mass[cut + 1 :]))
        cut += 1
    if zeros:
        left, right = np.insert(left, cut, 0.0), np.insert(right, cut, 0.0)
        mass = np.insert(mass, cut, float(zeros))
    return Cells(left, right, mass, cells.width)
