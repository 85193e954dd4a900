"""Error metrics between an array and its quantized version (numpy, float64).

Values that aren't finite give NaN or inf, silently.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from qi.errors import InputError
from qi.typing import Array

__all__ = ["cosine", "max_abs_error", "mse", "sqnr_db"]


# Also a decorator: inf - inf and overflowing squares are results here, not surprises.
_quiet = np.errstate(over="ignore", invalid="ignore", divide="ignore")


def _pair(x: Array, y: Array) -> tuple[np.ndarray[Any, np.dtype[np.float64]], np.ndarray[Any, np.dtype[np.float64]]]:
    a, b = np.asarray(x).astype(np.float64).ravel(), np.asarray(y).astype(np.float64).ravel()
    if np.shape(x) != np.shape(y):
        raise InputError(f"expected two arrays of one shape; received {np.shape(x)} and {np.shape(y)}")
    if a.size == 0:
        raise InputError(f"expected at least one element; received arrays of shape {np.shape(x)}")
    return a, b


@_quiet
def mse(x: Array, y: Array) -> float:
    """Mean squared error.

    Example:
        >>> mse([1.0, 2.0], [1.0, 4.0])
        2.0
    """
    a, b = _pair(x, y)
    return float(np.mean((a - b) ** 2))


@_quiet
def max_abs_error(x: Array, y: Array) -> float:
    """Greatest absolute difference.

    Example:
        >>> max_abs_error([1.0, 2.0], [1.0, 4.0])
        2.0
    """
    a, b = _pair(x, y)
    return float(np.max(np.abs(a - b)))


@_quiet
def sqnr_db(x: Array, y: Array) -> float:
    """Signal-to-quantization-noise ratio ``10 log10(sum x^2 / sum (x - y)^2)`` in dB.

    Equal arrays give inf, an error on an all-zero signal gives -inf.

    Example:
        >>> round(sqnr_db([3.0, 4.0], [3.0, 4.5]), 6)
        20.0
    """
    a, b = _pair(x, y)
    signal, noise = float(a @ a), float((a - b) @ (a - b))
    if noise == 0:
        return math.inf
    return float(10 * np.log10(signal / noise))


@_quiet
def cosine(x: Array, y: Array) -> float:
    """Cosine similarity in [-1, 1]; 1 for two zero arrays, 0 for one.

    Example:
        >>> cosine([1.0, 0.0], [0.0, 1.0])
        0.0
    """
    a, b = _pair(x, y)
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    if lengths == 0:
        return float(not a.any() and not b.any())
    return float(np.clip(a @ b / lengths, -1.0, 1.0))
