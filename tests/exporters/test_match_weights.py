from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qi.core import PerChannel, PerGroup, PerTensor
from qi.errors import ConfigError
from qi.exporters.match_weights import common_bias, gains, least_likeness, likeness, weight_quantizer
from qi.exporters.vendor import Constant

SHAPE = (3, 3, 4, 8)


def weights(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rounded(array: np.ndarray, bits: int) -> np.ndarray:
    step = np.abs(array).max(axis=tuple(range(array.ndim - 1)), keepdims=True) / (2 ** (bits - 1) - 1)
    return np.asarray(np.rint(array / step) * step, np.float32)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_rounded_weights_are_alike_and_others_are_not(bits: int) -> None:
    own = weights()
    assert likeness(own, rounded(own, bits), (-1,)) >= least_likeness(own.size)
    assert likeness(own, weights(1), (-1,)) < 0.3 < least_likeness(own.size)


def test_gains_of_channels_change_no_likeness_but_signs_do() -> None:
    own, gain = weights(), np.linspace(0.1, 9, 8)
    assert likeness(own, own * gain, (-1,)) == pytest.approx(1)
    assert likeness(own, -own, (-1,)) == 0


def test_short_channels_tell_by_the_whole_only() -> None:
    own = weights(0, (2, 3))
    assert likeness(own, own * [1, -1, 1], (-1,)) < 0.9
    assert least_likeness(6) == 0.95


def test_zeros_are_like_zeros() -> None:
    assert likeness(np.zeros((2, 2)), np.zeros((2, 2)), (-1,)) == 1
    assert likeness(np.zeros((2, 2)), np.ones((2, 2)), (-1,)) == 0


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_is_no_gain(bits: int) -> None:
    assert gains(weights(), rounded(weights(), bits), (-1,), bits) is None


def test_one_gain_and_several_are_told_apart() -> None:
    own = weights()
    one = gains(own, rounded(own, 8) * 2, (-1,), 8)
    assert one is not None
    assert one.shape == (1, 1, 1, 1)
    assert float(one.reshape(())) == pytest.approx(0.5, rel=0.01)
    several = gains(own, own * np.linspace(1, 2, 8), (-1,), 8)
    assert several is not None
    np.testing.assert_allclose(several.reshape(-1), 1 / np.linspace(1, 2, 8), rtol=1e-6)


def constant(
    scale: Any, zero: Any = 0, dtype: str = "int8", bits: int = 8, shape: tuple[int, ...] = (4, 6)
) -> Constant:
    low, high = (0, 2**bits - 1) if dtype[0] == "u" else (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)
    codes = np.random.default_rng(0).integers(low, high + 1, shape).astype(dtype)
    scale = np.asarray(scale, np.float32)
    return Constant("w", codes, scale, np.broadcast_to(np.asarray(zero), scale.shape), bits)


CASES = {
    "tensor": (constant(np.full((1, 1), 0.1)), PerTensor()),
    "channel": (constant(np.linspace(0.1, 0.7, 6)[None]), PerChannel(1)),
    "rows": (constant(np.linspace(0.1, 0.7, 4)[:, None]), PerChannel(0)),
    "int4": (constant(np.linspace(0.1, 0.7, 6)[None], bits=4), PerChannel(1)),
    "uint8, symmetric": (constant(np.full((1, 1), 0.1), 128, "uint8"), PerTensor()),
    "uint8": (constant(np.full((1, 1), 0.1), 99, "uint8"), PerTensor()),
    "int8, asymmetric": (constant(np.linspace(0.1, 0.7, 6)[None], [np.arange(6)]), PerChannel(1)),
    "blocks": (constant(np.repeat(np.arange(1, 13).reshape(2, 6) / 7, 2, axis=0)), PerGroup(0, 2, 1)),
    "two axes": (constant(np.arange(1, 25).reshape(4, 6) / 7), PerGroup(0, 1, 1)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_quantizer_has_just_these_scales_and_gives_just_these_codes(case: str) -> None:
    weight, granularity = CASES[case]
    quantizer, real = weight_quantizer(weight)
    assert quantizer.granularity(2) == granularity
    params = quantizer.qparams(real.shape)
    scale, zero_point = params.expanded(real.shape)
    assert weight.scale is not None
    np.testing.assert_array_equal(np.broadcast_to(scale, real.shape), np.broadcast_to(weight.scale, real.shape))
    np.testing.assert_array_equal(quantizer(real), weight.real())
    codes = params.quantize(real).codes.astype(int) - zero_point
    assert weight.zero_point is not None
    np.testing.assert_array_equal(codes, weight.data.astype(int) - weight.zero_point)


def test_the_lowest_code_widens_the_grid() -> None:
    weight = constant(np.full((1, 1), 0.1))
    assert weight_quantizer(weight)[0].grid.narrow  # type: ignore[union-attr]
    weight.data[0, 0] = -128
    assert not weight_quantizer(weight)[0].grid.narrow  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("weight", "told"),
    [
        (Constant("w", np.zeros((2, 2), np.int32), np.ones((1, 1), np.float32), np.zeros((1, 1)), 32), "16 bits"),
        (Constant("w", np.zeros((2, 2), np.float32)), "with scales"),
        (constant(np.arange(1, 9).reshape(2, 2, 2), shape=(2, 2, 2)), "axes"),
    ],
)
def test_what_no_quantizer_has_is_refused(weight: Constant, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        weight_quantizer(weight)


def bias(codes: Any, scale: float) -> Constant:
    array = np.asarray(codes, np.int32)
    return Constant("b", array, np.full(1, scale, np.float32), np.zeros(1, np.int64), 32)


def test_the_bias_of_one_call_is_the_files_but_where_that_is_the_layers_own_rounded() -> None:
    given = [bias([3, -4], 0.5)]
    np.testing.assert_array_equal(common_bias(np.zeros(2), given), np.float32([1.5, -2.0]))
    np.testing.assert_array_equal(common_bias(np.array([1.4, -2.1]), given), np.float32([1.4, -2.1]))


def test_the_bias_of_several_calls_rounds_to_the_codes_of_each() -> None:
    own = np.float32([1.3, -0.77])
    given = [bias(np.rint(own / np.float32(s)), s) for s in (0.5, 0.013)]
    np.testing.assert_array_equal(common_bias(own, given), own)
    np.testing.assert_array_equal(common_bias(own + 9, given), given[1].real())
