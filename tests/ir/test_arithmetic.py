from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from qi.core import IntGrid, PerChannel, PerTensor, QParams
from qi.ir import Op, Tensor
from qi.ir.arithmetic import clipped, code_range, integer_sums, largest_sum, requantize_float, scale_of_sums, sum_axes
from qi.ir.linear import LINEAR
from tests.ir.graphs import act, codes_of, weight


def dense(w: Any, x_zero: int = 0, **attrs: Any) -> Op:
    w = np.asarray(w)
    constant = weight("w", w, np.full(w.shape[1], 0.5))
    inputs = [codes_of("x", w.shape[0], qparams=act(0.2, x_zero)), constant]
    return Op("dense", inputs, [codes_of("y", w.shape[1], qparams=act(0.1, 7))], {"activation": "none"} | attrs)


@pytest.mark.parametrize(
    ("activation", "y", "expected"),
    [
        ("none", act(0.1, 7), (-128, 127)),
        ("relu", act(0.1, 7), (7, 127)),
        ("relu", act(0.1, -128), (-128, 127)),
        ("relu6", act(0.1, 7), (7, 67)),
        ("relu6", act(6 / 255, -128), (-128, 127)),
        ("relu6", act(0.01, 0), (0, 127)),
        ("none", act(0.1, 0, bits=4), (-8, 7)),
        ("relu", act(0.1, -2, bits=4), (-2, 7)),
    ],
)
def test_codes_that_an_output_may_have(activation: str, y: Any, expected: tuple[int, int]) -> None:
    op = Op("dense", [], [codes_of("y", 1, qparams=y)], {"activation": activation})
    assert code_range(op) == expected
    found = clipped(op, np.float64([-1e9, 1e9]))
    assert (tuple(found), found.dtype) == (expected, np.int32)


def test_kinds_without_an_activation_use_the_whole_grid() -> None:
    assert code_range(Op("mean", [], [codes_of("y", 1)])) == (-128, 127)


def test_sums_run_over_all_axes_but_the_channels() -> None:
    assert {kind: sum_axes(kind) for kind in LINEAR} == {
        "conv2d": (0, 1, 2),
        "depthwise_conv2d": (0, 1),
        "conv2d_transpose": (0, 1, 3),
        "dense": (0,),
    }


@pytest.mark.parametrize(("x_zero", "farthest", "reach"), [(0, -128, 128), (-128, 127, 255), (100, -128, 228)])
def test_no_sum_is_larger_than_the_bound(x_zero: int, farthest: int, reach: int) -> None:
    op = dense([[3, -1], [-4, 2]], x_zero)
    assert largest_sum(op) == 7 * reach
    sums = integer_sums(op, np.array([[farthest, x_zero], [x_zero, farthest]]), np.asarray(op.inputs[1].data))
    assert np.abs(sums).tolist() == [[3 * reach, reach], [4 * reach, 2 * reach]]
    op.inputs.append(Tensor("b", (2,), "int32", data=np.int32([10, -5000])))
    assert largest_sum(op) == max(7 * reach + 10, 3 * reach + 5000)


def test_the_scale_of_sums_is_rounded_to_float32() -> None:
    x, w = codes_of("x", 2, qparams=act(0.1)), weight("w", np.ones((2, 3)), [0.1, 0.2, 0.3])
    expected = np.float32(0.1) * np.float32([0.1, 0.2, 0.3])
    found = scale_of_sums(x, w)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float32


@given(st.integers(-128, 127), st.integers(0, 2**32 - 1))
def test_sums_take_the_zero_point_off(zero_point: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, w = rng.integers(-128, 128, (3, 5)), rng.integers(-127, 128, (5, 2))
    bias = rng.integers(-(2**31), 2**31, 2)
    op = dense(w, zero_point)
    expected = (x - zero_point) @ w
    found = integer_sums(op, x.astype(np.int32), w.astype(np.int8))
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(
        integer_sums(op, x.astype(np.int32), w.astype(np.int8), bias.astype(np.int32)), expected + bias
    )


def test_sums_beyond_what_float32_holds_are_exact() -> None:
    w, x = (np.append(np.full(1100, 127), 1).reshape(shape) for shape in ((-1, 1), (1, -1)))
    exact = 1100 * 127 * 127 + 1
    assert int(np.float32(exact)) != exact
    assert integer_sums(dense(w), x, w).item() == exact


@pytest.mark.parametrize(
    ("total", "code"),
    [(0, 7), (1, 8), (-1, 6), (5, 12), (-135, -128), (-136, -128), (10_000, 127), (-10_000, -128)],
)
def test_a_sum_of_one_step_is_one_code(total: int, code: int) -> None:
    op = dense([[1]])  # 0.2 * 0.5 is the output's scale
    assert requantize_float(op, np.float64(total), scale_of_sums(*op.inputs)) == code


def test_halves_go_to_the_even_code() -> None:
    op = Op("dense", [], [codes_of("y", 1, qparams=act(1.0, 0))], {"activation": "none"})
    np.testing.assert_array_equal(
        requantize_float(op, np.float64([1, 3, 5, -1, -3]), np.float32(0.5)), [0, 2, 2, 0, -2]
    )


def test_the_step_back_is_done_in_float32() -> None:
    op = Op("dense", [], [codes_of("y", 1, qparams=act(0.3, 0))], {"activation": "none"})
    sums, scale = np.arange(-(2**20), 2**20).astype(np.float64), np.float32(3.1e-5)
    factor = np.float32(scale / np.float32(0.3))
    np.testing.assert_array_equal(
        requantize_float(op, sums, scale), np.clip(np.rint(np.float32(sums) * factor), -128, 127).astype(int)
    )
    wide = np.clip(np.rint(sums * (np.float64(scale) / np.float64(np.float32(0.3)))), -128, 127)
    assert (requantize_float(op, sums, scale) != wide).any()


@pytest.mark.parametrize("zeros", [3, [[3, -2]]])
def test_weights_may_have_zero_points(zeros: Any) -> None:
    """One for the tensor, or one for each channel."""
    op, z = dense([[3, -1], [-4, 2]], x_zero=1), np.asarray(zeros)
    granularity = PerTensor() if z.size == 1 else PerChannel(1)
    scale = np.full(z.shape, np.float32(0.5))
    op.inputs[1].qparams = QParams(scale, z, IntGrid(8), granularity)
    x, w = np.array([[5, -7]]), np.asarray(op.inputs[1].data)
    np.testing.assert_array_equal(integer_sums(op, x, w), (x - 1) @ (w.astype(int) - z))
    assert largest_sum(op) == 129 * np.abs(w.astype(int) - z).sum(axis=0).max()
