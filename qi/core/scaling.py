"""Scales and zero points from ranges: the one place where a range becomes (scale, zero point).

Derived on the host in float64, given back as float32, so that every backend computes with the very same
numbers.
"""

from __future__ import annotations

from enum import Enum

import numpy as np

from qi.core.grid import Grid, IntGrid
from qi.errors import InputError
from qi.typing import Array

__all__ = ["SymmetricRule", "asymmetric_params", "power_of_two", "range_of", "symmetric_scale"]

# Below the smallest normal float32 a scale would be flushed to zero by TensorFlow's and XLA's kernels.
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
_GREATEST = float(np.finfo(np.float32).max)


class SymmetricRule(Enum):
    """Which divisor turns the greatest magnitude into a symmetric scale.

    ========  ======================  ==================================================
    member    divisor (8 bits)        who uses it
    ========  ======================  ==================================================
    EDGE      ``2**(b-1)`` (128)      thresholds of the quantizer classes; +t itself clips
    SPAN      ``(2**b-1)/2`` (127.5)  the tensor API's symmetric mode
    QMAX      ``2**(b-1)-1`` (127)    recipes and the engine; the extreme is a code
    ========  ======================  ==================================================

    For an unsigned grid the magnitude covers the whole grid: ``2**b``, ``2**b-1`` and ``2**b-1``.
    """

    EDGE = "edge"
    SPAN = "span"
    QMAX = "qmax"

    def divisor(self, grid: Grid) -> float:
        """The divisor for `grid`."""
        if self is SymmetricRule.EDGE:
            return float(grid.edge)
        if self is SymmetricRule.QMAX:
            return float(max(grid.edge - 1, 1))
        return (2 * grid.edge - 1) / 2 if grid.signed else float(grid.edge - 1)


def _finite(name: str, values: Array) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if not np.all(np.isfinite(array)):
        raise InputError(f"expected {name} to be finite; received {array[~np.isfinite(array)].flat[0]}")
    return array


def _float32_scale(scale: np.ndarray) -> np.ndarray:
    # A zero range has nothing to resolve: scale 1 keeps 0 at exactly 0 and every later division defined.
    scale = np.where(scale == 0.0, 1.0, np.maximum(scale, _SMALLEST_SCALE))
    return np.asarray(np.minimum(scale, _GREATEST), np.float32)


def symmetric_scale(absmax: Array, grid: Grid, rule: SymmetricRule = SymmetricRule.QMAX) -> np.ndarray:
    """``absmax / divisor`` in float32; a zero range gives 1.

    Args:
        absmax: greatest magnitudes or thresholds, any shape, finite and not negative.
        grid: the codes.
        rule: which divisor.

    Raises:
        InputError: a value is negative or not finite.

    Example:
        >>> symmetric_scale(2.0, IntGrid(8), SymmetricRule.EDGE)
        array(0.015625, dtype=float32)
    """
    absmax = _finite("absmax", absmax)
    if np.any(absmax < 0):
        raise InputError(f"expected absmax >= 0; received {absmax.min()}")
    return _float32_scale(absmax / rule.divisor(grid))


def asymmetric_params(lo: Array, hi: Array, grid: IntGrid) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of the range [lo, hi], stretched to contain 0, which maps to exactly 0.

    ``s = (hi - lo) / (qmax - qmin)``, ``z = qmin + floor(-lo / s + 1/2)``: the step is kept and the range
    shifts by at most half a step, as TensorFlow's and Jacob et al.'s nudging does (arXiv:1712.05877).

    Args:
        lo: lower ends, any shape, finite.
        hi: upper ends of the same shape, ``hi >= lo``.
        grid: an integer grid.

    Returns:
        (scale float32, zero_point int32), shaped like lo and hi together.

    Raises:
        InputError: an end is not finite, or lo > hi.

    Example:
        >>> scale, zero_point = asymmetric_params(-1.0, 1.55, IntGrid(8, signed=False))
        >>> float(scale).__round__(6), int(zero_point)
        (0.01, 100)
    """
    lo, hi = np.broadcast_arrays(_finite("the lower end of the range", lo), _finite("the upper end of the range", hi))
    if np.any(lo > hi):
        raise InputError(f"expected lo <= hi; received lo={lo[lo > hi].flat[0]}, hi={hi[lo > hi].flat[0]}")
    # The input is computed in float32, so a range ends where float32 does, and no difference below overflows.
    lo, hi = np.clip(lo, -_GREATEST, 0.0), np.clip(hi, 0.0, _GREATEST)
    scale = _float32_scale((hi - lo) / (grid.qmax - grid.qmin))
    # Half up, as TensorFlow nudges; from the unrounded ratio, so that a tie is a tie.
    with np.errstate(invalid="ignore"):
        steps = np.where(hi > lo, -lo / np.where(hi > lo, hi - lo, 1.0), 0.0) * (grid.qmax - grid.qmin)
    zero_point = grid.qmin + np.floor(steps + 0.5)
    return scale, np.asarray(np.clip(zero_point, grid.qmin, grid.qmax), np.int32)


def power_of_two(threshold: Array) -> np.ndarray:
    """The least power of two that is not below each threshold (float64); 0 stays 0.

    Raises:
        InputError: a threshold is negative or not finite.

    Example:
        >>> power_of_two([0.3, 2.0, 2.1]).tolist()
        [0.5, 2.0, 4.0]
    """
    threshold = _finite("threshold", threshold)
    if np.any(threshold < 0):
        raise InputError(f"expected threshold >= 0; received {threshold.min()}")
    mantissa, exponent = np.frexp(threshold)
    with np.errstate(over="ignore"):  # above 2**1023 there is no such float64: inf
        return np.where(threshold == 0, 0.0, np.ldexp(1.0, exponent - (mantissa == 0.5)))


def range_of(scale: Array, zero_point: Array, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """The least and greatest real number that (scale, zero_point) can represent, in float64."""
    lowest, highest = (grid.values[0], grid.values[-1]) if not isinstance(grid, IntGrid) else (grid.qmin, grid.qmax)
    scale, zero_point = np.asarray(scale, np.float64), np.asarray(zero_point, np.float64)
    return (lowest - zero_point) * scale, (highest - zero_point) * scale
