from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qi.ir import Op
from qi.ir.elementwise import FUNCTIONS
from qi.ir.kinds import KINDS

torch = pytest.importorskip("torch")
functional = torch.nn.functional

X = np.concatenate([np.linspace(-12, 12, 97), [-1e4, -100, -88.8, 88.8, 100, 1e4, 3, -3, 0.5, -0.5]]).astype(np.float32)


def real(kind: str, *arrays: Any, **attrs: Any) -> np.ndarray:
    return KINDS.get(kind).real(Op(kind, [], [], attrs), *arrays)


def close(found: np.ndarray, expected: Any, tolerance: float = 1e-6) -> None:
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.asarray(expected), rtol=tolerance, atol=tolerance)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


ORACLES: dict[str, Any] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "elu": lambda x: functional.elu(x, 0.7),
    "leaky_relu": lambda x: functional.leaky_relu(x, 0.7),
    "hard_sigmoid": functional.hardsigmoid,
    "hard_swish": functional.hardswish,
    "exp": torch.exp,
    "abs": torch.abs,
    "negative": torch.neg,
    "square": torch.square,
    "softplus": lambda x: functional.softplus(x, threshold=40),
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "log": torch.log,
}
POSITIVE = {"sqrt", "rsqrt", "log"}


def test_every_function_is_compared() -> None:
    assert set(FUNCTIONS.names()) <= set(ORACLES)


@pytest.mark.parametrize("name", FUNCTIONS.names())
def test_functions_of_one_number(name: str) -> None:
    x = X[X <= 88] if name == "exp" else X
    x = np.abs(x) + np.float32(0.01) if name in POSITIVE else x
    found = real("unary", x, function=name, alpha=0.7)
    assert found.shape == x.shape
    close(found, ORACLES[name](torch.from_numpy(x.astype(np.float64))), 2e-6)


def test_numbers_far_out_give_limits_without_a_warning() -> None:
    x = np.float32([-1e30, -200, 200, 1e30])
    np.testing.assert_array_equal(real("unary", x, function="sigmoid", alpha=None), [0, 0, 1, 1])
    np.testing.assert_array_equal(real("unary", x, function="silu", alpha=None), [0, 0, 200, np.float32(1e30)])
    np.testing.assert_array_equal(real("unary", x, function="tanh", alpha=None), [-1, -1, 1, 1])


@pytest.mark.parametrize(
    ("kind", "function"),
    [("add", np.add), ("sub", np.subtract), ("mul", np.multiply), ("div", np.divide)],
)
def test_arithmetic_broadcasts_and_takes_an_activation(kind: str, function: Any) -> None:
    a, b = normal(2, 3, 4) * 5, normal(3, 1, seed=1)
    expected = function(a, b)
    close(real(kind, a, b, activation="none"), expected)
    close(real(kind, a, b, activation="relu"), np.maximum(expected, 0))
    close(real(kind, a, b, activation="relu6"), np.clip(expected, 0, 6))


def test_the_larger_and_the_smaller() -> None:
    a, b = normal(5), normal(5, seed=1)
    close(real("maximum", a, b), np.where(a > b, a, b))
    close(real("minimum", a, b), np.where(a > b, b, a))


@pytest.mark.parametrize(("top", "expected"), [(None, [0, 0, 3, 9]), (6, [0, 0, 3, 6]), (1.5, [0, 0, 1.5, 1.5])])
def test_relu_has_a_bound_of_its_own(top: float | None, expected: list[float]) -> None:
    close(real("relu", np.float32([-2, 0, 3, 9]), max_value=top), expected)


def test_prelu_has_a_slope_for_each_element() -> None:
    x, alpha = normal(3, 4, 2), normal(4, 2, seed=1)
    close(real("prelu", x, alpha), np.where(x > 0, x, x * alpha))


@pytest.mark.parametrize("axis", [1, 2])
def test_softmax_of_any_size(axis: int) -> None:
    x = normal(2, 3, 5) * 50 + 1000
    close(real("softmax", x, axis=axis), torch.softmax(torch.from_numpy(x), axis))


@pytest.mark.parametrize("keepdims", [True, False])
def test_mean_over_some_axes(keepdims: bool) -> None:
    x = normal(2, 3, 4, 5)
    close(real("mean", x, axes=[1, 2], keepdims=keepdims), x.astype(np.float64).mean((1, 2), keepdims=keepdims))


@pytest.mark.parametrize(("pool", "stride", "pad"), [(2, 2, 0), (3, 2, 1), (3, 1, 1)])
def test_an_average_counts_what_lies_inside(pool: int, stride: int, pad: int) -> None:
    x = normal(2, 7, 6, 3)
    oracle = functional.avg_pool2d(
        torch.from_numpy(x.transpose(0, 3, 1, 2)), pool, stride, pad, count_include_pad=False
    )
    found = real("avg_pool2d", x, pool=[pool] * 2, strides=[stride] * 2, pads=[pad] * 4)
    close(found, oracle.numpy().transpose(0, 2, 3, 1))


@pytest.mark.parametrize("size", [(6, 8), (9, 4), (3, 4), (5, 7), (2, 2)])
def test_bilinear_resizing_has_half_pixel_centres(size: tuple[int, int]) -> None:
    x = normal(2, 3, 4, 5)
    oracle = functional.interpolate(torch.from_numpy(x.transpose(0, 3, 1, 2)), size, mode="bilinear")
    found = real("resize_bilinear", x, size=list(size))
    close(found, oracle.numpy().transpose(0, 2, 3, 1), 3e-6)


@pytest.mark.parametrize("axes", [[2], [1, 2]])
@pytest.mark.parametrize("weights", [0, 1, 2])
def test_layer_normalization(axes: list[int], weights: int) -> None:
    x = normal(2, 3, 8) * 3 + 5
    shape = x.shape[axes[0] :]
    given = [normal(*shape, seed=seed + 1) for seed in range(weights)]
    oracle = functional.layer_norm(*map(torch.from_numpy, (x,)), shape, *map(torch.from_numpy, given), eps=1e-3)
    close(real("layer_norm", x, *given, axes=axes, epsilon=1e-3), oracle, 3e-6)


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_products_of_matrices(transpose_a: bool, transpose_b: bool) -> None:
    a, b = normal(2, 3, 4, 5), normal(2, 3, 5, 6, seed=1)
    found = real(
        "batch_matmul",
        np.swapaxes(a, 2, 3) if transpose_a else a,
        np.swapaxes(b, 2, 3) if transpose_b else b,
        transpose_a=transpose_a,
        transpose_b=transpose_b,
    )
    close(found, np.einsum("abij,abjk->abik", a, b), 2e-6)


def test_rms_normalization() -> None:
    rng = np.random.default_rng(0)
    x, gamma = rng.normal(size=(5, 4, 6)).astype(np.float32), rng.normal(size=6).astype(np.float32)
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(axis=(1, 2), keepdims=True) + 1e-3) * gamma
    close(real("rms_norm", x, gamma, axes=[1, 2], epsilon=1e-3), expected, 3e-6)
    close(real("rms_norm", x, axes=[1, 2], epsilon=1e-3), expected / gamma, 3e-5)
