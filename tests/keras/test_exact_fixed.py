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
