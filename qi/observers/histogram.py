"""A histogram that grows by doubling its range: any order of batches and merges gives the same bins."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np

from qi.errors import ConfigError
from qi.observers.batch import Block
from qi.observers.minmax import MinMax

__all__ = ["Histogram"]

# Of the finest range: smaller values share the bins next to 0, and 1 / width stays a normal float32.
_LEAST_EXPONENT = -96
_MOST_EXPONENT = 128  # every float32 is below 2**128 in magnitude
_MOST_BINS = 1 << 20


class Histogram(MinMax):
    """Counts of values in equal bins around 0, besides the exact extremes.

    The range is ``(-2**e, 2**e)`` with the least integer e that holds everything seen, and the width of a bin
    is ``2**(e+1) / bins``. A value falls into bin ``trunc(x / width)``: bin k > 0 is ``[k, k+1) * width``,
    negative bins are the mirror image, and bin 0 is ``(-width, width)``. As the width is a power of two, the
    division is exact in float32 (where it underflows, truncation gives 0 all the same), and doubling the
    range adds bins up in pairs exactly. So counts, zeros, extremes and range depend on the values alone, not
    on their order: ``merge(a, b)`` equals seeing both, bit for bit. `sum` and `sum_squares` are the
    exception: they agree to about 1e-5 of ``sum(abs(x))`` and of themselves.

    Exact zeros are counted apart as well: a ReLU makes many, and every range quantizes them exactly.

    One outlier coarsens all bins: with 8192 of them, a range is known to within 1/2048 of the greatest
    magnitude seen. Memory: ``8 * bins`` bytes per channel.

    Args:
        axis: Channel axis, or None for the tensor as a whole.
        bins: How many bins there are, a power of two from 64 to 2**20.

    Raises:
        ConfigError: If `bins` isn't such a number.

    Example:
        >>> seen = Histogram(bins=64)
        >>> seen.update([0.0, 1.0, 1.0, -3.0])
        >>> float(seen.width), int(seen.counts[32]), int(seen.counts[32 + 8]), int(seen.zeros)
        (0.125, 1, 2, 1)
    """

    _ARRAYS: ClassVar[dict[str, type[np.generic]]] = {
        "counts": np.int64,
        "zeros": np.int64,
        "exponent": np.int64,
        "lo": np.float64,
        "hi": np.float64,
        "sum": np.float64,
        "sum_squares": np.float64,
    }

    def __init__(self, axis: int | None = None, bins: int = 8192) -> None:
        if (
            not isinstance(bins, int | np.integer)
            or isinstance(bins, bool)
            or not 64 <= bins <= _MOST_BINS
            or bins & (bins - 1)
        ):
            raise ConfigError(f"expected bins to be a power of two from 64 to {_MOST_BINS}; received bins={bins!r}")
        self.bins = int(bins)
        super().__init__(axis)

    @property
    def counts(self) -> np.ndarray:
        """Values per bin, zeros included: int64 ``[(channels,) bins]``; bin k is at ``bins // 2 + k``."""
        return self._counts.copy() if self.axis is not None else self._counts[0].copy()

    @property
    def zeros(self) -> np.ndarray:
        """How many values were exactly 0: int64, 0-d or ``[channels]``."""
        return self._shaped(self._zeros)

    @property
    def width(self) -> np.ndarray:
        """Width of a bin: float64, 0-d or ``[channels]``, a power of two."""
        return self._shaped(self._width())

    @property
    def sum(self) -> np.ndarray:
        """Sum of the values: float64, 0-d or ``[channels]``."""
        return self._shaped(self._sum)

    @property
    def sum_squares(self) -> np.ndarray:
        """Sum of the squares of the values: float64, 0-d or ``[channels]``."""
        return self._shaped(self._sum_squares)

    def row(self, channel: int) -> tuple[np.ndarray, int, float, float, float]:
        """One channel: (counts as a copy, zeros, least value, greatest value, width of a bin)."""
        lo, hi = float(self._lo[channel]), float(self._hi[channel])
        return self._counts[channel].copy(), int(self._zeros[channel]), lo, hi, float(self._width()[channel])

    def _config(self) -> dict[str, Any]:
        return {"axis": self.axis, "bins": self.bins}

    def _allocate(self, channels: int) -> None:
        super()._allocate(channels)
        self._counts = np.zeros((channels, self.bins), np.int64)
        self._zeros = np.zeros(channels, np.int64)
        self._exponent = np.full(channels, _LEAST_EXPONENT)
        self._sum, self._sum_squares = np.zeros(channels), np.zeros(channels)

    def _is_consistent(self) -> bool:
        middle, exponents = self._counts[:, self.bins // 2], _exponents(self._lo, self._hi)
        return bool(
            super()._is_consistent()
            and (self._counts >= 0).all()
            and self._counts.sum() == self.count
            and ((self._zeros >= 0) & (self._zeros <= middle)).all()
            and (self._exponent == exponents).all()
            and (np.isfinite(self._sum) & np.isfinite(self._sum_squares) & (self._sum_squares >= 0)).all()
            and (self._counts.any(axis=1) == (self._lo <= self._hi)).all()
        )

    def _width(self) -> np.ndarray:
        return np.asarray(np.ldexp(1.0, self._exponent - (self.bins.bit_length() - 2)))

    def _add(self, block: Block) -> None:
        super()._add(block)
        self._grow(np.maximum(self._exponent, _exponents(block.lo, block.hi)))
        width = self._width()
        scaled = block.values * (1.0 / width).astype(np.float32)[:, None]
        offsets = np.arange(len(width)) * self.bins + self.bins // 2
        places = scaled.astype(np.int32) + offsets[:, None]  # the conversion truncates
        zero = block.values == 0
        if block.finite is not None:
            places, zero = places[block.finite], zero & block.finite
        self._tally(places.ravel())
        self._zeros += np.count_nonzero(zero, axis=1)
        self._sum += scaled.sum(axis=1) * width
        self._sum_squares += np.square(scaled, out=scaled).sum(axis=1) * width**2

    def _tally(self, places: np.ndarray) -> None:
        flat = self._counts.reshape(-1)
        if 4 * places.size < flat.size:  # bincount would mostly add zeros
            np.add.at(flat, places, 1)
        else:
            flat += np.bincount(places, minlength=flat.size)

    def _grow(self, exponents: np.ndarray) -> None:
        for channel in np.flatnonzero(exponents > self._exponent):
            self._counts[channel] = _coarsened(self._counts[channel], int(exponents[channel] - self._exponent[channel]))
        self._exponent = exponents

    def _combine(self, first: Self, second: Self) -> None:
        super()._combine(first, second)
        exponents = np.maximum(first._exponent, second._exponent)
        for part in (first, second):
            same_range = type(part)(**part._config())
            same_range._open(len(exponents))
            same_range._counts, same_range._exponent = part._counts.copy(), part._exponent
            same_range._grow(exponents)
            self._counts += same_range._counts
            self._zeros += part._zeros
            self._sum += part._sum
            self._sum_squares += part._sum_squares
        self._exponent = exponents


def _exponents(lo: np.ndarray, hi: np.ndarray) -> np.ndarray:
    """The least e with ``|x| < 2**e`` for all x from lo to hi (the least allowed where there are none)."""
    magnitude = np.where(lo <= hi, np.maximum(-lo, hi), 0.0)
    exponents = np.where(magnitude > 0, np.frexp(magnitude)[1], _LEAST_EXPONENT)
    return np.clip(exponents.astype(np.int64), _LEAST_EXPONENT, _MOST_EXPONENT)


def _coarsened(counts: np.ndarray, doublings: int) -> np.ndarray:
    """The counts of one channel after its range has doubled some times."""
    middle = len(counts) // 2
    factor = min(2**doublings, middle)
    upper = counts[middle:].reshape(-1, factor).sum(axis=1)
    lower = np.concatenate(([0], counts[middle - 1 : 0 : -1])).reshape(-1, factor).sum(axis=1)
    coarse = np.zeros_like(counts)
    coarse[middle : middle + len(upper)] = upper
    coarse[middle - len(lower) + 1 : middle + 1] += lower[::-1]
    return coarse
