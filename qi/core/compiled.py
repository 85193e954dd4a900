"""What happens to one tile of an array, compiled by numba (the extra `fast`): one pass instead of six.

The same bits as `qi.core.kernels`, about twice as fast, and several threads get through twice as much, for the
interpreter's lock is free all the while. Nothing here imports numba until it is used. Compiling takes about a second
for each function and type of code; the result is kept on disk (in ``__pycache__`` beside this file, else in numba's
own folder for the user, set by ``NUMBA_CACHE_DIR``), and loading it takes half a second once for each process, which is
numba itself. Where neither folder can be written, each process compiles anew.

So ``body="auto"`` uses these functions for arrays of 2**16 values and more once they are loaded: by `load`, by a call
with ``body="numba"``, or by an array of 2**26 values, which takes numpy longer than loading does.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from qi.core.grid import IntGrid
from qi.core.kernels import NOTHING, Counts, NumpyKernels, load as load_tile
from qi.optional import require
from qi.typing import Shape

__all__ = ["CompiledKernels", "load", "worth"]

BLOCK = 1 << 16
_FLOAT32 = np.dtype(np.float32)
_LEAST, _ALONE = 1 << 16, 1 << 26

Function = Callable[..., Any]


# Written for numba, which drops the branch of an argument that is None: `columns` is None where each row of `x` has a
# scale, True where each column has. `s`, `z` (float32, too) are vectors of that length.


def _quantize(x: Any, s: Any, z: Any, columns: Any, qmin: Any, qmax: Any, out: Any) -> int:
    """Codes; returns how many values are off the grid or NaN."""
    off: Any = 0
    for i in range(x.shape[0]):
        found = np.int32(0)
        for j in range(x.shape[1]):
            scale = s[i] if columns is None else s[j]
            zero = z[i] if columns is None else z[j]
            q = np.rint(x[i, j] / scale) + zero
            found += np.int32(not (qmin <= q <= qmax))
            q = qmin if q < qmin else q
            q = qmax if q > qmax else q
            q = zero if q != q else q
            out[i, j] = np.int32(q)
        off += found
    return off


def _fake_quantize(x: Any, s: Any, z: Any, columns: Any, qmin: Any, qmax: Any, out: Any) -> int:
    """What codes stand for; NaN stays."""
    off: Any = 0
    for i in range(x.shape[0]):
        found = np.int32(0)
        for j in range(x.shape[1]):
            scale = s[i] if columns is None else s[j]
            zero = z[i] if columns is None else z[j]
            q = np.rint(x[i, j] / scale) + zero
            found += np.int32(not (qmin <= q <= qmax))
            q = qmin if q < qmin else q
            q = qmax if q > qmax else q
            out[i, j] = (q - zero) * scale
        off += found
    return off


def _dequantize(x: Any, s: Any, z: Any, columns: Any, qmin: Any, qmax: Any, out: Any) -> int:
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            scale = s[i] if columns is None else s[j]
            zero = z[i] if columns is None else z[j]
            out[i, j] = (np.float32(x[i, j]) - zero) * scale
    return 0


def _not_finite(x: Any) -> Any:
    """How many values of a vector are NaN, and how many infinite."""
    nans = infs = np.int32(0)
    for i in range(x.shape[0]):
        nans += np.int32(x[i] != x[i])
        infs += np.int32(abs(x[i]) == np.inf)
    return nans, infs


_SOURCES: dict[str, Function] = {"quantize": _quantize, "fake_quantize": _fake_quantize, "dequantize": _dequantize}
_LOCK = threading.Lock()
_LOADED: dict[tuple[str, str], tuple[Function, Function, Function]] = {}


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
    given = lambda kind, rank: types.Array(kind, rank, "C", readonly=True)
    x, vector, out = given(source, 2), given(real, 1), types.Array(target, 2, "C")
    rows, columns = (
        _compiled(_SOURCES[name], types.int64(x, vector, vector, which, real, real, out))
        for which in (types.none, types.boolean)
    )
    return rows, columns, _compiled(_not_finite, types.UniTuple(types.int32, 2)(vector))


@lru_cache(maxsize=1)
def _installed() -> bool:
    return find_spec("numba") is not None


def worth(name: str, codes: np.dtype, size: int) -> bool:
    """Whether ``body="auto"`` takes numba for an array of `size` values: see above."""
    if size < _LEAST or not _installed():
        return False
    return size >= _ALONE or _key(name, codes.name) in _LOADED


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

    def __init__(self, grid: IntGrid, zero: int | None, block: int) -> None:
        super().__init__(grid, zero, block)
        self._codes = grid.storage_dtype
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
        real = self._scratch[: x.size].reshape(x.shape)
        load_tile(x, real)
        return real

    def _run(
        self, name: str, x: np.ndarray, s: np.ndarray, z: np.ndarray | None, out: np.ndarray, dtype: np.dtype
    ) -> Counts:
        shape = s.shape if z is None else np.broadcast_shapes(s.shape, z.shape)
        by_rows, count = _axis(x.shape, shape)
        if not count:  # parameters for each row and each column: one for each value
            by_rows, count, shape = False, x.size, x.shape
        scales = self._vector(s, shape)
        zeros = self._zeros_of(count) if z is None else self._vector(z, shape)
        rows, columns, not_finite = _functions(name, self._codes.name)
        # NaN and infinities are counted where there are any, after all codes: x has to be there still.
        own = out.dtype == dtype and _plain(out) and not (name == "fake_quantize" and np.may_share_memory(x, out))
        target = out if own else np.empty(x.shape, dtype)
        two = (count, x.size // count) if by_rows else (x.size // count, count)
        call, flag = (rows, None) if by_rows else (columns, True)
        off = call(x.reshape(two), scales, zeros, flag, *self._ends, target.reshape(two))
        if not own:
            np.copyto(out, target, casting="unsafe")
        if not off:
            return NOTHING
        nans, infs = not_finite(x.reshape(-1))
        return Counts(int(off - nans), int(nans), int(infs))

    @staticmethod
    def _vector(values: np.ndarray, shape: Shape) -> np.ndarray:
        return np.ascontiguousarray(np.broadcast_to(values, shape)).reshape(-1)

    def _zeros_of(self, count: int) -> np.ndarray:
        if count > self._zeros.size:
            self._zeros = np.full(count, self.zero, np.float32)
        return self._zeros[:count]


def _plain(array: np.ndarray) -> bool:
    """Whether compiled functions take it as it is."""
    return array.flags.c_contiguous and array.flags.aligned and array.dtype.isnative


def _axis(shape: Shape, own: Shape) -> tuple[bool, int]:
    """Whether parameters shaped `own` belong to the rows of a matrix made of `shape`, or to its columns; how many.

    None (a count of 0) where they belong to neither.
    """
    count = math.prod(own)
    if count == 1:
        return True, 1
    axis = len(shape)
    while axis and own[axis - 1] == shape[axis - 1]:
        axis -= 1
    if math.prod(own[:axis]) == 1:
        return False, count
    axis = 0
    while own[axis] == shape[axis]:
        axis += 1
    return (True, count) if math.prod(own[axis:]) == 1 else (False, 0)
