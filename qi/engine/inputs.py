"""What `Quantizer` takes: checks of arrays, and the types that aren't integer codes."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from qi.engine.config import QuantizationConfig
from qi.errors import ConfigError, InputError, UnsupportedError

__all__ = ["array_of", "codes_of", "float32_of", "half", "hash_array", "no_tensor", "placed", "refuse", "untouched"]

_HALF_MAX = float(np.finfo(np.float16).max)


def array_of(data: Any, *, validate: bool) -> np.ndarray:
    """An array of real numbers.

    Raises:
        UnsupportedError: It is none, or of a dtype without real numbers.
        InputError: Its rows differ in length.
    """
    if not isinstance(data, np.ndarray):
        if validate and not isinstance(data, np.generic):
            raise UnsupportedError(
                f"expected a numpy array; received {type(data).__name__}; do: np.asarray(data), or validate=False"
            )
        try:
            data = np.asarray(data)
        except ValueError as error:
            raise InputError(
                f"expected rows of one length; received {type(data).__name__} of different ones"
            ) from error
    if data.dtype.kind not in "fiub" and "float" not in data.dtype.name:
        raise UnsupportedError(f"expected an array of real numbers; received dtype={data.dtype}")
    if data.dtype.itemsize == 1 and "float" in data.dtype.name:
        return np.asarray(data.astype(np.float32))  # numpy knows too little of these
    return np.asarray(data)


def codes_of(data: Any, config: QuantizationConfig) -> np.ndarray:
    """An array of codes of a type; whole numbers of any integer dtype.

    Raises:
        UnsupportedError: It is no array of integers.
        InputError: A code is none of the type's.
    """
    if not isinstance(data, np.ndarray | np.generic) or np.asarray(data).dtype.kind not in "iu":
        raise UnsupportedError(
            f"expected an array of integer codes; received {getattr(data, 'dtype', type(data).__name__)}"
        )
    codes, grid = np.asarray(data), config.grid
    if codes.dtype == grid.storage_dtype and grid.bits in (8, 16):
        return codes  # every value of the dtype is a code
    if codes.size and (codes.min() < grid.qmin or codes.max() > grid.qmax):
        raise InputError(
            f"expected codes of {config.quantization_type.name} with {grid.bits} bits, {grid.qmin} to {grid.qmax}; "
            f"received {codes.min()} to {codes.max()}"
        )
    return codes.astype(grid.storage_dtype, copy=False)


def refuse(nans: int, infs: int, config: QuantizationConfig) -> None:
    """Raises InputError for what the configuration takes for an error."""
    if nans and config.error_on_nan:
        raise InputError(f"expected no NaN (error_on_nan=True); received {nans}")
    if infs and config.error_on_inf:
        raise InputError(f"expected no infinity, nor a number beyond float32 (error_on_inf=True); received {infs}")


def half(x: np.ndarray, config: QuantizationConfig, out: np.ndarray | None) -> tuple[np.ndarray, int, int]:
    """float16 numbers; those beyond its range saturate. Returns (numbers, how many saturated, how many NaN)."""
    nans = int(np.isnan(x).sum()) if x.dtype.kind not in "iub" else 0
    beyond = int((np.abs(x.astype(np.float64, copy=False)) > _HALF_MAX).sum())
    refuse(nans, beyond, config)
    with np.errstate(over="ignore"):
        result = np.clip(x.astype(np.float32), -_HALF_MAX, _HALF_MAX).astype(np.float16)
    return placed(result, out), beyond, nans


def float32_of(x: np.ndarray) -> np.ndarray:
    """A copy in float32; what that can't hold is infinite."""
    with np.errstate(over="ignore"):
        return x.astype(np.float32)


def hash_array(arr: np.ndarray) -> str:
    """A hash of an array's content, shape and dtype: 32 hexadecimal digits (BLAKE2b), the same in every process.

    Raises:
        TypeError: It is no array, or one of objects.

    Example:
        >>> a = np.arange(6)
        >>> hash_array(a) == hash_array(a.copy())
        True
        >>> hash_array(a) == hash_array(a.reshape(2, 3))
        False
    """
    if not isinstance(arr, np.ndarray) or arr.dtype.hasobject:
        what = f"dtype={arr.dtype}" if isinstance(arr, np.ndarray) else type(arr).__name__
        raise UnsupportedError(f"expected a numpy array of numbers; received {what}")
    digest = hashlib.blake2b(f"{arr.dtype.str} {arr.shape} ".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(arr).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def untouched(x: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    """What isn't quantized, as it is."""
    return x if out is None else placed(x, out)


def placed(result: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    """The result, in `out` where one is given.

    Raises:
        InputError: `out` is of another shape or dtype, or read-only.
    """
    if out is None:
        return result
    if not isinstance(out, np.ndarray) or out.shape != result.shape or out.dtype != result.dtype:
        what = f"{getattr(out, 'dtype', type(out).__name__)} of shape {getattr(out, 'shape', None)}"
        raise InputError(f"expected out of dtype {result.dtype} and shape {result.shape}; received {what}")
    if not out.flags.writeable:
        raise InputError("expected out to be writable; received a read-only array")
    out[...] = result
    return out


def no_tensor(kind: str) -> ConfigError:
    """The error of asking for codes with parameters where there are none."""
    return ConfigError(f"expected an integer type for return_tensor=True; received quantization_type={kind!r}")
