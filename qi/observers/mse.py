"""The range of least expected squared quantization error, searched on a histogram.

For a candidate range `qi.core.scaling` gives the scale s and zero point z that would be deployed, and the
error is integrated exactly over the histogram's cells: with ``u = x / s`` and the nearest code ``k =
clip(round(u), ...)``, the integral of ``(u - k)**2`` from 0 is ``k / 12 + (u - k)**3 / 3`` on an integer
grid, clipped ends included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np

from qi.core.grid import Grid, IntGrid, LutGrid
from qi.core.scaling import (
    SymmetricRule,
    asymmetric_params,
    power_of_two as next_power_of_two,
    symmetric_scale,
)
from qi.errors import ConfigError
from qi.observers.cells import Cells

__all__ = ["ExpectedError", "best_range", "best_threshold", "largest_factor", "shrink_factors"]

T = TypeVar("T")

# A range is clipped only for a gain that is more than noise of the histogram.
_LEAST_GAIN = 0.01
# Cells thinner than this share of the greatest magnitude are points: their density would drown in rounding.
_THINNEST = 1e-6
# Each search narrows the coarse steps of shrink_factors() around the best found.
_REFINEMENTS = tuple(np.exp2(np.linspace(-reach, reach, 2 * steps + 1)) for reach, steps in ((1 / 6, 4), (1 / 24, 4)))


class ExpectedError:
    """The mean squared error that quantizing with (scale, zero point) makes on the values of a histogram.

    Args:
        cells: The values.
        grid: The codes.
    """

    def __init__(self, cells: Cells, grid: Grid) -> None:
        self._grid, self._total = grid, cells.total
        thin = cells.right - cells.left <= _THINNEST * max(-cells.lo, cells.hi)
        self._points = (cells.left[thin] + cells.right[thin]) / 2
        self._point_mass = cells.mass[thin]
        left, right = cells.left[~thin], cells.right[~thin]
        density = cells.mass[~thin] / (right - left)
        # The integral over all cells is one sum over their ends, each weighted by how much the density falls
        # there.
        self._ends, place = np.unique(np.concatenate((left, right)), return_inverse=True)
        self._falls = np.bincount(place, np.concatenate((-density, density)), minlength=len(self._ends))

    def __call__(self, scale: float, zero_point: int = 0) -> float:
        """Return the error for one scale and zero point."""
        integral = scale**3 * float(self._falls @ self._integrals(self._ends / scale, zero_point))
        distances = self._points / scale - self._nearest(self._points / scale, zero_point)
        return (integral + scale**2 * float(self._point_mass @ distances**2)) / self._total

    def _nearest(self, u: np.ndarray, zero_point: int) -> np.ndarray:
        if isinstance(self._grid, LutGrid):
            values = np.asarray(self._grid.values, np.float64)
            return np.asarray(values[np.searchsorted((values[:-1] + values[1:]) / 2, u)])
        nearest: np.ndarray = np.rint(u)
        np.clip(nearest, self._grid.qmin - zero_point, self._grid.qmax - zero_point, out=nearest)
        return nearest

    def _integrals(self, u: np.ndarray, zero_point: int) -> np.ndarray:
        nearest = self._nearest(u, zero_point)
        distance = u - nearest
        if isinstance(self._grid, IntGrid):
            nearest /= 12
        else:
            values = np.asarray(self._grid.values, np.float64)
            # From one entry to the next: two halves of (gap / 2)**3 / 3.
            upto = np.concatenate(([0.0], np.cumsum(np.diff(values) ** 3 / 12)))
            nearest = upto[np.searchsorted(values, nearest)]
        nearest += distance * distance * distance / 3
        return nearest


def largest_factor(grid: Grid, rule: SymmetricRule) -> float:
    """How far beyond the greatest magnitude a threshold may usefully go: until that magnitude is a code."""
    top = grid.qmax if isinstance(grid, IntGrid) else max(map(abs, grid.values))
    return max(1.0, rule.divisor(grid) / max(top, 1))


def shrink_factors(smallest: float = 2.0**-10, largest: float = 1.0) -> np.ndarray:
    """Factors from `largest` (1 at least) down to `smallest`, six to each halving; 1 is among them."""
    return np.exp2(np.arange(np.floor(6 * np.log2(largest)), 6 * np.log2(smallest) - 1, -1) / 6)


def best_threshold(cells: Cells, grid: Grid, rule: SymmetricRule, *, power_of_two: bool = False) -> float:
    """The symmetric threshold of least expected error, 0 for values that are all 0.

    Args:
        cells: The values.
        grid: The codes.
        rule: How a threshold becomes a scale.
        power_of_two: Whether only powers of two are allowed.
    """
    error = ExpectedError(cells, grid)
    absmax = max(-cells.lo, cells.hi) if grid.signed else max(cells.hi, 0.0)
    if absmax == 0:
        return 0.0

    def cost(threshold: float) -> float:
        return error(float(symmetric_scale(threshold, grid, rule)))

    largest = largest_factor(grid, rule)
    if power_of_two:
        top = float(next_power_of_two(absmax))
        return _best(cost, top, [top * 2.0**-i for i in range(-int(np.ceil(np.log2(largest))), 11)])
    best = _best(cost, absmax, absmax * shrink_factors(largest=largest))
    for factors in _REFINEMENTS:
        best = _best(cost, best, best * factors[best * factors <= absmax * largest])
    return best if cost(best) < (1 - _LEAST_GAIN) * cost(absmax) else absmax


def best_range(cells: Cells, grid: Grid) -> tuple[float, float]:
    """The range (lo, hi) with ``lo <= 0 <= hi`` of least expected error on an asymmetric grid.

    Both ends shrink together first, then one after the other.

    Raises:
        ConfigError: If the grid is a look-up table, which has no zero point.
    """
    if not isinstance(grid, IntGrid):
        raise ConfigError(f"expected an integer grid for an asymmetric range; received {grid}; use symmetric=True")
    error = ExpectedError(cells, grid)
    lo, hi = min(cells.lo, 0.0), max(cells.hi, 0.0)

    def cost(ends: tuple[float, float]) -> float:
        scale, zero_point = asymmetric_params(lo * ends[0], hi * ends[1], grid)
        return error(float(scale), int(zero_point))

    factors = shrink_factors()
    best = _best(cost, (1.0, 1.0), [(f, f) for f in factors]) if lo < 0 < hi else (1.0, 1.0)
    for steps in (None, *_REFINEMENTS):
        for end in (1, 0):
            if (lo, hi)[end] != 0:
                tried = factors if steps is None else np.minimum(best[end] * steps, 1.0)
                best = _best(cost, best, [(best[0], f) if end else (f, best[1]) for f in tried])
    if cost(best) >= (1 - _LEAST_GAIN) * cost((1.0, 1.0)):
        return lo, hi
    return lo * best[0], hi * best[1]


def _best(cost: Callable[[T], float], first: T, others: Iterable[T]) -> T:
    """The cheapest candidate, the earlier one at a tie."""
    return min((first, *others), key=cost)
