"""Statistics of a tensor whose channels are scaled, made from those of its channels: no data needed."""

from __future__ import annotations

import numpy as np

from qi.errors import ConfigError, InputError
from qi.observers.cells import Cells, cells_of
from qi.observers.histogram import Histogram, _exponents
from qi.observers.minmax import EmaMinMax
from qi.observers.statistics import TensorStatistics
from qi.typing import Array

__all__ = ["rescaled"]


def rescaled(statistics: TensorStatistics, factors: Array, *, bins: int | None = None) -> TensorStatistics:
    """The statistics per tensor of a tensor after its channel c was multiplied by ``factors[c]``.

    Equalization and smoothing change the channels of a tensor by factors; ranges per tensor can then be chosen as
    if the changed tensor had been seen. The extremes, the numbers of values and of exact zeros are exact, the sums
    as precise as before. With factors that are powers of two (1 too), so is every bin; with others the values of a
    bin are taken to lie evenly in it. The moving averages are the widest of the channels': not
    wider than the tensor's, whose extremes may come from another channel in each batch.

    Args:
        statistics: Per channel.
        factors: Positive numbers ``[channels]``.
        bins: Of the result; None takes as many as there are per channel.

    Returns:
        Statistics per tensor.

    Raises:
        ConfigError: If the statistics are per tensor.
        InputError: If the factors have another shape or one isn't positive and finite, or a product exceeds float32.
        NotCalibratedError: If nothing finite was seen.

    Example:
        >>> seen = TensorStatistics(axis=-1)
        >>> seen.update([[1.0, -8.0], [3.0, 4.0]])
        >>> scaled = rescaled(seen, [2.0, 0.25])
        >>> float(scaled.lo), float(scaled.hi), scaled.count
        (-2.0, 6.0, 4)
    """
    if not isinstance(statistics, TensorStatistics) or statistics.axis is None:
        raise ConfigError("expected TensorStatistics per channel; received others; collect them with axis=-1")
    seen, ema = statistics.histogram, statistics.ema
    seen._require_data()
    scale = np.asarray(factors, np.float64)
    if scale.shape != (seen.channels,) or not (np.isfinite(scale) & (scale > 0)).all():
        raise InputError(f"expected positive factors of shape ({seen.channels},); received {scale.shape}: {factors!r}")
    found = TensorStatistics(None, bins or seen.bins, ema.momentum)
    for part, own in ((found.histogram, seen), (found.ema, ema)):
        part.count, part.nonfinite, part.batches = own.count, own.nonfinite, own.batches
    _fill(found.histogram, seen, scale)
    _average(found.ema, ema, scale)
    return found


def _fill(found: Histogram, seen: Histogram, scale: np.ndarray) -> None:
    """Make `found` what `seen` is after scaling."""
    found._lo[:], found._hi[:] = (seen._lo * scale).min(), (seen._hi * scale).max()
    greatest = max(-found._lo[0], found._hi[0])
    if not greatest <= np.finfo(np.float32).max:
        raise InputError(f"expected factors that keep values in float32's range; received some that make {greatest:g}")
    found._grow(_exponents(found._lo, found._hi))
    found._zeros[:] = seen._zeros.sum()
    found._sum[:], found._sum_squares[:] = (seen._sum * scale).sum(), (seen._sum_squares * scale**2).sum()
    width = float(found._width()[0])
    counts = np.zeros(found.bins)
    for channel, factor in enumerate(scale):
        cells = cells_of(seen, channel)
        if cells is not None:
            counts += _spread(cells, factor / width, found.bins)
    # Whole numbers that up to each bin sum up to the same.
    found._counts[0] = np.diff(np.floor(np.cumsum(counts) + 0.5), prepend=0.0).astype(np.int64)


def _spread(cells: Cells, factor: float, bins: int) -> np.ndarray:
    """How much of the cells lies in each bin, float64 ``[bins]``, where `factor` makes them units of its width."""
    left, right, mass = cells.left * factor, cells.right * factor, cells.mass
    point = left == right
    counts = np.bincount(_places(left[point], bins), mass[point], bins).astype(np.float64)  # int64 of no cells
    left, right, mass = left[~point], right[~point], mass[~point]
    first = np.floor(left)
    for step in range(int((np.ceil(right) - first).max(initial=0.0))):
        inside = np.minimum(right, first + step + 1) - np.maximum(left, first + step)
        share = np.maximum(inside, 0.0) / (right - left)
        counts += np.bincount(_places(first + step + 0.5, bins), mass * share, bins)
    return np.asarray(counts)


def _places(values: np.ndarray, bins: int) -> np.ndarray:
    """The bins of values in units of a bin's width."""
    middle = bins // 2
    return np.asarray(np.clip(np.trunc(values), 1 - middle, middle - 1).astype(np.int64) + middle)


def _average(found: EmaMinMax, seen: EmaMinMax, scale: np.ndarray) -> None:
    """Make `found` the widest averages of `seen` after scaling."""
    steps = seen._steps.max()
    weight = 1.0 - seen.momentum**steps
    found._steps[:] = steps
    found._lo_sum[:], found._hi_sum[:] = (seen.lo * scale).min() * weight, (seen.hi * scale).max() * weight
