"""Thresholds of weights: from the array itself, exactly, as it is at hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from qi.core.affine import fake_quantize
from qi.core.granularity import Granularity
from qi.core.grid import Grid
from qi.core.scaling import SymmetricRule, power_of_two as next_power_of_two, symmetric_scale
from qi.errors import ConfigError, InputError
from qi.observers.batch import as_planes
from qi.observers.entropy import entropy_threshold
from qi.observers.histogram import Histogram
from qi.observers.mse import largest_factor, shrink_factors
from qi.observers.selection import check_options
from qi.registry import Registry
from qi.typing import Array

__all__ = ["WEIGHT_SELECTIONS", "select_weight_threshold"]

WeightSelection = Callable[..., np.ndarray]
"""``(w float32, grid, granularity, rule, **options) -> thresholds`` of the granularity's parameter shape."""

WEIGHT_SELECTIONS: Registry[WeightSelection] = Registry("weight range selection")

# The search goes down to this share of the greatest magnitude, then halves its steps this often around the
# best.
_SMALLEST_FACTOR = 2.0**-4
_REFINEMENTS = 3


def select_weight_threshold(
    w: Array, name: str, grid: Grid, granularity: Granularity, rule: SymmetricRule, **options: Any
) -> np.ndarray:
    """Choose the symmetric thresholds of a weight.

    Args:
        w: Weights of any shape, finite.
        name: "minmax", "mse", "percentile" or "entropy" (`WEIGHT_SELECTIONS`).
        grid: The codes that will be used.
        granularity: Which weights share a threshold.
        rule: How a threshold becomes a scale.
        **options: Of that selection: see `mse` and `percentile`.

    Returns:
        Float64 thresholds of shape ``granularity.param_shape(w.shape)``; 0 where all weights are 0.

    Raises:
        InputError: If a weight isn't a finite real number.
        ConfigError: If the name or an option is unknown or out of range.

    Example:
        >>> from qi.core import IntGrid, PerChannel
        >>> w = np.array([[0.5, -3.0], [1.0, 2.0]])
        >>> select_weight_threshold(w, "minmax", IntGrid(8), PerChannel(-1), SymmetricRule.QMAX).tolist()
        [[1.0, 3.0]]
    """
    select = WEIGHT_SELECTIONS.get(name)
    check_options(name, select, options, skip=4)
    values = np.asarray(w)
    as_planes(values, None)  # refuses what isn't a real number
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        bad = int(np.count_nonzero(~np.isfinite(values)))
        raise InputError(f"expected finite weights; received {bad} NaN or infinite of {values.size}; repair the model")
    widest = minmax(values, grid, granularity, rule)
    if values.size == 0 or not widest.any():
        return widest
    chosen = select(values, grid, granularity, rule, **options)
    return np.where(chosen > 0, chosen, widest)


@WEIGHT_SELECTIONS.register("minmax")
def minmax(w: np.ndarray, grid: Grid, granularity: Granularity, rule: SymmetricRule) -> np.ndarray:
    """The greatest magnitude; of the positive weights only, on an unsigned grid."""
    lo, hi = granularity.minmax(w)
    return np.asarray(np.maximum(np.maximum(-lo, hi) if grid.signed else hi, 0.0))


@WEIGHT_SELECTIONS.register("mse")
def mse(
    w: np.ndarray,
    grid: Grid,
    granularity: Granularity,
    rule: SymmetricRule,
    power_of_two: bool = False,
    norm: float = 2.0,
) -> np.ndarray:
    """The threshold of least true squared quantization error; never worse than "minmax".

    Args:
        w: The weights.
        grid: The codes.
        granularity: Which weights share a threshold.
        rule: How a threshold becomes a scale.
        power_of_two: Whether thresholds are limited to powers of two.
        norm: The power of the error that is summed, 1 to 8; above 2, large errors (clipped weights) count for more.
    """
    if not (isinstance(norm, int | float) and 1 <= norm <= 8):
        raise ConfigError(f"expected a norm from 1 to 8; received norm={norm!r}")
    largest = largest_factor(grid, rule)
    start = minmax(w, grid, granularity, rule)
    widest = start * largest
    factors = shrink_factors(_SMALLEST_FACTOR, largest)
    if power_of_two:
        start = next_power_of_two(start)
        factors = np.exp2(np.arange(np.ceil(np.log2(largest)), np.log2(_SMALLEST_FACTOR) - 1, -1))
    best, least = start, _errors(w, start, grid, granularity, rule, norm)

    def consider(thresholds: np.ndarray) -> None:
        nonlocal best, least
        errors = _errors(w, thresholds, grid, granularity, rule, norm)
        better = errors < least
        best, least = np.where(better, thresholds, best), np.where(better, errors, least)

    for factor in factors[factors != 1]:
        consider(start * factor)
    for halving in range(0 if power_of_two else _REFINEMENTS):
        centre = best
        for direction in (1, -1):
            consider(np.minimum(centre * 2.0 ** (direction / (12 * 2**halving)), widest))
    return best


@WEIGHT_SELECTIONS.register("percentile")
def percentile(
    w: np.ndarray,
    grid: Grid,
    granularity: Granularity,
    rule: SymmetricRule,
    percentile: float = 99.99,
) -> np.ndarray:
    """A percentile of the magnitudes (of the weights above 0, on an unsigned grid).

    Args:
        w: The weights.
        grid: The codes.
        granularity: Which weights share a threshold.
        rule: Not used.
        percentile: Above 0, up to 100.
    """
    if not (isinstance(percentile, int | float) and 0 < percentile <= 100):
        raise ConfigError(f"expected a percentile above 0, up to 100; received percentile={percentile!r}")
    magnitudes = np.abs(w) if grid.signed else np.maximum(w, 0)

    def reduction(blocks: np.ndarray, axis: tuple[int, ...], **_: bool) -> np.ndarray:
        partial = np.isnan(blocks).any()  # NaN fills a partial group; minding it is slow
        return np.asarray((np.nanpercentile if partial else np.percentile)(blocks, percentile, axis=axis))

    return granularity.reduce(reduction, magnitudes, fill=np.nan)


@WEIGHT_SELECTIONS.register("entropy")
def entropy(w: np.ndarray, grid: Grid, granularity: Granularity, rule: SymmetricRule) -> np.ndarray:
    """The threshold of least KL divergence, on a histogram (see `qi.observers.entropy`)."""

    def threshold(row: np.ndarray) -> float:
        histogram = Histogram()
        histogram.update(row)
        return entropy_threshold(histogram, 0, grid)

    return _by_row(w, granularity, threshold)


def _errors(
    w: np.ndarray, thresholds: np.ndarray, grid: Grid, granularity: Granularity, rule: SymmetricRule, norm: float
) -> np.ndarray:
    """The error to the power of `norm` that each threshold really makes, summed over the weights that share it."""
    scale = granularity.expand(symmetric_scale(thresholds, grid, rule), w.shape)
    difference = w - fake_quantize(w, scale, 0, grid)
    error = np.abs(difference).astype(np.float64)
    return granularity.reduce(np.sum, error * error if norm == 2 else error**norm)


def _by_row(w: np.ndarray, granularity: Granularity, function: Callable[[np.ndarray], float]) -> np.ndarray:
    """Apply a function to the weights that share a threshold, as one row; NaN fills a partial group."""

    def reduction(blocks: np.ndarray, axis: tuple[int, ...], **_: bool) -> np.ndarray:
        kept = [i for i in range(blocks.ndim) if i not in axis]
        ordered = blocks.transpose([*kept, *axis])
        rows = ordered.reshape(math.prod(ordered.shape[: len(kept)]), -1)
        return np.array([function(row) for row in rows], np.float64)

    return granularity.reduce(reduction, w, fill=np.nan)
