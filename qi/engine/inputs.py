"""What `Quantizer` takes: checks of arrays, and the types that aren't integer codes."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from qi.core import blocked
from qi.core.tiles import Walk
from qi.engine.config import QuantizationConfig, checked_flag
from qi.errors import ConfigError, InputError, UnsupportedError

__all__ = [
    "array_of",
    "check_unmasked",
    "codes_of",
    "float32_of",
    "half",
    "hash_array",
    "no_tensor",
    "refuse",
    "untouched",
]

_HALF_MAX = float(np.finfo(np.float16).max)
_PIECE = 1 << 15


def check_unmasked(data: Any) -> None:
    """Raises UnsupportedError for a masked array: what its mask hides would count."""
    if isinstance(data, np.ma.MaskedArray):
        raise UnsupportedError(
            "expected an array without a mask; received a masked one; do: data.filled(value), or data.compressed()"
        )


def array_of(data: Any, *, validate: bool) -> np.ndarray:
    """An array of real numbers.

    Raises:
        UnsupportedError: It is none, or has a mask, or a dtype without real numbers.
        InputError: Its rows differ in length.
        ConfigError: `validate` isn't True or False.
    """
    check_unmasked(data)
    checked_flag("validate", validate)
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
    check_unmasked(data)
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


def refuse(nans: int, infs: int, config: QuantizationConfig, limit: str = "float32") -> None:
    """Raises InputError for what the configuration takes for an error; `limit` is what holds no greater numbers."""
    if nans and config.error_on_nan:
        raise InputError(f"expected no NaN (error_on_nan=True); received {nans}")
    if infs and config.error_on_inf:
        raise InputError(f"expected no infinity, nor a number beyond {limit} (error_on_inf=True); received {infs}")


def half(
    x: np.ndarray, config: QuantizationConfig, out: np.ndarray | None, dtype: str = "float16"
) -> tuple[np.ndarray, int, int]:
    """float16 numbers, stored in `dtype`; those beyond its range saturate.

    Returns:
        (numbers, how many saturated, how many NaN).
    """
    out = blocked.output(out, x, np.dtype(dtype))
    if config.error_on_nan or config.error_on_inf:  # known before anything is written
        met = [_met(tile) for (tile,) in Walk([x], _PIECE).tiles()] if x.size else []
        refuse(sum(nans for nans, _ in met), sum(beyond for _, beyond in met), config, "float16")
    nans = beyond = 0
    for tile, target in Walk([x, out], _PIECE).tiles() if x.size else ():
        more = _met(tile)
        nans, beyond = nans + more[0], beyond + more[1]
        with np.errstate(over="ignore"):
            single = tile.astype(np.float32)
        np.copyto(target, np.clip(single, -_HALF_MAX, _HALF_MAX, out=single).astype(np.float16))
    return out, beyond, nans


def _met(x: np.ndarray) -> tuple[int, int]:
    """How many numbers are NaN, and how many lie beyond float16."""
    with np.errstate(over="ignore"):
        wide = x.astype(np.float64)
    nans = int(np.count_nonzero(np.isnan(wide)))
    return nans, int(np.count_nonzero(np.abs(wide, out=wide) > _HALF_MAX))


def float32_of(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """A copy in float32, in `out` where one is given; what that can't hold is infinite."""
    out = blocked.output(out, x, np.dtype(np.float32))
    with np.errstate(over="ignore"):
        np.copyto(out, x, casting="unsafe")
    return out


def hash_array(arr: np.ndarray) -> str:
    """A hash of an array's content, shape and dtype: 32 hexadecimal digits (BLAKE2b), the same in every process.

    Raises:
        TypeError: It is no array, or one of objects or with a mask.

    Example:
        >>> a = np.arange(6)
        >>> hash_array(a) == hash_array(a.copy())
        True
        >>> hash_array(a) == hash_array(a.reshape(2, 3))
        False
    """
    check_unmasked(arr)
    if not isinstance(arr, np.ndarray) or arr.dtype.hasobject:
        what = f"dtype={arr.dtype}" if isinstance(arr, np.ndarray) else type(arr).__name__
        raise UnsupportedError(f"expected a numpy array of numbers; received {what}")
    digest = hashlib.blake2b(f"{arr.dtype.str} {arr.shape} ".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(arr).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def untouched(x: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    """What isn't quantized, as it is."""
    if out is None:
        return x
    out = blocked.output(out, x, x.dtype)
    np.copyto(out, x)
    return out


def no_tensor(kind: str) -> ConfigError:
    """The error of asking for codes with parameters where there are none."""
    return ConfigError(f"expected an integer type for return_tensor=True; received quantization_type={kind!r}")
