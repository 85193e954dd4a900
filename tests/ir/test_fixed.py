from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from hypothesis import given, strategies as st

from qi.ir.fixed import (
    high_product,
    multiplied_once,
    multiplied_twice,
    multiplied_up,
    multiplier_of,
    shifted_right,
)

INT32 = st.integers(-(2**31), 2**31 - 1)


def away(x: Fraction) -> int:
    """Rounded half away from zero."""
    return int(math.copysign(math.floor(abs(x) + Fraction(1, 2)), x))


def up(x: Fraction) -> int:
    return math.floor(x + Fraction(1, 2))


@given(st.floats(1e-8, 1e6))
def test_a_factor_as_multiplier_and_exponent(factor: float) -> None:
    multiplier, exponent = (int(part) for part in multiplier_of(factor))
    assert 2**30 <= multiplier < 2**31
    assert abs(multiplier * 2.0 ** (exponent - 31) / factor - 1) <= 2**-31


def test_ends() -> None:
    assert [int(part) for part in multiplier_of(1 - 2**-40)] == [2**30, 1]  # rounded up to the next power
    assert [int(part) for part in multiplier_of(2.0**-40)] == [0, 0]


@given(INT32, st.integers(2**30, 2**31 - 1))
def test_high_product(x: int, multiplier: int) -> None:
    """gemmlowp's: half away from zero, but the half of a negative product goes up."""
    exact = Fraction(x * multiplier, 2**31)
    found = int(high_product(np.int64(x), np.int64(multiplier)))
    assert abs(found - exact) <= Fraction(1, 2)
    if (exact - found).denominator != 2:
        assert found == away(exact)


@given(INT32, st.integers(0, 31))
def test_shifted_right(x: int, by: int) -> None:
    assert int(shifted_right(np.int64(x), by)) == away(Fraction(x, 2**by))


@given(st.integers(-(2**24), 2**24), st.floats(1e-6, 2.0))
def test_products(x: int, factor: float) -> None:
    parts = multiplier_of(factor)
    multiplier, exponent = (int(part) for part in parts)
    exact = x * Fraction(multiplier) * Fraction(2) ** (exponent - 31)
    assert int(multiplied_once(np.int64(x), parts)) == up(exact)
    left, right = max(exponent, 0), max(-exponent, 0)
    first = Fraction((x << left) * multiplier, 2**31)
    assert int(multiplied_up(np.int64(x), parts)) == up(Fraction(up(first), 2**right))
    assert abs(int(multiplied_twice(np.int64(x), parts)) - exact) <= 1


def test_where_they_part() -> None:
    """The same product, three answers: ties at the shift, and ties that the first rounding makes."""
    quarter = multiplier_of(0.25)
    x = np.int64([-6, -2, 2, 6])
    assert multiplied_twice(x, quarter).tolist() == [-2, -1, 1, 2]
    assert multiplied_up(x, quarter).tolist() == [-1, 0, 1, 2]
    assert multiplied_once(x, quarter).tolist() == [-1, 0, 1, 2]
    third = multiplier_of(0.0624999)
    assert multiplied_twice(np.int64([8]), third).tolist() == [1]  # 0.4999992: the product rounds to a half first
    assert multiplied_once(np.int64([8]), third).tolist() == [0]
