from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from qi.core.metrics import cosine, max_abs_error, mse, sqnr_db
from qi.errors import InputError
from tests.strategies import arrays

METRICS = [mse, max_abs_error, sqnr_db, cosine]
pairs = hnp.array_shapes(max_dims=3, max_side=4).flatmap(lambda shape: st.tuples(arrays(shape), arrays(shape)))


@given(pairs)
def test_the_errors_are_those_of_exact_arithmetic(pair):
    x, y = pair
    exact = [(Fraction(float(a)), Fraction(float(b))) for a, b in zip(x.flat, y.flat, strict=True)]
    noise = sum((a - b) ** 2 for a, b in exact)
    signal = sum(a * a for a, _ in exact)
    assert mse(x, y) == pytest.approx(float(noise / x.size), rel=1e-9)
    assert max_abs_error(x, y) == pytest.approx(float(max(abs(a - b) for a, b in exact)), rel=1e-12)
    if noise and signal:
        assert sqnr_db(x, y) == pytest.approx(10 * math.log10(signal / noise), rel=1e-9, abs=1e-9)


@given(pairs)
def test_cosine_is_symmetric_bounded_and_blind_to_length(pair):
    x, y = pair
    assert -1 <= cosine(x, y) <= 1
    assert cosine(x, y) == cosine(y, x)
    assert cosine(x, y * 4) == pytest.approx(cosine(x, y), abs=1e-12)
    dot = sum(float(a) * float(b) for a, b in zip(x.flat, y.flat, strict=True))
    assert dot == pytest.approx(
        cosine(x, y) * math.hypot(*map(float, x.flat)) * math.hypot(*map(float, y.flat)), abs=1e-2
    )


@given(arrays((3, 2)))
def test_an_array_has_no_error_against_itself(x):
    assert mse(x, x) == max_abs_error(x, x) == 0
    assert sqnr_db(x, x) == math.inf
    assert cosine(x, x) == pytest.approx(1)


def test_zero_signals():
    zero, one = np.zeros(3), np.ones(3)
    assert sqnr_db(zero, one) == -math.inf
    assert sqnr_db(zero, zero) == math.inf
    assert cosine(zero, zero) == 1
    assert cosine(zero, one) == cosine(one, zero) == 0
    assert cosine(one, -one) == pytest.approx(-1)


def test_integers_and_half_precision_are_computed_in_float64():
    assert mse(np.int8([127]), np.int8([-128])) == 255**2
    assert max_abs_error(np.uint8([0]), np.uint8([255])) == 255
    assert sqnr_db(np.float16([60000] * 4), np.float16([59968] * 4)) == pytest.approx(20 * math.log10(60000 / 32))
    assert cosine(np.float16([60000] * 2), np.float16([60000] * 2)) == pytest.approx(1)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_give_nan_without_a_warning(metric, bad):
    assert math.isnan(metric([bad, 1.0], [bad, 2.0]))


def test_a_noise_beyond_all_bounds():
    assert sqnr_db([1.0], [np.inf]) == -math.inf
    assert mse([1e200], [-1e200]) == math.inf


@pytest.mark.parametrize("metric", METRICS)
def test_arrays_of_two_shapes_or_none_at_all_are_refused(metric):
    with pytest.raises(InputError, match=r"one shape; received \(2,\) and \(1, 2\)"):
        metric([1.0, 2.0], [[1.0, 2.0]])
    with pytest.raises(InputError, match=r"at least one element; received arrays of shape \(0, 3\)"):
        metric(np.zeros((0, 3)), np.zeros((0, 3)))


@pytest.mark.parametrize("metric", METRICS)
def test_results_are_plain_floats_and_arguments_stay_as_they_are(metric, readonly):
    assert type(metric(readonly([1, 2], np.float32), readonly([1, 3], np.float32))) is float
