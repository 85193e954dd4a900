from __future__ import annotations

import numpy as np
import pytest

from qi.ir import TARGETS, Op
from qi.ir.kinds import KINDS, kernel_of
from tests.ir.graphs import act, codes_of, real


def quantizer(scale: float, zero_point: int) -> Op:
    return Op("quantize", [real("x", 1)], [codes_of("q", 1, qparams=act(scale, zero_point))])


@pytest.mark.parametrize(
    ("target", "halves"), [("litert", [3, 5, 3, 1]), ("onnxruntime", [3, 5, 3, 1]), ("reference", [4, 5, 2, 1])]
)
def test_codes_are_nearest_and_clipped_with_halves_to_even_or_away(target: str, halves: list[int]) -> None:
    op = quantizer(0.5, 3)
    x = np.float32([0.25, 0.75, -0.25, -0.75])
    np.testing.assert_array_equal(kernel_of(op, target)(op, x), halves)
    x = np.float32([0.24, 0.26, -0.26, 1e9, -1e9, np.inf, -np.inf, 0.24999999])
    np.testing.assert_array_equal(kernel_of(op, target)(op, x), [3, 4, 2, 127, -128, 127, -128, 3])


def test_runtimes_divide_by_a_scale_each_in_its_own_way() -> None:
    differ = 0
    for scale in np.random.default_rng(0).uniform(0.01, 0.1, 50).astype(np.float32):
        op = quantizer(scale, 0)
        x = np.arange(-127.5, 128).astype(np.float32) * scale  # halfway between two codes
        litert, ort = (kernel_of(op, target)(op, x) for target in ("litert", "onnxruntime"))
        reciprocal = np.float32(1 / np.float64(scale))
        np.testing.assert_array_equal(litert, np.clip(np.rint(x * reciprocal), -128, 127))
        np.testing.assert_array_equal(ort, np.clip(np.rint(x / scale), -128, 127))
        differ += int((litert != ort).sum())
    assert differ > 50


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_real_numbers_are_distances_from_the_zero_point(target: str) -> None:
    op = Op("dequantize", [codes_of("q", 3, qparams=act(0.25, -128))], [real("x", 3)])
    found = kernel_of(op, target)(op, np.int32([-128, -127, 127]))
    np.testing.assert_array_equal(found, np.float32([0, 0.25, 63.75]))
    assert found.dtype == np.float32


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_every_code_comes_back(target: str) -> None:
    codes = np.arange(-128, 128)
    for scale in (np.float32(0.1), np.float32(1 / 3), np.float32(7e-5), np.float32(1 / 256)):
        there, back = quantizer(scale, -5), Op("dequantize", [codes_of("q", 1, qparams=act(scale, -5))], [real("y", 1)])
        real_numbers = kernel_of(back, target)(back, codes)
        np.testing.assert_array_equal(kernel_of(there, target)(there, real_numbers), codes)


def test_in_real_numbers_both_do_nothing() -> None:
    x = np.float32([1.25])
    assert KINDS.get("quantize").real(None, x) is KINDS.get("dequantize").real(None, x) is x


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_codes_of_another_scale_are_multiplied(target: str) -> None:
    op = Op("quantize", [codes_of("x", 1, qparams=act(0.5, -3))], [codes_of("y", 1, qparams=act(0.125, 7))])
    codes = np.arange(-128, 128)
    expected = np.clip((codes + 3) * 4 + 7, -128, 127)
    np.testing.assert_array_equal(kernel_of(op, target)(op, codes.astype(np.int32)), expected)
    op.y.qparams = act(0.3, 7)  # 5 / 3 is never half
    expected = np.clip(np.rint((codes + 3) * 5 / 3) + 7, -128, 127)
    np.testing.assert_array_equal(kernel_of(op, target)(op, codes.astype(np.int32)), expected)
