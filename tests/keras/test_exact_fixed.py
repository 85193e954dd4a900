"""Fixed-point arithmetic on tensors beside that on numpy arrays."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from qi.ir import fixed, reference
from qi.ir.borders import _quantize_away
from qi.ir.graph import Op
from qi.keras import exact_fixed
from qi.keras.variables import to_numpy
from tests.ir.graphs import act, codes_of, real

RNG = np.random.default_rng(0)
FACTORS = np.concatenate(
    [
        np.exp2(RNG.uniform(-50, 7, 300)),
        np.exp2(np.arange(-40.0, 8)),
        1 - np.exp2(-np.arange(1.0, 54)),
        [np.nextafter(1, 2)],
    ]
)


def tensor(x: Any, dtype: str = "int64") -> Any:
    return keras.ops.convert_to_tensor(np.asarray(x), dtype=dtype)


def test_multipliers_and_exponents() -> None:
    for found, expected in zip(
        exact_fixed.multiplier_of(tensor(FACTORS, "float64")), fixed.multiplier_of(FACTORS), strict=True
    ):
        np.testing.assert_array_equal(to_numpy(found), expected)


@pytest.mark.parametrize("name", ["multiplied_twice", "multiplied_once", "multiplied_up"])
def test_products(name: str) -> None:
    """Of numbers on both sides of zero, ties among them; kernels never see steeper factors than 2**7."""
    x = np.concatenate(
        [RNG.integers(-(2**24), 2**24, (40, len(FACTORS))), np.arange(-8, 8)[:, None] + 0 * FACTORS.astype(int)]
    )
    factor = fixed.multiplier_of(FACTORS)
    found = getattr(exact_fixed, name)(tensor(x), tuple(map(tensor, factor)))
    np.testing.assert_array_equal(to_numpy(found), getattr(fixed, name)(x, factor))


@pytest.mark.parametrize("name", ["twice", "once", "up"])
@pytest.mark.parametrize("depth", [13, 14, 50])
def test_products_that_become_codes(name: str, depth: int) -> None:
    """In float64 and, for factors below 2**-13, in integers; beyond codes any large number of the same sign serves."""
    factors = FACTORS[np.log2(FACTORS) >= -depth - 1]
    assert (np.log2(factors.min()) < -14) == (depth > 13)
    near = np.rint((np.arange(-300, 300)[:, None] + 0.5) / factors)  # ties between codes
    x = np.concatenate([near - 1, near, near + 1, RNG.integers(-(2**24), 2**24, (40, len(factors)))])
    x = np.clip(x, 1 - 2**24, 2**24 - 1).astype(np.int64)
    factor = fixed.multiplier_of(factors)
    found = exact_fixed.multiplied(tensor(x, "float32"), tuple(map(tensor, factor)), name)
    expected = getattr(fixed, f"multiplied_{name}")(x, factor)
    np.testing.assert_array_equal(np.clip(to_numpy(found), -512, 511), np.clip(expected, -512, 511))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 1000, 2**20 + 1])
def test_factors_over_counts(count: int) -> None:
    for sx in (0.003, 0.1, 1.7):
        op = Op("mean", [codes_of("x", 2, qparams=act(sx))], [codes_of("y", qparams=act(0.05))])
        given = exact_fixed.multiplier_of(tensor(np.float64(op.x.scale) / np.float64(op.y.scale), "float64"))
        found = exact_fixed.divided_factor(given, count)
        assert [int(part) for part in found] == [int(part) for part in reference.mean_factor(op, count)]


def test_half_away() -> None:
    x = np.array([0.5, -0.5, 1.5, 2.5, -2.5, 0.49999997, -0.49999997, 8388607.5, 3e9, -np.inf, 0], np.float32)
    op = Op("quantize", [real("x")], [codes_of("y", qparams=act(1.0))])
    found = np.clip(to_numpy(exact_fixed.half_away(keras.ops.convert_to_tensor(x))), -128, 127)
    np.testing.assert_array_equal(found, _quantize_away(op, x))
