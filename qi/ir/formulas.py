"""The steps back to codes, as runtimes do them: pure functions on numpy arrays and on tensors of any framework.

One body serves the twin, on codes, and exact Keras models, on codes with their zero point taken off (carried in float32).
Every number that isn't an array is a float32 array of one element or an array that broadcasts.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qi.core.namespace import ArrayNamespace, namespace_of
from qi.typing import Array

__all__ = [
    "SMALL_EPSILON",
    "fixed_sum",
    "fused_sum",
    "integer_mean",
    "normalized",
    "offset_mean",
    "rounded_product",
    "rounded_real",
    "shares",
]

_HALF = np.float32(0.5)
SMALL_EPSILON = 1 / 32
"""What roundings of a mean of squares, less the square of the mean, of integers of 8 bits stay below."""


def rounded_product(sums: Array, factor: Array) -> Array:
    """``rint(float32(sums) * factor)``, half to even: convolutions and products of LiteRT (XNNPACK) and ONNX Runtime.

    Args:
        sums: integers, exact in their type.
        factor: float32: scale of the sums over that of the result.
    """
    xp = namespace_of(sums, factor)
    return xp.round(xp.multiply(xp.cast(sums, "float32"), factor))


def rounded_real(x: Array, scale: Array, *, reciprocal: bool) -> Array:
    """Real numbers on a grid: ``rint(x * (1 / s))`` as XNNPACK does it, or ``rint(x / s)`` as ONNX Runtime does."""
    xp = namespace_of(x, scale)
    if reciprocal:
        return xp.round(xp.multiply(x, xp.divide(xp.asarray(np.ones((), np.float32)), scale)))
    return xp.round(xp.divide(x, scale))


def _power_above(x: Array, xp: ArrayNamespace) -> Array:
    """``2**(20 - floor(log2(x)))`` in float64 of one float32 number between 2**-60 and 2**60, exactly: from a table."""
    exponents = np.arange(-60, 61, dtype=np.float64)
    powers = xp.asarray(np.exp2(exponents).astype(np.float32))
    flat = xp.reshape(x, (1,))
    index = xp.searchsorted(powers, flat)  # of the first power that isn't below x
    index = index - xp.cast(xp.take(powers, index) > flat, xp.dtype(index))
    return xp.reshape(xp.take(xp.asarray(np.exp2(20 - exponents)), index), ())


def fixed_sum(a: Array, ratio_a: Array, b: Array, ratio_b: Array, *, sign: int = 1) -> Array:
    """XNNPACK's addition: factors of 20 bits below a common point, one rounding, half up.

    Args:
        a: codes without their zero point; exact integers.
        ratio_a: float32: its scale over that of the result.
        b: the other operand.
        ratio_b: its ratio.
        sign: -1 subtracts.
    """
    xp = namespace_of(a, b, ratio_a)
    point = _power_above(xp.maximum(ratio_a, ratio_b), xp)
    # Divided by the point, a power of two, the factors and all that follows stay exact.
    fa, fb = (xp.divide(xp.round(xp.multiply(xp.cast(ratio, "float64"), point)), point) for ratio in (ratio_a, ratio_b))
    sums = xp.cast(a, "float64") * fa + xp.cast(b, "float64") * (sign * fb)
    return xp.cast(xp.floor(sums + 0.5), "float32")


def fused_sum(a: Array, ratio_a: Array, b: Array, ratio_b: Array, offset: Array, zero_b: Array | None = None) -> Array:
    """ONNX Runtime's addition of uint8 codes as they are: ``fma(a, ra, fma(b, rb, offset))`` in float32, unrounded.

    Args:
        a: codes as they are.
        ratio_a: float32: their scale over that of the result.
        b: the other operand; less `zero_b`, where that is given.
        ratio_b: its ratio.
        offset: float32: what makes zero points right.
        zero_b: an integer.
    """
    xp = namespace_of(a, b, ratio_a)
    wide = xp.cast(offset, "float64")
    if zero_b is not None:  # products of codes are exact in float64, and so are their sums with an offset of their size
        wide = wide + xp.cast(zero_b, "float64") * xp.cast(ratio_b, "float64")
    return _fma(a, ratio_a, _fma(b, ratio_b, wide, xp), xp)


def _fma(a: Any, b: Any, c: Any, xp: ArrayNamespace) -> Any:
    """A * b + c with a single rounding to float32: products of float32 are exact in float64."""
    wide = [xp.cast(value, "float64") for value in (a, b, c)]
    return xp.cast(wide[0] * wide[1] + wide[2], "float32")


def integer_mean(sums: Array, count: Array) -> Array:
    """LiteRT's average pooling: the quotient of integers, rounded half away from zero.

    Whatever the division makes of its last bit (graph optimizers multiply by a reciprocal), the remainder puts it right.
    """
    xp = namespace_of(sums, count)
    sums, count = xp.cast(sums, "float32"), xp.cast(count, "float32")
    size = xp.abs(sums)
    near = xp.floor(xp.divide(size, count) + _HALF)
    twice = 2 * (size - near * count)
    away = near + xp.cast(twice >= count, "float32") - xp.cast(twice < -count, "float32")
    return xp.where(sums < 0, -away, away)


def offset_mean(sums: Array, count: float, ratio: Array, zero_x: Array, zero_y: Array) -> Array:
    """XNNPACK's mean of codes as they are: ``rint(sums * k + (zy - zx * n * k))`` with ``k = ratio * (1 / n)``, in float32.

    Args:
        sums: of codes, exact integers.
        count: how many codes each sum holds.
        ratio: float32: the codes' scale over that of the result.
        zero_x: the codes' zero point.
        zero_y: that of the result, which is in it.
    """
    xp = namespace_of(sums, ratio)
    factor = xp.multiply(ratio, xp.asarray(np.float32(1) / np.float32(count)))
    offset = zero_y - xp.multiply(zero_x * np.float32(count), factor)
    return xp.round(xp.multiply(xp.cast(sums, "float32"), factor) + offset)


def normalized(
    q: Array, count: int, epsilon: np.float32, axes: tuple[int, ...], *, rounded: bool, centred: bool = True
) -> Array:
    """Integers less their mean, over their deviation: ``(q - m) / r``.

    Where ``m = sum(q) / n``, ``v = sum(q * q) / n - m * m + epsilon`` and ``r = sqrt(v)``, which ONNX Runtime rounds rightly.
    XNNPACK doesn't: its means are products with ``1 / n``, and ``r = (s + v / s) * 0.5`` with its ``s`` of about sqrt(v) is one
    number for all that is near the root.

    Args:
        q: float32, exact integers, whose squares add up to less than 2**24.
        count: how many numbers each sum holds.
        epsilon: float32: that of a normalization over the square of the integers' step. A small one keeps what is added to it
            from being less than 0, as roundings can make it.
        axes: of the sums.
        rounded: whether means are quotients and roots rounded rightly.
        centred: whether the mean is taken off; else it counts as 0.
    """
    xp = namespace_of(q)
    size = np.float32(count)
    divisor, factor = (xp.asarray(number) for number in (size, np.float32(1) / size))

    def mean_of(a: Array) -> Array:
        total = xp.sum(a, axis=axes, keepdims=True)
        return xp.divide(total, divisor) if rounded else xp.multiply(total, factor)

    variance = mean_of(q * q)
    if centred:
        mean = mean_of(q)
        variance = variance - mean * mean
        variance = xp.maximum(variance, xp.zeros_like(variance)) if epsilon < SMALL_EPSILON else variance
        q = q - mean
    variance = variance + xp.asarray(epsilon)
    root = xp.cast(xp.sqrt(xp.cast(variance, "float64")), "float32")  # rounded rightly; torch's own in float32 isn't
    if not rounded:
        root = xp.multiply(root + xp.divide(variance, root), _HALF)
    return xp.divide(q, root)


def shares(exponentials: Array, axis: int) -> Array:
    """Each number, rounded, of the sum of all: ``rint(e) / sum(rint(e))``.

    Args:
        exponentials: float32, not negative, not near a tie; rounded, they add up to less than 2**24.
        axis: of the sums.
    """
    xp = namespace_of(exponentials)
    whole = xp.round(exponentials)
    return xp.divide(whole, xp.sum(whole, axis=axis, keepdims=True))
