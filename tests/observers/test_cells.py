from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from qi.observers import Histogram
from qi.observers.cells import cells_of

values = st.floats(-8, 8, width=32) | st.sampled_from([0.0, 1e-3, -1e-3, 1.0])
samples = arrays(np.float32, st.integers(1, 40), elements=values)


def histogram(x, bins=256):
    seen = Histogram(bins=bins)
    seen.update(x)
    return seen


@given(samples, st.booleans())
def test_cells_hold_all_values_in_order_and_end_at_the_extremes(x, magnitudes):
    cells = cells_of(histogram(x), magnitudes=magnitudes)
    assert cells.total == pytest.approx(x.size)
    assert (cells.mass > 0).all()
    assert (cells.left <= cells.right).all()
    assert (cells.right[:-1] <= cells.left[1:]).all()
    assert cells.hi == float(np.abs(x).max() if magnitudes else x.max())
    if not magnitudes:
        assert cells.lo == float(x.min())
    for left, right in zip(cells.left, cells.right, strict=True):
        assert not left < 0 < right


@given(samples)
def test_exact_zeros_are_a_point(x):
    cells = cells_of(histogram(x))
    at_zero = (cells.left == 0) & (cells.right == 0)
    # A greatest or least value of 0 leaves no width to what else lies in its bin either.
    assert cells.mass[at_zero].sum() >= np.count_nonzero(x == 0)
    if not (x == 0).any():
        assert not at_zero.any()


@given(samples, st.floats(0, 1), st.booleans())
def test_quantiles_are_numpys_within_one_bin(x, share, magnitudes):
    seen = histogram(x)
    expected = float(np.quantile(np.abs(x) if magnitudes else x, share))
    found = cells_of(seen, magnitudes=magnitudes).quantile(share)
    assert found == pytest.approx(expected, abs=float(seen.width) * (1 + 1e-6))


@given(samples)
def test_the_ends_of_the_quantiles_are_exact(x):
    cells = cells_of(histogram(x))
    assert (cells.quantile(0), cells.quantile(1)) == (float(x.min()), float(x.max()))


def test_quantiles_of_many_values_are_close():
    x = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    cells = cells_of(histogram(x, bins=8192))
    for share in (0.0001, 0.01, 0.5, 0.9, 0.9999):
        assert cells.quantile(share) == pytest.approx(float(np.quantile(x, share)), abs=3e-3)


@given(samples, values, values)
def test_the_count_outside_is_right_to_the_bins_of_the_ends(x, a, b):
    seen, (lo, hi) = histogram(x), sorted((a, b))
    width = float(seen.width)
    least = np.count_nonzero((x < lo - width) | (x > hi + width))
    most = np.count_nonzero((x < lo + width) | (x > hi - width))
    assert least - 1e-6 <= cells_of(seen).outside(lo, hi) <= most + 1e-6


@given(samples)
def test_a_range_with_the_extremes_leaves_nothing_outside(x):
    cells = cells_of(histogram(x))
    assert cells.outside(float(x.min()), float(x.max())) == 0
    assert cells.outside(float(x.max()) + 1, float(x.max()) + 2) == pytest.approx(x.size)


@pytest.mark.parametrize("value", [0.0, 3.0, -1e-3, 1e30, 1e-40])
def test_a_constant_is_a_point(value):
    cells = cells_of(histogram(np.full(5, value)))
    assert (cells.left.tolist(), cells.right.tolist(), cells.mass.tolist()) == (
        [np.float32(value)],
        [np.float32(value)],
        [5.0],
    )


def test_a_channel_without_values_has_no_cells():
    seen = Histogram(axis=0)
    seen.update([[np.nan], [1.0]])
    assert cells_of(seen, 0) is None
    assert cells_of(seen, 1).hi == 1
