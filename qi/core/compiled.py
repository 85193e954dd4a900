"""What happens to one tile of an array, compiled by numba (the extra `fast`): one pass instead of six.

The same bits as `qi.core.kernels`, two to four times as fast, and threads of the caller's or of `num_threads` share
the work, for the interpreter's lock is free all the while. Nothing here imports numba until it is used. Compiling takes
about a second for each function and type of code; the result is kept on disk (in ``__pycache__`` beside this file, else
in numba's own folder for the user, set by ``NUMBA_CACHE_DIR``), and loading it takes half a second once for each
process, which is numba itself. Where neither folder can be written, each process compiles anew.

So ``body="auto"`` uses these functions for arrays of 2**16 values and more once they are loaded: by `load`, by a call
with ``body="numba"``, by an array of 2**26 values, or by smaller ones of 2**28 values together, on which numpy has spent
as long as loading takes: whoever goes on will gain by it.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from qi.core.grid import IntGrid
from qi.core.kernels import NOTHING, Counts, NumpyKernels, load as load_tile
from qi.core.packing import join
from qi.optional import require
from qi.typing import Shape

__all__ = ["CompiledKernels", "load", "worth"]

BLOCK = 1 << 16
_FLOAT32 = np.dtype(np.float32)
LONG = 1 << 19  # where tiles need no scratch
_LEAST, _ALONE, _TOGETHER = 1 << 16, 1 << 26, 1 << 28
_SHORT_ROW, _LONG_ROW = 64, 1024

Function = Callable[..., Any]


# Written for numba. `x` and `out` are vectors: `count` times rows of `length` values, the last of which may be cut. Row
# r of repetition a has its scale at ``s[a * outer + r * inner]``, and where `columns` isn't None (numba drops the other
# branch, as with `reals`) each of its values has one from there on. `z` (float32, too) is read alike.


def _quantize(x: Any, s: Any, z: Any, layout: Any, columns: Any, reals: Any, qmin: Any, qmax: Any, out: Any) -> Any:
    """Codes, or what they stand for unless `reals` is None (NaN stays then); returns how many are off the grid or NaN."""
    rows, length, outer, inner = layout
    off: Any = 0
    for row in range((x.shape[0] + length - 1) // length):
        given, written = x[row * length : (row + 1) * length], out[row * length : (row + 1) * length]
        at = (row // rows) * outer + (row % rows) * inner
        scales, zeros = s[at : at + length], z[at : at + length]
        found = np.int32(0)
        for j in range(given.shape[0]):
            scale = scales[0] if columns is None else scales[j]
            zero = zeros[0] if columns is None else zeros[j]
            q = np.rint(given[j] / scale) + zero
            found += np.int32(not (qmin <= q <= qmax))
            q = qmin if q < qmin else q
            q = qmax if q > qmax else q
            if reals is None:
                q = zero if q != q else q
                written[j] = np.int32(q)
            else:
                written[j] = (q - zero) * scale
        off += found
    return off


def _dequantize(x: Any, s: Any, z: Any, layout: Any, columns: Any, reals: Any, qmin: Any, qmax: Any, out: Any) -> Any:
    rows, length, outer, inner = layout
    for row in range((x.shape[0] + length - 1) // length):
        given, written = x[row * length : (row + 1) * length], out[row * length : (row + 1) * length]
        at = (row // rows) * outer + (row % rows) * inner
        scales, zeros = s[at : at + length], z[at : at + length]
        for j in range(given.shape[0]):
            scale = scales[0] if columns is None else scales[j]
            zero = zeros[0] if columns is None else zeros[j]
            written[j] = (np.float32(given[j]) - zero) * scale
    return 0


def _not_finite(x: Any) -> Any:
    """How many values of a vector are NaN, and how many infinite."""
    nans = infs = np.int32(0)
    for i in range(x.shape[0]):
        nans += np.int32(x[i] != x[i])
        infs += np.int32(abs(x[i]) == np.inf)
    return nans, infs


def _pairs(codes: Any, out: Any) -> None:
    """Two 4-bit codes in each byte, the first in its low half."""
    for i in range(out.shape[0]):
        out[i] = (codes[2 * i] & 15) | (codes[2 * i + 1] << 4)


_SOURCES: dict[str, Function] = {"quantize": _quantize, "fake_quantize": _quantize, "dequantize": _dequantize}
_LOCK = threading.Lock()
_LOADED: dict[tuple[str, str], tuple[Function, Function, Function]] = {}
_SEEN: Counter[tuple[str, str]] = Counter()  # values that numpy worked on; threads may lose some, which does no harm


def _compiled(function: Function, signature: Any) -> Function:
    numba: Any = require("numba", extra="fast", feature="body='numba'")
    options = {"nogil": True, "error_model": "numpy"}
    try:
        made: Function = numba.njit(signature, cache=True, **options)(function)
    except RuntimeError:  # no folder to keep it in
        made = numba.njit(signature, **options)(function)
    return made


def _key(name: str, codes: str) -> tuple[str, str]:
    return name, "float32" if name == "fake_quantize" else codes


@lru_cache(maxsize=64)
def _name_of(dtype: np.dtype) -> str:
    """Its name, which numpy makes up anew each time."""
    return dtype.name


def _functions(name: str, codes: str) -> tuple[Function, Function, Function]:
    """`name` for rows, for columns, and what counts NaN and infinities; compiled at first use."""
    key = _key(name, codes)
    if key not in _LOADED:
        with _LOCK:
            if key not in _LOADED:
                _LOADED[key] = _build(*key)
    return _LOADED[key]


def _build(name: str, codes: str) -> tuple[Function, Function, Function]:
    types: Any = require("numba", extra="fast", feature="body='numba'").types
    real, code = types.float32, getattr(types, codes)
    source, target = (code, real) if name == "dequantize" else (real, code)
    given: Function = lambda kind: types.Array(kind, 1, "C", readonly=True)
    x, vector, out = given(source), given(real), types.Array(target, 1, "C")
    layout = types.UniTuple(types.int64, 4)
    reals = types.boolean if name == "fake_quantize" else types.none
    rows, columns = (
        _compiled(_SOURCES[name], types.int64(x, vector, vector, layout, which, reals, real, real, out))
        for which in (types.none, types.boolean)
    )
    return rows, columns, _compiled(_not_finite, types.UniTuple(types.int32, 2)(vector))


@lru_cache(maxsize=1)
def _pairing() -> Function:
    types: Any = require("numba", extra="fast", feature="body='numba'").types
    given: Any = types.Array(types.uint8, 1, "C", readonly=True)
    return _compiled(_pairs, types.void(given, types.uint8[::1]))


def join_codes(codes: np.ndarray, bits: int, out: np.ndarray) -> None:
    """`qi.core.packing.join`, for 4-bit codes in one pass."""
    if bits == 4 and codes.dtype.itemsize == 1 and codes.flags.c_contiguous:
        _pairing()(codes.view(np.uint8), out)
    else:
        join(codes, bits, out)


@lru_cache(maxsize=1)
def _installed() -> bool:
    return find_spec("numba") is not None


def worth(name: str, codes: np.dtype, size: int) -> bool:
    """Whether ``body="auto"`` takes numba for an array of `size` values: see above."""
    if size < _LEAST or not _installed():
        return False
    key = _key(name, _name_of(codes))
    if key in _LOADED:
        return True
    _SEEN[key] += size
    return size >= _ALONE or _SEEN[key] > _TOGETHER


def load(grid: IntGrid) -> None:
    """Loads, or compiles for the first time, all functions for codes of a grid: a service does it when it starts.

    Raises:
        MissingDependencyError: numba isn't installed.
    """
    for name in _SOURCES:
        _functions(name, grid.storage_dtype.name)


class CompiledKernels(NumpyKernels):
    """The functions of `NumpyKernels`, compiled."""

    name = "numba"

    def __init__(self, grid: IntGrid, zero: int | None) -> None:
        super().__init__(grid, zero)
        self._codes = grid.storage_dtype
        self._code_name = _name_of(self._codes)
        self._ends = np.float32(grid.qmin), np.float32(grid.qmax)
        self._zeros = np.full(1, zero or 0, np.float32)

    def quantize(self, x: np.ndarray, s: np.ndarray, z: np.ndarray | None, out: np.ndarray) -> Counts:
        """Writes codes to `out`."""
        return self._run("quantize", self._float(x), s, z, out, self._codes)

    def fake_quantize(self, x: np.ndarray, s: np.ndarray, z: np.ndarray | None, out: np.ndarray) -> Counts:
        """Writes what `quantize`, then `dequantize` give to `out`; NaN stays."""
        return self._run("fake_quantize", self._float(x), s, z, out, _FLOAT32)

    def dequantize(self, x: np.ndarray, s: np.ndarray, z: np.ndarray | None, out: np.ndarray) -> Counts:
        """Writes real numbers to `out`; codes of another type than the grid's are numpy's work."""
        if x.dtype != self._codes:
            return super().dequantize(x, s, z, out)
        return self._run("dequantize", x if _plain(x) else x.copy(), s, z, out, _FLOAT32)

    def _float(self, x: np.ndarray) -> np.ndarray:
        if x.dtype == _FLOAT32 and _plain(x):
            return x
        real = self._buffer(x.shape)
        load_tile(x, real)
        return real

    def _run(
        self, name: str, x: np.ndarray, s: np.ndarray, z: np.ndarray | None, out: np.ndarray, dtype: np.dtype
    ) -> Counts:
        """One call of a compiled function, with everything in the form that it takes."""
        given, shape = _layout(x.shape, s.shape if z is None else np.broadcast_shapes(s.shape, z.shape))
        if given is None:
            pieces = [self._run(name, *piece, dtype) for piece in _along_first(x, s, z, out)]
            return Counts(*(sum(column) for column in zip(*pieces, strict=True)))
        scales = _vector(s, shape, given.copies)
        zeros = self._zeros_of(scales.size) if z is None else _vector(z, shape, given.copies)
        rows, columns, not_finite = _functions(name, self._code_name)
        own = out.dtype == dtype and _plain(out)
        target = out if own else np.empty(x.shape, dtype)
        flat = x.reshape(-1)
        # What is counted must be there still: x may be out.
        before = not_finite(flat) if own and name == "fake_quantize" and np.may_share_memory(x, out) else None
        call, flag = (columns, True) if given.columns else (rows, None)
        reals = True if name == "fake_quantize" else None
        off = call(flat, scales, zeros, given.steps, flag, reals, *self._ends, target.reshape(-1))
        if not own:
            np.copyto(out, target, casting="unsafe")
        if not off:
            return NOTHING
        nans, infs = before or not_finite(flat)
        return Counts(int(off - nans), int(nans), int(infs))

    def _zeros_of(self, count: int) -> np.ndarray:
        if count > self._zeros.size:
            self._zeros = np.full(count, self.zero, np.float32)
        return self._zeros[:count]


def _plain(array: np.ndarray) -> bool:
    """Whether compiled functions take it as it is."""
    return array.flags.c_contiguous and array.flags.aligned and array.dtype.isnative


def direct(name: str, grid: IntGrid, x: np.ndarray, out: np.ndarray) -> bool:
    """Whether an input and its output need no scratch: then longer tiles cost no memory."""
    types = (grid.storage_dtype, _FLOAT32) if name == "dequantize" else (_FLOAT32, grid.storage_dtype)
    wanted = (types[0], _FLOAT32) if name == "fake_quantize" else types
    return (x.dtype, out.dtype) == wanted and _plain(x) and _plain(out)


def _vector(values: np.ndarray, shape: Shape, copies: int) -> np.ndarray:
    vector = np.ascontiguousarray(np.broadcast_to(values, shape)).reshape(-1)
    return vector if copies == 1 else np.tile(vector, copies)


class _Layout(NamedTuple):
    """How the parameters of a tile lie beside it: see the compiled functions for `steps` and `columns`."""

    steps: tuple[int, int, int, int]
    columns: bool
    copies: int = 1


def _layout(shape: Shape, own: Shape) -> tuple[_Layout | None, Shape]:
    """The layout of parameters shaped `own` (each axis 1 or that of `shape`), and the shape to give them first.

    None where runs of shared axes and others alternate more than three times.
    """
    runs: list[tuple[int, bool]] = []  # (length, whether each index has its own)
    if math.prod(own) > 1:
        for size, mine in zip(shape, own, strict=True):
            if runs and runs[-1][1] == (mine > 1):
                runs[-1] = (runs[-1][0] * size, mine > 1)
            elif size > 1:
                runs.append((size, mine > 1))
    sizes, kinds = [size for size, _ in runs], [mine for _, mine in runs]
    match kinds:
        case []:
            return _Layout((1, math.prod(shape), 0, 0), False), own
        case [True]:
            return _Layout((1, sizes[0], 0, 0), True), own
        case [False, True]:
            return _repeated(*sizes), own
        case [True, False]:
            return _Layout((sizes[0], sizes[1], 0, 1), False), own
        case [False, True, False] if sizes[2] < _SHORT_ROW and sizes[1] * sizes[2] <= BLOCK:
            first = next(axis for axis, mine in enumerate(own) if mine > 1)
            return _repeated(sizes[0], sizes[1] * sizes[2]), (*own[:first], *shape[first:])
        case [False, True, False]:
            return _Layout((sizes[1], sizes[2], 0, 1), False), own
        case [True, False, True]:
            return _Layout((sizes[1], sizes[2], sizes[2], 0), True), own
    return None, own


def _repeated(rows: int, length: int) -> _Layout:
    """Rows with the same parameters for each column: several make a longer one, as short loops cost more."""
    copies = min(rows, -(-_LONG_ROW // length))
    return _Layout((1, copies * length, 0, 0), True, copies)


def _along_first(
    x: np.ndarray, s: np.ndarray, z: np.ndarray | None, out: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]]:
    """The same arguments for each index of the first axis."""
    for i in range(x.shape[0]):
        yield x[i], *(p if p is None else p[i] if p.shape[0] > 1 else p[0] for p in (s, z)), out[i]
