from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from qi.algorithms.factors import bounded_factors, checked, scale_axis
from qi.errors import ConfigError, InputError


@given(st.lists(st.floats(), max_size=9), st.floats(1, 1e6), st.booleans())
def test_factors_are_bounded_and_positive(given_factors, limit, power_of_two):
    found = bounded_factors(given_factors, limit=limit, power_of_two=power_of_two)
    assert found.shape == (len(given_factors),)
    assert (found >= 1 / limit).all()
    assert (found <= limit).all()
    if power_of_two:
        assert (np.frexp(found)[0] == 0.5).all()
        alive = [(a, b) for a, b in zip(given_factors, found, strict=True) if limit**-1 * 2 < a < limit / 2]
        assert all(2**-0.5001 < a / b < 2**0.5001 for a, b in alive)


def test_what_is_no_factor_is_one():
    assert bounded_factors([0.0, -1.0, np.nan, np.inf, 2.0]).tolist() == [1, 1, 1, 1, 2]


@pytest.mark.parametrize("limit", [0.5, np.inf, np.nan, "9"])
def test_other_limits_are_refused(limit):
    with pytest.raises(ConfigError, match="limit"):
        bounded_factors([1.0], limit=limit)


def test_factors_are_applied_along_one_axis_or_several():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 2)).astype(np.float32)
    factors = np.arange(1.0, 9.0)
    out = scale_axis(kernel, factors[:4], -2)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out[..., 2, :], kernel[..., 2, :] * np.float32(3))
    both = scale_axis(kernel, factors, (2, 3))
    np.testing.assert_array_equal(both[:, :, 2, 1], kernel[:, :, 2, 1] * np.float32(6))


@pytest.mark.parametrize(
    ("factors", "axis"), [([1.0], 0), ([1.0, 1.0], 2), ([[1.0, 1.0]], 0), ([1.0] * 6, (1, 0)), ([1.0] * 4, (0, 0))]
)
def test_factors_that_do_not_fit_are_refused(factors, axis):
    with pytest.raises(InputError, match=r"axis|axes"):
        scale_axis(np.ones((2, 3)), factors, axis)


@pytest.mark.parametrize("wrong", [[[1.0]], [np.nan], [-1.0], [1.0, 2.0]])
def test_values_are_checked(wrong):
    with pytest.raises(InputError, match="expected ranges as finite numbers from 0 on"):
        checked("ranges", wrong, (1,), least=0.0)
