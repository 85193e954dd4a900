"""Quantize and dequantize numpy arrays of any size at the speed of memory, in a cache's worth of scratch.

The functions give bit for bit what `qi.core.affine` gives, and besides count what they met. Arrays of any real dtype,
memory order and strides are taken as they are, read-only and memory-mapped ones too; beside the output each thread
takes less than 1 MiB. Nothing is shared between calls, so threads may call as they like.

``body`` chooses who computes: "numpy", "numba" (the extra `fast`; see `qi.core.compiled`), or "auto": numba for large
arrays where its functions are loaded already or the array alone is worth the second that loading takes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from qi.core.compiled import join_codes
from qi.core.granularity import Granularity, PerGroup
from qi.core.grid import Grid, IntGrid, LutGrid, code_bits
from qi.core.kernels import Counts, spread_of
from qi.core.namespace import numpy_dtype
from qi.core.packing import Packer, join, packed_nbytes, unpack_range
from qi.core.sweep import (
    BLOCK,
    LUT_BLOCK,
    apply,
    check_body,
    kernel_of,
    one_tile,
    parts,
    shared_zero,
    shares,
    total,
    unspread,
)
from qi.core.tiles import Walk, boxes, check_threads, in_threads
from qi.errors import InputError
from qi.typing import Shape

if TYPE_CHECKING:
    from qi.core.qparams import QParams

__all__ = [
    "Counts",
    "dequantize",
    "dequantize_packed",
    "fake_quantize",
    "groups_of",
    "minmax",
    "part_of",
    "quantize",
    "quantize_packed",
]

_LONG = 1 << 18
_MINMAX_BLOCKS = {4: 1 << 18, 8: 1 << 16}  # by bytes of a value: it takes scratch only where values are not finite


def real(x: Any) -> np.ndarray:
    """`x` as an array of real numbers."""
    array = np.asarray(x)
    kind = array.dtype.kind  # numpy's own types have a letter, which is quick to ask for
    if kind not in "fiub" and not array.dtype.name.startswith(("float", "bfloat", "int", "uint", "bool")):
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


def _all(
    name: str, x: np.ndarray, out: np.ndarray, params: QParams, num_threads: int, body: str, block: int | None
) -> Counts:
    if x.size <= min(LUT_BLOCK, block or LUT_BLOCK) and body != "numba":
        check_body(body)
        check_threads(num_threads)
        return one_tile(name, x, out, *params.expanded(x.shape), params.grid)
    how = (params.scale, params.zero_point, params.grid, params.granularity)
    return apply(name, x, out, *how, num_threads, body, block)


def quantize(
    x: Any,
    params: QParams,
    *,
    out: np.ndarray | None = None,
    num_threads: int = 1,
    body: str = "auto",
    block: int | None = None,
) -> tuple[np.ndarray, Counts]:
    """Codes of an array, and what was met on the way.

    Args:
        x: real array of any shape and dtype; computed in float32.
        params: how.
        out: gets the codes: x's shape, ``params.grid.storage_dtype``. Else a new array in x's memory order.
        num_threads: how many threads share the work; more than one pays with numba.
        body: "auto", "numpy" or "numba".
        block: the most values that numpy works on at a time, beside which it needs as much scratch; None: what suits a
            processor's caches.

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
    return out, _all("quantize", x, out, params, num_threads, body, block)


def fake_quantize(
    x: Any,
    params: QParams,
    *,
    out: np.ndarray | None = None,
    num_threads: int = 1,
    body: str = "auto",
    block: int | None = None,
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
    return out, _all("fake_quantize", x, out, params, num_threads, body, block)


def dequantize(
    codes: Any,
    params: QParams,
    *,
    out: np.ndarray | None = None,
    dtype: str | np.dtype = "float32",
    num_threads: int = 1,
    body: str = "auto",
    block: int | None = None,
) -> np.ndarray:
    """The real numbers that codes stand for.

    Args:
        codes: integer array.
        params: how they were made.
        out: gets the numbers: shape of the codes, of `dtype`.
        dtype: of the result: a float, "bfloat16" among them.
        num_threads: as in `quantize`.
        body: as in `quantize`.
        block: as in `quantize`.

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
    _check_indices(codes, params.grid)
    out = output(out, codes, numpy_dtype(dtype) if isinstance(dtype, str) else dtype)
    _all("dequantize", codes, out, params, num_threads, body, block)
    return out


def _check_indices(codes: np.ndarray, grid: Grid) -> None:
    """InputError where a code isn't in the table of a `LutGrid`."""
    last = grid.levels - 1
    if isinstance(grid, LutGrid) and codes.size and (codes.min() < 0 or codes.max() > last):
        raise InputError(f"expected codes from 0 to {last}; received {codes.min()} to {codes.max()}")


def minmax(x: Any, granularity: Granularity, *, num_threads: int = 1) -> tuple[np.ndarray, np.ndarray, int, int]:
    """The least and the greatest finite value for each scale, and how many values aren't finite, in one pass.

    Args:
        x: real array of any shape and dtype.
        granularity: which values share a range.
        num_threads: as in `quantize`.

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
    if math.prod(kept) == 1 and 0 < x.size <= _LONG and x.dtype == np.float32:
        with np.errstate(invalid="ignore"):
            least, greatest = float(x.min()), float(x.max())  # NaN shows in both
        if math.isfinite(least) and math.isfinite(greatest):
            check_threads(num_threads)
            return np.full(kept, least), np.full(kept, greatest), 0, 0

    def work(start: int, step: int) -> tuple[np.ndarray, np.ndarray, int, int]:
        lo, hi = np.full(kept, np.inf), np.full(kept, -np.inf)
        nans = infs = 0
        with np.errstate(all="ignore"):
            for (part,), own in parts(granularity, [x], [lo, hi]) if x.size else ():
                walk = Walk([part, *own], _MINMAX_BLOCKS.get(x.dtype.itemsize, BLOCK))
                for tile, *ranges in walk.tiles(start, step):
                    found = spread_of(tile, *(unspread(view) for view in ranges))
                    nans, infs = nans + found[0], infs + found[1]
        return lo, hi, nans, infs

    found = in_threads(work, num_threads, shares(x.size))
    lo, hi, nans, infs = found[0]
    for other in found[1:]:
        np.minimum(lo, other[0], out=lo)
        np.maximum(hi, other[1], out=hi)
        nans, infs = nans + other[2], infs + other[3]
    none = lo > hi
    lo[none] = hi[none] = 0
    return lo, hi, nans, infs


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
    grid, bits = params.grid, code_bits(params.grid)
    stored = _bytes(out, packed_nbytes(x.size, bits), x)
    scale, zero_point, granularity = params.scale, params.zero_point, params.granularity
    if not x.size:
        check_body(body)
        check_threads(num_threads)
        return stored, Counts()
    if scale.size == 1 and x.flags.c_contiguous:
        x, scale, zero_point = x.reshape(-1), scale.reshape(1), zero_point.reshape(1)
    groups = groups_of(x.shape, scale, granularity)
    unit, rows = math.lcm(8 // math.gcd(8, math.prod(x.shape[1:])), groups[0]), x.shape[0]

    def work(start: int, step: int) -> Counts:
        share = -(-rows // (step * unit)) * unit  # of whole bytes
        first, last = min(start * share, rows), min((start + 1) * share, rows)
        begin, end = (packed_nbytes(math.prod(x.shape[1:]) * row, bits) for row in (first, last))
        box = (slice(first, last), *(slice(0, n) for n in x.shape[1:]))
        mine = part_of(scale, box, groups), part_of(zero_point, box, groups)
        return _packed_share(x[box], *mine, grid, granularity, stored[begin:end], body)

    return stored, total(in_threads(work, num_threads, min(-(-rows // unit), shares(x.size))))


def _packed_share(
    x: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray,
    grid: Grid,
    granularity: Granularity,
    stored: np.ndarray,
    body: str,
) -> Counts:
    """Quantizes and packs what one thread has to, in C order."""
    zero = shared_zero(zero_point) if isinstance(grid, IntGrid) else 0
    maker = kernel_of("quantize", grid, zero, x.size, body)
    packer = Packer(code_bits(grid), stored, join_codes if maker.compiled else join)
    groups = groups_of(x.shape, scale, granularity)
    whole = all(n % group == 0 for n, group in zip(x.shape, groups, strict=True))
    # Longer pieces where none is copied: neither to float32, nor to close the gap that a partial group leaves.
    long = maker.compiled and x.dtype == np.float32 and x.flags.c_contiguous and whole
    block = _LONG if long else maker.block
    run, codes, found = maker.make(), np.empty(min(block, x.size), grid.storage_dtype), []
    with np.errstate(all="ignore"):
        for box in boxes(x.shape, block, groups):
            piece = x[box]
            section = codes[: piece.size].reshape(piece.shape)
            params = [part_of(scale, box, groups), *([] if zero is not None else [part_of(zero_point, box, groups)])]
            for (part, target), (s, *z) in parts(granularity if scale.size > 1 else None, [piece, section], params):
                found.append(run(part, s, z[0].astype(np.float32) if z else None, target))
            packer.add(codes[: piece.size])
    packer.finish()
    return total(found)


def dequantize_packed(
    stored: np.ndarray,
    shape: Shape,
    params: QParams,
    *,
    out: np.ndarray | None = None,
    dtype: str | np.dtype = "float32",
    num_threads: int = 1,
    body: str = "auto",
) -> np.ndarray:
    """The real numbers that packed codes stand for, unpacked a piece at a time.

    Args and Raises: as `dequantize`, but for `stored`, the bytes that `quantize_packed` gives, and `shape`, that of the codes.

    Example:
        >>> from qi.core import IntGrid, QParams
        >>> dequantize_packed(np.uint8([241, 7]), (3,), QParams(0.5, 0, IntGrid(4))).tolist()
        [0.5, -0.5, 3.5]
    """
    params.check_shape(shape)
    grid, bits = params.grid, code_bits(params.grid)
    expected = packed_nbytes(math.prod(shape), bits)
    if stored.dtype != np.uint8 or stored.shape != (expected,):
        raise InputError(f"expected {expected} bytes; received {stored.dtype}, shape {stored.shape}")
    like = np.broadcast_to(np.empty((), grid.storage_dtype), shape)
    out = output(out, like, numpy_dtype(dtype) if isinstance(dtype, str) else dtype)
    scale, zero_point, signed = params.scale, params.zero_point, isinstance(grid, IntGrid) and grid.signed
    groups = groups_of(shape, scale, params.granularity)
    granularity = params.granularity if scale.size > 1 else None

    def work(start: int, step: int) -> None:
        position = 0
        for i, box in enumerate(boxes(shape, BLOCK, groups) if out.size else ()):
            place: Any = (*box, ...)  # gives a view, also where there is no axis
            piece = out[place]
            position += piece.size
            if i % step != start:
                continue
            codes = unpack_range(stored, bits, position - piece.size, position, signed=signed)
            how = part_of(scale, box, groups), part_of(zero_point, box, groups)
            codes = codes.astype(grid.storage_dtype, copy=False).reshape(piece.shape)
            _check_indices(codes, grid)
            apply("dequantize", codes, piece, *how, grid, granularity, body=body)

    check_body(body)
    in_threads(work, num_threads, shares(out.size))
    return out


def groups_of(shape: Shape, scale: np.ndarray, granularity: Granularity) -> list[int]:
    """For each axis how many of its indices share a scale: more than 1 for groups alone."""
    size = [1] * len(shape)
    if isinstance(granularity, PerGroup) and scale.size > 1:
        size[granularity.axis] = granularity.size
    return size


def part_of(param: np.ndarray, box: tuple[slice, ...], groups: list[int]) -> np.ndarray:
    """What of a parameter belongs to a slice of its tensor."""
    if param.size == 1:
        return param.reshape(())
    cuts = zip(box, groups, param.shape, strict=True)
    return param[tuple(slice(0, 1) if n == 1 else slice(c.start // g, -(-c.stop // g)) for c, g, n in cuts)]


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
