from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from qi.core import IntGrid, LutGrid, SymmetricRule, asymmetric_params, fake_quantize, mse, symmetric_scale
from qi.errors import ConfigError
from qi.observers import Histogram
from qi.observers.cells import Cells, cells_of
from qi.observers.mse import ExpectedError, best_range, best_threshold, largest_factor, shrink_factors

QMAX, EDGE = SymmetricRule.QMAX, SymmetricRule.EDGE
N = 20_000
GRIDS = {
    "int8": IntGrid(8),
    "int4": IntGrid(4),
    "narrow3": IntGrid(3, narrow=True),
    "uint4": IntGrid(4, signed=False),
    "int1": IntGrid(1),
    "lut": LutGrid([-100, -30, -4, 0, 7, 60, 127]),
}


def sample(name, n=N, seed=0):
    """Values of a distribution as float32."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(n)
    x = {
        "normal": normal,
        "relu": np.maximum(normal, 0),
        "relu6": np.clip(normal * 4, 0, 6),
        "heavy": rng.standard_t(3, n),
        "uniform": rng.random(n),
        "silu": normal * 3 / (1 + np.exp(-normal * 3)),
        "bytes": (rng.integers(0, 256, n) - 128) / 128,
        "few": rng.integers(-2, 4, n) * 0.37,
        "constant": np.full(n, -2.5),
        "huge": normal * 1e35,
        "tiny": normal * 1e-35,
    }[name]
    return x.astype(np.float32)


DISTRIBUTIONS = [
    "normal",
    "relu",
    "relu6",
    "heavy",
    "uniform",
    "silu",
    "bytes",
    "few",
    "constant",
    "huge",
    "tiny",
]


def cells(x):
    seen = Histogram()
    seen.update(x)
    return cells_of(seen)


def true_error(x, scale, zero_point, grid):
    with np.errstate(over="ignore"):
        return mse(x, fake_quantize(x, scale, zero_point, grid))


@pytest.mark.parametrize("name", ["normal", "relu", "heavy", "silu", "uniform"])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("share", [0.2, 1.0, 1.7])
def test_the_expected_error_is_the_true_one(name, grid, share):
    x = sample(name)
    scale = symmetric_scale(share * np.abs(x).max(), grid, EDGE)
    expected = ExpectedError(cells(x), grid)(float(scale))
    assert expected == pytest.approx(true_error(x, scale, 0, grid), rel=0.02)


@pytest.mark.parametrize("zero_point", [0, 3, 15])
def test_the_expected_error_knows_the_zero_point(zero_point):
    x, grid, scale = sample("normal"), IntGrid(4, signed=False), np.float32(0.3)
    expected = ExpectedError(cells(x), grid)(float(scale), zero_point)
    assert expected == pytest.approx(true_error(x, scale, zero_point, grid), rel=0.01)


@given(st.floats(0.1, 3), st.integers(-8, 7))
def test_a_cell_is_integrated_exactly(scale, zero_point):
    one = Cells(np.array([-1.7]), np.array([2.9]), np.array([4.0]), 1.0)
    grid = IntGrid(4)
    x = np.linspace(-1.7, 2.9, 200_001)
    codes = np.clip(np.rint(x / scale) + zero_point, grid.qmin, grid.qmax) - zero_point
    numeric = np.trapezoid((x - codes * scale) ** 2, x) / 4.6
    assert ExpectedError(one, grid)(scale, zero_point) == pytest.approx(numeric, rel=1e-6, abs=1e-12)


def test_points_are_quantized_themselves():
    assert ExpectedError(cells(sample("constant")), IntGrid(4))(2.0) == pytest.approx(0.25)  # -2.5 becomes -2
    assert ExpectedError(cells(np.zeros(3)), IntGrid(4))(1.0) == 0


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("rule", [QMAX, EDGE])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_threshold_is_never_truly_worse_than_the_extremes(name, rule, bits):
    x, grid = sample(name), IntGrid(bits)
    best = best_threshold(cells(x), grid, rule)
    with_best = true_error(x, symmetric_scale(best, grid, rule), 0, grid)
    with_all = true_error(x, symmetric_scale(np.abs(x).max(), grid, rule), 0, grid)
    assert with_best <= 1.01 * with_all


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_range_is_never_truly_worse_than_the_extremes(name, bits):
    x, grid = sample(name), IntGrid(bits, signed=False)
    lo, hi = best_range(cells(x), grid)
    assert min(x.min(), 0) <= lo <= 0 <= hi <= max(x.max(), 0)
    with_best = true_error(x, *asymmetric_params(lo, hi, grid), grid)
    with_all = true_error(x, *asymmetric_params(min(x.min(), 0), max(x.max(), 0), grid), grid)
    assert with_best <= 1.01 * with_all


def test_clipping_pays_on_heavy_tails_at_4_bits():
    x, grid = sample("heavy"), IntGrid(4)
    best = best_threshold(cells(x), grid, QMAX)
    all_of_it = true_error(x, symmetric_scale(np.abs(x).max(), grid), 0, grid)
    assert true_error(x, symmetric_scale(best, grid), 0, grid) < 0.4 * all_of_it
    scale, zero_point = asymmetric_params(*best_range(cells(x), IntGrid(4, False)), IntGrid(4, False))
    assert true_error(x, scale, zero_point, IntGrid(4, False)) < 0.4 * all_of_it


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", ["normal", "relu", "heavy", "silu"])
def test_a_threshold_is_as_good_as_brute_force(name, bits):
    x, grid = sample(name, n=4000), IntGrid(bits)
    best = best_threshold(cells(x), grid, QMAX)
    absmax = np.abs(x).max()
    tried = [true_error(x, symmetric_scale(absmax * f, grid), 0, grid) for f in np.linspace(0.01, 1, 400)]
    assert true_error(x, symmetric_scale(best, grid), 0, grid) <= 1.02 * min(tried)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", ["normal", "heavy", "silu"])
def test_a_range_is_as_good_as_brute_force(name, bits):
    x, grid = sample(name, n=2000), IntGrid(bits, signed=False)
    steps = np.linspace(0.04, 1, 25)
    tried = [true_error(x, *asymmetric_params(x.min() * a, x.max() * b, grid), grid) for a in steps for b in steps]
    assert true_error(x, *asymmetric_params(*best_range(cells(x), grid), grid), grid) <= 1.03 * min(tried)


@pytest.mark.parametrize(("name", "ends"), [("bytes", (-1, 127 / 128)), ("few", (-0.74, 1.11)), ("relu6", (0, 6))])
def test_data_that_the_extremes_fit_is_not_clipped(name, ends):
    assert best_range(cells(sample(name)), IntGrid(8)) == pytest.approx(ends)


def test_one_sided_data_keep_0_as_their_end():
    assert best_range(cells(sample("relu")), IntGrid(4))[0] == 0
    assert best_range(cells(-sample("relu")), IntGrid(4))[1] == 0


def test_a_range_never_exceeds_the_data():
    x = np.r_[np.full(1000, 0.7), np.ones(30)]  # an end of 1.05 would make 0.7 a code
    assert best_range(cells(x), IntGrid(2, signed=False))[1] <= 1


def test_zeros_have_no_range():
    assert best_threshold(cells(np.zeros(5)), IntGrid(8), QMAX) == 0
    assert best_range(cells(np.zeros(5)), IntGrid(8)) == (0, 0)
    assert best_threshold(cells(-np.ones(5)), IntGrid(8, signed=False), QMAX) == 0


@given(st.integers(0, 20), st.sampled_from([2, 3, 4, 8]))
@settings(max_examples=10)
def test_a_power_of_two_is_the_best_of_all(seed, bits):
    x, grid = sample("heavy", 2000, seed), IntGrid(bits)
    best = best_threshold(cells(x), grid, EDGE, power_of_two=True)
    assert np.frexp(best)[0] == 0.5
    others = [true_error(x, symmetric_scale(2.0**i, grid, EDGE), 0, grid) for i in range(-3, 9)]
    assert true_error(x, symmetric_scale(best, grid, EDGE), 0, grid) <= 1.02 * min(others)


def test_a_threshold_may_exceed_the_data_where_the_edge_itself_clips():
    grid = IntGrid(2)  # codes -2..1: a threshold of 2 makes 1 a code
    assert largest_factor(grid, EDGE) == 2
    assert largest_factor(grid, QMAX) == 1
    assert largest_factor(LutGrid([-25, 25]), EDGE) == 128 / 25
    assert best_threshold(cells(np.ones(4)), grid, EDGE) == pytest.approx(2)


def test_shrink_factors_include_1_and_reach_both_ends():
    factors = shrink_factors(0.25, 2.0)
    assert 1.0 in factors
    assert (factors.max(), factors.min()) == pytest.approx((2, 0.25))


def test_a_look_up_table_has_no_asymmetric_range():
    with pytest.raises(ConfigError, match="use symmetric=True"):
        best_range(cells(np.ones(4)), LutGrid([-1, 1]))
