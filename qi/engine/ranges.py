"""From an array to the range its codes cover, and from a range to parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qi.core import (
    Granularity,
    IntGrid,
    QParams,
    SymmetricRule,
    asymmetric_params,
    blocked,
    symmetric_scale,
)
from qi.core.scaling import range_of
from qi.engine.config import QuantizationConfig
from qi.engine.percentiles import moments, percentiles

__all__ = ["Seen", "covered", "params_of", "requantized", "see"]

_ROUNDS = 4
_GREATEST = float(np.finfo(np.float32).max)
_LARGE = _GREATEST / (1 << 17)  # times the most steps of any grid it is still finite


@dataclass(frozen=True, eq=False)
class Seen:
    """What an array (or several) showed.

    Attributes:
        lo: Lower ends, float64, in the shape of the scale.
        hi: Upper ends.
        nans: How many NaN there were.
        infs: How many infinities, or numbers that float32 can't hold.
    """

    lo: np.ndarray
    hi: np.ndarray
    nans: int = 0
    infs: int = 0


def see(x: np.ndarray, granularity: Granularity, config: QuantizationConfig, num_threads: int = 1) -> Seen:
    """The range of an array, as the configuration wants it: extremes, percentiles, or without outliers.

    Numbers that aren't finite never count. An empty array has the range 0 to 0.
    """
    lo, hi, nans, infs = blocked.minmax(x, granularity, num_threads=num_threads)
    if x.size and config.use_percentile:
        lo, hi = percentiles(x, granularity, (config.min_percentile, config.max_percentile), finite=not (nans or infs))
    if x.size and config.outlier_threshold is not None:
        mean, spread = moments(x, granularity, finite=not (nans or infs))
        with np.errstate(over="ignore"):  # an infinite reach cuts nothing off
            reach = config.outlier_threshold * spread
        lo, hi = np.maximum(lo, mean - reach), np.minimum(hi, mean + reach)
        lo, hi = np.minimum(lo, hi), np.maximum(lo, hi)  # a mean of equal numbers may be off by a rounding
    return Seen(lo, hi, nans, infs)


def params_of(
    lo: Any,
    hi: Any,
    granularity: Granularity,
    config: QuantizationConfig,
    rule: SymmetricRule = SymmetricRule.QMAX,
) -> QParams:
    """Parameters of a range, which is stretched to hold 0.

    A symmetric range on an unsigned grid has its 0 at the middle code (128 of 256), so that negative numbers have
    codes as well. Every code stands for a finite number: near float32's greatest, ranges end a step earlier.
    """
    grid = config.grid
    if config.is_symmetric:
        absmax = np.maximum(np.maximum(-np.asarray(lo), hi), 0.0)
        scale = symmetric_scale(absmax, IntGrid(grid.bits), rule)
        zero_point = np.asarray(0 if grid.signed else 1 << (grid.bits - 1))
    else:
        scale, zero_point = asymmetric_params(lo, hi, grid)
    if scale.size and scale.max() > _LARGE:
        reach = np.maximum(zero_point - grid.qmin, grid.qmax - zero_point)
        scale = np.minimum(scale, np.nextafter((_GREATEST / reach).astype(np.float32), np.float32(0)))
    scale = np.asarray(scale, np.float32)
    return QParams.of(scale, np.full(scale.shape, zero_point, np.int32), grid, granularity)


def covered(params: QParams, config: QuantizationConfig) -> tuple[np.ndarray, np.ndarray]:
    """The range that `params_of` makes these parameters of: a symmetric one has no use for the lowest code."""
    lo, hi = range_of(params.scale, params.zero_point, params.grid)
    if config.is_symmetric and isinstance(params.grid, IntGrid):
        middle = (params.grid.qmin + params.grid.qmax + 1) // 2
        lo = np.where(params.zero_point == middle, -hi, lo)
    return lo, hi


def requantized(x: np.ndarray, params: QParams, config: QuantizationConfig) -> QParams:
    """Parameters whose greatest error is the least found, by feeding errors back into the range.

    Where a number that lies outside the range comes back too far off, the range grows by that error, a few times at
    most; what grew stays only if the greatest error fell. Below `requantization_threshold` nothing is done.
    """
    for _ in range(_ROUNDS):
        below, above = _errors(x, params)
        error = np.maximum(below, above)
        if not np.any(error > config.requantization_threshold):
            break
        lo, hi = covered(params, config)
        wider = params_of(lo - below, hi + above, params.granularity, config)
        if float(np.max(np.maximum(*_errors(x, wider)))) >= float(np.max(error)):
            break
        params = wider
    return params


def _errors(x: np.ndarray, params: QParams) -> tuple[np.ndarray, np.ndarray]:
    """How far the finite numbers lie below and above what they come back as, at most, for each scale."""
    back, _ = blocked.fake_quantize(x, params)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = x.astype(np.float64) - back
    lo, hi, _, _ = blocked.minmax(difference, params.granularity)
    return np.maximum(-lo, 0.0), np.maximum(hi, 0.0)
