"""Statistics of a tensor whose channels are scaled and moved, made from those of its channels: no data needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qi.errors import ConfigError, InputError
from qi.observers.cells import Cells, cells_of
from qi.observers.histogram import Histogram, _exponents
from qi.observers.minmax import EmaMinMax
from qi.observers.statistics import TensorStatistics
from qi.typing import Array

__all__ = ["rescaled"]


def rescaled(
    statistics: TensorStatistics,
    factors: Array,
    *,
    shifts: Array | None = None,
    rectified: bool = False,
    bins: int | None = None,
) -> TensorStatistics:
    """The statistics per tensor of a tensor after its channel c was multiplied by ``factors[c]`` and moved by ``-shifts[c]``.

    Equalization and smoothing change the channels of a tensor by factors; ranges per tensor can then be chosen as
    if the changed tensor had been seen. The extremes, the numbers of values and of exact zeros are exact, the sums
    as precise as before. With factors that are powers of two (1 too), so is every bin; with others the values of a
    bin are taken to lie evenly in it. The moving averages are the widest of the channels': not
    wider than the tensor's, whose extremes may come from another channel in each batch.

    Args:
        statistics: Per channel.
        factors: Positive numbers ``[channels]``.
        shifts: What is taken off each channel after that, finite ``[channels]``; None takes off nothing.
        rectified: Whether what is below 0 then becomes 0, as where the tensor is that of a ReLU and its input was moved down.
        bins: Of the result; None takes as many as there are per channel.

    Returns:
        Statistics per tensor.

    Raises:
        ConfigError: If the statistics are per tensor.
        InputError: If the factors or shifts have another shape, a factor isn't positive and finite, a shift isn't finite, or a
            product exceeds float32.
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
    offset = np.zeros(len(scale)) if shifts is None else np.asarray(shifts, np.float64)
    if offset.shape != scale.shape or not np.isfinite(offset).all():
        raise InputError(f"expected finite shifts of shape ({seen.channels},); received {offset.shape}: {shifts!r}")
    change = _Change(scale, offset, rectified)
    found = TensorStatistics(None, bins or seen.bins, ema.momentum)
    for part, own in ((found.histogram, seen), (found.ema, ema)):
        part.count, part.nonfinite, part.batches = own.count, own.nonfinite, own.batches
    _fill(found.histogram, seen, change)
    _average(found.ema, ema, change)
    return found


@dataclass(frozen=True, eq=False)
class _Change:
    """``x * scale - shift``, where `rectified` the greater of that and 0; channel by channel."""

    scale: np.ndarray
    shift: np.ndarray
    rectified: bool

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Of ``[channels]``."""
        changed = values * self.scale - self.shift
        return np.asarray(np.maximum(changed, 0.0) if self.rectified else changed)

    @property
    def scales_only(self) -> bool:
        return not (self.shift.any() or self.rectified)

    def cells(self, cells: Cells, channel: int) -> Cells:
        """The cells of a channel; those around 0 are cut there where what is below becomes 0."""
        factor, shift = self.scale[channel], self.shift[channel]
        left, right, mass = cells.left * factor - shift, cells.right * factor - shift, cells.mass
        if not self.rectified:
            return Cells(left, right, mass, cells.width)
        width = right - left
        below = np.where(width > 0, np.clip(-left / np.where(width > 0, width, 1.0), 0.0, 1.0), left < 0)
        kept = below < 1
        return Cells(
            np.append(np.maximum(left[kept], 0.0), 0.0),
            np.append(right[kept], 0.0),
            np.append((mass * (1 - below))[kept], float(np.sum(mass * below))),
            cells.width,
        )


def _fill(found: Histogram, seen: Histogram, change: _Change) -> None:
    """Make `found` what `seen` is after a change."""
    alive = seen._lo <= seen._hi
    found._lo[:], found._hi[:] = change(seen._lo)[alive].min(), change(seen._hi)[alive].max()
    greatest = max(-found._lo[0], found._hi[0])
    if not greatest <= np.finfo(np.float32).max:
        raise InputError(f"expected factors that keep values in float32's range; received some that make {greatest:g}")
    found._grow(_exponents(found._lo, found._hi))
    width = float(found._width()[0])
    counts, changed = np.zeros(found.bins), []
    for channel in range(len(change.scale)):
        cells = cells_of(seen, channel)
        if cells is not None and change.scales_only:
            counts += _spread(cells, change.scale[channel] / width, found.bins)
        elif cells is not None:
            changed.append(change.cells(cells, channel))
            counts += _spread(changed[-1], 1 / width, found.bins)
    # Whole numbers that up to each bin sum up to the same.
    found._counts[0] = np.diff(np.floor(np.cumsum(counts) + 0.5), prepend=0.0).astype(np.int64)
    if change.scales_only:
        found._zeros[:] = seen._zeros.sum()
        found._sum[:] = (seen._sum * change.scale).sum()
        found._sum_squares[:] = (seen._sum_squares * change.scale**2).sum()
        return
    left, right, mass = (
        np.concatenate([getattr(cells, name) for cells in changed]) for name in ("left", "right", "mass")
    )
    zeros = round(float(mass[(left == 0) & (right == 0)].sum()))
    found._zeros[:] = min(zeros, int(found._counts[0, found.bins // 2]))
    found._sum[:] = np.sum(mass * (left + right)) / 2
    found._sum_squares[:] = np.sum(mass * (left**2 + left * right + right**2)) / 3


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


def _average(found: EmaMinMax, seen: EmaMinMax, change: _Change) -> None:
    """Make `found` the widest averages of `seen` after a change."""
    steps = seen._steps.max()
    weight = 1.0 - seen.momentum**steps
    found._steps[:] = steps
    found._lo_sum[:], found._hi_sum[:] = change(seen.lo).min() * weight, change(seen.hi).max() * weight
