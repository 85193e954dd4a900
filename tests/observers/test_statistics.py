from __future__ import annotations

import numpy as np
import pytest

from qi.errors import ConfigError, InputError
from qi.observers import EmaMinMax, Histogram, MinMax, TensorStatistics

BATCHES = [np.random.default_rng(i).standard_normal((5, 3)) * (i + 1) for i in range(4)]


def seen(statistic, batches=BATCHES):
    for batch in batches:
        statistic.update(batch)
    return statistic


@pytest.mark.parametrize("axis", [None, 1])
def test_one_pass_feeds_all_statistics_as_each_alone(axis):
    together = seen(TensorStatistics(axis, bins=128, momentum=0.5))
    for alone, part in [
        (MinMax(axis), together.minmax),
        (EmaMinMax(axis, 0.5), together.ema),
        (Histogram(axis, 128), together.histogram),
    ]:
        for name, array in seen(alone).state().items():
            np.testing.assert_array_equal(array, part.state()[name])


def test_bookkeeping():
    statistics = TensorStatistics(axis=-1)
    assert statistics.channels is None
    statistics.update([[1.0, np.nan], [np.inf, -2.0]])
    statistics.update(np.zeros((0, 2)))
    assert (statistics.count, statistics.nonfinite, statistics.batches, statistics.channels) == (2, 2, 2, 2)
    assert (statistics.axis, statistics.lo.tolist(), statistics.hi.tolist()) == (-1, [1, -2], [1, -2])


@pytest.mark.parametrize("axis", [None, -1])
def test_merge_equals_seeing_both(axis):
    merged = seen(TensorStatistics(axis), BATCHES[:2]).merge(seen(TensorStatistics(axis), BATCHES[2:]))
    whole = seen(TensorStatistics(axis)).state()
    for name, array in merged.state().items():
        np.testing.assert_allclose(array, whole[name], rtol=1e-5 if "sum" in name else 0)


def test_a_state_round_trips():
    original = seen(TensorStatistics(-1, bins=64, momentum=0.3))
    restored = TensorStatistics.from_state(original.state())
    assert set(restored.state()) == set(original.state())
    for name, array in original.state().items():
        np.testing.assert_array_equal(array, restored.state()[name])
    assert restored.ema.momentum == 0.3


def test_reset_forgets_everything():
    statistics = seen(TensorStatistics())
    statistics.reset()
    assert (statistics.count, statistics.batches) == (0, 0)


def test_merging_with_something_else_is_refused():
    with pytest.raises(ConfigError, match="expected TensorStatistics to merge with; received a MinMax"):
        TensorStatistics().merge(MinMax())
    with pytest.raises(ConfigError, match="received a Histogram"):
        TensorStatistics().merge(TensorStatistics(bins=64))


def test_a_state_of_other_parts_is_refused():
    state = seen(TensorStatistics()).state()
    with pytest.raises(InputError, match=r"received 'moments\.count'"):
        TensorStatistics.from_state(state | {"moments.count": np.array(1)})
    others = {k: a for k, a in seen(TensorStatistics(), BATCHES[:1]).state().items() if k.startswith("ema.")}
    with pytest.raises(InputError, match="of the same data"):
        TensorStatistics.from_state(state | others)
