"""The steps back to codes: against exact integers, and the same on every framework."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from qi.ir import formulas

RATIOS = st.floats(2.0**-9, 2.0**7, width=32)
CODES = st.lists(st.integers(-255, 255), min_size=1, max_size=20)


def tensors(framework: str) -> Any:
    if framework == "numpy":
        return np.asarray
    if framework == "torch":
        return pytest.importorskip("torch").as_tensor
    return pytest.importorskip("tensorflow").constant


@given(CODES, RATIOS)
def test_products_are_rounded_half_to_even_in_float32(codes: list[int], factor: float) -> None:
    found = formulas.rounded_product(np.array(codes), np.float32(factor))
    for code, value in zip(codes, found, strict=True):
        assert value == np.rint(np.float32(code) * np.float32(factor))


@given(CODES, CODES, RATIOS, RATIOS, st.sampled_from([1, -1]))
def test_fixed_sums_are_those_of_integers(a: list[int], b: list[int], ra: float, rb: float, sign: int) -> None:
    """By Python's own integers: 20 bits below the larger ratio's leading bit, half up."""
    count = min(len(a), len(b))
    ra, rb = np.float32(ra), np.float32(rb)
    largest = max(Fraction(float(ra)), Fraction(float(rb)))
    exponent = next(e for e in range(-20, 20) if Fraction(2) ** e <= largest < Fraction(2) ** (e + 1))
    shift = 20 - exponent
    fa, fb = (round(Fraction(float(r)) * Fraction(2) ** shift) for r in (ra, rb))
    expected = [
        ((fa * x + sign * fb * y) + (1 << (shift - 1))) >> shift for x, y in zip(a[:count], b[:count], strict=True)
    ]
    found = formulas.fixed_sum(np.array(a[:count]), ra, np.array(b[:count]), rb, sign=sign)
    assert found.tolist() == expected


@given(st.lists(st.tuples(st.integers(-(2**15), 2**15), st.integers(1, 64)), min_size=1, max_size=20))
def test_integer_means_round_half_away_from_zero(pairs: list[tuple[int, int]]) -> None:
    sums, counts = (np.array(numbers) for numbers in zip(*pairs, strict=True))
    expected = [(abs(s) * 2 + n) // (2 * n) * (1 if s >= 0 else -1) for s, n in pairs]
    assert formulas.integer_mean(sums, counts).tolist() == expected


def test_fused_sums_round_once() -> None:
    """A case in which rounding the product first gives another number."""
    a, ra = np.float32(255), np.float32(1.0000001)
    b, rb, offset = np.float32(3), np.float32(0.33333334), np.float32(-255.0)
    twice = np.float32(a * ra) + np.float32(np.float32(b * rb) + offset)
    found = formulas.fused_sum(a, ra, b, rb, offset)
    exact = Fraction(float(a)) * Fraction(float(ra))
    inner = Fraction(float(np.float32(float(Fraction(float(b)) * Fraction(float(rb)) + Fraction(float(offset))))))
    assert found == np.float32(float(exact + inner)) != twice


@pytest.mark.parametrize("reciprocal", [True, False])
def test_real_numbers_are_divided_or_multiplied(reciprocal: bool) -> None:
    x, scale = np.linspace(-3, 3, 4001, dtype=np.float32), np.float32(0.0237)
    found = formulas.rounded_real(x, scale, reciprocal=reciprocal)
    expected = np.rint(x * (np.float32(1) / scale)) if reciprocal else np.rint(x / scale)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("framework", ["tensorflow", "torch"])
def test_every_framework_gives_the_same(framework: str) -> None:
    make = tensors(framework)
    rng = np.random.default_rng(0)
    a, b = rng.integers(-255, 256, (2, 5000)).astype(np.float32)
    counts = rng.integers(1, 50, 5000).astype(np.float32)
    ra, rb, offset = np.float32(0.37), np.float32(1.4142135), np.float32(3.25)
    cases = [
        (formulas.rounded_product, (a, ra), {}),
        (formulas.rounded_real, (a / 7, ra), {"reciprocal": True}),
        (formulas.rounded_real, (a / 7, ra), {"reciprocal": False}),
        (formulas.fixed_sum, (a, ra, b, rb), {"sign": -1}),
        (formulas.fused_sum, (a, ra, b, rb, offset), {}),
        (formulas.integer_mean, (a, counts), {}),
        (formulas.shares, (np.exp2(a[:100] / 20),), {"axis": 0}),
    ]
    for rounded in (True, False):
        norm = {"count": 100, "epsilon": np.float32(0.01), "axes": (1,), "rounded": rounded}
        cases += [
            (formulas.normalized, (a.reshape(50, 100),), norm | {"centred": centred}) for centred in (True, False)
        ]
    for function, arrays, options in cases:
        expected = function(*arrays, **options)
        found = np.asarray(function(*(make(array) for array in arrays), **options))
        np.testing.assert_array_equal(found, expected, function.__name__)


@pytest.mark.parametrize("rounded", [True, False])
@pytest.mark.parametrize("centred", [True, False])
def test_normalized_integers(rounded: bool, centred: bool) -> None:
    q = np.random.default_rng(0).integers(-255, 256, (200, 48))
    mean = q.mean(axis=1, keepdims=True) if centred else 0
    variance = (q**2).mean(axis=1, keepdims=True) - mean**2 + 0.25
    found = formulas.normalized(q.astype(np.float32), 48, np.float32(0.25), (1,), rounded=rounded, centred=centred)
    np.testing.assert_allclose(found, (q - mean) / np.sqrt(variance), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [-255, -91, 3, 254])
def test_a_small_epsilon_is_not_eaten_by_roundings(value: int) -> None:
    """The mean of squares less the square of the mean comes out below 0 for some of these."""
    q = np.full((1, 7), value, np.float32)
    found = formulas.normalized(q, 7, np.float32(1e-6), (1,), rounded=False)
    assert np.isfinite(found).all()
    assert formulas.SMALL_EPSILON > 255**2 * 4 * 2.0**-24


def test_shares_of_whole_numbers() -> None:
    found = formulas.shares(np.float32([[1.4, 2.6, 0.2], [0, 0.4, 5]]), 1)
    np.testing.assert_array_equal(found, np.float32([[0.25, 0.75, 0], [0, 0, 1]]))
