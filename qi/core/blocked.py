"""Quantize and dequantize numpy arrays of any size at the speed of memory, in a cache's worth of scratch.

The functions give bit for bit what `qi.core.affine` gives, and besides count what they met. Arrays of any real dtype,
memory order and strides are taken as they are, read-only and memory-mapped ones too; beside the output each thread
takes less than 1 MiB. Nothing is shared between calls, so threads may call as they like; numpy and numba release the
interpreter's lock while they compute.

``body`` chooses who computes a tile: "numpy", "numba" (the extra `fast`; see `qi.core.compiled`), or "auto": numba
for large arrays where its functions are loaded already or the array alone is worth the second that loading takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qi.core import compiled
from qi.core.granularity import Granularity, PerGroup
from qi.core.grid import Grid, IntGrid, LutGrid
from qi.core.kernels import Counts, NumpyKernels, spread_of
from qi.core.namespace import NUMPY, numpy_dtype
from qi.core.packing import Packer, packed_nbytes
from qi.core.tiles import Walk, boxes, in_threads
from qi.errors import InputError

if TYPE_CHECKING:
    from qi.core.qparams import QParams

__all__ = ["Counts", "dequantize", "fake_quantize", "minmax", "quantize", "quantize_packed"]

BLOCK = 1 << 15
_PIECE = 1 << 17  # codes of one byte that are packed at a time
_LUT_BLOCK = 1 << 13  # looking up takes 64-bit indices beside
_SHORT_ROW = 256  # numpy's cost of a row is that of a hundred values: shorter ones are repeated to a tile

Kernel = Callable[[np.ndarray, np.ndarray, "np.ndarray | None", np.ndarray], Counts]


def real(x: Any) -> np.ndarray:
    """`x` as an array of real numbers."""
    array = np.asarray(x)
    if not array.dtype.name.startswith(("float", "bfloat", "int", "uint", "bool")):
        raise InputError(f"expected an array of real numbers; received dtype={array.dtype.name}")
    return array


def output(out: np.ndarray | None, x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A checked `out`, or a new array with x's shape and memory order.

    Raises:
        InputError: dtype or shape differ, it is read-only, or it overlaps `x` without being it.
    """
    if out is None:
        return np.empty_like(x, dtype, subok=False)
    if not isinstance(out, np.ndarray) or out.dtype != dtype or out.shape != x.shape:
        received = (out.dtype, out.shape) if isinstance(out, np.ndarray) else type(out).__name__
        raise InputError(f"expected out to be an array of dtype {dtype} and shape {x.shape}; received {received}")
    if not out.flags.writeable:
        raise InputError("expected out to be writable; received a read-only array")
    if overlap(out, x) and not _same(out, x):
        raise InputError(
            "expected out not to overlap the input, unless it is the input; received two overlapping views"
        )
    return out


def overlap(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays share memory, or it is too hard to tell."""
    try:
        return np.shares_memory(a, b, max_work=10_000)  # type: ignore[arg-type]  # numpy's stub knows 0 and -1 alone
    except np.exceptions.TooHardError:
        return True


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays are the same elements, in the same places."""
    return (a.dtype, a.strides, a.ctypes.data) == (b.dtype, b.strides, b.ctypes.data)


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
    granularity: Granularity, arrays: Sequence[np.ndarray], params: Sequence[np.ndarray]
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


def _kernels(name: str, body: str, size: int, codes: np.dtype) -> tuple[type[NumpyKernels], int]:
    """Who computes the tiles, and how many values they have."""
    if body not in ("auto", "numpy", "numba"):
        raise InputError(f"expected body to be 'auto', 'numpy' or 'numba'; received body={body!r}")
    if body == "numba" or (body == "auto" and compiled.worth(name, codes, size)):
        return compiled.CompiledKernels, compiled.BLOCK
    return NumpyKernels, BLOCK


def _tabled(name: str, grid: LutGrid) -> Kernel:
    """The generic function of a look-up table, on one tile."""
    from qi.core import affine  # affine hands large arrays to this module

    first, last = grid.values[0], grid.values[-1]

    def run(x: np.ndarray, s: np.ndarray, z: np.ndarray | None, out: np.ndarray) -> Counts:
        if name == "dequantize":
            np.copyto(out, affine.dequantize(x, s, 0, grid), casting="unsafe")
            return Counts()
        np.copyto(out, getattr(affine, name)(x, s, 0, grid), casting="unsafe")
        u = np.rint(NUMPY.divide(NUMPY.cast(x, "float32"), s))
        clipped = np.count_nonzero(u < first) + np.count_nonzero(u > last)
        wide = x.astype(np.float32)
        return Counts(int(clipped), int(np.isnan(wide).sum()), int(np.isinf(wide).sum()))

    return run


def _single(name: str, x: np.ndarray, out: np.ndarray, params: QParams) -> Counts:
    """An array that is one tile."""
    grid = params.grid
    s, zero_point = params.expanded(x.shape)
    z = None
    if isinstance(grid, LutGrid):
        run = _tabled(name, grid)
    else:
        zero = shared_zero(params.zero_point)
        z = zero_point.astype(np.float32) if zero is None else None
        run = getattr(NumpyKernels(grid, zero, x.size), name)
    with np.errstate(all="ignore"):
        return run(x, s, z, out)


def _all(name: str, x: np.ndarray, out: np.ndarray, params: QParams, num_threads: int, body: str) -> Counts:
    if not x.size:
        return Counts()
    if x.size <= _LUT_BLOCK and body != "numba":
        return _single(name, x, out, params)
    granularity = params.granularity
    return apply(name, x, out, params.scale, params.zero_point, params.grid, granularity, num_threads, body)


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
    """
    kind, block = _kernels(name, body, x.size, grid.storage_dtype)
    if isinstance(grid, LutGrid):
        block = _LUT_BLOCK
    zero = shared_zero(zero_point) if isinstance(grid, IntGrid) else 0
    varying = [] if scale.size == 1 and zero is not None else [scale] if zero is not None else [scale, zero_point]
    pieces = parts(granularity, [x, out], varying) if varying and granularity else [([x, out], varying)]
    found: list[Counts] = []
    for arrays, own in pieces:
        walk = Walk([*arrays, *own], block)
        patterns = [_pattern(walk, 2 + i) for i in range(len(own))]

        def work(start: int, step: int, walk: Walk = walk, patterns: Sequence[Any] = patterns) -> Counts:
            run = _tabled(name, grid) if isinstance(grid, LutGrid) else getattr(kind(grid, zero, block), name)
            return _sweep(run, walk, patterns or [scale.reshape(())], start, step)

        found += in_threads(work, num_threads, -(-x.size // block))
    return total(found)


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
    """A parameter repeated to a full tile where that serves all tiles and spares many short rows."""
    if walk.views[0].shape[-1] >= _SHORT_ROW or not walk.constant(which):
        return None
    return np.ascontiguousarray(next(walk.tiles())[which], np.float32)


def _own(view: np.ndarray) -> np.ndarray:
    """A tile's parameters in float32, each once: with 1 along the axes that share them."""
    return _unspread(view).astype(np.float32, copy=False)


def quantize(
    x: Any, params: QParams, *, out: np.ndarray | None = None, num_threads: int = 1, body: str = "auto"
) -> tuple[np.ndarray, Counts]:
    """Codes of an array, and what was met on the way.

    Args:
        x: real array of any shape and dtype; computed in float32.
        params: how.
        out: gets the codes: x's shape, ``params.grid.storage_dtype``. Else a new array in x's memory order.
        num_threads: how many threads share the work; more than one pays with numba.
        body: "auto", "numpy" or "numba".

    Returns:
        codes, and `Counts`.

    Raises:
        InputError: x isn't real, the parameters don't fit its shape, `out` doesn't fit or overlaps x, or another
            argument is off.
        MissingDependencyError: body is "numba", and numba isn't installed.

    Example:
        >>> from qi.core import IntGrid, QParams
        >>> codes, counts = quantize([0.4, -99.0, np.nan, np.inf], QParams(0.5, 0, IntGrid(8)))
        >>> codes.tolist(), counts
        ([1, -128, 0, 127], Counts(clipped=2, nans=1, infs=1))
    """
    x = real(x)
    params.check_shape(x.shape)
    out = output(out, x, params.grid.storage_dtype)
    return out, _all("quantize", x, out, params, num_threads, body)


def fake_quantize(
    x: Any, params: QParams, *, out: np.ndarray | None = None, num_threads: int = 1, body: str = "auto"
) -> tuple[np.ndarray, Counts]:
    """What `quantize`, then `dequantize` give, in x's dtype (float32 for integers), and what was met on the way.

    Args and Raises: as `quantize`, but `out` has the dtype of the result, and may be x itself. NaN stays NaN.

    Example:
        >>> from qi.core import IntGrid, QParams
        >>> values, counts = fake_quantize([0.4, -99.0], QParams(0.5, 0, IntGrid(8)))
        >>> values.tolist(), counts.clipped
        ([0.5, -64.0], 1)
    """
    x = real(x)
    params.check_shape(x.shape)
    dtype = x.dtype.newbyteorder("=") if "float" in x.dtype.name else np.dtype(np.float32)
    out = output(out, x, dtype)
    return out, _all("fake_quantize", x, out, params, num_threads, body)


def dequantize(
    codes: Any,
    params: QParams,
    *,
    out: np.ndarray | None = None,
    dtype: str | np.dtype = "float32",
    num_threads: int = 1,
    body: str = "auto",
) -> np.ndarray:
    """The real numbers that codes stand for.

    Args:
        codes: integer array.
        params: how they were made.
        out: gets the numbers: shape of the codes, of `dtype`.
        dtype: of the result: a float, "bfloat16" among them.
        num_threads: as in `quantize`.
        body: as in `quantize`.

    Raises:
        InputError: as `quantize`; or codes aren't integers; or a code isn't in the table of a `LutGrid`.

    Example:
        >>> from qi.core import IntGrid, QParams
        >>> dequantize(np.int8([1, -128]), QParams(0.5, 0, IntGrid(8))).tolist()
        [0.5, -64.0]
    """
    codes = np.asarray(codes)
    if codes.dtype.kind not in "iu":
        raise InputError(f"expected integer codes; received dtype={codes.dtype}")
    params.check_shape(codes.shape)
    out = output(out, codes, numpy_dtype(dtype) if isinstance(dtype, str) else dtype)
    _all("dequantize", codes, out, params, num_threads, body)
    return out


def minmax(
    x: Any, granularity: Granularity, *, num_threads: int = 1, body: str = "auto"
) -> tuple[np.ndarray, np.ndarray, int, int]:
    """The least and the greatest finite value for each scale, and how many values aren't finite, in one pass.

    Args:
        x: real array of any shape and dtype.
        granularity: which values share a range.
        num_threads: as in `quantize`.
        body: as in `quantize`.

    Returns:
        (lo, hi, nans, infs): float64 arrays of the granularity's ``param_shape``, both 0 where no value is finite;
        counts of NaN and of values that are infinite in float32.

    Example:
        >>> from qi.core import PerChannel
        >>> lo, hi, nans, infs = minmax([[1.0, np.nan], [-2.0, np.inf]], PerChannel(-1))
        >>> lo.tolist(), hi.tolist(), nans, infs
        ([[-2.0, 0.0]], [[1.0, 0.0]], 1, 1)
    """
    x = real(x)
    kept = granularity.param_shape(x.shape)
    _kernels("minmax", body, 0, np.dtype(np.int8))

    def work(start: int, step: int) -> tuple[np.ndarray, np.ndarray, int, int]:
        lo, hi = np.full(kept, np.inf), np.full(kept, -np.inf)
        nans = infs = 0
        with np.errstate(all="ignore"):
            for (part,), own in parts(granularity, [x], [lo, hi]):
                walk = Walk([part, *own], BLOCK)
                for tile, *ranges in walk.tiles(start, step):
                    found = spread_of(tile, *(_unspread(view) for view in ranges))
                    nans, infs = nans + found[0], infs + found[1]
        return lo, hi, nans, infs

    found = in_threads(work, num_threads, -(-x.size // BLOCK))
    lo = np.asarray(np.min([each[0] for each in found], axis=0))
    hi = np.asarray(np.max([each[1] for each in found], axis=0))
    none = lo > hi
    lo[none] = hi[none] = 0
    return lo, hi, sum(each[2] for each in found), sum(each[3] for each in found)


def _unspread(view: np.ndarray) -> np.ndarray:
    """A broadcast view with 1 along the axes it was broadcast to."""
    return view[tuple(slice(0, 1) if step == 0 else slice(None) for step in view.strides)]


def quantize_packed(
    x: Any, params: QParams, *, out: np.ndarray | None = None, num_threads: int = 1, body: str = "auto"
) -> tuple[np.ndarray, Counts]:
    """The codes of an array, packed as `qi.core.packing` documents (C order), and what was met on the way.

    The codes themselves are never there as a whole: a piece at a time is quantized and packed.

    Args and Raises: as `quantize`, but `out` is a uint8 array of ``packed_nbytes(x.size, bits)`` bytes, which
        doesn't overlap x.

    Example:
        >>> from qi.core import IntGrid, QParams
        >>> packed, counts = quantize_packed([1.0, -1.0, 7.0], QParams(1.0, 0, IntGrid(4)))
        >>> packed.tolist()
        [241, 7]
    """
    x = real(x)
    params.check_shape(x.shape)
    grid = params.grid
    bits = grid.bits if isinstance(grid, IntGrid) else grid.index_bits
    stored = _bytes(out, packed_nbytes(x.size, bits), x)
    packer = Packer(bits, stored)
    codes = np.empty(min(x.size, _PIECE), grid.storage_dtype)
    found = []
    if params.scale.size == 1 and x.flags.c_contiguous:
        x = x.reshape(-1)
    for piece, scale, zero_point in _sections(x, params):
        filled = codes[: piece.size]
        section = filled.reshape(piece.shape)
        how = (scale, zero_point, grid, params.granularity, num_threads, body)
        found.append(apply("quantize", piece, section, *how))
        packer.add(filled)
    return packer.finish(), total(found)


def _sections(x: np.ndarray, params: QParams) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pieces of an array in C order, with their own scales and zero points."""
    scale, zero_point = params.scale, params.zero_point
    size = [1] * x.ndim
    if isinstance(params.granularity, PerGroup) and scale.size > 1:
        size[params.granularity.axis] = params.granularity.size
    for box in boxes(x.shape, _PIECE, size):
        if scale.size == 1:
            yield x[box], scale, zero_point
            continue
        own = tuple(
            slice(0, 1) if n == 1 else slice(cut.start // group, -(-cut.stop // group))
            for cut, group, n in zip(box, size, scale.shape, strict=True)
        )
        yield x[box], scale[own], zero_point[own]


def _bytes(out: np.ndarray | None, count: int, x: np.ndarray) -> np.ndarray:
    """A checked `out` of bytes, or a new one."""
    if out is None:
        return np.empty(count, np.uint8)
    if not isinstance(out, np.ndarray) or out.dtype != np.uint8 or out.shape != (count,):
        received = (out.dtype, out.shape) if isinstance(out, np.ndarray) else type(out).__name__
        raise InputError(f"expected out to be an array of dtype uint8 and shape {(count,)}; received {received}")
    if not out.flags.writeable or overlap(out, x):
        raise InputError("expected out to be writable and apart from the input; received a read-only or shared array")
    return out
