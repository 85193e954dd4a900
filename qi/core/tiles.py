"""Cutting arrays into tiles that fit a processor's cache, whatever their memory order and strides.

Several arrays of one shape (an input, its output, broadcast parameters) are walked together. Axes are put in the
order of the first array's memory and merged where every array allows it, so that an array without gaps becomes one
long row; a parameter per channel then leaves at most three axes, however many the tensor had.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, product
from typing import Literal, TypeVar

import numpy as np

from qi.errors import InputError
from qi.typing import Shape

__all__ = ["Walk", "boxes", "check_threads", "in_threads"]

Result = TypeVar("Result")
Index = tuple[int | slice, ...]


def _order(array: np.ndarray) -> list[int]:
    """Axes longer than 1, those with long strides first."""
    axes = [axis for axis, size in enumerate(array.shape) if size != 1]
    return sorted(axes, key=lambda axis: -abs(array.strides[axis]))


def _merged(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> list[list[int]]:
    """Runs of neighbouring axes that every array can treat as one."""
    runs: list[list[int]] = []
    for axis in range(len(shape)):
        if runs and all(own[runs[-1][-1]] == own[axis] * shape[axis] for own in strides):
            runs[-1].append(axis)
        else:
            runs.append([axis])
    return runs


class Walk:
    """Views of arrays, cut alike into tiles of at most `block` elements.

    Args:
        arrays: of the shape of the first, or broadcastable to it; the first decides the order. None is copied.
        block: the most elements of a tile.

    Attributes:
        views: the arrays with their axes reordered and merged; broadcast ones have strides of 0.
        tile: the shape of a full tile. Axes before `cut` are left out, the axis `cut` is cut, the rest whole.
        cut: the axis of `views` along which tiles follow each other.

    Example:
        >>> x, scale = np.zeros((4, 5, 6, 7)), np.zeros((1, 5, 1, 1))
        >>> walk = Walk([x, scale], 100)
        >>> walk.views[0].shape, walk.tile, [tile.shape for tile, _ in walk.tiles()]
        ((4, 5, 42), (2, 42), [(2, 42), (2, 42), (1, 42), (2, 42), (2, 42), (1, 42), \
(2, 42), (2, 42), (1, 42), (2, 42), (2, 42), (1, 42)])
    """

    def __init__(self, arrays: Sequence[np.ndarray], block: int) -> None:
        shape = arrays[0].shape
        order = _whole(arrays, shape)
        if order is not None:  # nothing to find out: one long row
            self.views = tuple(a.reshape(-1, order=order) for a in arrays)
            self.cut, self.tile = _tile(self.views[0].shape, block)
            return
        spread = [a if a.shape == shape else _broadcast(a, shape) for a in arrays]
        axes = _order(arrays[0])
        sizes = [shape[axis] for axis in axes]
        runs = _merged(sizes, [[a.strides[axis] for axis in axes] for a in spread])
        merged = tuple(math.prod(sizes[i] for i in run) for run in runs) or (1,)
        kept = [[axes[run[-1]] for run in runs] for _ in spread]
        self.views = tuple(_strided(a, merged, own) for a, own in zip(spread, kept, strict=True))
        self.cut, self.tile = _tile(merged, block)

    def constant(self, which: int) -> bool:
        """Whether view `which` is the same in every tile: it doesn't move along axes that tiles are cut from."""
        view = self.views[which]
        return not any(view.strides[: self.cut + 1])

    def tiles(self, start: int = 0, step: int = 1) -> Iterator[tuple[np.ndarray, ...]]:
        """The tiles of all views, every `step`-th of them from `start`."""
        for index in islice(self._indices(), start, None, step):
            yield tuple([view[index] for view in self.views])

    def _indices(self) -> Iterator[Index]:
        shape, step = self.views[0].shape, self.tile[0]
        for outer in product(*(range(n) for n in shape[: self.cut])):
            for begin in range(0, shape[self.cut], step):
                yield (*outer, slice(begin, begin + step))


def _whole(arrays: Sequence[np.ndarray], shape: Shape) -> Literal["C", "F"] | None:
    """The memory order in which all arrays are one row without gaps; None where they aren't."""
    if all(a.flags.c_contiguous and a.shape == shape for a in arrays):
        return "C"
    return "F" if all(a.flags.f_contiguous and a.shape == shape for a in arrays) else None


def _broadcast(array: np.ndarray, shape: Shape) -> np.ndarray:
    """`array` with strides of 0, writable where it was: results are gathered in such views."""
    missing = len(shape) - array.ndim
    strides = [0] * missing + [0 if n == 1 else s for n, s in zip(array.shape, array.strides, strict=True)]
    return np.lib.stride_tricks.as_strided(array, shape, strides, writeable=array.flags.writeable)


def _strided(array: np.ndarray, shape: Shape, axes: Sequence[int]) -> np.ndarray:
    strides = [array.strides[axis] for axis in axes] or [array.itemsize]
    return np.lib.stride_tricks.as_strided(array, shape, strides, writeable=array.flags.writeable)


def _tile(shape: Shape, block: int) -> tuple[int, Shape]:
    """Where to cut, and a tile's shape: as many whole trailing axes as fit, and a share of the axis before them."""
    inner = 1
    for axis in reversed(range(len(shape))):
        if axis == 0 or inner * shape[axis] > block:
            return axis, (max(1, min(shape[axis], block // inner)), *shape[axis + 1 :])
        inner *= shape[axis]
    return 0, shape


def boxes(shape: Shape, block: int, align: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Slices of a tensor that follow each other in C order, of at most `block` elements where one index allows it.

    Args:
        shape: of the tensor.
        block: the most elements of a slice.
        align: for each axis the length of its groups, which no slice holds a fraction of and more; 1 for none.

    Example:
        >>> [(rows.start, rows.stop) for rows, _ in boxes((70, 2), 80, (32, 1))]
        [(0, 32), (32, 64), (64, 70)]
    """
    axis, tile = _tile(shape, block) if shape else (0, ())
    whole = tuple(slice(0, n) for n in shape[axis + 1 :])
    for outer in product(*(range(n) for n in shape[:axis])):
        leading = tuple(slice(i, i + 1) for i in outer)
        if not shape:
            yield ()
            continue
        for begin, end in _cuts(shape[axis], tile[0], align[axis]):
            yield (*leading, slice(begin, end), *whole)


def _cuts(size: int, step: int, group: int) -> Iterator[tuple[int, int]]:
    if step >= group:
        step -= step % group
        for begin in range(0, size, step):
            yield begin, min(begin + step, size)
        return
    for first in range(0, size, group):
        last = min(first + group, size)
        for begin in range(first, last, step):
            yield begin, min(begin + step, last)


def in_threads(work: Callable[[int, int], Result], num_threads: int, tasks: int) -> list[Result]:
    """``[work(0, n), work(1, n), ...]`` for `n` threads, which end with this call; one thread is the caller's.

    Args:
        work: takes the number of its thread and how many there are.
        num_threads: at least 1.
        tasks: how many threads would find something to do.

    Raises:
        InputError: `num_threads` is no integer of at least 1.
    """
    check_threads(num_threads)
    count = max(1, min(int(num_threads), tasks))
    if count == 1:
        return [work(0, 1)]
    with ThreadPoolExecutor(count - 1) as pool:
        rest = [pool.submit(work, i, count) for i in range(1, count)]
        return [work(0, count), *(future.result() for future in rest)]


def check_threads(num_threads: int) -> None:
    """Raises InputError unless `num_threads` is an integer of at least 1."""
    if isinstance(num_threads, bool) or not isinstance(num_threads, (int, np.integer)) or num_threads < 1:
        raise InputError(f"expected num_threads to be an integer of at least 1; received num_threads={num_threads!r}")
