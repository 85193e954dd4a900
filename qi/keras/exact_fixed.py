"""Fixed-point arithmetic of `qi.ir.fixed` on tensors of any backend: what LiteRT's reference kernels compute.

Factors come from scales, which are tensors and may train; so multiplier and exponent are found while the model runs. Integers are
int64 throughout.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from qi.core.namespace import namespace_of

__all__ = [
    "divided",
    "divided_factor",
    "half_away",
    "multiplied",
    "multiplied_once",
    "multiplied_twice",
    "multiplied_up",
    "multiplier_of",
]

_MOST, _LEAST = 2**31 - 1, -(2**31)
_REACH = 64  # of the exponents
_POWERS = np.exp2(np.arange(-_REACH, _REACH + 1, dtype=np.float64))

Factor = tuple[Any, Any]
"""A factor as (multiplier, exponent), int64."""


def _floor(x: Any) -> Any:
    return namespace_of(x).floor(x)  # Keras' own makes float32 of float64 with torch


def _shifted(x: Any, by: Any) -> Any:
    return keras.ops.right_shift(x, by)


def _up(x: Any, by: Any) -> Any:
    return keras.ops.left_shift(x, by)


def _int64(x: Any) -> Any:
    return keras.ops.cast(x, "int64")


def multiplier_of(factor: Any) -> Factor:
    """(multiplier, exponent) of positive factors, as `qi.ir.fixed.multiplier_of`.

    Args:
        factor: float64, between 2**-64 and 2**64.
    """
    ops = keras.ops
    flat = ops.reshape(factor, (-1,))
    powers = ops.convert_to_tensor(_POWERS, dtype="float64")
    place = ops.clip(ops.searchsorted(powers, flat, side="right"), 0, 2 * _REACH)  # of the first power above it
    multiplier = _int64(_floor(flat * ops.take(powers, 2 * _REACH - place) * 2.0**31 + 0.5))
    exponent = _int64(place) - _REACH
    full = multiplier == 2**31
    exponent = exponent + _int64(full)
    multiplier = ops.where(full, _int64(2**30), multiplier)
    tiny = exponent < -31
    zero = ops.zeros_like(multiplier)
    return tuple(ops.reshape(ops.where(tiny, zero, part), ops.shape(factor)) for part in (multiplier, exponent))


def _towards_zero(x: Any, by: Any) -> Any:
    return keras.ops.where(x >= 0, _shifted(x, by), -_shifted(-x, by))


def divided(x: Any, by: Any) -> Any:
    """``x / 2**by``, half away from zero."""
    mask = _up(keras.ops.ones_like(by), by) - 1
    return _shifted(x, by) + _int64(
        keras.ops.bitwise_and(x, mask) > _shifted(mask, keras.ops.ones_like(by)) + _int64(x < 0)
    )


def multiplied_twice(x: Any, factor: Factor) -> Any:
    """As `qi.ir.fixed.multiplied_twice`."""
    ops = keras.ops
    multiplier, exponent = factor
    zero = ops.zeros_like(exponent)
    x = ops.clip(_up(x, ops.maximum(exponent, zero)), _LEAST, _MOST)
    product = x * multiplier
    nudged = product + ops.where(product >= 0, _int64(1 << 30), _int64(1 - (1 << 30)))
    return divided(_towards_zero(nudged, _int64(31)), ops.maximum(-exponent, zero))


def multiplied_up(x: Any, factor: Factor) -> Any:
    """As `qi.ir.fixed.multiplied_up`."""
    ops = keras.ops
    multiplier, exponent = factor
    zero, one = ops.zeros_like(exponent), ops.ones_like(exponent)
    right = ops.maximum(-exponent, zero)
    x = ops.clip(_up(x, ops.maximum(exponent, zero)), _LEAST, _MOST)
    product = _shifted(x * multiplier + (1 << 30), _int64(31))
    return _shifted(product + _shifted(_up(one, right), one), right)


def multiplied_once(x: Any, factor: Factor) -> Any:
    """As `qi.ir.fixed.multiplied_once`."""
    multiplier, exponent = factor
    shift = 31 - exponent
    return _shifted(x * multiplier + _up(keras.ops.ones_like(shift), shift - 1), shift)


_WAYS = {"once": multiplied_once, "twice": multiplied_twice, "up": multiplied_up}
_DEEPEST = 13  # bits of a code of 9, of a multiplier of 31, and so many more fit the 53 of a float64


def multiplied(x: Any, factor: Factor, by: str) -> Any:
    """Products that become codes: what is beyond 2**9 will be clipped, and may be any number beyond that.

    Roundings that follow each other are one in float64, ``floor(x * f + 1/2 + d)``: floors of floors are floors, the first
    one's half is ``d = 2**-(k + 1)`` of the second's step ``2**k``, and the sign of `d` tells which way halves go. That takes a
    fraction of the time of integers of 64 bits.

    Args:
        x: integers below 2**24, of any type.
        factor: of `multiplier_of`, broadcastable to x.
        by: "once", "twice" or "up": `multiplied_once` and so on.
    """
    ops = keras.ops
    multiplier, exponent = factor
    power = lambda e: ops.take(ops.convert_to_tensor(_POWERS, dtype="float64"), e + _REACH)
    right = ops.maximum(-exponent, ops.zeros_like(exponent))

    def quick() -> Any:
        step = ops.cast(multiplier, "float64") * power(ops.maximum(exponent, -_REACH + 31) - 31)
        first = ops.where(right > 0, power(-right - 1), ops.zeros_like(step))
        wide = ops.cast(x, "float64")
        half = {"once": 0.0, "up": first}.get(by)
        half = ops.where(wide < 0, -first, first) if half is None else half
        return ops.cast(_floor(wide * step + (half + 0.5)), "float32")

    # No kernel has factors that small but where a result is as good as constant.
    whole = lambda: ops.cast(_WAYS[by](_int64(x), factor), "float32")
    return ops.cond(ops.all(right <= _DEEPEST), quick, whole)


def divided_factor(factor: Factor, count: int) -> Factor:
    """The factor over a count, as `qi.ir.reference.mean_factor` divides."""
    multiplier, exponent = factor
    shift = keras.ops.minimum(_int64(min(count.bit_length() - 1, 32)), 31 + exponent)
    return keras.ops.floor_divide(_up(multiplier, shift), _int64(count)), exponent - shift


def half_away(x: Any) -> Any:
    """Real numbers to the nearest integer, half away from zero, without the error of adding a half."""
    ops = keras.ops
    x = ops.clip(x, -(2.0**24), 2.0**24)
    size = ops.abs(x)
    whole = _floor(size)
    return ops.sign(x) * (whole + ops.cast(size - whole >= 0.5, x.dtype))
