from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from qi.errors import ConfigError, InputError
from qi.observers.batch import as_planes, blocks, check_axis


def rows(x, axis):
    """All values of a batch as one row per channel, put together from its blocks."""
    return np.concatenate([block.values for block in blocks(as_planes(x, axis))], axis=1)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
@pytest.mark.parametrize("shape", [(3, 4, 5), (50, 2, 700), (1, 40_000, 2), (7, 3, 20_000), (70_000, 1, 1)])
def test_blocks_hold_every_value_of_every_channel_once(shape, axis):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected = np.moveaxis(x, axis, 0).reshape(shape[axis], -1)
    np.testing.assert_array_equal(np.sort(rows(x, axis)), np.sort(expected))


def test_blocks_of_a_large_batch_stay_small():
    assert max(block.values.size for block in blocks(as_planes(np.ones((8, 100_000)), None))) <= 1 << 16


def test_a_tensor_without_axis_is_one_channel():
    assert as_planes(np.zeros((2, 3)), None).shape == (1, 1, 6)
    assert as_planes(3.0, None).shape == (1, 1, 1)


@pytest.mark.parametrize(
    "dtype",
    ["float16", "float64", "int8", "uint16", "int64", "bool", "bfloat16", "int4", "float8_e4m3fn"],
)
def test_real_dtypes_become_float32(dtype):
    values = rows(np.array([0, 1, 1, 0]).astype(getattr(ml_dtypes, dtype, dtype)), None)
    assert values.dtype == np.float32
    assert values.tolist() == [[0, 1, 1, 0]]


@pytest.mark.parametrize("x", [[1j], ["a"], [None], [np.datetime64("2020-01-01")], np.zeros(1, "i4,f4")])
def test_other_dtypes_are_refused(x):
    with pytest.raises(InputError, match="expected an array of real numbers; received dtype="):
        as_planes(np.asarray(x), None)


def test_a_missing_axis_is_refused():
    with pytest.raises(InputError, match=r"channel axis 2; received shape \(3, 4\)"):
        as_planes(np.zeros((3, 4)), 2)


@pytest.mark.parametrize("axis", [True, 1.0, "1", (0,)])
def test_an_axis_that_is_no_integer_is_refused(axis):
    with pytest.raises(ConfigError, match="axis="):
        check_axis(axis)


def test_nonfinite_values_are_masked_counted_and_out_of_the_extremes():
    (block,) = blocks(as_planes(np.array([[1.0, np.nan, -2.0], [np.inf, -np.inf, np.nan]]), 0))
    assert (block.nonfinite, block.count) == (4, 2)
    assert block.lo.tolist() == [-2, np.inf]
    assert block.hi.tolist() == [1, -np.inf]
    assert block.values.tolist() == [[1, 0, -2], [0, 0, 0]]
    assert block.finite.tolist() == [[True, False, True], [False] * 3]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_single_nonfinite_value_is_found(bad):
    x = np.ones(1000)
    x[777] = bad
    assert sum(block.nonfinite for block in blocks(as_planes(x, None))) == 1


def test_float64_beyond_float32_counts_as_infinite():
    (block,) = blocks(as_planes(np.array([1e300, 1.0]), None))
    assert (block.nonfinite, block.hi.tolist()) == (1, [1.0])


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (0, 0)])
def test_an_empty_batch_has_no_blocks(shape):
    assert list(blocks(as_planes(np.zeros(shape), -1))) == []
