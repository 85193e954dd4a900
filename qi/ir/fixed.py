"""Fixed-point arithmetic on 32-bit integers, as LiteRT's kernels and microcontrollers do it.

A real factor is kept as ``multiplier * 2**(exponent - 31)`` with a multiplier of 31 bits. Everything here works on int64 arrays
whose values fit the 32 bits of the original, so that no step overflows.
"""

from __future__ import annotations

import numpy as np

__all__ = ["high_product", "multiplied_once", "multiplied_twice", "multiplied_up", "multiplier_of", "shifted_right"]

_MOST, _LEAST = 2**31 - 1, -(2**31)


def multiplier_of(factor: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """(multiplier, exponent) of positive factors, rounded half up to 31 bits; as `QuantizeMultiplier` of LiteRT.

    Example:
        >>> multiplier, exponent = multiplier_of(0.75)
        >>> int(multiplier) == 3 * 2**29, int(exponent)
        (True, 0)
    """
    fraction, exponent = np.frexp(np.asarray(factor, np.float64))
    multiplier = np.floor(fraction * 2**31 + 0.5).astype(np.int64)
    exponent = exponent.astype(np.int64) + (multiplier == 2**31)
    multiplier = np.where(multiplier == 2**31, 2**30, multiplier)
    tiny = exponent < -31
    return np.where(tiny, 0, multiplier), np.where(tiny, 0, exponent)


def high_product(x: np.ndarray, multiplier: np.ndarray) -> np.ndarray:
    """``x * multiplier / 2**31``, half up; gemmlowp's SaturatingRoundingDoublingHighMul: its nudge comes to that."""
    product = x * multiplier
    nudged = product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    return np.asarray(np.where(nudged >= 0, nudged >> 31, -((-nudged) >> 31)))


def shifted_right(x: np.ndarray, by: np.ndarray | int) -> np.ndarray:
    """``x / 2**by``, half away from zero; gemmlowp's RoundingDivideByPOT."""
    by = np.asarray(by, np.int64)
    mask = (np.int64(1) << by) - 1
    return np.asarray((x >> by) + ((x & mask) > (mask >> 1) + (x < 0)))


def multiplied_twice(x: np.ndarray, factor: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The product of x and a factor of `multiplier_of`, rounded half up, and once more at the shift, half away from zero."""
    multiplier, exponent = factor
    left, right = np.maximum(exponent, 0), np.maximum(-exponent, 0)
    return shifted_right(high_product(np.clip(x << left, _LEAST, _MOST), multiplier), right)


def multiplied_up(x: np.ndarray, factor: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """As `multiplied_twice`, but half up at the shift too."""
    multiplier, exponent = factor
    left, right = np.maximum(exponent, 0), np.maximum(-exponent, 0)
    product = (np.clip(x << left, _LEAST, _MOST) * multiplier + (1 << 30)) >> 31
    return np.asarray((product + ((np.int64(1) << right) >> 1)) >> right)


def multiplied_once(x: np.ndarray, factor: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The product of x and a factor of `multiplier_of`, rounded once, half up."""
    multiplier, exponent = factor
    shift = 31 - exponent
    return np.asarray((x * multiplier + (np.int64(1) << (shift - 1))) >> shift)
