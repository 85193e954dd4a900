"""The extremes of a tensor: over everything seen, or as a moving average over batches."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np

from qi.errors import ConfigError
from qi.observers.base import Statistic
from qi.observers.batch import Block

__all__ = ["EmaMinMax", "MinMax"]


class MinMax(Statistic):
    """The least and the greatest finite value, exact.

    Merging equals seeing both, bit for bit, in any order.

    Args:
        axis: Channel axis, or None for the tensor as a whole.

    Example:
        >>> seen = MinMax()
        >>> seen.update(np.array([[0.5, -2.0], [np.nan, 1.0]]))
        >>> float(seen.lo), float(seen.hi), seen.count, seen.nonfinite
        (-2.0, 1.0, 3, 1)
        >>> other = MinMax()
        >>> other.update([7])
        >>> float(seen.merge(other).hi)
        7.0
    """

    _ARRAYS: ClassVar[dict[str, type[np.generic]]] = {"lo": np.float64, "hi": np.float64}

    @property
    def lo(self) -> np.ndarray:
        """Least value, float64, 0-d or ``[channels]`` (inf for a channel that had no finite value).

        Raises:
            NotCalibratedError: If no finite value was seen at all.
        """
        self._require_data()
        return self._shaped(self._lo)

    @property
    def hi(self) -> np.ndarray:
        """Greatest value; see `lo`."""
        self._require_data()
        return self._shaped(self._hi)

    def _allocate(self, channels: int) -> None:
        self._lo, self._hi = np.full(channels, np.inf), np.full(channels, -np.inf)

    def _is_consistent(self) -> bool:
        unseen = (self._lo == np.inf) & (self._hi == -np.inf)
        seen = np.isfinite(self._lo) & np.isfinite(self._hi) & (self._lo <= self._hi)
        return bool((unseen | seen).all() and seen.any() == (self.count > 0))

    def _add(self, block: Block) -> None:
        self._lo, self._hi = np.minimum(self._lo, block.lo), np.maximum(self._hi, block.hi)

    def _combine(self, first: Self, second: Self) -> None:
        self._lo, self._hi = np.minimum(first._lo, second._lo), np.maximum(first._hi, second._hi)


class EmaMinMax(Statistic):
    """Exponential moving averages of each batch's least and greatest value.

    ``average = (1 - m) * sum(m**(n-i) * x_i, i=1..n) / (1 - m**n)``: the division removes a short history's
    bias towards 0, so one batch alone gives its own extremes. Later batches weigh more, so the order counts;
    ``merge(a, b)`` means a's batches first, then b's, and equals seeing them so up to float64 rounding.
    A batch in which a channel has no finite value doesn't age that channel's averages.

    Args:
        axis: Channel axis, or None for the tensor as a whole.
        momentum: m, the weight kept by the past at each batch, from 0 up to but not including 1.

    Raises:
        ConfigError: If the momentum is out of range.

    Example:
        >>> seen = EmaMinMax(momentum=0.5)
        >>> for batch in ([0.0, 1.0], [0.0, 4.0]):
        ...     seen.update(batch)
        >>> float(seen.hi)  # (0.25 * 1 + 0.5 * 4) / 0.75
        3.0
    """

    _ARRAYS: ClassVar[dict[str, type[np.generic]]] = {
        "lo_sum": np.float64,
        "hi_sum": np.float64,
        "steps": np.int64,
    }

    def __init__(self, axis: int | None = None, momentum: float = 0.9) -> None:
        if not (isinstance(momentum, int | float) and 0 <= momentum < 1):
            raise ConfigError(f"expected momentum from 0 up to, not including, 1; received momentum={momentum!r}")
        self.momentum = float(momentum)
        super().__init__(axis)

    @property
    def lo(self) -> np.ndarray:
        """Average of the least values, float64, 0-d or ``[channels]`` (inf for a channel without any).

        Raises:
            NotCalibratedError: If no finite value was seen at all.
        """
        self._require_data()
        return self._shaped(self._average(self._lo_sum, np.inf))

    @property
    def hi(self) -> np.ndarray:
        """Average of the greatest values; see `lo`."""
        self._require_data()
        return self._shaped(self._average(self._hi_sum, -np.inf))

    def _average(self, weighted: np.ndarray, unseen: float) -> np.ndarray:
        weight = np.where(self._steps > 0, 1.0 - self.momentum**self._steps, 1.0)
        return np.where(self._steps > 0, weighted / weight, unseen)

    def _config(self) -> dict[str, Any]:
        return {"axis": self.axis, "momentum": self.momentum}

    def _allocate(self, channels: int) -> None:
        self._lo_sum, self._hi_sum = np.zeros(channels), np.zeros(channels)
        self._steps = np.zeros(channels, np.int64)

    def _is_consistent(self) -> bool:
        finite = np.isfinite(self._lo_sum) & np.isfinite(self._hi_sum)
        return bool((finite & (self._steps >= 0)).all() and (self._steps > 0).any() == (self.count > 0))

    def _add(self, block: Block) -> None:
        """Nothing: only the extremes of a whole batch count."""

    def _end_batch(self, lo: np.ndarray, hi: np.ndarray) -> None:
        seen, new = lo <= hi, 1.0 - self.momentum
        self._lo_sum = np.where(seen, self.momentum * self._lo_sum + new * np.where(seen, lo, 0.0), self._lo_sum)
        self._hi_sum = np.where(seen, self.momentum * self._hi_sum + new * np.where(seen, hi, 0.0), self._hi_sum)
        self._steps = self._steps + seen

    def _combine(self, first: Self, second: Self) -> None:
        aged = self.momentum**second._steps
        self._lo_sum = aged * first._lo_sum + second._lo_sum
        self._hi_sum = aged * first._hi_sum + second._hi_sum
        self._steps = first._steps + second._steps
