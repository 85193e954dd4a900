"""Seed 000, the quantizer module: what it says of each method. See `test_000_quantizer.py` for the rest.

The docstring of each test is the line that it checks, word for word; the last test finds it in the seed.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qi.engine import QuantizationConfig, QuantizationMode, QuantizationType, Quantizer

rng = np.random.default_rng(0)
DATA = rng.normal(size=(10, 20)).astype(np.float32)
NAMES = ["_qmin", "_qmax", "_qrange", "_qtype"]


def make(**fields: Any) -> Quantizer:
    return Quantizer(QuantizationConfig(**fields))


def parameters(name: str) -> dict[str, Any]:
    """A method's own parameters and their defaults, without those that QI adds by keyword."""
    found = inspect.signature(getattr(Quantizer, name)).parameters.values()
    return {p.name: p.default for p in found if p.name != "self" and p.kind is not p.KEYWORD_ONLY}


REQUIRED = inspect.Parameter.empty
SIGNATURES = {
    "hash_array": {"arr": REQUIRED},
    "_setup_quantization_ranges": {},
    "_initialize_buffers": {},
    "_init_mixed_precision": {},
    "update_config": {"new_config": REQUIRED},
    "get_config": {},
    "get_stats": {},
    "clear_cache": {},
    "export_import_parameters": {},
    "load_parameters": {"params": REQUIRED},
    "calibrate": {"calibration_data": REQUIRED},
    "reset_stats": {},
    "_validate_input": {"data": REQUIRED},
    "compute_scale_and_zero_point": {"data": REQUIRED, "channel_idx": None, "layer_name": None},
    "get_layer_quantization_params": {"layer_name": REQUIRED},
    "should_quantize_layer": {"layer_name": REQUIRED},
    "_apply_requantization": {"quantized_data": REQUIRED, "original_data": REQUIRED},
    "_quantize_mixed_precision": {"data": REQUIRED, "layer_name": REQUIRED, "channel_dim": None},
    "_dequantize_mixed_precision": {"data": REQUIRED, "layer_name": REQUIRED, "channel_dim": None},
    "quantize": {"data": REQUIRED, "validate": True, "channel_dim": None, "layer_name": None},
    "dequantize": {"data": REQUIRED, "channel_dim": None, "layer_name": None},
    "quantize_dequantize": {"data": REQUIRED, "channel_dim": None, "layer_name": None},
    "_quantize_per_channel": {"data": REQUIRED, "channel_dim": None},
    "_dequantize_per_channel": {"data": REQUIRED, "channel_dim": None},
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_parameters_and_defaults(name: str) -> None:
    """**Parameters**"""
    found = parameters(name)
    assert list(found.items())[: len(SIGNATURES[name])] == list(SIGNATURES[name].items())
    assert all(default is not REQUIRED for default in list(found.values())[len(SIGNATURES[name]) :])


@pytest.mark.parametrize("name", [name for name in SIGNATURES if not name.startswith("_")])
def test_methods_are_documented(name: str) -> None:
    """**Description**"""
    assert len(inspect.getdoc(getattr(Quantizer, name)) or "") > 15


# --- hash_array ---


def test_hash_array() -> None:
    """`str`: String hash representation of the array."""
    hashed = Quantizer.hash_array(np.array([1, 2, 3]))
    assert isinstance(hashed, str)
    assert hashed == Quantizer.hash_array(np.array([1, 2, 3]))
    others = [np.array([1, 2, 4]), np.array([[1, 2, 3]]), np.array([1, 2, 3], np.int8), np.array([1.0, 2.0, 3.0])]
    assert len({hashed, *map(Quantizer.hash_array, others)}) == 5


@pytest.mark.parametrize(
    "bad", [[1, 2, 3], "abc", 5, None, np.array([object()])], ids=lambda value: type(value).__name__
)
def test_hash_array_raises(bad: Any) -> None:
    """`TypeError`: If input is not a numpy array."""
    with pytest.raises(TypeError, match="expected a numpy array"):
        Quantizer.hash_array(bad)


# --- ranges, buffers, mixed precision ---


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (-128, 127, 256, "int8")),
        ({"num_bits": 6}, (-32, 31, 64, "int8")),
        ({"quantization_type": "uint8"}, (0, 255, 256, "uint8")),
        ({"quantization_type": "int16"}, (-32768, 32767, 65536, "int16")),
        ({"quantization_type": "int4"}, (-8, 7, 16, "int8")),
        ({"quantization_type": "mixed"}, (-128, 127, 256, "int8")),
        ({"quantization_type": "float16"}, (-65504, 65504, 65536, "float16")),
    ],
    ids=str,
)
def test_setup_quantization_ranges(fields: dict[str, Any], expected: tuple[Any, ...]) -> None:
    """Sets up the range values based on quantization type and bit width."""
    quantizer = make(**fields)
    assert quantizer._setup_quantization_ranges() is None
    assert tuple(getattr(quantizer, name) for name in NAMES) == expected


def test_setup_quantization_ranges_raises() -> None:
    """`ValueError`: If unsupported quantization type is specified."""
    with pytest.raises(ValueError, match="expected QuantizationType to be one of"):
        make(quantization_type="int128")


def test_initialize_buffers() -> None:
    """Initializes preallocated buffers for improved performance during quantization."""
    quantizer = make(buffer_size=100, quantization_type="int16")
    assert quantizer._initialize_buffers() is None
    assert (quantizer._input_buffer.dtype, quantizer._output_buffer.dtype) == (np.float32, np.int16)
    assert quantizer._input_buffer is quantizer._input_buffer


def test_init_mixed_precision() -> None:
    """
    Initializes settings for mixed precision quantization, allowing different layers to use different precision.
    """
    layers = {"a": {"type": "uint8"}, "b": {"bits": 4}, "c": {"bits": 12}}
    quantizer = make(enable_mixed_precision=True, custom_quantization_config=layers, mixed_precision_layers=["d"])
    assert quantizer._init_mixed_precision() is None
    found = {name: (own["type"], own["bits"]) for name, own in quantizer._layer_precision.items()}
    assert found == {"a": ("uint8", 8), "b": ("int8", 4), "c": ("int16", 12), "d": ("int16", 16)}


# --- scale and zero_point ---


def test_scale() -> None:
    """`float`: Current global scale factor."""
    quantizer = make(symmetric=False)
    assert (type(quantizer.scale), quantizer.scale) == (float, 1.0)
    quantizer.quantize(np.float32([-1.0, 1.55]))
    assert quantizer.scale == pytest.approx(0.01)


def test_zero_point() -> None:
    """`float`: Current global zero point."""
    quantizer = make(symmetric=False)
    assert (type(quantizer.zero_point), quantizer.zero_point) == (float, 0.0)
    quantizer.quantize(np.float32([-1.0, 1.55]))
    assert quantizer.zero_point == -28


def test_scale_of_channels() -> None:
    """Gets the current global scale factor in a thread-safe manner."""
    quantizer = make(per_channel=True)
    quantizer.quantize(DATA)
    assert quantizer.scale == pytest.approx(np.abs(DATA).max() / 127)  # what the whole array would have


# --- configuration ---


def test_update_config() -> None:
    """`new_config (QuantizationConfig)`: A new configuration object to update parameters."""
    quantizer = make()
    quantizer.quantize(DATA)
    new_config = QuantizationConfig(quantization_type=QuantizationType.INT16)
    assert quantizer.update_config(new_config) is None
    assert quantizer.config is new_config
    assert (quantizer._qmax, quantizer.scale) == (32767, 1.0)
    with pytest.raises(TypeError, match="expected a QuantizationConfig"):
        quantizer.update_config({"num_bits": 8})


def test_get_config() -> None:
    """`Dict[str, Any]`: Dictionary representation of the configuration."""
    plain = make(skip_layers=["head"]).get_config()
    assert plain["quantization_type"] == QuantizationType.INT8 == "int8"
    assert plain["quantization_mode"] == QuantizationMode.DYNAMIC == "dynamic"
    assert plain["skip_layers"] == ["head"]
    assert QuantizationConfig.from_dict(json.loads(json.dumps(plain))) == QuantizationConfig(skip_layers=["head"])


# --- statistics and cache ---


def test_get_stats() -> None:
    """Retrieves quantization statistics such as number of operations, clipped values, and cache hits."""
    quantizer = make()
    quantizer.calibrate([np.float32([-1.0, 1.0])])
    codes = quantizer.quantize(np.float32([0.5, 3.0, -3.0, np.nan]))
    for _ in range(4):
        quantizer.dequantize(codes)
    stats = quantizer.get_stats()
    assert stats.pop("processing_time_ms") > 0
    assert stats.pop("last_scale") == pytest.approx(1 / 127)
    counts = {"quantize_calls": 1, "dequantize_calls": 4, "total_values": 20, "clipped_values": 2, "nan_values": 1}
    assert stats == {**counts, "cache_hits": 3, "cache_misses": 1, "last_zero_point": 0.0}
    ratio = stats["cache_hits"] / (stats["cache_hits"] + stats["cache_misses"])
    assert ratio == 0.75


def test_clear_cache() -> None:
    """Clears the dequantization cache to free memory."""
    quantizer = make()
    quantizer.dequantize(quantizer.quantize(DATA))
    assert len(quantizer._value_cache) == 1
    assert quantizer.clear_cache() is None
    assert (len(quantizer._value_cache), quantizer._cache.nbytes) == (0, 0)


def test_reset_stats() -> None:
    """Resets all quantization statistics to initial values."""
    quantizer = make()
    fresh = quantizer.get_stats()
    quantizer.calibrate([DATA])
    quantizer.quantize_dequantize(2 * DATA)
    assert quantizer.reset_stats() is None
    parameters = {"last_scale": quantizer.scale}
    assert quantizer.get_stats() == {**fresh, **parameters}


# --- parameters ---


@pytest.mark.parametrize("per_channel", [False, True])
def test_export_import_parameters(per_channel: bool) -> None:
    """Exports quantization parameters for saving or transferring to another quantizer."""
    quantizer = make(per_channel=per_channel, symmetric=False)
    codes = quantizer.quantize(DATA)
    params = quantizer.export_import_parameters()
    assert params == quantizer.export_parameters()
    assert isinstance(params, dict)
    other = make()
    assert other.load_parameters(json.loads(json.dumps(params))) is None
    np.testing.assert_array_equal(other.dequantize(codes), quantizer.dequantize(codes))
    assert (other.scale, other.zero_point) == (quantizer.scale, quantizer.zero_point)


def test_load_parameters() -> None:
    """`params (Dict[str, Any])`: Dictionary with parameters from export_import_parameters."""
    first, second = make(), make()
    first.calibrate([DATA])
    second.load_parameters(first.export_import_parameters())
    assert second.export_import_parameters() == first.export_import_parameters()
    assert second._is_calibrated
    np.testing.assert_array_equal(second.quantize(3 * DATA), first.quantize(3 * DATA))


def test_calibrate() -> None:
    """`calibration_data (List[NDArray[np.float32]])`: List of numpy arrays with representative data."""
    quantizer = make()
    assert quantizer.calibrate([DATA[:3], 2 * DATA[0], DATA[5, 5]]) is None
    seen = max(np.abs(DATA[:3]).max(), 2 * np.abs(DATA[0]).max())
    assert quantizer.scale == pytest.approx(seen / 127)
    assert quantizer.config.quantization_mode == "calibrated"
    quantizer.quantize(100 * DATA)
    assert quantizer.scale == pytest.approx(seen / 127)


# --- input ---


def test_validate_input() -> None:
    """`ValueError`: If input data contains NaN or Inf values and config disallows them."""
    bad = {"nan": np.float32([1.0, np.nan]), "inf": np.float32([1.0, -np.inf])}
    for name, data in bad.items():
        assert make()._validate_input(data) is None
        with pytest.raises(ValueError, match=f"error_on_{name}=True"):
            make(**{f"error_on_{name}": True})._validate_input(data)


# --- compute_scale_and_zero_point ---


@pytest.mark.parametrize("mode", QuantizationMode)
@pytest.mark.parametrize("kind", ["int8", "uint8", "int16"])
def test_compute_scale_and_zero_point(mode: QuantizationMode, kind: str) -> None:
    """
    Computes optimal scale and zero_point based on current quantization mode and input data.
    """
    quantizer = make(quantization_mode=mode, quantization_type=kind, symmetric=False)
    scale, zero_point = quantizer.compute_scale_and_zero_point(DATA)
    assert {type(scale), type(zero_point)} == {float}
    dynamic = make(quantization_type=kind, symmetric=mode == "symmetric")
    dynamic.quantize(DATA)
    assert (scale, zero_point) == (dynamic.scale, dynamic.zero_point)
    assert (quantizer.scale, quantizer.zero_point) == (1.0, 0.0)  # nothing is changed


def test_channel_idx() -> None:
    """`channel_idx (Optional[int])`: Optional channel index for per-channel quantization."""
    quantizer = make(per_channel=True)
    scales = quantizer.quantize(DATA, return_tensor=True).qparams.scale.ravel()
    found = [quantizer.compute_scale_and_zero_point(DATA, channel_idx=i)[0] for i in range(10)]
    assert found == scales.tolist()
    assert found == [quantizer.compute_scale_and_zero_point(row, i)[0] for i, row in enumerate(DATA)]
    with pytest.raises(ValueError, match="expected channel_idx below 10; received channel_idx=10"):
        quantizer.compute_scale_and_zero_point(DATA, 10)


def test_layer_name() -> None:
    """`layer_name (Optional[str])`: Optional layer name for mixed precision quantization."""
    quantizer = make(enable_mixed_precision=True, mixed_precision_layers=["conv1"])
    whole, layer = (quantizer.compute_scale_and_zero_point(DATA, layer_name=name) for name in ("x", "conv1"))
    assert whole[0] / layer[0] == pytest.approx(32767 / 127)


# --- layers ---


def test_get_layer_quantization_params() -> None:
    """`Dict[str, Any]`: Dictionary with quantization parameters for the layer."""
    quantizer = make(enable_mixed_precision=True, mixed_precision_layers=["conv1"], skip_layers=["head"])
    assert quantizer.get_layer_quantization_params("conv1") == {"bits": 16, "type": "int16", "skip": False}
    assert quantizer.get_layer_quantization_params("head") == {"bits": 8, "type": "int8", "skip": True}


@pytest.mark.parametrize(
    ("fields", "name", "expected"),
    [
        ({}, "fc_bias", True),
        ({"quantize_bias": False}, "fc_bias", False),
        ({"quantize_bias": False}, "fc", True),
        ({"skip_layers": ["fc"]}, "fc", False),
        ({"quantize_weights_only": True}, "activation_1", False),
        ({"quantize_weights_only": True}, "fc", True),
        ({"quantization_type": "none"}, "fc", False),
    ],
    ids=str,
)
def test_should_quantize_layer(fields: dict[str, Any], name: str, expected: bool) -> None:
    """`bool`: True if the layer should be quantized, False otherwise."""
    quantizer = make(**fields)
    assert quantizer.should_quantize_layer(name) is expected
    assert (quantizer.quantize(DATA, layer_name=name).dtype == np.int8) is expected


# --- requantization ---


def test_apply_requantization() -> None:
    """`NDArray`: Requantized data with reduced error."""
    data = np.append(rng.normal(size=999), 8.0).astype(np.float32)
    fields = {"use_percentile": True, "min_percentile": 1.0, "max_percentile": 99.0}
    quantizer = make(**fields)
    codes = quantizer.quantize(data)
    before = np.abs(quantizer.dequantize(codes) - data).max()
    again = quantizer._apply_requantization(codes, data)
    assert np.abs(quantizer.dequantize(again) - data).max() < before / 10
    assert make(**fields, enable_requantization=True).quantize(data).tolist() == again.tolist()


# --- mixed precision ---


def test_quantize_mixed_precision() -> None:
    """`NDArray`: Quantized array with the precision specified for this layer."""
    quantizer = make(enable_mixed_precision=True, custom_quantization_config={"conv1": {"type": "UINT8"}})
    codes = quantizer._quantize_mixed_precision(DATA, "conv1")
    assert codes.dtype == np.uint8
    np.testing.assert_array_equal(codes, quantizer.quantize(DATA, layer_name="conv1"))


def test_dequantize_mixed_precision() -> None:
    """Performs mixed precision dequantization for a specific layer with custom precision."""
    quantizer = make(enable_mixed_precision=True, mixed_precision_layers=["conv1"])
    codes = quantizer._quantize_mixed_precision(DATA, "conv1")
    quantizer.quantize(100 * DATA)
    found = quantizer._dequantize_mixed_precision(codes, "conv1")
    assert found.dtype == np.float32
    assert np.abs(found - DATA).max() < 1e-4


# --- quantize ---


def test_quantize() -> None:
    """`NDArray`: Quantized array of the configured type."""
    codes = make().quantize(DATA, layer_name="conv1")
    expected = np.rint(DATA / np.float32(np.abs(DATA).max() / 127))
    assert codes.dtype == np.int8
    np.testing.assert_array_equal(codes, expected)


def test_quantize_channel_dim() -> None:
    """`channel_dim (Optional[int])`: Dimension index for per-channel quantization (if enabled)."""
    for dim in (0, 1, -1):
        codes = make(per_channel=True).quantize(DATA, channel_dim=dim)
        assert (np.abs(codes).max(axis=1 if dim == 0 else 0) == 127).all()
    with pytest.warns(UserWarning, match="channel_dim=1 has no effect") as caught:
        codes = make().quantize(DATA, channel_dim=1)
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(codes, make().quantize(DATA))


@pytest.mark.parametrize("bad", [[1.0, 2.0], 3.0, "abc", None, {}], ids=str)
def test_quantize_raises_type_error(bad: Any) -> None:
    """`TypeError`: If input is not a numpy array (when validate=True)."""
    with pytest.raises(TypeError, match="expected a numpy array"):
        make().quantize(bad)
    assert make().quantize([1.0, -1.0], validate=False).tolist() == [127, -127]


@pytest.mark.parametrize("validate", [True, False])
def test_quantize_raises_value_error(validate: bool) -> None:
    """`ValueError`: If input contains NaN/Inf and config prohibits them."""
    for fixed in (False, True):
        quantizer = make(error_on_nan=True, error_on_inf=True)
        if fixed:
            quantizer.calibrate([DATA])
        for bad in (np.nan, np.inf, -np.inf, 1e300):
            with pytest.raises(ValueError, match="expected no "):
                quantizer.quantize(np.array([1.0, bad]), validate=validate)


# --- dequantize ---


def test_dequantize() -> None:
    """`NDArray[np.float32]`: Dequantized array as float32."""
    quantizer = make()
    codes = quantizer.quantize(DATA)
    found = quantizer.dequantize(codes)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, codes * np.float32(quantizer.scale))


def test_dequantize_with_optional_caching() -> None:
    """Dequantizes data from quantized format back to float32, with optional caching."""
    cached, plain = make(), make(enable_cache=False)
    for quantizer in (cached, plain):
        codes = quantizer.quantize(DATA)
        np.testing.assert_array_equal(quantizer.dequantize(codes), quantizer.dequantize(codes))
    assert (cached.get_stats()["cache_hits"], plain.get_stats()["cache_hits"]) == (1, 0)


def test_dequantize_channel_dim() -> None:
    """`channel_dim (Optional[int])`: Dimension index for per-channel dequantization."""
    quantizer = make(per_channel=True)
    codes = quantizer.quantize(DATA, channel_dim=1)
    found = quantizer.dequantize(codes, channel_dim=1)
    np.testing.assert_array_equal(quantizer.dequantize(codes.T, channel_dim=0), found.T)
    np.testing.assert_array_equal(quantizer.dequantize(codes), found)


# --- quantize_dequantize ---


def test_quantize_dequantize() -> None:
    """`NDArray[np.float32]`: Data after quantization and dequantization."""
    one, two = make(symmetric=False), make(symmetric=False)
    found = one.quantize_dequantize(DATA)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, two.dequantize(two.quantize(DATA)))
    keys = ("quantize_calls", "dequantize_calls", "total_values", "clipped_values")
    assert [one.get_stats()[key] for key in keys] == [two.get_stats()[key] for key in keys] == [1, 1, 400, 0]


# --- per channel ---


def test_quantize_per_channel() -> None:
    """Performs per-channel quantization, computing separate scale/zero_point for each channel."""
    for dim in (None, 0, 1):
        codes = make()._quantize_per_channel(DATA, dim)
        expected = make(per_channel=True).quantize(DATA, channel_dim=dim)
        np.testing.assert_array_equal(codes, expected)


def test_dequantize_per_channel() -> None:
    """
    Dimension along which to perform per-channel dequantization (if None, uses the first dimension).
    """
    quantizer = make()
    codes = quantizer._quantize_per_channel(DATA)
    found = quantizer._dequantize_per_channel(codes)
    assert found.dtype == np.float32
    assert (np.abs(found - DATA).max(axis=1) <= np.abs(DATA).max(axis=1) / 127 * 0.50001).all()
    np.testing.assert_array_equal(quantizer._dequantize_per_channel(codes.T, 1), found.T)


def test_every_quotation_stands_in_the_seed(shared_dir: Path) -> None:
    seed = " ".join((shared_dir / "seeds" / "000_quantizer_module.md").read_text(encoding="utf-8").split())
    quotations = [test.__doc__ for name, test in globals().items() if name.startswith("test_") and test.__doc__]
    assert len(quotations) == 38
    assert [text for text in quotations if " ".join(text.split()) not in seed] == []
