from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qi.ir import Op
from qi.ir.kinds import KINDS
from qi.ir.moves import strided

X = np.arange(2 * 3 * 4 * 2).reshape(2, 3, 4, 2)


def moved(kind: str, *arrays: np.ndarray, fill: float = 0, **attrs: Any) -> np.ndarray:
    return KINDS.get(kind).real(Op(kind, [], [], attrs), *arrays, fill=fill)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
@pytest.mark.parametrize(
    ("kind", "attrs", "expected"),
    [
        ("reshape", {"shape": [None, 6, 4]}, X.reshape(2, 6, 4)),
        ("reshape", {"shape": [None, 1, 24]}, X.reshape(2, 1, 24)),
        ("transpose", {"perm": [0, 3, 1, 2]}, np.moveaxis(X, 3, 1)),
        ("slice", {"begin": [0, 1, 0, 1], "end": [None, 3, 4, 2], "strides": [1, 1, 2, 1]}, X[:, 1:, ::2, 1:]),
        ("reverse", {"axis": 2}, X[:, :, ::-1]),
        ("max", {"axes": [1, 2], "keepdims": False}, X[:, 2, 3]),
        ("max", {"axes": [3], "keepdims": True}, X[..., 1:]),
        ("resize_nearest", {"factors": [2, 3]}, np.kron(X, np.ones((1, 2, 3, 1)))),
        ("tile", {"multiples": [1, 2, 1, 1]}, np.concatenate([X, X], 1)),
        ("broadcast", {"shape": [None, 3, 4, 2]}, X),
    ],
)
def test_each_kind_moves_values_as_it_says(kind: str, attrs: Any, expected: np.ndarray, dtype: Any) -> None:
    found = moved(kind, X.astype(dtype), fill=-7, **attrs)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == dtype


def test_gaps_are_filled_with_what_stands_for_zero() -> None:
    found = moved("pad", X, fill=-3, pads=[[0, 0], [1, 0], [0, 2], [0, 0]])
    np.testing.assert_array_equal(found[:, 1:, :4], X)
    assert found.shape == (2, 4, 6, 2)
    assert (found[:, 0] == -3).all()
    assert (found[:, :, 4:] == -3).all()


def test_concatenation_takes_any_number() -> None:
    np.testing.assert_array_equal(moved("concat", X, axis=1), X)
    np.testing.assert_array_equal(moved("concat", X, -X, X, axis=3), np.concatenate([X, -X, X], 3))


@pytest.mark.parametrize("x", [np.int32([-128, -5]), np.float32([-1e30, -5])])
def test_what_lies_outside_of_an_image_is_never_the_largest(x: np.ndarray) -> None:
    attrs = {"pool": [1, 2], "strides": [1, 1], "pads": [0, 0, 1, 1]}
    found = moved("max_pool2d", x.reshape(1, 1, 2, 1), fill=0, **attrs)
    np.testing.assert_array_equal(found.reshape(-1), [x[0], x[1], x[1]])


def test_broadcasting_repeats_along_sizes_of_one() -> None:
    np.testing.assert_array_equal(
        moved("broadcast", X[:, :1, :, :1], shape=[None, 3, 4, 2]), np.tile(X[:, :1, :, :1], (1, 3, 1, 2))
    )


def test_embedding_picks_rows() -> None:
    table = np.int32([[1, 2], [3, 4], [5, 6]])
    np.testing.assert_array_equal(moved("embedding", np.int32([[2, 0]]), table), [[[5, 6], [1, 2]]])


def test_a_slice_may_be_open() -> None:
    op = Op("slice", [], [], {"begin": [0, 2], "end": [None, 5], "strides": [1, 3]})
    assert strided(op) == (slice(0, None, 1), slice(2, 5, 3))
