from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from qi.core.granularity import PerChannel, PerGroup, PerTensor
from qi.errors import ConfigError, InputError
from tests.backends import BACKENDS
from tests.strategies import arrays, granularities, shapes


def blocks(granularity, x):
    """Oracle: the values that share each entry of the scale, collected one element at a time."""
    found = {}
    for index in np.ndindex(x.shape):
        key = [0] * x.ndim
        if isinstance(granularity, PerChannel):
            key[granularity.axis] = index[granularity.axis]
        elif isinstance(granularity, PerGroup):
            key[granularity.axis] = index[granularity.axis] // granularity.size
            key[granularity.channel_axis] = index[granularity.channel_axis]
        found.setdefault(tuple(key), []).append(x[index])
    return found


@given(st.data())
def test_ranges_are_those_of_the_elements_that_share_a_scale(data):
    x = data.draw(arrays(shapes))
    granularity = data.draw(granularities(x.ndim))
    lo, hi = granularity.minmax(x)
    absmax = granularity.absmax(x)
    groups = blocks(granularity, x)
    assert lo.shape == hi.shape == absmax.shape == granularity.param_shape(x.shape)
    assert lo.dtype == hi.dtype == absmax.dtype == np.float64
    assert set(groups) == set(np.ndindex(lo.shape))
    for key, members in groups.items():
        assert (lo[key], hi[key]) == (min(members), max(members))
        assert absmax[key] == max(abs(m) for m in members)


@given(st.data())
def test_an_expanded_parameter_lies_beside_the_elements_it_belongs_to(data):
    shape = data.draw(shapes)
    granularity = data.draw(granularities(len(shape)))
    param = np.arange(np.prod(granularity.param_shape(shape))).reshape(granularity.param_shape(shape))
    beside = np.broadcast_to(granularity.expand(param, shape), shape)
    for key, members in blocks(granularity, beside).items():
        assert set(members) == {param[key]}


@pytest.mark.parametrize(
    ("granularity", "shape", "expected"),
    [
        (PerTensor(), (), ()),
        (PerTensor(), (3, 4), (1, 1)),
        (PerChannel(0), (3, 4), (3, 1)),
        (PerChannel(-2), (3, 3, 8, 2), (1, 1, 8, 1)),
        (PerGroup(0, 32), (64, 5), (2, 5)),
        (PerGroup(0, 32), (65, 5), (3, 5)),
        (PerGroup(0, 32), (5, 5), (1, 5)),
        (PerGroup(-1, 4, channel_axis=0), (3, 2, 9), (3, 1, 3)),
        (PerGroup(-2, 2), (3, 3, 4, 5), (1, 1, 2, 5)),
        (PerChannel(0), (0, 3), (0, 1)),
    ],
)
def test_the_shape_of_the_scale(granularity, shape, expected):
    assert granularity.param_shape(shape) == expected


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(1), PerGroup(0, 2)])
def test_an_empty_tensor_has_the_range_0_to_0(granularity):
    lo, hi = granularity.minmax(np.zeros((0, 3)))
    assert lo.shape == hi.shape == granularity.param_shape((0, 3))
    assert not lo.any()
    assert not hi.any()
    assert not granularity.absmax(np.zeros((0, 3))).any()


def test_a_group_larger_than_its_axis_takes_no_more_memory():
    granularity, x = PerGroup(0, 2**31 - 1), np.array([[1.0, -2.0], [3.0, -4.0], [5.0, 6.0]], "float32")
    np.testing.assert_array_equal(granularity.absmax(x), [[5.0, 6.0]])
    np.testing.assert_array_equal(granularity.expand(granularity.absmax(x), x.shape), [[5.0, 6.0]] * 3)
    assert granularity.expand(granularity.absmax(x[:0]), (0, 2)).shape == (0, 2)


def test_the_padding_of_a_partial_group_counts_neither_as_least_nor_as_greatest():
    lo, hi = PerGroup(0, 2).minmax([[1.0], [2.0], [3.0]])
    assert lo.tolist() == [[1.0], [3.0]]
    assert hi.tolist() == [[2.0], [3.0]]


def test_integers_are_ranged_without_overflow():
    assert PerTensor().absmax(np.array([-128, 5], np.int8)).tolist() == [128.0]
    assert PerTensor().minmax(3) == (3.0, 3.0)


def test_the_given_array_is_left_alone(readonly):
    x = readonly([[1.0, -2.0], [3.0, 4.0], [5.0, 6.0]], np.float32)
    PerGroup(0, 2).absmax(x)
    assert PerGroup(0, 2).expand(readonly([[1.0, 2.0], [3.0, 4.0]]), (3, 2)).shape == (3, 2)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_tensors_expand_in_their_own_framework(backend):
    expanded = PerGroup(0, 2).expand(backend.tensor(np.float32([[1, 2], [3, 4]])), (3, 2))
    assert backend.numpy(expanded).tolist() == [[1, 2], [1, 2], [3, 4]]


@pytest.mark.parametrize("axis", [2, -3])
@pytest.mark.parametrize("make", [PerChannel, lambda axis: PerGroup(axis, 4), lambda axis: PerGroup(0, 4, axis)])
def test_an_axis_that_the_tensor_lacks_is_refused(make, axis):
    with pytest.raises(InputError, match=f"from -2 to 1 for a tensor of rank 2; received {axis}"):
        make(axis).param_shape((3, 4))


def test_groups_run_along_another_axis_than_the_channels():
    with pytest.raises(InputError, match=r"grouped axis to differ .* received both as 1 for a tensor of rank 2"):
        PerGroup(1, 4).param_shape((3, 4))


@pytest.mark.parametrize("bad", [1.0, True, None, "0"])
def test_axes_and_sizes_are_integers(bad):
    with pytest.raises(ConfigError, match=r"channel_axis to be an integer; received channel_axis="):
        PerChannel(bad)
    with pytest.raises(ConfigError, match=r" axis to be an integer; received axis="):
        PerGroup(bad, 4)
    with pytest.raises(ConfigError, match=r"channel_axis to be an integer; received channel_axis="):
        PerGroup(0, 4, bad)
    with pytest.raises(ConfigError, match=r"group_size to be an integer; received group_size="):
        PerGroup(0, bad)


@pytest.mark.parametrize("size", [0, -1])
def test_a_group_has_a_member(size):
    with pytest.raises(ConfigError, match=f"group_size to be at least 1; received group_size={size}"):
        PerGroup(0, size)


def test_numpy_integers_become_plain_so_granularities_compare_and_hash_alike():
    assert PerChannel(np.int64(1)) == PerChannel(1)
    group = PerGroup(np.int8(0), np.int64(32), np.int32(-1))
    assert group == PerGroup(0, 32)
    assert {type(v) for v in (group.axis, group.size, group.channel_axis)} == {int}
    assert len({group, PerGroup(0, 32), PerTensor(), PerTensor()}) == 2
