"""From one tile to a whole array: parameters of any granularity beside it, tiles shared among threads.

`apply` runs the kernels of `qi.core.kernels` or `qi.core.compiled` over all tiles of an array. Nothing is shared
between calls, or between their threads; numpy and numba release the interpreter's lock while they compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from qi.core import compiled
from qi.core.granularity import Granularity, PerGroup
from qi.core.grid import Grid, IntGrid, LutGrid
from qi.core.kernels import NOTHING, Counts, NumpyKernels
from qi.core.namespace import NUMPY
from qi.core.tiles import Walk, in_threads
from qi.errors import InputError

__all__ = [
    "BLOCK",
    "LUT_BLOCK",
    "SHARE",
    "apply",
    "check_body",
    "kernel_of",
    "one_tile",
    "parts",
    "shared_zero",
    "shares",
    "total",
    "unspread",
]

BLOCK = 1 << 17  # of so many float32 a cache of 1 MiB holds all; fewer would have threads wait for the interpreter
SHARE = 1 << 22  # fewer values don't make up for a thread's start
LUT_BLOCK = 1 << 13  # looking up takes 64-bit indices beside
_SHORT_ROW = 256  # numpy's cost of a row is that of a hundred values: shorter ones are repeated to a tile

Kernel = Callable[[np.ndarray, np.ndarray, "np.ndarray | None", np.ndarray], Counts]


def shared_zero(zero_point: np.ndarray) -> int | None:
    """The one zero point that all scales have, or None."""
    if zero_point.size <= 1:
        return int(zero_point.reshape(-1)[0]) if zero_point.size else 0
    least = zero_point.min()
    return int(least) if least == zero_point.max() else None


def _split(array: np.ndarray, axis: int, size: int) -> np.ndarray:
    """`axis` as two axes, the second of `size`; a view, whatever the strides."""
    shape = (*array.shape[:axis], array.shape[axis] // size, size, *array.shape[axis + 1 :])
    step = array.strides[axis]
    strides = (*array.strides[:axis], step * size, step, *array.strides[axis + 1 :])
    return np.lib.stride_tricks.as_strided(array, shape, strides, writeable=array.flags.writeable)


def parts(
    granularity: Granularity | None, arrays: Sequence[np.ndarray], params: Sequence[np.ndarray]
) -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
    """Views in which `params` broadcast against `arrays`: groups on an axis of their own, then the partial group."""
    shape = arrays[0].shape
    if not isinstance(granularity, PerGroup):
        yield list(arrays), list(params)
        return
    axis, size = granularity.axis % len(shape), granularity.size
    whole = shape[axis] // size
    before = (slice(None),) * axis
    if whole:
        head = (*before, slice(0, whole * size))
        groups = [np.expand_dims(p[(*before, slice(0, whole))], axis + 1) for p in params]
        yield [_split(a[head], axis, size) for a in arrays], groups
    if shape[axis] % size:
        tail, last = (*before, slice(whole * size, None)), (*before, slice(whole, whole + 1))
        yield [a[tail] for a in arrays], [p[last] for p in params]


def check_body(body: str) -> None:
    """Raises InputError unless `body` is one of three."""
    if body not in ("auto", "numpy", "numba"):
        raise InputError(f"expected body to be 'auto', 'numpy' or 'numba'; received body={body!r}")


class Maker(NamedTuple):
    """What makes a function of tiles, one for each thread.

    Attributes:
        make: called by the thread that uses the function.
        block: the most values of a tile.
        compiled: whether the function is numba's.
    """

    make: Callable[[], Kernel]
    block: int
    compiled: bool = False


def kernel_of(name: str, grid: Grid, zero: int | None, size: int, body: str) -> Maker:
    """Who computes the tiles of an array of `size` values."""
    check_body(body)
    if isinstance(grid, LutGrid):
        return Maker(lambda: _tabled(name, grid), LUT_BLOCK)
    if body == "numba" or (body == "auto" and compiled.worth(name, grid.storage_dtype, size)):
        return Maker(lambda: getattr(compiled.CompiledKernels(grid, zero), name), compiled.BLOCK, True)
    return Maker(lambda: getattr(NumpyKernels(grid, zero), name), BLOCK)


def _tabled(name: str, grid: LutGrid) -> Kernel:
    """The generic function of a look-up table, on one tile."""
    from qi.core import affine  # affine hands large arrays to this module

    first, last = grid.values[0], grid.values[-1]

    def read(x: np.ndarray, s: np.ndarray, z: np.ndarray | None, out: np.ndarray) -> Counts:
        np.copyto(out, affine.dequantize(x, s, 0, grid), casting="unsafe")
        return NOTHING

    def look_up(x: np.ndarray, s: np.ndarray, z: np.ndarray | None, out: np.ndarray) -> Counts:
        u = NUMPY.cast(x, "float32")
        nans, infs = np.count_nonzero(np.isnan(u)), np.count_nonzero(np.isinf(u))
        u = np.rint(NUMPY.divide(u, s))
        clipped = np.count_nonzero(u < first) + np.count_nonzero(u > last)
        np.copyto(out, getattr(affine, name)(x, s, 0, grid), casting="unsafe")
        return Counts(int(clipped), int(nans), int(infs))

    return read if name == "dequantize" else look_up


def one_tile(
    name: str, x: np.ndarray, out: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, grid: Grid
) -> Counts:
    """`apply` for a small array, with parameters that broadcast against it."""
    if not x.size:
        return NOTHING
    if isinstance(grid, LutGrid):
        run, z = _tabled(name, grid), None
    else:
        zero = shared_zero(zero_point)
        run, z = getattr(NumpyKernels(grid, zero), name), None if zero is not None else zero_point.astype(np.float32)
    with np.errstate(all="ignore"):
        return run(x, scale, z, out)


def apply(
    name: str,
    x: np.ndarray,
    out: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray,
    grid: Grid,
    granularity: Granularity | None = None,
    num_threads: int = 1,
    body: str = "auto",
    block: int | None = None,
) -> Counts:
    """Runs the kernel `name` over all tiles of `x`.

    Args:
        name: "quantize", "fake_quantize" or "dequantize".
        x: the input.
        out: of its shape.
        scale: float32, broadcastable to x, or shaped as `granularity` says.
        zero_point: integers, shaped like scale, or of size 1.
        grid: which codes exist.
        granularity: None where the parameters broadcast as they are.
        num_threads: how many threads share the tiles.
        body: who computes them.
        block: the most values of numpy's tiles, if not what suits a processor's caches.
    """
    if not x.size:
        return NOTHING
    zero = shared_zero(zero_point) if isinstance(grid, IntGrid) else 0
    maker = kernel_of(name, grid, zero, x.size, body)
    given = [] if scale.size == 1 and zero is not None else [scale] if zero is not None else [scale, zero_point]
    found: list[Counts] = []
    for arrays, own in parts(granularity if given else None, [x, out], given):
        walk = Walk([*arrays, *own], maker.block if block is None or maker.compiled else block)
        if maker.compiled and isinstance(grid, IntGrid) and compiled.direct(name, grid, *walk.views[:2]):
            walk = Walk([*arrays, *own], compiled.LONG)
        repeated = not maker.compiled and walk.views[0].shape[-1] < _SHORT_ROW
        patterns = [_pattern(walk, 2 + i) if repeated else None for i in range(len(own))] or [scale.reshape(())]

        def work(start: int, step: int, walk: Walk = walk, patterns: Sequence[Any] = patterns) -> Counts:
            return _sweep(maker.make(), walk, patterns, start, step)

        found += in_threads(work, num_threads, shares(arrays[0].size))
    return total(found)


def shares(size: int) -> int:
    """How many threads an array of `size` values is worth."""
    return max(1, size // SHARE)


def _sweep(run: Kernel, walk: Walk, given: Sequence[Any], start: int, step: int) -> Counts:
    """Runs a kernel over the tiles of one thread; `given` are parameters of all tiles, or None where tiles differ."""
    found = []
    with np.errstate(all="ignore"):
        for x, out, *own in walk.tiles(start, step):
            if own:
                how = [_own(view) if same is None else same[: len(x)] for view, same in zip(own, given, strict=True)]
                counts = run(x, how[0], how[1] if len(how) > 1 else None, out)
            else:
                counts = run(x, given[0], None, out)
            if any(counts):
                found.append(counts)
    return total(found)


def total(found: Sequence[Counts]) -> Counts:
    """The sum of counts."""
    return Counts(*(sum(column) for column in zip(*found, strict=True))) if found else Counts()


def _pattern(walk: Walk, which: int) -> np.ndarray | None:
    """A parameter repeated to a full tile, where that serves all tiles."""
    return np.ascontiguousarray(next(walk.tiles())[which], np.float32) if walk.constant(which) else None


def _own(view: np.ndarray) -> np.ndarray:
    """A tile's parameters in float32, each once: with 1 along the axes that share them."""
    return unspread(view).astype(np.float32, copy=False)


def unspread(view: np.ndarray) -> np.ndarray:
    """A broadcast view with 1 along the axes it was broadcast to."""
    return view[tuple(slice(0, 1) if step == 0 else slice(None) for step in view.strides)]
