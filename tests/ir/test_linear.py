from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from qi.ir import Op
from qi.ir.kinds import KINDS
from qi.ir.linear import LINEAR, accumulate, activated, carrier

sizes, small = st.integers(1, 5), st.integers(1, 3)
pairs = st.tuples(small, small)


def brute_force(x: np.ndarray, w: np.ndarray, strides: Any, pads: Any, dilation: Any, groups: int) -> np.ndarray:
    """A convolution by its definition: one product at a time, in integers."""
    (sh, sw), (dh, dw), (top, bottom, left, right) = strides, dilation, pads
    n, height, width, _ = x.shape
    kh, kw, depth, filters = w.shape
    rows = (height + top + bottom - (kh - 1) * dh - 1) // sh + 1
    columns = (width + left + right - (kw - 1) * dw - 1) // sw + 1
    y = np.zeros((n, rows, columns, filters), np.int64)
    for i, j, f, a, b, c in np.ndindex(rows, columns, filters, kh, kw, depth):
        row, column = i * sh + a * dh - top, j * sw + b * dw - left
        if 0 <= row < height and 0 <= column < width:
            channel = f // (filters // groups) * depth + c
            y[:, i, j, f] += x[:, row, column, channel].astype(np.int64) * int(w[a, b, c, f])
    return y


def drawn(data: st.DataObject, *shape: int) -> np.ndarray:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    return rng.integers(-128, 128, shape)


def window(
    data: st.DataObject, image: tuple[int, int], kernel: tuple[int, int], dilation: tuple[int, int]
) -> list[int]:
    """Pads with which the window fits into the image once at least."""
    pads: list[int] = []
    for n, k, d in zip(image, kernel, dilation, strict=True):
        before, after = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
        pads += [before, after + max(0, (k - 1) * d + 1 - n - before - after)]
    return pads


@given(st.tuples(sizes, sizes), pairs, pairs, pairs, st.tuples(small, small, small), st.data())
def test_convolution_is_what_its_definition_says(
    image: Any, kernel: Any, strides: Any, dilation: Any, channels: Any, data: st.DataObject
) -> None:
    groups, depth, filters = channels
    pads = window(data, image, kernel, dilation)
    x, w = drawn(data, 2, *image, groups * depth), drawn(data, *kernel, depth, groups * filters)
    attrs = {"strides": strides, "pads": pads, "dilation": dilation, "groups": groups}
    for dtype in (np.float32, np.int64):
        found = accumulate(Op("conv2d", [], [], attrs), x.astype(dtype), w.astype(dtype))
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, brute_force(x, w, **attrs))


@given(st.tuples(sizes, sizes), pairs, pairs, pairs, st.tuples(small, small), st.data())
def test_a_depthwise_convolution_has_a_group_for_each_channel(
    image: Any, kernel: Any, strides: Any, dilation: Any, channels: Any, data: st.DataObject
) -> None:
    depth, multiplier = channels
    attrs = {"strides": strides, "pads": window(data, image, kernel, dilation), "dilation": dilation}
    x, w = drawn(data, 2, *image, depth), drawn(data, *kernel, depth * multiplier)
    found = accumulate(Op("depthwise_conv2d", [], [], attrs), x.astype(np.float32), w.astype(np.float32))
    expected = brute_force(x, w[:, :, None], **attrs, groups=depth)
    np.testing.assert_array_equal(found, expected)


@given(st.tuples(small, small), pairs, pairs, pairs, st.data())
def test_a_transposed_convolution_spreads_each_input(
    image: Any, kernel: Any, strides: Any, dilation: Any, data: st.DataObject
) -> None:
    full = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(image, strides, kernel, dilation, strict=True)]
    pads: list[int] = []
    for n in full:  # what is cut off before and after; less than nothing after: rows that hold no sums
        before = data.draw(st.integers(0, (n - 1) // 2))
        pads += [before, data.draw(st.integers(-2, n - 1 - before))]
    x, w = drawn(data, 2, *image, 2), drawn(data, *kernel, 3, 2)
    attrs = {"strides": strides, "pads": pads, "dilation": dilation}
    found = accumulate(Op("conv2d_transpose", [], [], attrs), x.astype(np.float32), w.astype(np.float32))
    wide = np.zeros((2, full[0] + 2, full[1] + 2, 3), np.int64)
    for i, j, a, b in np.ndindex(*image, *kernel):
        wide[:, i * strides[0] + a * dilation[0], j * strides[1] + b * dilation[1]] += x[:, i, j] @ w[a, b].T
    expected = wide[:, pads[0] : full[0] - pads[1], pads[2] : full[1] - pads[3]]
    np.testing.assert_array_equal(found, expected)


@given(st.lists(small, min_size=0, max_size=2), sizes, sizes, st.data())
def test_a_product_takes_any_rank(shape: list[int], depth: int, units: int, data: st.DataObject) -> None:
    x, w = drawn(data, 2, *shape, depth), drawn(data, depth, units)
    found = accumulate(Op("dense", [], [], {}), x.astype(np.float64), w.astype(np.float64))
    np.testing.assert_array_equal(found, np.einsum("...i,ij->...j", x, w))


@pytest.mark.parametrize(("count", "kind"), [(1040, "float32"), (1041, "float64")])
@pytest.mark.parametrize("dtype", [np.int8, np.int32])
def test_float64_carries_what_float32_may_round(count: int, kind: str, dtype: Any) -> None:
    x = np.full((1, count), 127, dtype)  # 1040 * 127 ** 2 is the last multiple below 2 ** 24
    w = np.full((count, 1), 127, dtype)
    assert carrier(x, w, (0,)) == carrier(-x, w, (0,)) == carrier(x, -w, (0,)) == kind


def test_the_least_code_counts_with_its_size() -> None:
    x, w = np.full((1, 1100), -128, np.int8), np.full((1100, 1), -128, np.int8)
    assert carrier(x, w, (0,)) == np.float64
    assert carrier(x, w[:100], (0,)) == np.float32


def test_only_the_widest_channel_counts() -> None:
    w = np.zeros((3, 3, 64, 8), np.int8)
    w[..., 0] = 127
    x = np.full((1, 3, 3, 64), 127, np.int32)
    assert carrier(x, w, (0, 1, 2)) == np.float32
    assert carrier(2 * x, w, (0, 1, 2)) == np.float64


def test_float32_is_wrong_where_it_is_not_chosen() -> None:
    x = np.append(np.full(1100, 127), 1).astype(np.int32)[None]
    w = x.T.copy()
    exact = int((x @ w).item())
    op = Op("dense", [], [], {})
    assert carrier(x, w, (0,)) == np.float64
    assert int(accumulate(op, x.astype(np.float64), w.astype(np.float64)).item()) == exact
    assert int(accumulate(op, x.astype(np.float32), w.astype(np.float32)).item()) != exact


def test_nothing_to_sum_fits_anything() -> None:
    assert carrier(np.zeros((0, 3), np.int32), np.zeros((3, 2)), (0,)) == np.float32


@pytest.mark.parametrize(("activation", "expected"), [("none", [-1, 3, 7]), ("relu", [0, 3, 7]), ("relu6", [0, 3, 6])])
@pytest.mark.parametrize("kind", sorted(LINEAR))
def test_in_real_numbers_bias_and_activation_are_part_of_it(kind: str, activation: str, expected: list[float]) -> None:
    attrs = {"strides": [1, 1], "pads": [0] * 4, "dilation": [1, 1], "groups": 1, "activation": activation}
    shape = {"dense": (1, 3), "depthwise_conv2d": (1, 1, 3), "conv2d_transpose": (1, 1, 3, 1)}.get(kind, (1, 1, 1, 3))
    op = Op(kind, [], [], attrs)
    x, w = np.full((1, 1) if kind == "dense" else (1, 1, 1, 1), 2, np.float32), np.ones(shape, np.float32)
    found = KINDS.get(kind).real(op, x, w, np.float32([-3, 1, 5]))
    np.testing.assert_array_equal(found.reshape(-1), expected)
    assert found.dtype == np.float32
    without = KINDS.get(kind).real(op, x, w)
    np.testing.assert_array_equal(without.reshape(-1), [2, 2, 2])


def test_relu_lets_all_large_numbers_pass() -> None:
    op = Op("dense", [], [], {"activation": "relu"})
    np.testing.assert_array_equal(activated(op, np.float32([3e38, np.inf, -np.inf])), np.float32([3e38, np.inf, 0]))
