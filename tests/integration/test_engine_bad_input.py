"""Arrays, arguments and files of parameters that no quantizer should take: refused with the reason, nothing changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qi.engine import DynamicRangeCalibrator, QuantizationConfig, Quantizer
from qi.errors import QiError

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
FIELDS = [
    {},
    {"symmetric": False, "quantization_type": "uint8"},
    {"per_channel": True},
    {"use_percentile": True},
    {"outlier_threshold": 2.0},
    {"enable_requantization": True},
    {"quantization_type": "float16"},
    {"quantization_type": "none"},
]
each_configuration = pytest.mark.parametrize("fields", FIELDS, ids=str)

NOT_NUMBERS = {
    "object": np.array([1.0, None]),
    "complex": np.array([1j, 2.0]),
    "structured": np.zeros(2, [("a", "f4"), ("b", "i4")]),
    "str": np.array(["1.0", "2.0"]),
    "bytes": np.array([b"1.0"]),
    "datetime": np.array(["2026-01-01"], "M8[D]"),
    "timedelta": np.array([5], "m8[s]"),
    "void": np.zeros(2, "V8"),
    "empty of objects": np.array([], object),
    "list": [1.0, 2.0],
    "number": 1.0,
    "none": None,
    "dict": {},
}


def made(**fields: Any) -> Quantizer:
    quantizer = Quantizer(QuantizationConfig(**fields))
    if quantizer.config.quantization_type.integer:
        quantizer.quantize(X)
    quantizer.reset_stats()
    return quantizer


def everything(quantizer: Quantizer) -> tuple[Any, ...]:
    return quantizer._state, dict(quantizer._last), quantizer.get_stats(), dict(quantizer._value_cache)


@each_configuration
@pytest.mark.parametrize("name", NOT_NUMBERS)
def test_what_holds_no_real_numbers(fields: dict[str, Any], name: str) -> None:
    quantizer, bad = made(**fields), NOT_NUMBERS[name]
    before = everything(quantizer)
    uses = [quantizer.quantize, quantizer.quantize_dequantize, quantizer.dequantize, quantizer._validate_input]
    uses += [quantizer.compute_scale_and_zero_point, lambda x: quantizer.quantize(x, out=np.empty(2, np.int8))]
    uses += [lambda x: quantizer.calibrate([X, x])] if quantizer.config.quantization_type.integer else []
    for use in uses:
        with pytest.raises(QiError, match="expected") as caught:
            use(bad)
        assert isinstance(caught.value, TypeError)
    assert everything(quantizer) == before
    with pytest.raises(TypeError):
        DynamicRangeCalibrator().collect("a", bad)


@each_configuration
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 2)], ids=str)
def test_empty_arrays(fields: dict[str, Any], shape: tuple[int, ...]) -> None:
    quantizer = made(**fields)
    codes = quantizer.quantize(np.empty(shape, np.float32))
    assert codes.shape == quantizer.dequantize(codes).shape == shape
    assert quantizer.quantize_dequantize(np.empty(shape)).shape == shape
    assert quantizer.get_stats()["total_values"] == 0


@each_configuration
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int32", "bool"])
def test_arrays_without_dimensions(fields: dict[str, Any], dtype: str) -> None:
    quantizer = made(**fields)
    for one in (np.ones((), dtype), np.dtype(dtype).type(1)):
        codes = quantizer.quantize(one)
        assert codes.shape == ()
        assert quantizer.dequantize(codes) == quantizer.quantize_dequantize(one) == 1.0


@each_configuration
def test_read_only_and_strided_arrays_stay_as_they_are(fields: dict[str, Any]) -> None:
    fixed = np.arange(24.0).reshape(4, 6).astype(np.float32)
    fixed.flags.writeable = False
    for view in (fixed, fixed[::2, ::-3], fixed.T, np.broadcast_to(fixed[0], (5, 6))):
        before = view.tobytes()
        quantizer = made(**fields)
        codes = quantizer.quantize(view)
        np.testing.assert_array_equal(codes, made(**fields).quantize(view.copy()))
        np.testing.assert_array_equal(quantizer.dequantize(codes), made(**fields).quantize_dequantize(view.copy()))
        assert view.tobytes() == before


def test_huge_numbers_and_tiny_ones() -> None:
    greatest, least = np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal
    for fields in FIELDS[:6]:
        for x in ([greatest, -greatest], [greatest, 0], [least, -least], [least, 0], [greatest, least]):
            quantizer = made(**fields)
            found = quantizer.quantize_dequantize(np.float32([x, x]))
            assert np.isfinite(found).all()
            assert np.abs(found - np.float32([x, x])).max() <= max(abs(v) for v in x) * 0.01 + 2e-38


def test_an_array_that_looks_huge() -> None:
    huge = np.broadcast_to(np.float32([1.0, -1.0]), (50_000, 2))  # eight bytes
    quantizer = Quantizer()
    assert quantizer.quantize(huge)[[0, -1]].tolist() == [[127, -127]] * 2
    with pytest.raises((MemoryError, ValueError)):
        Quantizer().quantize(np.broadcast_to(np.float32(1), (1 << 62,)))


@pytest.mark.parametrize("dim", [2, -3, 99, "0", 0.5, True, [0]], ids=str)
def test_channel_dimensions_that_there_are_not(dim: Any) -> None:
    quantizer = made(per_channel=True)
    codes = quantizer.quantize(X)
    for use in (
        lambda: quantizer.quantize(X, channel_dim=dim),
        lambda: quantizer.quantize_dequantize(X, channel_dim=dim),
        lambda: quantizer.dequantize(codes, channel_dim=dim),
        lambda: quantizer.calibrate([X], channel_dim=dim),
    ):
        with pytest.raises(ValueError, match="expected"):
            use()


@pytest.mark.parametrize("bad", [5, 0.5, ["a"], {"a": 1}], ids=str)
def test_names_of_layers_that_are_none(bad: Any) -> None:
    quantizer = made(enable_mixed_precision=True, mixed_precision_layers=["a"])
    codes = np.int8([1])
    for use in (
        lambda: quantizer.quantize(X, layer_name=bad),
        lambda: quantizer.dequantize(codes, layer_name=bad),
        lambda: quantizer.should_quantize_layer(bad),
        lambda: quantizer.get_layer_quantization_params(bad),
        lambda: quantizer.compute_scale_and_zero_point(X, layer_name=bad),
    ):
        with pytest.raises(TypeError):
            use()


@pytest.mark.parametrize("bad", ["a", 1.5, 10**30, [0]], ids=str)
def test_channel_indices_that_are_none(bad: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="expected channel_idx"):
        made().compute_scale_and_zero_point(X, bad)


def test_codes_beyond_the_grid() -> None:
    quantizer = made(quantization_type="int4")
    for bad in (np.int8([8]), np.int64([-9]), np.uint64([2**64 - 1])):
        with pytest.raises(ValueError, match="expected codes of INT4 with 4 bits, -8 to 7"):
            quantizer.dequantize(bad)
    channels = made(per_channel=True)
    with pytest.raises(ValueError, match="expected scales of shape"):
        channels.dequantize(np.zeros((5, 4), np.int8))
