from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from qi.core import IntGrid, LutGrid, SymmetricRule, asymmetric_params, symmetric_scale
from qi.errors import ConfigError, InputError, NotCalibratedError
from qi.observers import (
    SELECTIONS,
    EmaMinMax,
    Histogram,
    MinMax,
    TensorStatistics,
    clipped_share,
    select_range,
)

INT8, UINT8 = IntGrid(8), IntGrid(8, signed=False)
EVERY = pytest.mark.parametrize("name", SELECTIONS.names())
floats = st.floats(width=32, allow_nan=False) | st.sampled_from([0.0, 1e-40, -1e-3, 1.0, 1e30])


def seen(*batches, axis=None, kind=TensorStatistics):
    statistics = kind(axis)
    for batch in batches:
        statistics.update(batch)
    return statistics


def test_the_names_are_those_promised():
    assert SELECTIONS.names() == ("ema", "entropy", "minmax", "mse", "percentile")


@EVERY
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("grid", [INT8, UINT8, IntGrid(1), IntGrid(16)], ids=str)
@given(x=arrays(np.float32, st.tuples(st.integers(1, 8), st.just(2)), elements=floats))
@settings(max_examples=15)
def test_a_range_contains_0_is_finite_and_makes_a_scale(name, symmetric, grid, x):
    x[0] = np.nan_to_num(x[0], posinf=1, neginf=-1)
    for axis, shape in ((None, ()), (-1, (2,))):
        lo, hi = select_range(seen(x, axis=axis), name, grid, symmetric=symmetric)
        assert (lo.shape, hi.shape, lo.dtype, hi.dtype) == (shape, shape, np.float64, np.float64)
        assert np.isfinite([lo, hi]).all()
        assert (lo <= 0).all()
        assert (hi >= 0).all()
        assert not np.signbit([lo[lo == 0], hi[lo == 0]]).any()
        if symmetric:
            assert (lo == (-hi if grid.signed else 0)).all()
        asymmetric_params(lo, hi, grid)
        symmetric_scale(hi, grid)


@EVERY
@pytest.mark.parametrize("symmetric", [True, False])
def test_per_channel_equals_per_slice(name, symmetric):
    x = np.random.default_rng(0).standard_t(3, (2, 500, 3)) * np.array([1, 1e-3, 50])
    lo, hi = select_range(seen(*x, axis=-1), name, IntGrid(4), symmetric=symmetric)
    for i in range(3):
        alone = select_range(seen(*x[..., i]), name, IntGrid(4), symmetric=symmetric)
        assert (lo[i], hi[i]) == alone


@EVERY
def test_one_sided_data_have_exactly_0_as_their_end(name):
    relu = np.maximum(np.random.default_rng(0).standard_normal(5000), 0)
    assert select_range(seen(relu), name, INT8, symmetric=False)[0] == 0
    assert select_range(seen(relu + 1), name, INT8, symmetric=False)[0] == 0
    assert select_range(seen(-relu), name, INT8, symmetric=False)[1] == 0
    assert select_range(seen(relu), name, UINT8, symmetric=True)[0] == 0


@EVERY
@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.0] * 9, (0, 0)), ([3.0], (0, 3)), ([-2.0] * 5, (-2, 0)), ([0.0, 4.0, 4.0], (0, 4))],
)
def test_degenerate_tensors(name, values, expected):
    lo, hi = select_range(seen(values), name, INT8, symmetric=False)
    assert (float(lo), float(hi)) == pytest.approx(expected)
    lo, hi = select_range(seen(values), name, INT8, symmetric=True)
    assert (float(lo), float(hi)) == pytest.approx((-max(map(abs, expected)), max(map(abs, expected))))


@EVERY
def test_a_channel_of_zeros_or_of_nothing_gets_no_range(name):
    statistics = seen(np.array([[1.0, 0.0, np.nan], [-2.0, 0.0, np.inf]]), axis=-1)
    lo, hi = select_range(statistics, name, INT8, symmetric=False)
    assert (lo[1:].tolist(), hi[1:].tolist()) == ([0, 0], [0, 0])
    assert (lo[0], hi[0]) == pytest.approx((-2, 1), rel=1e-3)


@EVERY
@pytest.mark.parametrize("batches", [[], [[np.nan, np.inf]], [np.zeros(0)]])
@pytest.mark.parametrize("axis", [None, -1])
def test_nothing_seen_is_not_calibrated(name, batches, axis):
    with pytest.raises(NotCalibratedError, match="update it first"):
        select_range(seen(*batches, axis=axis), name, INT8, symmetric=False)


def test_minmax_and_ema():
    statistics = seen([-1.0, 4.0], [-3.0, 2.0])
    assert select_range(statistics, "minmax", INT8, symmetric=False) == (-3, 4)
    assert select_range(statistics, "minmax", INT8, symmetric=True) == (-4, 4)
    assert select_range(statistics, "minmax", UINT8, symmetric=True) == (0, 4)
    expected = (0.9 * -1 + -3) / 1.9, (0.9 * 4 + 2) / 1.9
    assert select_range(statistics, "ema", INT8, symmetric=False) == pytest.approx(expected)


@pytest.mark.parametrize("percentile", [99.99, 99, 80, 100])
def test_percentile_is_numpys(percentile):
    x = np.random.default_rng(0).gamma(2, size=20_000) - 1
    statistics = seen(x)
    lo, hi = select_range(statistics, "percentile", INT8, symmetric=False, percentile=percentile)
    width = float(statistics.histogram.width)
    x = x.astype(np.float32)
    assert float(hi) == pytest.approx(np.percentile(x, percentile), abs=width)
    assert float(lo) == pytest.approx(np.percentile(x, 100 - percentile), abs=width)
    _, top = select_range(statistics, "percentile", INT8, symmetric=True, percentile=percentile)
    assert float(top) == pytest.approx(np.percentile(np.abs(x), percentile), abs=width)


def test_percentile_gives_way_where_it_would_clip_everything():
    mostly_zero = np.r_[np.zeros(100_000), 5.0]
    assert select_range(seen(mostly_zero), "percentile", INT8, symmetric=False) == (0, 5)
    assert select_range(seen(mostly_zero), "percentile", INT8, symmetric=True) == (-5, 5)


def test_mse_of_a_fine_grid_is_minmax():
    heavy = seen(np.random.default_rng(0).standard_t(2, 5000))
    for symmetric in (True, False):
        widest = select_range(heavy, "minmax", IntGrid(16), symmetric=symmetric)
        assert select_range(heavy, "mse", IntGrid(16), symmetric=symmetric) == widest
        assert select_range(heavy, "mse", IntGrid(4), symmetric=symmetric)[1] < widest[1]
        coarse = Histogram(bins=64)
        coarse.update(np.random.default_rng(0).standard_t(2, 5000))
        assert select_range(coarse, "mse", IntGrid(5), symmetric=symmetric)[1] < widest[1]  # 32 levels
        assert select_range(coarse, "mse", IntGrid(6), symmetric=symmetric)[1] == widest[1]


def test_mse_takes_the_rule_and_powers_of_two_and_tables():
    ones = seen(np.ones(10))
    assert select_range(ones, "mse", IntGrid(2), symmetric=True, rule=SymmetricRule.EDGE)[1] == pytest.approx(2)
    heavy = seen(np.random.default_rng(0).standard_t(3, 5000))
    for grid in (IntGrid(4), IntGrid(16)):
        _, top = select_range(heavy, "mse", grid, symmetric=True, power_of_two=True)
        assert np.frexp(top)[0] == 0.5
    assert select_range(heavy, "mse", LutGrid([-90, -20, 0, 20, 90]), symmetric=True)[1] > 0
    with pytest.raises(ConfigError, match="symmetric=True"):
        select_range(heavy, "mse", IntGrid(4), symmetric=False, power_of_two=True)


def test_entropy_clips_both_sides_of_an_asymmetric_range_at_one_magnitude():
    x = np.random.default_rng(0).laplace(size=50_000)
    lo, hi = select_range(seen(x), "entropy", INT8, symmetric=False)
    assert x.min() < lo == -hi > -x.max()
    one_sided = np.clip(x, -0.25, None)
    assert select_range(seen(one_sided), "entropy", INT8, symmetric=False)[0] == -0.25


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (MinMax, {"minmax"}),
        (EmaMinMax, {"minmax", "ema"}),
        (Histogram, {"minmax", "percentile", "mse", "entropy"}),
        (TensorStatistics, set(SELECTIONS)),
    ],
)
def test_a_statistic_serves_the_selections_it_can(kind, names):
    statistic = seen([1.0, -2.0], kind=kind)
    for name in names:
        assert select_range(statistic, name, INT8, symmetric=True)[1] == pytest.approx(2, rel=0.01)
    for name in set(SELECTIONS) - names:
        with pytest.raises(ConfigError, match=f"for this choice; received a {kind.__name__}"):
            select_range(statistic, name, INT8, symmetric=True)


def test_unknown_names_and_options_are_refused():
    with pytest.raises(ConfigError, match=r"'percentil'\. Did you mean 'percentile'"):
        select_range(seen([1.0]), "percentil", INT8, symmetric=True)
    with pytest.raises(ConfigError, match=r"received percentage=99\. Did you mean 'percentile'"):
        select_range(seen([1.0]), "percentile", INT8, symmetric=True, percentage=99)
    with pytest.raises(ConfigError, match=r"among \[\]; received symmetrical=1"):
        select_range(seen([1.0]), "minmax", INT8, symmetric=True, symmetrical=1)


@pytest.mark.parametrize("percentile", [50, 100.1, 0, np.nan, "99", None])
def test_an_illegal_percentile_is_refused(percentile):
    with pytest.raises(ConfigError, match="percentile="):
        select_range(seen([1.0]), "percentile", INT8, symmetric=True, percentile=percentile)


@given(arrays(np.float32, st.integers(1, 50), elements=st.floats(-8, 8, width=32)))
def test_the_clipped_share_is_exact_at_the_extremes(x):
    statistics = seen(x)
    assert clipped_share(statistics, statistics.lo, statistics.hi) == 0
    assert clipped_share(statistics, 9.0, 10.0) == pytest.approx(1)


def test_the_clipped_share_counts_over_all_channels():
    statistics = seen(np.array([[0.0, 1.0], [4.0, 100.0], [8.0, np.nan]]), axis=1)
    assert clipped_share(statistics, 0.0, [8.0, 50.0]) == pytest.approx(1 / 5)
    assert clipped_share(statistics.histogram, 0.0, 5.0) == pytest.approx(2 / 5)


def test_the_clipped_share_refuses_what_it_cannot_tell():
    with pytest.raises(NotCalibratedError):
        clipped_share(TensorStatistics(), 0, 1)
    with pytest.raises(ConfigError, match="received a MinMax"):
        clipped_share(seen([1.0], kind=MinMax), 0, 1)
    with pytest.raises(InputError, match=r"\(2,\)"):
        clipped_share(seen(np.ones((1, 3)), axis=-1), [0, 0], 1)
