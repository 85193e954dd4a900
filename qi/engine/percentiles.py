"""Percentiles, means and standard deviations of arrays of any size, a piece at a time.

Percentiles are exact: the very numbers of `numpy.percentile` on float64. The bits of a float, with those of negative
numbers turned over, are integers in the same order; counting them by their leading digits tells which digits the number
of a rank begins with, and counting again what begins so the digits that follow. Beside the array that takes 1 MiB.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from qi.core import Granularity
from qi.core.blocked import groups_of
from qi.core.tiles import Walk

__all__ = ["moments", "percentiles"]

_PIECE = 1 << 14  # values: beside them there are a few copies of 8 bytes each
_DIGIT = 11  # bits
_GREATEST = float(np.finfo(np.float32).max)
_SINGLE = ("float16", "bfloat16", "float32", "bool", "int8", "uint8", "int16", "uint16")


def percentiles(x: np.ndarray, granularity: Granularity, ends: Sequence[float], *, finite: bool) -> list[np.ndarray]:
    """The percentiles of each scale's values, interpolated linearly between two of them.

    Args:
        x: Real array.
        granularity: Which values share a scale.
        ends: Which percentiles, 0 to 100.
        finite: Whether all values are finite in float32; if not, those that aren't don't count.

    Returns:
        for each end a float64 array, in the shape of the scale; 0 where no value counts.

    Example:
        >>> from qi.core import PerChannel
        >>> [end.tolist() for end in percentiles(np.array([[1, 2, 4]]), PerChannel(0), [0, 75], finite=True)]
        [[[1.0]], [[3.0]]]
    """
    found = [_percentiles(part, ends, finite) for part in _parts(x, granularity)]
    return _shaped(found, len(ends), granularity.param_shape(x.shape))


def moments(x: np.ndarray, granularity: Granularity, *, finite: bool) -> list[np.ndarray]:
    """The mean and the standard deviation of each scale's values, in float64; both 0 where no value counts.

    Args: as `percentiles`.
    """
    found = [_moments(part, finite) for part in _parts(x, granularity)]
    return _shaped(found, 2, granularity.param_shape(x.shape))


def _shaped(found: list[list[float]], count: int, shape: tuple[int, ...]) -> list[np.ndarray]:
    values = np.array(found, np.float64).reshape(-1, count)
    return [values[:, i].reshape(shape) for i in range(count)]


def _parts(x: np.ndarray, granularity: Granularity) -> Iterator[np.ndarray]:
    """The values of each scale, in the order of the scales."""
    shape = granularity.param_shape(x.shape)
    groups = groups_of(x.shape, np.empty(shape, bool), granularity)
    for index in np.ndindex(shape):
        where = zip(index, groups, shape, strict=True)
        yield x[tuple(slice(None) if n == 1 else slice(i * g, (i + 1) * g) for i, g, n in where)]


def _pieces(x: np.ndarray, finite: bool) -> Iterator[np.ndarray]:
    """The values that count: contiguous, in float32 where that is exact, else in float64."""
    dtype = np.float32 if x.dtype.name in _SINGLE else np.float64
    for (tile,) in Walk([x], _PIECE).tiles() if x.size else ():
        with np.errstate(over="ignore"):
            values = tile.astype(dtype, copy=False).ravel()
        yield values if finite else values[np.abs(values) <= _GREATEST]


def _percentiles(x: np.ndarray, ends: Sequence[float], finite: bool) -> list[float]:
    """What `numpy.percentile` gives for the values of one scale."""
    count = x.size if finite else sum(values.size for values in _pieces(x, finite))
    if not count:
        return [0.0] * len(ends)
    if x.size <= _PIECE:
        (values,) = _pieces(x, finite)
        return [float(found) for found in np.percentile(values.astype(np.float64), ends)]
    places = [end / 100 * (count - 1) for end in ends]
    ranks = sorted({min(int(place) + i, count - 1) for place in places for i in (0, 1)})
    value = dict(zip(ranks, _selected(x, ranks, finite), strict=True))
    pairs = [(value[int(place)], value[min(int(place) + 1, count - 1)]) for place in places]
    return [float(np.quantile(pair, place % 1)) for pair, place in zip(pairs, places, strict=True)]


def _selected(x: np.ndarray, ranks: Sequence[int], finite: bool) -> list[float]:
    """The values of these ranks, 0 for the least."""
    left = bits = 8 * next(_pieces(x, finite)).itemsize
    heads, rest = [0] * len(ranks), list(ranks)
    while left:
        known, left = left, max(left - _DIGIT, 0)
        counts = {head: np.zeros(1 << (known - left), np.int64) for head in heads}
        for values in _pieces(x, finite):
            keys = _keys(values)
            for head, count in counts.items():
                own = keys if known == bits else keys[keys >> known == head]
                digits = (own >> left & (count.size - 1)).astype(np.intp)
                count += np.bincount(digits, minlength=count.size)
        for i, (head, rank) in enumerate(zip(heads, rest, strict=True)):
            sums = np.cumsum(counts[head])
            digit = int(np.searchsorted(sums, rank, side="right"))
            heads[i], rest[i] = head << (known - left) | digit, rank - int(sums[digit] - counts[head][digit])
    return [float(value) for value in _values(np.array(heads, f"u{bits // 8}"))]


def _keys(values: np.ndarray) -> np.ndarray:
    """Unsigned integers in the order of float32 or float64 values."""
    bits = values.view(f"i{values.itemsize}")
    top = np.iinfo(bits.dtype)
    keys: np.ndarray = bits ^ (bits >> (top.bits - 1) | top.min)
    return keys.view(f"u{values.itemsize}")


def _values(keys: np.ndarray) -> np.ndarray:
    """The inverse of `_keys`."""
    bits = keys.view(f"i{keys.itemsize}")
    top = np.iinfo(bits.dtype)
    values: np.ndarray = bits ^ (~bits >> (top.bits - 1) | top.min)
    return values.view(f"f{keys.itemsize}")


def _moments(x: np.ndarray, finite: bool) -> list[float]:
    count = x.size if finite else sum(values.size for values in _pieces(x, finite))
    if not count:
        return [0.0, 0.0]
    mean = math.fsum(values.sum(dtype=np.float64) for values in _pieces(x, finite)) / count
    squares = (np.subtract(values, mean, dtype=np.float64) for values in _pieces(x, finite))
    return [mean, math.sqrt(math.fsum(np.dot(off, off) for off in squares) / count)]
