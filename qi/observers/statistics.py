"""The statistics, and all that one calibrated tensor needs of them in one pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np

from qi.errors import ConfigError, InputError
from qi.observers.base import State, Statistic, feed
from qi.observers.histogram import Histogram
from qi.observers.minmax import EmaMinMax, MinMax
from qi.typing import Array

__all__ = ["EmaMinMax", "Histogram", "MinMax", "State", "Statistic", "TensorStatistics"]


class TensorStatistics:
    """What one tensor showed: one pass over the data serves every choice of a range.

    Args:
        axis: Channel axis, or None for the tensor as a whole.
        bins: Of the histogram.
        momentum: Of the moving averages.

    Attributes:
        histogram: Exact extremes and the distribution (a `Histogram` is a `MinMax` too).
        ema: Moving averages of the extremes.

    Example:
        >>> seen = TensorStatistics()
        >>> seen.update(np.array([1.0, -2.0, np.inf]))
        >>> seen.count, seen.nonfinite, seen.batches, float(seen.lo), float(seen.hi)
        (2, 1, 1, -2.0, 1.0)
    """

    def __init__(self, axis: int | None = None, bins: int = 8192, momentum: float = 0.9) -> None:
        self.histogram = Histogram(axis, bins)
        self.ema = EmaMinMax(axis, momentum)

    @property
    def axis(self) -> int | None:
        """Channel axis, or None."""
        return self.histogram.axis

    @property
    def minmax(self) -> MinMax:
        """The exact extremes: the histogram, which keeps them."""
        return self.histogram

    @property
    def lo(self) -> np.ndarray:
        """Least value; see `MinMax.lo`."""
        return self.histogram.lo

    @property
    def hi(self) -> np.ndarray:
        """Greatest value; see `MinMax.hi`."""
        return self.histogram.hi

    @property
    def count(self) -> int:
        """Finite values seen."""
        return self.histogram.count

    @property
    def nonfinite(self) -> int:
        """NaN and infinite values skipped."""
        return self.histogram.nonfinite

    @property
    def batches(self) -> int:
        """Calls of `update`."""
        return self.histogram.batches

    @property
    def channels(self) -> int | None:
        """Number of channels (1 per tensor), None before the first batch."""
        return self.histogram.channels

    def update(self, x: Array) -> None:
        """See one batch; see `Statistic.update`."""
        feed([self.histogram, self.ema], x)

    def merge(self, other: Self) -> Self:
        """Return new statistics that have seen what these, then `other` have seen: `Statistic.merge`."""
        if not isinstance(other, TensorStatistics):
            raise ConfigError(f"expected TensorStatistics to merge with; received a {type(other).__name__}")
        return self._of(self.histogram.merge(other.histogram), self.ema.merge(other.ema))

    def reset(self) -> None:
        """Forget everything seen; the configuration stays."""
        self.histogram.reset()
        self.ema.reset()

    def state(self) -> State:
        """Return everything as plain arrays, named ``histogram.*`` and ``ema.*``."""
        parts: dict[str, Statistic] = {"histogram": self.histogram, "ema": self.ema}
        return {f"{part}.{name}": a for part, s in parts.items() for name, a in s.state().items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Array]) -> Self:
        """Return the statistics that `state` describes; see `Statistic.from_state`."""
        parts: dict[str, dict[str, Array]] = {"histogram": {}, "ema": {}}
        for name, array in state.items():
            part, _, rest = name.partition(".")
            if part not in parts:
                raise InputError(f"expected arrays named histogram.* and ema.*; received {name!r}")
            parts[part][rest] = array
        histogram, ema = Histogram.from_state(parts["histogram"]), EmaMinMax.from_state(parts["ema"])
        if (histogram.axis, histogram.count, histogram.channels) != (ema.axis, ema.count, ema.channels):
            raise InputError("expected a histogram and averages of the same data; received those of different data")
        return cls._of(histogram, ema)

    @classmethod
    def _of(cls, histogram: Histogram, ema: EmaMinMax) -> Self:
        made = cls(histogram.axis, histogram.bins, ema.momentum)
        made.histogram, made.ema = histogram, ema
        return made
