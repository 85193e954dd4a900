"""Observers: a statistic and a choice of the range under one name."""

from __future__ import annotations

from typing import Any, Self

from qi.core.grid import Grid
from qi.core.scaling import SymmetricRule
from qi.errors import ConfigError
from qi.observers.selection import SELECTIONS, Range, check_options, select_range
from qi.observers.statistics import EmaMinMax, Histogram, MinMax, Statistic, TensorStatistics
from qi.typing import Array

__all__ = [
    "EmaObserver",
    "EntropyObserver",
    "MSEObserver",
    "MinMaxObserver",
    "Observer",
    "PercentileObserver",
]


class Observer:
    """Watches a tensor and says what range to quantize it with.

    Args:
        statistic: What to remember.
        selection: A name from `SELECTIONS`: how to choose the range from it.
        **options: Of the selection.

    Raises:
        ConfigError: If the selection or an option is unknown.

    Example:
        >>> from qi.core import IntGrid
        >>> observer = Observer(MinMax(), "minmax")
        >>> observer.update([0.0, 2.0])
        >>> [float(end) for end in observer.range(IntGrid(8))]
        [0.0, 2.0]
    """

    def __init__(self, statistic: Statistic | TensorStatistics, selection: str, **options: Any) -> None:
        check_options(selection, SELECTIONS.get(selection), options, skip=3)
        self.statistic = statistic
        self.selection = selection
        self.options = options

    def update(self, x: Array) -> None:
        """See one batch; see `Statistic.update`."""
        self.statistic.update(x)

    def merge(self, other: Observer) -> Self:
        """Return a new observer that has seen what both have seen, this one's data first.

        Raises:
            ConfigError: If the two choose differently or hold different statistics.
        """
        if (other.selection, other.options) != (self.selection, self.options):
            raise ConfigError(
                f"expected an observer with {self.selection!r} {self.options} to merge with; "
                f"received {other.selection!r} {other.options}"
            )
        merged = type(self).__new__(type(self))
        Observer.__init__(merged, _merged(self.statistic, other.statistic), self.selection, **self.options)
        return merged

    def range(self, grid: Grid, symmetric: bool = False) -> Range:
        """Choose the range; see `select_range`."""
        return select_range(self.statistic, self.selection, grid, symmetric=symmetric, **self.options)


class MinMaxObserver(Observer):
    """The extremes of all values.

    Args:
        axis: Channel axis, or None for one range per tensor.
    """

    def __init__(self, axis: int | None = None) -> None:
        super().__init__(MinMax(axis), "minmax")


class EmaObserver(Observer):
    """Moving averages of each batch's extremes.

    Args:
        axis: Channel axis, or None for one range per tensor.
        momentum: The weight kept by the past at each batch.
    """

    def __init__(self, axis: int | None = None, momentum: float = 0.9) -> None:
        super().__init__(EmaMinMax(axis, momentum), "ema")


class PercentileObserver(Observer):
    """Quantiles on both sides.

    Args:
        axis: Channel axis, or None for one range per tensor.
        percentile: Above 50, up to 100.
        bins: Of the histogram.
    """

    def __init__(self, axis: int | None = None, percentile: float = 99.99, bins: int = 8192) -> None:
        super().__init__(Histogram(axis, bins), "percentile", percentile=percentile)


class MSEObserver(Observer):
    """The range of least expected squared quantization error.

    Args:
        axis: Channel axis, or None for one range per tensor.
        rule: How a symmetric threshold becomes a scale.
        bins: Of the histogram.
    """

    def __init__(self, axis: int | None = None, rule: SymmetricRule = SymmetricRule.QMAX, bins: int = 8192) -> None:
        super().__init__(Histogram(axis, bins), "mse", rule=rule)


class EntropyObserver(Observer):
    """The range that loses the least information (KL divergence).

    Args:
        axis: Channel axis, or None for one range per tensor.
        bins: Of the histogram.
    """

    def __init__(self, axis: int | None = None, bins: int = 8192) -> None:
        super().__init__(Histogram(axis, bins), "entropy")


def _merged(first: Statistic | TensorStatistics, second: Any) -> Any:
    return first.merge(second)
