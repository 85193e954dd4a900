"""The choice of a range from statistics, by name.

===========  ==========================================================  ==========================
name         range                                                       reads
===========  ==========================================================  ==========================
minmax       the extremes                                                any statistic with extremes
ema          moving averages of each batch's extremes                    `EmaMinMax`
percentile   quantiles on both sides                                     `Histogram`
mse          least expected squared quantization error                   `Histogram`
entropy      least information lost (KL divergence)                      `Histogram`
===========  ==========================================================  ==========================

`TensorStatistics` serve all of them. A new choice is one registered function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from qi.core.grid import Grid
from qi.core.scaling import SymmetricRule
from qi.errors import ConfigError, InputError
from qi.observers.cells import Cells, cells_of
from qi.observers.entropy import entropy_threshold
from qi.observers.mse import best_range, best_threshold
from qi.observers.statistics import EmaMinMax, Histogram, MinMax, Statistic, TensorStatistics
from qi.registry import Registry, suggest

__all__ = ["SELECTIONS", "Range", "Selection", "check_options", "clipped_share", "select_range"]

Range = tuple[np.ndarray, np.ndarray]
"""Lower and upper ends, float64, 0-d per tensor or ``[channels]``."""

Selection = Callable[..., Range]
"""``(stats, grid, symmetric, **options) -> (lo, hi)``; `select_range` stretches the result to hold 0."""

SELECTIONS: Registry[Selection] = Registry("range selection")

S = TypeVar("S", bound=Statistic)


def select_range(
    stats: TensorStatistics | Statistic, name: str, grid: Grid, *, symmetric: bool, **options: Any
) -> Range:
    """Choose the range to quantize a tensor with.

    Args:
        stats: What was seen of the tensor.
        name: A name from `SELECTIONS`.
        grid: The codes that will be used.
        symmetric: Whether 0 is to lie in the middle: the range is ``(-t, t)``, on an unsigned grid ``(0,
            t)``. If not, the range follows the data: where nothing negative was seen, lo is exactly 0.
        **options: Of that selection: see `percentile`, `mse` and `entropy`.

    Returns:
        (lo, hi) with ``lo <= 0 <= hi``, float64, 0-d per tensor or ``[channels]``. A channel without finite
        values gets (0, 0), as does one of zeros. A selection that would clip all values to 0 gives way to the
        extremes.

    Raises:
        NotCalibratedError: If nothing finite was seen.
        ConfigError: If the name or an option is unknown or out of range, or the statistic can't tell.

    Example:
        >>> from qi.core import IntGrid
        >>> seen = TensorStatistics()
        >>> seen.update([0.5, -1.0, 3.0])
        >>> [float(end) for end in select_range(seen, "minmax", IntGrid(8), symmetric=False)]
        [-1.0, 3.0]
        >>> [float(end) for end in select_range(seen, "minmax", IntGrid(8), symmetric=True)]
        [-3.0, 3.0]
    """
    select = SELECTIONS.get(name)
    check_options(name, select, options, skip=3)
    lo, hi = _with_zero(*select(stats, grid, symmetric, **options), grid, symmetric=symmetric)
    widest = _with_zero(*minmax(stats, grid, symmetric), grid, symmetric=symmetric)
    return np.where(lo == hi, widest[0], lo), np.where(lo == hi, widest[1], hi)


def check_options(name: str, function: Callable[..., Any], options: dict[str, Any], *, skip: int) -> None:
    """Refuse options that `function` doesn't take after its first `skip` parameters.

    Raises:
        ConfigError: With the options there are.
    """
    known = list(inspect.signature(function).parameters)[skip:]
    for option in options:
        if option not in known:
            raise ConfigError(
                f"expected options of {name!r} among {known}; received {option}={options[option]!r}."
                f"{suggest(option, known)}"
            )


def clipped_share(stats: TensorStatistics | Histogram, lo: Any, hi: Any) -> float:
    """The share of seen values that a range clips.

    Args:
        stats: What was seen.
        lo: Lower ends, one or one per channel.
        hi: Upper ends, likewise.

    Returns:
        From 0 to 1, over all channels: exactly 0 when the range holds the extremes, exactly 1 when it holds
        nothing, and to within the values of one bin on each side in between.

    Raises:
        NotCalibratedError: If nothing finite was seen.
        ConfigError: If the statistic isn't a histogram and has none.
        InputError: If the ends are neither one number nor one per channel.

    Example:
        >>> seen = Histogram()
        >>> seen.update([0.0, 1.0, 2.0, 3.0])
        >>> clipped_share(seen, 0.0, 2.5), clipped_share(seen, 0.0, 3.0)
        (0.25, 0.0)
    """
    histogram = _part(stats, Histogram)
    channels = histogram.channels or 0
    ends = np.asarray(lo, np.float64), np.asarray(hi, np.float64)
    if any(end.shape not in ((), (channels,)) for end in ends):
        raise InputError(f"expected ends of shape () or ({channels},); received {ends[0].shape} and {ends[1].shape}")
    lows, highs = (np.broadcast_to(end, (channels,)) for end in ends)
    cells = [cells_of(histogram, channel) for channel in range(channels)]
    outside = sum(c.outside(lows[i], highs[i]) for i, c in enumerate(cells) if c is not None)
    return float(outside / histogram.count)


@SELECTIONS.register("minmax")
def minmax(stats: TensorStatistics | Statistic, grid: Grid, symmetric: bool) -> Range:
    """The extremes of all values."""
    seen = _part(stats, MinMax) if isinstance(stats, TensorStatistics | MinMax) else _part(stats, EmaMinMax)
    return seen.lo, seen.hi


@SELECTIONS.register("ema")
def ema(stats: TensorStatistics | Statistic, grid: Grid, symmetric: bool) -> Range:
    """Moving averages of each batch's extremes."""
    seen = _part(stats, EmaMinMax)
    return seen.lo, seen.hi


@SELECTIONS.register("percentile")
def percentile(stats: TensorStatistics | Statistic, grid: Grid, symmetric: bool, percentile: float = 99.99) -> Range:
    """Quantiles: a `percentile` of 99.99 clips 0.01 % of the values on each side.

    Args:
        stats: A histogram.
        grid: The codes; an unsigned grid only counts the upper side when symmetric.
        symmetric: Whether the quantile is one of the magnitudes, of which 0.01 % are then clipped in all.
        percentile: Above 50, up to 100, which gives the extremes.
    """
    if not (isinstance(percentile, int | float) and 50 < percentile <= 100):
        raise ConfigError(f"expected a percentile above 50, up to 100; received percentile={percentile!r}")
    share, magnitudes = percentile / 100, symmetric and grid.signed

    def ends(cells: Cells) -> tuple[float, float]:
        return (0.0 if magnitudes else cells.quantile(1 - share)), cells.quantile(share)

    return _by_channel(_part(stats, Histogram), ends, magnitudes=magnitudes)


@SELECTIONS.register("mse")
def mse(
    stats: TensorStatistics | Statistic,
    grid: Grid,
    symmetric: bool,
    rule: SymmetricRule = SymmetricRule.QMAX,
    power_of_two: bool = False,
) -> Range:
    """The range of least expected squared error of `grid`; the extremes unless clipping gains at least 1 %.

    A grid of more levels than half the histogram's bins (13 bits and more by default) gets the extremes: so
    fine a grid gains nothing by clipping that a histogram could tell.

    Args:
        stats: A histogram.
        grid: The codes.
        symmetric: Whether to search a threshold or both ends.
        rule: How a threshold becomes a scale, when symmetric.
        power_of_two: Whether thresholds are limited to powers of two; only when symmetric.
    """
    histogram = _part(stats, Histogram)
    if power_of_two and not symmetric:
        raise ConfigError("expected symmetric=True with power_of_two=True; received symmetric=False")
    if grid.levels > histogram.bins // 2 and not power_of_two:
        return minmax(histogram, grid, symmetric)

    def ends(cells: Cells) -> tuple[float, float]:
        if not symmetric:
            return best_range(cells, grid)
        return 0.0, best_threshold(cells, grid, rule, power_of_two=power_of_two)

    return _by_channel(histogram, ends)


@SELECTIONS.register("entropy")
def entropy(stats: TensorStatistics | Statistic, grid: Grid, symmetric: bool) -> Range:
    """The extremes, clipped at the magnitude of least KL divergence (see `qi.observers.entropy`)."""
    histogram = _part(stats, Histogram)
    channels = range(histogram.channels or 0)
    best = np.array([entropy_threshold(histogram, i, grid, symmetric=symmetric) for i in channels])
    lo, hi = (np.clip(end, -best, best) for end in (histogram.lo.reshape(-1), histogram.hi.reshape(-1)))
    return lo.reshape(histogram.lo.shape), hi.reshape(histogram.lo.shape)


def _part(stats: TensorStatistics | Statistic, kind: type[S]) -> S:
    """The statistic of a kind that `stats` is or holds, after it has seen something."""
    held = (stats.histogram, stats.ema) if isinstance(stats, TensorStatistics) else (stats,)
    for statistic in held:
        if isinstance(statistic, kind):
            statistic._require_data()
            return statistic
    raise ConfigError(
        f"expected TensorStatistics or a {kind.__name__} for this choice; received a {type(stats).__name__}"
    )


def _by_channel(
    histogram: Histogram, ends: Callable[[Cells], tuple[float, float]], *, magnitudes: bool = False
) -> Range:
    rows = [cells_of(histogram, i, magnitudes=magnitudes) for i in range(histogram.channels or 0)]
    ranges = np.array([(0.0, 0.0) if cells is None else ends(cells) for cells in rows], np.float64)
    shape = histogram.lo.shape
    return ranges[:, 0].reshape(shape), ranges[:, 1].reshape(shape)


def _with_zero(lo: np.ndarray, hi: np.ndarray, grid: Grid, *, symmetric: bool) -> Range:
    """The range stretched to hold 0, and to both sides when symmetric; (0, 0) where nothing was seen."""
    unseen = lo > hi
    lo, hi = np.where(unseen, 0.0, np.minimum(lo, 0.0)), np.where(unseen, 0.0, np.maximum(hi, 0.0))
    if symmetric:
        hi = np.maximum(-lo, hi) if grid.signed else hi
        lo = -hi if grid.signed else np.zeros_like(hi)
    return lo + 0.0, hi + 0.0  # no negative zero
