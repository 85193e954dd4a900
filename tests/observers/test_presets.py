from __future__ import annotations

import numpy as np
import pytest

from qi.core import IntGrid, SymmetricRule
from qi.errors import ConfigError
from qi.observers import (
    EmaObserver,
    EntropyObserver,
    MinMax,
    MinMaxObserver,
    MSEObserver,
    Observer,
    PercentileObserver,
    TensorStatistics,
    select_range,
)

PRESETS = {
    "minmax": MinMaxObserver,
    "ema": EmaObserver,
    "percentile": PercentileObserver,
    "mse": MSEObserver,
    "entropy": EntropyObserver,
}
BATCHES = np.random.default_rng(0).standard_t(3, (4, 500, 2))


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("axis", [None, -1])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_preset_gives_the_range_of_its_selection(name, axis, symmetric):
    observer, statistics = PRESETS[name](axis), TensorStatistics(axis)
    for batch in BATCHES:
        observer.update(batch)
        statistics.update(batch)
    np.testing.assert_array_equal(
        observer.range(IntGrid(4), symmetric), select_range(statistics, name, IntGrid(4), symmetric=symmetric)
    )


@pytest.mark.parametrize("name", PRESETS)
def test_merge_equals_seeing_both(name):
    first, second, both = (PRESETS[name]() for _ in range(3))
    for i, batch in enumerate(BATCHES):
        (first, second)[i // 2].update(batch)
        both.update(batch)
    merged = first.merge(second)
    assert type(merged) is PRESETS[name]
    np.testing.assert_allclose(merged.range(IntGrid(4)), both.range(IntGrid(4)), rtol=1e-12)


def test_options_reach_the_selection():
    observer = PercentileObserver(percentile=90)
    observer.update(np.arange(101.0))
    assert float(observer.range(IntGrid(8))[1]) == pytest.approx(90, abs=0.1)
    observer = MSEObserver(rule=SymmetricRule.EDGE)
    observer.update(np.ones(5))
    assert float(observer.range(IntGrid(2), symmetric=True)[1]) == pytest.approx(2)


def test_observers_that_choose_differently_do_not_merge():
    with pytest.raises(ConfigError, match=r"'percentile' \{'percentile': 99\.0\} to merge with; received"):
        PercentileObserver(percentile=99.0).merge(PercentileObserver())
    with pytest.raises(ConfigError, match="expected a MinMax with"):
        MinMaxObserver().merge(MinMaxObserver(axis=0))


def test_unknown_selections_and_options_are_refused_at_once():
    with pytest.raises(ConfigError, match="received 'median'"):
        Observer(MinMax(), "median")
    with pytest.raises(ConfigError, match="received percentile=99"):
        Observer(MinMax(), "minmax", percentile=99)
