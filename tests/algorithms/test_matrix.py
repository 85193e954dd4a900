"""Tests for qi.algorithms.matrix: weights as matrices and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from qi.algorithms import MatrixView
from qi.errors import ConfigError, InputError


@given(data=st.data())
def test_there_and_back(data: Any) -> None:
    rank = data.draw(st.integers(0, 5))
    axes = data.draw(st.permutations(range(rank)))
    first = data.draw(st.integers(0, rank))
    second = data.draw(st.integers(first, rank))
    inputs, outputs, shared = axes[:first], axes[first:second], axes[second:]
    shape = data.draw(st.lists(st.integers(1, 4), min_size=rank, max_size=rank))
    groups = data.draw(st.integers(1, 3)) if outputs and not shared else 1
    if groups > 1:
        shape[outputs[-1]] *= groups
    view = MatrixView(tuple(shape), tuple(inputs), tuple(outputs), tuple(shared), groups)
    tensor = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    matrix = view.matrix(tensor)
    assert matrix.shape == view.sizes
    np.testing.assert_array_equal(view.tensor(matrix), tensor)
    np.testing.assert_array_equal(view.matrix(view.tensor(matrix)), matrix)


def test_convolution() -> None:
    kernel = np.random.default_rng(0).normal(size=(3, 2, 4, 5))
    matrix = MatrixView(kernel.shape, (0, 1, 2), (3,)).matrix(kernel)
    np.testing.assert_array_equal(matrix, kernel.reshape(1, 24, 5))


def test_depthwise() -> None:
    kernel = np.random.default_rng(0).normal(size=(3, 2, 4, 5))
    matrix = MatrixView(kernel.shape, (0, 1), (3,), (2,)).matrix(kernel)
    for channel in range(4):
        np.testing.assert_array_equal(matrix[channel], kernel[:, :, channel].reshape(6, 5))


def test_grouped() -> None:
    kernel = np.random.default_rng(0).normal(size=(3, 4, 6))
    matrix = MatrixView(kernel.shape, (0, 1), (2,), groups=3).matrix(kernel)
    for group in range(3):
        np.testing.assert_array_equal(matrix[group], kernel[:, :, 2 * group : 2 * group + 2].reshape(12, 2))


def test_grouped_with_several_output_axes() -> None:
    kernel = np.random.default_rng(0).normal(size=(3, 2, 6))
    matrix = MatrixView(kernel.shape, (0,), (1, 2), groups=2).matrix(kernel)
    for group in range(2):
        np.testing.assert_array_equal(matrix[group], kernel[:, :, 3 * group : 3 * group + 3].reshape(3, 6))


def test_transposed() -> None:
    table = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_array_equal(MatrixView(table.shape, (1,), (0,)).matrix(table)[0], table.T)


@pytest.mark.parametrize("axes", [((0,), ()), ((0, 1), (1,)), ((0,), (2,)), ((0, 0), (1,)), ((), ()), ((-2,), (1,))])
def test_axes_that_dont_name_each_once(axes: Any) -> None:
    with pytest.raises(ConfigError, match="name each of 2 once"):
        MatrixView((3, 4), *axes)


@pytest.mark.parametrize(
    ("outputs", "shared", "groups"), [((1,), (), 3), ((1,), (), 0), ((1,), (), -2), ((), (1,), 2), ((), (1,), 4)]
)
def test_groups_that_dont_divide(outputs: Any, shared: Any, groups: int) -> None:
    with pytest.raises(ConfigError, match=f"groups={groups}"):
        MatrixView((3, 4), (0,), outputs, shared, groups)


def test_other_shapes() -> None:
    view = MatrixView((3, 4), (0,), (1,))
    with pytest.raises(InputError, match=r"\(3, 4\); received \(4, 3\)"):
        view.matrix(np.zeros((4, 3)))
    with pytest.raises(InputError, match=r"\(1, 3, 4\); received \(3, 4\)"):
        view.tensor(np.zeros((3, 4)))
