"""Arrays, arguments and files of parameters that no quantizer should take: refused with the reason, nothing changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qi.engine import (
    BitWidth,
    DynamicRangeCalibrator,
    Granularity,
    QuantizationAwareTraining,
    QuantizationConfig,
    QuantizationMode,
    QuantizationType,
    Quantizer,
    dequantize_file,
    load_quantized,
    quantize_file,
)
from qi.errors import QiError

CONFIG = QuantizationConfig()
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


CODES = np.zeros(X.shape, np.int8)
NAMES = {"layer_name": "a", "channel_dim": 0}
TO = {"target": "y.npz", "num_threads": 1, "progress": False}
CALLS: dict[str, dict[str, Any]] = {  # each with arguments that it takes
    "Quantizer": {"config": CONFIG, "statistics": None},
    "update_config": {"new_config": CONFIG},
    "should_quantize_layer": {"layer_name": "a"},
    "get_layer_quantization_params": {"layer_name": "a"},
    "calibrate": {"calibration_data": [X], "channel_dim": 0},
    "compute_scale_and_zero_point": {"data": X, "channel_idx": 0, "layer_name": "a"},
    "load_parameters": {"params": {"global_scale": 1.0}},
    "quantize": {"data": X, "validate": True, **NAMES, "out": CODES.copy(), "return_tensor": False, "num_threads": 1},
    "dequantize": {"data": CODES, **NAMES, "out": X.copy(), "num_threads": 1},
    "quantize_dequantize": {"data": X, **NAMES, "validate": True, "num_threads": 1},
    "hash_array": {"arr": X},
    "quantize_tensor": {"tensor": X, "config": CONFIG},
    "dequantize_tensor": {"quantized": Quantizer().quantize(X, return_tensor=True)},
    "compression_ratio": {"config": CONFIG},
    "quantization_error": {"original": X, "quantized": Quantizer().quantize(X, return_tensor=True)},
    "_validate_input": {"data": X},
    "_apply_requantization": {"quantized_data": CODES, "original_data": X},
    "_quantize_mixed_precision": {"data": X, **NAMES},
    "_dequantize_mixed_precision": {"data": CODES, **NAMES},
    "_quantize_per_channel": {"data": X, "channel_dim": 0},
    "_dequantize_per_channel": {"data": CODES, "channel_dim": 0},
    "QuantizationAwareTraining": {"simulate_quantization": True},
    "register_layer": {"layer_name": "a", "config": CONFIG},
    "fake_quantize": {"tensor": X, "layer_name": "a"},
    "get_config": {"layer_name": "a"},
    "collect": {"layer_name": "a", "tensor": X},
    "get_range": {"layer_name": "a"},
    "finalize": {"default_config": CONFIG},
    "finalize_params": {"default_config": CONFIG},
    "merge": {"other": DynamicRangeCalibrator()},
    "new": {"mode": "symmetric", "bit_width": "int8", "granularity": "per_tensor"},
    "from_dict": {"plain": {}},
    "sharing": {"channel_dim": 0},
    "should_quantize": {"layer_name": "a"},
    "for_layer": {"layer_name": "a"},
    "quantize_file": {"source": "x.npy", "config": QuantizationConfig(per_channel=True), "channel_dim": 0, **TO},
    "dequantize_file": {"source": "q.npz", **TO},
    "load_quantized": {"path": "q.npz"},
    **{
        kind.__name__: {"value": next(iter(kind))}
        for kind in (BitWidth, Granularity, QuantizationMode, QuantizationType)
    },
}
OPTIONAL = {"statistics", "channel_dim", "channel_idx", "layer_name", "out", "progress"}
NEEDED = ("register_layer", "fake_quantize", "get_config", "collect", "get_range")  # a name
TAKEN = {("Quantizer", "config", "None"), ("quantize_file", "config", "None"), ("fake_quantize", "tensor", "[]")}


def called(name: str) -> Any:
    """The function of this name, of an object that has what it needs."""
    config = QuantizationConfig(per_channel=True, enable_mixed_precision=True)
    quantizer, training, calibrator = Quantizer(config), QuantizationAwareTraining(), DynamicRangeCalibrator()
    quantizer.quantize(X)
    training.register_layer("a", CONFIG)
    calibrator.collect("a", X)
    free = [Quantizer, QuantizationAwareTraining, quantize_file, dequantize_file, load_quantized]
    free += [BitWidth, Granularity, QuantizationMode, QuantizationType]
    owners = [config, training, calibrator, quantizer]
    found = [function for function in free if function.__name__ == name]
    return (found + [getattr(owner, name) for owner in owners if hasattr(owner, name)])[0]


@pytest.mark.parametrize(("name", "argument"), [(name, argument) for name, own in CALLS.items() for argument in own])
def test_arguments_of_another_kind_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, argument: str
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X)
    quantize_file("x.npy", "q.npz")
    function, given = called(name), CALLS[name]
    for bad in (None, [], object(), "x"):
        if (bad is None and argument in OPTIONAL and name not in NEEDED) or (bad == "x" and argument == "layer_name"):
            continue
        if (name, argument, repr(bad)) in TAKEN:
            continue
        with pytest.raises(QiError, match=r"expected .*; received"):
            function(**{**given, argument: bad})


def test_every_public_call_is_tried() -> None:
    classes = (Quantizer, QuantizationAwareTraining, DynamicRangeCalibrator)
    public = {name for kind in classes for name in dir(kind) if name[0] != "_" and callable(getattr(kind, name))}
    without = {"clear_cache", "export_import_parameters", "export_parameters", "get_stats", "registered_layers"}
    assert public - without - {"reset", "reset_stats"} <= set(CALLS)
