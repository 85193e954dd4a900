from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from qi.core import IntGrid, LutGrid
from qi.observers import Histogram
from qi.observers.entropy import entropy_threshold, kl_divergences


def histogram(x, bins=8192):
    seen = Histogram(bins=bins)
    seen.update(x)
    return seen


def divergence_as_written(counts, i, levels):
    """KL(P || Q) of the first i bins, step by step as in the module's docstring."""
    p = counts[:i].copy()
    p[-1] += counts[i:].sum()
    q = np.zeros(i)
    for run in range(levels):
        members = slice(run * i // levels, (run + 1) * i // levels)
        used = p[members] > 0
        if used.any():
            q[members][used] = counts[members].sum() / used.sum()
    if np.count_nonzero(counts[:i]) < levels or (q[p > 0] == 0).any():
        return np.inf
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0])))


@given(arrays(np.float64, st.integers(6, 40), elements=st.integers(0, 9).map(float)), st.sampled_from([2, 4, 6]))
def test_all_candidates_at_once_are_each_as_written(counts, levels):
    counts[0] += 1
    expected = [divergence_as_written(counts, i, levels) for i in range(levels, len(counts) + 1)]
    found = kl_divergences(counts, levels)
    assert np.isinf(found).tolist() == np.isinf(expected).tolist()
    finite = np.isfinite(found)
    np.testing.assert_allclose(found[finite], np.array(expected)[finite], atol=1e-12)


def test_many_candidates_are_computed_in_parts():
    counts = np.random.default_rng(0).integers(1, 9, 4000).astype(float)
    found = kl_divergences(counts, 256)
    assert len(found) == 4000 - 256 + 1
    for i in (256, 1300, 2600, 4000):
        assert found[i - 256] == pytest.approx(divergence_as_written(counts, i, 256))


def test_outliers_are_clipped_and_bounded_data_are_not():
    rng = np.random.default_rng(0)
    assert entropy_threshold(histogram(rng.laplace(size=50_000)), 0, IntGrid(8)) < 9
    assert entropy_threshold(histogram(rng.random(50_000)), 0, IntGrid(8)) == pytest.approx(1, abs=0.01)


def test_zeros_change_nothing():
    x = np.maximum(np.random.default_rng(0).standard_normal(20_000), 0)
    alone = entropy_threshold(histogram(x[x > 0]), 0, IntGrid(8))
    assert entropy_threshold(histogram(x), 0, IntGrid(8)) == alone
    assert entropy_threshold(histogram(np.r_[x, np.zeros(10**6)]), 0, IntGrid(8)) == alone


def test_the_threshold_is_that_of_the_magnitudes():
    x = np.random.default_rng(0).gamma(1, size=20_000)
    assert entropy_threshold(histogram(-x), 0, IntGrid(4)) == entropy_threshold(histogram(x), 0, IntGrid(4))


@pytest.mark.parametrize("grid", [IntGrid(16), IntGrid(12), IntGrid(8)])
def test_few_distinct_values_or_many_levels_keep_everything(grid):
    x = np.arange(-50, 51) / 10
    assert entropy_threshold(histogram(x), 0, grid) == 5


@pytest.mark.parametrize("grid", [IntGrid(1), IntGrid(2, narrow=True), LutGrid([-3, 0, 3]), LutGrid([-3, -1])])
def test_the_coarsest_grids_have_a_threshold(grid):
    x = np.random.default_rng(0).standard_normal(1000)
    assert 0 < entropy_threshold(histogram(x), 0, grid) <= np.abs(x).max()


def test_an_unsigned_symmetric_grid_sees_the_positive_side_only():
    positive = np.random.default_rng(0).gamma(1, size=5000)
    both = np.r_[positive, [-40.0]]
    unsigned = IntGrid(4, signed=False)
    # The negative value only widens the bins.
    assert entropy_threshold(histogram(both), 0, unsigned) == pytest.approx(
        entropy_threshold(histogram(positive), 0, unsigned), rel=0.2
    )
    assert entropy_threshold(histogram(-positive), 0, unsigned) == 0


@pytest.mark.parametrize("x", [[0.0], [np.nan], [7.0], [-7.0]])
@pytest.mark.parametrize("symmetric", [True, False])
def test_degenerate_data(x, symmetric):
    expected = 7.0 if abs(x[0]) == 7 else 0.0
    assert entropy_threshold(histogram(x), 0, IntGrid(8), symmetric=symmetric) == expected
