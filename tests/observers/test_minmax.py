from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from qi.errors import ConfigError
from qi.observers import EmaMinMax, MinMax

floats = st.floats(-(2.0**100), 2.0**100, width=32)


@given(st.lists(floats, min_size=1), st.randoms())
def test_extremes_are_exact_in_any_order(values, random):
    shuffled = random.sample(values, len(values))
    for order in (values, shuffled):
        seen = MinMax()
        for value in order:
            seen.update(value)
        assert (float(seen.lo), float(seen.hi)) == (min(values), max(values))


def test_ranges_are_0d_per_tensor_and_1d_per_channel():
    tensor, channels = MinMax(), MinMax(axis=1)
    for seen in (tensor, channels):
        seen.update([[1, 2, 3], [4, 5, -6]])
    assert (tensor.lo.shape, tensor.lo.dtype) == ((), np.float64)
    assert channels.lo.tolist() == [1, 2, -6]
    assert channels.hi.tolist() == [4, 5, 3]


def test_returned_ends_are_copies():
    seen = MinMax(axis=0)
    seen.update([[1.0], [2.0]])
    seen.lo[:] = 9
    assert seen.lo.tolist() == [1, 2]


def average(values, momentum):
    """The textbook recursion with the bias removed at the end."""
    mean = 0.0
    for value in values:
        mean = momentum * mean + (1 - momentum) * value
    return mean / (1 - momentum ** len(values))


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=10), st.floats(0, 0.99))
def test_ema_is_the_unbiased_recursion_over_batch_extremes(tops, momentum):
    seen = EmaMinMax(momentum=momentum)
    for top in tops:
        seen.update([top, top - 1])
    assert float(seen.hi) == pytest.approx(average(tops, momentum), abs=1e-9)
    assert float(seen.lo) == pytest.approx(average([float(np.float32(t - 1)) for t in tops], momentum), abs=1e-9)


def test_one_batch_gives_its_own_extremes():
    seen = EmaMinMax(momentum=0.999)
    seen.update([-3.0, 5.0])
    assert (float(seen.lo), float(seen.hi)) == pytest.approx((-3, 5))


def test_ema_sees_a_large_batch_as_one():
    seen = EmaMinMax(momentum=0.5)
    seen.update(np.linspace(-1, 1, 300_000))
    assert (float(seen.lo), float(seen.hi)) == (-1, 1)
    assert seen.state()["steps"].tolist() == [1]


def test_a_batch_without_finite_values_ages_nothing():
    seen = EmaMinMax(axis=0, momentum=0.5)
    seen.update([[1.0], [1.0]])
    seen.update([[np.nan], [4.0]])
    assert seen.hi.tolist() == pytest.approx([1.0, 3.0])


@pytest.mark.parametrize("momentum", [-0.1, 1, 1.5, np.nan, "0.9", None])
def test_an_illegal_momentum_is_refused(momentum):
    with pytest.raises(ConfigError, match="momentum="):
        EmaMinMax(momentum=momentum)
