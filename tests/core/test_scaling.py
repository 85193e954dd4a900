from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, strategies as st

from qi.core.affine import fake_quantize, quantize
from qi.core.grid import IntGrid, LutGrid
from qi.core.scaling import SymmetricRule, asymmetric_params, power_of_two, range_of, symmetric_scale
from qi.errors import InputError
from tests.strategies import GREATEST, TINY, int_grids

finite = st.floats(-1e30, 1e30)


@pytest.mark.parametrize(
    ("grid", "edge", "span", "qmax"),
    [
        (IntGrid(8), 128, 127.5, 127),
        (IntGrid(8, narrow=True), 128, 127.5, 127),
        (IntGrid(8, signed=False), 256, 255, 255),
        (IntGrid(2), 2, 1.5, 1),
        (IntGrid(1), 1, 0.5, 1),
        (IntGrid(1, signed=False), 2, 1, 1),
        (LutGrid([-3, 0, 5], 8), 128, 127.5, 127),
        (LutGrid([0, 5], 4, signed=False), 16, 15, 15),
    ],
)
def test_the_divisors_of_the_symmetric_rules(grid, edge, span, qmax):
    assert SymmetricRule.EDGE.divisor(grid) == edge
    assert SymmetricRule.SPAN.divisor(grid) == span
    assert SymmetricRule.QMAX.divisor(grid) == qmax


@given(st.floats(1e-30, 1e30), int_grids(), st.sampled_from(SymmetricRule))
def test_a_symmetric_scale_is_the_exact_quotient_rounded_once_to_float32(absmax, grid, rule):
    exact = Fraction(absmax) / Fraction(rule.divisor(grid))
    scale = symmetric_scale(absmax, grid, rule)
    assert scale.dtype == np.float32
    # Through float64, hence a little more than half an ulp.
    assert abs(Fraction(float(scale)) - exact) <= exact * Fraction(2) ** -24 * (1 + Fraction(2) ** -28)


def test_scales_keep_the_shape_and_qmax_is_the_default():
    scale = symmetric_scale([[1.27], [2.54]], IntGrid(8))
    np.testing.assert_array_equal(scale, np.float32([[0.01], [0.02]]))


@pytest.mark.parametrize("rule", SymmetricRule)
def test_a_zero_range_has_scale_1(rule):
    assert symmetric_scale([0.0, -0.0], IntGrid(8), rule).tolist() == [1.0, 1.0]
    scale, zero_point = asymmetric_params(0.0, 0.0, IntGrid(8, signed=False))
    assert (scale, zero_point) == (1.0, 0)


@pytest.mark.parametrize("absmax", [1e-45, 1e-40, 5e-324, TINY])
def test_a_scale_is_never_subnormal_because_tensorflow_would_divide_by_zero(absmax):
    # 5e-324 / 127 is 0 in float64: as good as a zero range.
    expected = 1.0 if absmax == 5e-324 else TINY
    assert float(symmetric_scale(absmax, IntGrid(8))) == expected
    assert float(asymmetric_params(-absmax, absmax, IntGrid(8))[0]) == expected


@pytest.mark.parametrize("absmax", [GREATEST, 1e300, np.finfo(np.float64).max])
def test_a_scale_is_never_infinite(absmax):
    assert np.isfinite(symmetric_scale(absmax, IntGrid(1)))
    scale, zero_point = asymmetric_params(-absmax, absmax, IntGrid(8, signed=False))
    assert np.isfinite(scale)
    assert zero_point == 128  # half up of 127.5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_only_finite_ranges_have_a_scale(bad):
    with pytest.raises(InputError, match=f"absmax to be finite; received {bad}"):
        symmetric_scale([1.0, bad], IntGrid(8))
    with pytest.raises(InputError, match=f"the lower end of the range to be finite; received {bad}"):
        asymmetric_params([0.0, bad], 1.0, IntGrid(8))
    with pytest.raises(InputError, match=f"the upper end of the range to be finite; received {bad}"):
        asymmetric_params(0.0, bad, IntGrid(8))
    with pytest.raises(InputError, match=f"threshold to be finite; received {bad}"):
        power_of_two([1.0, bad])


def test_a_negative_magnitude_is_refused():
    with pytest.raises(InputError, match=r"absmax >= 0; received -0\.5"):
        symmetric_scale([1.0, -0.5], IntGrid(8))
    with pytest.raises(InputError, match=r"threshold >= 0; received -0\.5"):
        power_of_two([1.0, -0.5])


def test_an_inverted_range_is_refused():
    with pytest.raises(InputError, match=r"lo <= hi; received lo=3\.0, hi=2\.0"):
        asymmetric_params([0.0, 3.0], [1.0, 2.0], IntGrid(8))


@given(finite, finite, int_grids())
def test_an_asymmetric_range_keeps_its_width_contains_0_and_moves_by_half_a_step_at_most(a, b, grid):
    lo, hi = min(a, b, 0.0), max(a, b, 0.0)
    scale, zero_point = asymmetric_params(min(a, b), max(a, b), grid)
    assert (scale.dtype, zero_point.dtype) == (np.float32, np.int32)
    assert grid.qmin <= zero_point <= grid.qmax
    step = max((hi - lo) / (grid.levels - 1), TINY) if hi > lo else 1.0
    assert float(scale) == np.float32(step)
    if hi - lo < TINY * grid.levels:
        return
    reached = range_of(scale, zero_point, grid)
    # float32 rounds the step by 2**-24 of itself, which all the steps of the range add up.
    tolerance = step * (0.5 + grid.levels * 2.0**-23)
    assert abs(reached[0] - lo) <= tolerance
    assert abs(reached[1] - hi) <= tolerance
    for x in (0.0, -0.0):
        assert quantize(x, scale, zero_point, grid) == zero_point
        assert fake_quantize(x, scale, zero_point, grid).tobytes() == np.float64(0.0).tobytes()


@pytest.mark.parametrize(
    ("lo", "hi", "signed", "scale", "zero_point"),
    [
        (0.0, 2.55, False, 0.01, 0),
        (0.5, 2.55, False, 0.01, 0),  # stretched down to 0
        (-2.55, 0.0, False, 0.01, 255),
        (-2.55, -1.0, False, 0.01, 255),  # stretched up to 0
        (-1.28, 1.27, True, 0.01, 0),
        (-1.0, 1.0, False, 2 / 255, 128),  # -lo / s = 127.5: half up, as TensorFlow nudges
        (-1.0, 1.0, True, 2 / 255, 0),
        (-0.5, 254.5, False, 1.0, 1),  # 0.5 goes up as well, not to even
    ],
)
def test_known_asymmetric_parameters(lo, hi, signed, scale, zero_point):
    found = asymmetric_params(lo, hi, IntGrid(8, signed))
    assert float(found[0]) == np.float32(scale)
    assert int(found[1]) == zero_point


def test_ends_broadcast_to_one_shape():
    scale, zero_point = asymmetric_params([[-1.0], [0.0]], [1.0, 2.0, 3.0], IntGrid(4))
    assert scale.shape == zero_point.shape == (2, 3)


@given(st.floats(1e-300, 1e300))
def test_power_of_two_is_the_least_that_is_not_below(threshold):
    result = float(power_of_two(threshold))
    assert math.frexp(result)[0] == 0.5
    assert result / 2 < threshold <= result


def test_power_of_two_keeps_powers_of_two_and_0():
    exact = [0.0, 2.0**-1074, 2.0**-1022, 0.5, 1.0, 2.0**1023]
    assert power_of_two(exact).tolist() == exact
    assert power_of_two(np.finfo(np.float64).max) == np.inf


def test_the_range_that_parameters_reach():
    assert range_of(0.5, 3, IntGrid(4, signed=False)) == (-1.5, 6.0)
    assert range_of(0.5, 0, LutGrid([-3, 0, 7])) == (-1.5, 3.5)
    lo, hi = range_of(np.float32([[0.5], [1.0]]), np.int32([[1], [0]]), IntGrid(2))
    assert lo.tolist() == [[-1.5], [-2.0]]
    assert hi.tolist() == [[0.0], [1.0]]
    assert lo.dtype == np.float64
