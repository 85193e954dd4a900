"""Softmax in fixed point, as LiteRT's reference kernel computes it with gemmlowp's numbers.

Exponentials are a table of numbers with 31 bits behind the point, made of a polynomial and seven factors; their sum has 19; its
reciprocal comes from three steps of Newton's. Checked against the interpreter with its reference resolver (tests/parity).
"""

from __future__ import annotations

import numpy as np

from qi.ir.arithmetic import clipped
from qi.ir.fixed import high_product, multiplier_of, shifted_right
from qi.ir.graph import Op
from qi.ir.kinds import kernel

__all__ = ["fixed_exponentials", "reciprocal"]

_LEAST, _MOST = -(2**31), 2**31 - 1
_INTEGER_BITS, _FRACTION = 5, 26  # of the exponents; of sums 12 and 19
_QUARTER, _EIGHTH = 1 << (_FRACTION - 2), 1 << 28
_EXP_OF_EIGHTH, _THIRD = np.asarray(1895147668), np.asarray(715827883)  # exp(-1 / 8) and 1 / 3
# exp(-(2**e)) for the bits of an exponent, in 31 bits.
_FACTORS = {-2: 1672461947, -1: 1302514674, 0: 790015084, 1: 290630308, 2: 39332535, 3: 720401, 4: 242}
_FIRST, _SLOPE = 1515870810, np.asarray(-1010580540)  # 48 / 17 and -32 / 17, with 29 bits behind the point


def fixed_exponentials(op: Op) -> np.ndarray:
    """``exp(-s * i)`` for i from 0 to 255 as the kernel has it, times 2**31; int64, 0 where it takes no notice of a class.

    Args:
        op: a softmax on codes.
    """
    factor = min(float(op.x.scale) * 2.0**_FRACTION, float(_MOST))
    multiplier, left = multiplier_of(factor)
    away = -np.arange(256, dtype=np.int64)
    steps = high_product(np.clip(away << left, _LEAST, _MOST), multiplier)
    seen = away >= -np.floor((2**_INTEGER_BITS - 1) * 2.0**_FRACTION / 2.0 ** float(left))
    return np.where(seen, _exp(np.where(seen, steps, 0)), 0)


def _exp(steps: np.ndarray) -> np.ndarray:
    """The exponential of numbers from -32 to 0 with 26 bits behind the point."""
    rest = (steps & (_QUARTER - 1)) - _QUARTER  # from -1 / 4 to 0
    x = (rest << _INTEGER_BITS) + _EIGHTH
    square = high_product(x, x)
    cube, fourth = high_product(square, x), high_product(square, square)
    tail = shifted_right(high_product(shifted_right(fourth, 2) + cube, _THIRD) + square, 1)
    found = _EXP_OF_EIGHTH + high_product(_EXP_OF_EIGHTH, x + tail)
    whole = rest - steps
    for exponent, factor in _FACTORS.items():
        bit = np.int64(1) << (_FRACTION + exponent)
        found = np.where(whole & bit, high_product(found, np.asarray(factor)), found)
    return np.where(steps == 0, _MOST, found)


def reciprocal(total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gives (r, k) with ``1 / total`` as ``r / 2**(62 - k)``, save for rounding: r from 2**30 to 2**31, k the zeros above total.

    Args:
        total: positive int64 below 2**31.
    """
    zeros = 32 - np.frexp(total.astype(np.float64))[1].astype(np.int64)
    half = total << zeros >> 1
    found = _FIRST + high_product(half, _SLOPE)
    for _ in range(3):
        error = (np.int64(1) << 29) - high_product(half, found)
        found = found + np.clip(high_product(found, error) << 2, _LEAST, _MOST)
    return np.clip(found << 1, _LEAST, _MOST), zeros


@kernel("softmax", "reference")
def _softmax(op: Op, x: np.ndarray) -> np.ndarray:
    """``e * (1 / sum(e))`` in fixed point, with eight bits in the end."""
    axis = op.attrs["axis"]
    terms = fixed_exponentials(op)[x.max(axis=axis, keepdims=True) - x]
    factor, zeros = reciprocal(shifted_right(terms, 12).sum(axis=axis, keepdims=True))
    return clipped(op, shifted_right(high_product(factor, terms), 35 - zeros) + op.y.zero_point)
