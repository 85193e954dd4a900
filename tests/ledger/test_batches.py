from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qi.errors import ConfigError, InputError
from qi.ledger.batches import check_batch_size, collect, pairs, sample_count

X, Y = np.arange(6.0).reshape(3, 2), np.array([0, 1, 2])


def twice(x):
    return x * 2, x * 3


@pytest.mark.parametrize(
    ("data", "y", "count"),
    [
        (X, Y, 1),
        ((X, Y), None, 1),
        ((X, Y, np.ones(3)), None, 1),
        ([(X, Y), (X, Y, np.ones(3))], None, 2),
        (iter([(X, Y)]), None, 1),
        (([X, X], {"a": Y}), None, 1),
    ],
)
def test_every_way_to_hand_over_data(data, y, count):
    found = list(pairs(data, y))
    assert len(found) == count
    assert all(len(item) == 2 for item in found)


def test_other_data_go_through_the_callers_function():
    assert list(pairs("a data set", batches=lambda data: [(data, 1)])) == [("a data set", 1)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "received None; do: pass x and y"),
        (X, "received y=None"),
        ({"a": X}, "received y=None"),
        (7, "received data of type int"),
        ([X], "received a ndarray"),
        ((X,), "received a tuple of 1"),
        ([(X, Y, Y, Y)], "received a tuple of 4"),
    ],
)
def test_data_without_true_values_are_refused(data, message):
    with pytest.raises(InputError, match=message):
        list(pairs(data))


def test_batches_are_joined_whatever_holds_them():
    batches = [([X, X], {"a": Y, "b": [0, 1, 2]}), ([X[:1], X[:1]], {"a": Y[:1], "b": [0]})]
    truth, first, second = collect(batches, lambda x: (x[0], [x[0], {"z": x[1]}]))
    assert truth["a"].tolist() == truth["b"].tolist() == [0, 1, 2, 0]
    np.testing.assert_array_equal(first, np.concatenate([X, X[:1]]))
    np.testing.assert_array_equal(second[1]["z"], first)


def test_plain_lists_are_one_array():
    truth, first, second = collect([([[1.0], [2.0]], [0, 1])], lambda x: (x, [[3.0], [4.0]]))
    assert (truth.shape, first.shape, second.shape) == ((2,), (2, 1), (2, 1))


def test_empty_batches_are_skipped_but_some_sample_must_come():
    truth, *_ = collect([(X[:0], Y[:0]), (X, Y)], twice)
    assert truth.tolist() == [0, 1, 2]
    for empty in ([], [(X[:0], Y[:0])]):
        with pytest.raises(InputError, match="received empty data"):
            collect(empty, twice)


def test_lengths_must_agree():
    with pytest.raises(InputError, match="as many inputs as true values; received 3 and 2"):
        collect([(X, Y[:2])], twice)
    with pytest.raises(InputError, match="a prediction for each of 3 samples; received 1"):
        collect([(X, Y)], lambda x: (x, x[:1]))
    with pytest.raises(InputError, match=r"parts of y to be of one length; received \[2, 3\]"):
        sample_count({"a": Y, "b": Y[:2]}, "y")
    with pytest.raises(InputError, match="y with one entry per sample; received a float"):
        sample_count(3.0, "y")
    with pytest.raises(InputError, match="parts of x to be of one length"):
        sample_count({}, "x")


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "4", None])
def test_illegal_batch_sizes(size: Any) -> None:
    with pytest.raises(
        ConfigError, match=f"expected batch_size to be an integer of at least 1; received batch_size={size!r}"
    ):
        check_batch_size(size)
    assert check_batch_size(np.int64(3)) == 3
