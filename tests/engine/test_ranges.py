from __future__ import annotations

import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from qi.core import PerChannel, PerGroup, PerTensor, QParams
from qi.core.affine import dequantize
from qi.engine.config import QuantizationConfig
from qi.engine.ranges import covered, params_of, requantized, see

GREATEST = float(np.finfo(np.float32).max)
PERCENT = QuantizationConfig(use_percentile=True, min_percentile=5, max_percentile=90)
OUTLIERS = QuantizationConfig(outlier_threshold=1.5)
SHARINGS = [PerTensor(), PerChannel(0), PerChannel(-1), PerGroup(1, 4, 0)]
X = np.random.default_rng(0).normal(size=(5, 10)).astype(np.float32)

kinds = st.sampled_from(["int8", "uint8", "int16", "uint16", "int4", "uint4", "int2", "uint2"])
ends = st.floats(-GREATEST, GREATEST)


def blocks(x: np.ndarray, sharing) -> list[np.ndarray]:
    """The numbers of each scale, in the scales' order."""
    if isinstance(sharing, PerTensor):
        return [x]
    if isinstance(sharing, PerChannel):
        return list(np.moveaxis(x, sharing.axis, 0))
    return [row[i : i + 4] for row in x for i in range(0, 10, 4)]


@pytest.mark.parametrize("sharing", SHARINGS, ids=str)
def test_extremes_percentiles_and_outliers(sharing) -> None:
    parts = blocks(X.astype(np.float64), sharing)
    seen = see(X, sharing, QuantizationConfig())
    assert seen.lo.shape == seen.hi.shape == sharing.param_shape(X.shape)
    assert list(zip(seen.lo.flat, seen.hi.flat, strict=True)) == [(p.min(), p.max()) for p in parts]
    seen = see(X, sharing, PERCENT)
    np.testing.assert_allclose(seen.lo.ravel(), [np.percentile(p, 5) for p in parts])
    np.testing.assert_allclose(seen.hi.ravel(), [np.percentile(p, 90) for p in parts])
    seen = see(X, sharing, OUTLIERS)
    np.testing.assert_allclose(seen.lo.ravel(), [max(p.min(), p.mean() - 1.5 * p.std()) for p in parts])
    np.testing.assert_allclose(seen.hi.ravel(), [min(p.max(), p.mean() + 1.5 * p.std()) for p in parts])


@pytest.mark.parametrize("config", [QuantizationConfig(), PERCENT, OUTLIERS], ids=["extremes", "percent", "outliers"])
@pytest.mark.parametrize("sharing", SHARINGS, ids=str)
def test_what_is_not_finite_does_not_count(sharing, config: QuantizationConfig) -> None:
    bad = X.astype(np.float64)
    bad[0], bad[1, :3], bad[2, 0], bad[2, 1] = np.nan, np.inf, -np.inf, 1e300
    seen = see(bad, sharing, config)
    assert (seen.nans, seen.infs) == (10, 5)
    clean = [p[np.isfinite(p) & (np.abs(p) < 1e38)] for p in blocks(bad, sharing)]
    alone = [see(p, PerTensor(), config) if p.size else None for p in clean]
    np.testing.assert_allclose(seen.lo.ravel(), [0 if one is None else one.lo.item() for one in alone])
    np.testing.assert_allclose(seen.hi.ravel(), [0 if one is None else one.hi.item() for one in alone])


def test_threads_leave_the_filters_of_warnings_alone() -> None:
    before = list(warnings.filters)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: see(np.float32([[np.nan], [1.0]]), PerChannel(0), PERCENT), range(100)))
    finally:
        sys.setswitchinterval(interval)
    assert list(warnings.filters) == before


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)], ids=str)
@pytest.mark.parametrize("config", [QuantizationConfig(), PERCENT, OUTLIERS], ids=["extremes", "percent", "outliers"])
def test_empty_arrays_have_the_range_0(shape: tuple[int, ...], config: QuantizationConfig) -> None:
    for sharing in (PerTensor(), PerChannel(0)):
        seen = see(np.empty(shape, np.float32), sharing, config)
        assert seen.lo.shape == sharing.param_shape(shape)
        assert not seen.lo.any()
        assert not seen.hi.any()


@given(hnp.arrays(np.float64, st.integers(1, 20), elements=st.floats(-1e30, 1e30)), st.floats(1e-9, 3))
def test_ends_keep_their_order(x: np.ndarray, threshold: float) -> None:
    for config in (QuantizationConfig(outlier_threshold=threshold), PERCENT.replace(outlier_threshold=threshold)):
        seen = see(x, PerTensor(), config)
        assert (seen.lo <= seen.hi).all()
    constant = see(np.full(3, 0.1), PerTensor(), QuantizationConfig(outlier_threshold=threshold))
    assert constant.lo.item() == pytest.approx(0.1)


@given(kinds, st.booleans(), ends, ends)
def test_parameters_cover_the_range(kind: str, symmetric: bool, a: float, b: float) -> None:
    lo, hi = min(a, b), max(a, b)
    config = QuantizationConfig(kind, symmetric=symmetric)
    params = params_of(lo, hi, PerTensor(), config)
    codes = np.array([config.grid.qmin, config.grid.qmax, params.zero_point.item()])
    least, greatest, zero = dequantize(codes, params.scale, params.zero_point, config.grid).tolist()
    assert zero == 0.0
    assert np.isfinite([least, greatest]).all()
    step = float(params.scale)
    slack = 0.5001 * step if max(-lo, hi) < GREATEST / 2 else 2.0 * step
    assert least - slack <= min(lo, 0) or (symmetric and config.grid.levels == 4)
    assert greatest + slack >= max(hi, 0)


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "int4"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_covered_gives_the_parameters_again(kind: str, symmetric: bool) -> None:
    config = QuantizationConfig(kind, symmetric=symmetric)
    params = params_of(-1.5, 2.25, PerTensor(), config)
    again = params_of(*covered(params, config), PerTensor(), config)
    np.testing.assert_allclose(again.scale, params.scale, rtol=1e-6)
    assert again.zero_point == params.zero_point


def test_covered_of_a_zero_point_that_is_not_the_middle() -> None:
    config = QuantizationConfig()
    lo, hi = covered(QParams(1.0, 5, config.grid), config)
    assert (lo, hi) == (-133, 122)


def test_requantized_only_where_the_error_falls() -> None:
    config = QuantizationConfig(requantization_threshold=0.01)
    narrow = params_of(-1.0, 1.0, PerTensor(), config)
    x = np.float32([-1, 0.3, 5.0])
    wider = requantized(x, narrow, config)
    assert np.abs(wider.fake_quantize(x) - x).max() < 0.03
    assert requantized(x, narrow, config.replace(requantization_threshold=10.0)) is narrow
    best = params_of(-5.0, 5.0, PerTensor(), config)
    assert requantized(x, best, config) is best
    with_nan = requantized(np.float32([np.nan, np.inf, 5.0]), narrow, config)
    assert np.isfinite(with_nan.scale)


def test_a_reach_beyond_all_numbers_cuts_nothing_off() -> None:
    seen = see(X, PerTensor(), QuantizationConfig(outlier_threshold=1.7e308))
    assert (float(seen.lo.flat[0]), float(seen.hi.flat[0])) == (X.min(), X.max())
