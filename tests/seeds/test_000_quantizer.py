"""Seed 000, the quantizer module: overview, usage, configuration table, attributes, constructor, testing, security.

The docstring of each test is the line that it checks, word for word; the last test finds it in the seed. What the seed
says of the methods is in `test_000_methods.py`. The seed's modules `modules.configs` and `quantizer` are `qi.engine` here.
"""

from __future__ import annotations

import inspect
import json
import logging
import re
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qi.engine import QuantizationConfig, QuantizationMode, QuantizationType, Quantizer

rng = np.random.default_rng(0)
DATA = rng.normal(size=(100, 100)).astype(np.float32)
SEED = "000_quantizer_module.md"


def config(**fields: Any) -> QuantizationConfig:
    return QuantizationConfig(**fields)


# --- overview ---


def test_thread_safe() -> None:
    """provides a high-performance, thread-safe implementation for numerical data quantization"""
    quantizer, found = Quantizer(), []
    threads = [threading.Thread(target=lambda: found.append(quantizer.quantize_dequantize(DATA))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({result.tobytes() for result in found}) == 1
    assert len(found) == 4


@pytest.mark.parametrize("name", ["int8", "uint8", "int16", "float16"])
def test_various_quantization_types(name: str) -> None:
    """It supports various quantization types (int8, uint8, int16, float16)"""
    quantizer = Quantizer(config(quantization_type=name))
    codes = quantizer.quantize(DATA)
    assert codes.dtype == np.dtype(name)
    assert np.abs(quantizer.dequantize(codes) - DATA).max() < 0.02


@pytest.mark.parametrize("fields", [{"symmetric": True}, {"symmetric": False}, {"per_channel": True}], ids=str)
def test_modes(fields: dict[str, Any]) -> None:
    """modes (symmetric, asymmetric, per-channel)"""
    found = Quantizer(config(**fields)).quantize_dequantize(DATA)
    assert 0 < np.abs(found - DATA).max() < 0.02


def test_advanced_features() -> None:
    """
    advanced features like caching, calibration, mixed-precision quantization, and performance optimizations.
    """
    offered = inspect.signature(QuantizationConfig).parameters
    assert {"enable_cache", "enable_mixed_precision", "buffer_size", "optimize_memory"} <= set(offered)
    assert callable(Quantizer.calibrate)


def test_preserving_critical_information() -> None:
    """reducing the precision of numerical data while preserving critical information is essential."""
    found = Quantizer().quantize_dequantize(DATA)
    assert found.argmax() == DATA.argmax()
    assert np.corrcoef(found.ravel(), DATA.ravel())[0, 1] > 0.9999


def test_required_packages(checkout: Path) -> None:
    """pip install numpy>=1.19.0 logging>=0.5.0"""
    text = (checkout / "setup.cfg").read_text(encoding="utf-8")
    assert re.search(r"^\s*numpy", text, re.MULTILINE)
    assert not re.search(r"^\s*logging", text, re.MULTILINE)  # the standard library's is meant; the package is another
    assert logging.__file__


def test_dependencies_from_configs() -> None:
    """
    Custom dependencies from `modules.configs` (QuantizationConfig, QuantizationType, QuantizationMode)
    """
    import qi
    import qi.engine

    for name in ("QuantizationConfig", "QuantizationType", "QuantizationMode"):
        assert getattr(qi, name) is getattr(qi.engine, name)


# --- usage: the seed's script, with its two imports replaced ---


def test_usage() -> None:
    """Quantize data"""
    quantizer = Quantizer()
    config = QuantizationConfig(
        quantization_type=QuantizationType.INT8,
        quantization_mode=QuantizationMode.SYMMETRIC,
        num_bits=8,
        enable_cache=True,
    )
    quantizer = Quantizer(config)
    data = rng.normal(size=(100, 100)).astype(np.float32)
    quantized_data = quantizer.quantize(data)
    dequantized_data = quantizer.dequantize(quantized_data)
    assert (quantized_data.dtype, dequantized_data.dtype) == (np.int8, np.float32)
    assert np.abs(dequantized_data - data).max() <= quantizer.scale / 2 * (1 + 1e-5)
    calibration_datasets = [rng.normal(size=(50, 50)).astype(np.float32) for _ in range(5)]
    quantizer.calibrate(calibration_datasets)
    params = quantizer.export_import_parameters()
    assert params["global_scale"] == pytest.approx(max(np.abs(d).max() for d in calibration_datasets) / 127)
    new_config = QuantizationConfig(quantization_type=QuantizationType.INT16)
    quantizer.update_config(new_config)
    assert quantizer.config.num_bits == 16


def test_the_seeds_own_examples_run(shared_dir: Path) -> None:
    """**Example**"""
    text = (shared_dir / "seeds" / SEED).read_text(encoding="utf-8")
    blocks = [inspect.cleandoc("\n" + block) for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
    runnable = [block for block in blocks if not re.match(r"def |@|class ", block)]
    assert len(runnable) == 16
    names: dict[str, Any] = {}
    for block in runnable:
        code = block.replace("modules.configs", "qi.engine").replace("from quantizer import", "from qi.engine import")
        code += "\n    pass" if code.endswith("# Apply quantization") else ""
        exec(compile(code, SEED, "exec"), names)
    assert names["simulated"].dtype == np.float32


# --- configuration: a test for each row of the table ---


@pytest.mark.parametrize("name", ["INT8", "UINT8", "INT16", "FLOAT16", "NONE", "MIXED"])
def test_quantization_type(name: str) -> None:
    """| `quantization_type` | Type of quantization (INT8, UINT8, INT16, FLOAT16, NONE, MIXED) |"""
    member = getattr(QuantizationType, name)
    assert member == name.lower()
    assert config().quantization_type is QuantizationType.INT8
    spelled = [member, name, name.lower()]
    assert {config(quantization_type=own).quantization_type for own in spelled} == {member}
    assert config(quantization_type=name).to_dict()["quantization_type"] == name.lower()
    with pytest.raises(ValueError, match=r"expected QuantizationType to be one of \['int8'.*Did you mean 'int8'"):
        config(quantization_type="int88")


MODES = "SYMMETRIC ASYMMETRIC STATIC DYNAMIC DYNAMIC_PER_BATCH DYNAMIC_PER_CHANNEL CALIBRATED".split()


@pytest.mark.parametrize("name", MODES)
def test_quantization_mode(name: str) -> None:
    """| `quantization_mode` | Mode of quantization (SYMMETRIC, ASYMMETRIC, DYNAMIC, CALIBRATED, etc.) |"""
    member = getattr(QuantizationMode, name)
    assert member == name.lower()
    assert config().quantization_mode is QuantizationMode.DYNAMIC
    assert config(quantization_mode=name).quantization_mode is config(quantization_mode=name.lower()).quantization_mode
    assert member in QuantizationMode


def test_num_bits() -> None:
    """| `num_bits` | Number of bits to use for quantization (typically 8 or 16) |"""
    assert [config(quantization_type=name).num_bits for name in ("int8", "uint8", "int16")] == [8, 8, 16]
    codes = Quantizer(config(num_bits=6)).quantize(DATA)
    assert (np.abs(codes).max(), codes.dtype) == (31, np.int8)
    for bits in (0, -5, 1, 9, 16, 64, 8.0, "8", True):
        with pytest.raises(ValueError, match="expected num_bits from 2 to 8 for INT8"):
            config(num_bits=bits)


def test_symmetric() -> None:
    """| `symmetric` | Whether to use symmetric quantization around zero |"""
    positive = np.abs(DATA)
    assert config().symmetric is True
    around = Quantizer(config(symmetric=True))
    assert around.quantize(positive).min() == 0
    assert around.zero_point == 0
    shifted = Quantizer(config(symmetric=False))
    assert shifted.quantize(positive).min() == -128
    assert shifted.zero_point == -128


def test_enable_cache() -> None:
    """| `enable_cache` | Enable value caching for repeated dequantization |"""
    for enabled, hits in ((True, 2), (False, 0)):
        quantizer = Quantizer(config(enable_cache=enabled))
        codes = quantizer.quantize(DATA)
        results = [quantizer.dequantize(codes).tobytes() for _ in range(3)]
        assert len(set(results)) == 1
        assert quantizer.get_stats()["cache_hits"] == hits
    assert config().enable_cache is True


def test_cache_size() -> None:
    """| `cache_size` | Maximum number of entries in the cache |"""
    quantizer = Quantizer(config(cache_size=3))
    quantizer.quantize(DATA)
    for row in quantizer.quantize(DATA)[:5]:
        quantizer.dequantize(row)
    assert len(quantizer._value_cache) == 3
    assert config().cache_size == 256
    with pytest.raises(ValueError, match="expected cache_size from 0"):
        config(cache_size=-1)


def test_buffer_size() -> None:
    """| `buffer_size` | Size of preallocated buffers for performance |"""
    assert config().buffer_size == 0
    assert Quantizer(config(buffer_size=512))._input_buffer.size == 512
    for size in (-1, 10**15):
        with pytest.raises(ValueError, match="expected buffer_size from 0"):
            config(buffer_size=size)


def test_enable_mixed_precision() -> None:
    """| `enable_mixed_precision` | Enable mixed precision quantization |"""
    assert config().enable_mixed_precision is False
    for enabled, dtype in ((True, np.int16), (False, np.int8)):
        quantizer = Quantizer(config(enable_mixed_precision=enabled, mixed_precision_layers=["conv1"]))
        assert quantizer.quantize(DATA, layer_name="conv1").dtype == dtype
        assert quantizer.quantize(DATA, layer_name="conv2").dtype == np.int8


def test_per_channel() -> None:
    """| `per_channel` | Enable per-channel quantization |"""
    assert config().per_channel is False
    tensor = Quantizer(config(per_channel=True)).quantize(DATA, return_tensor=True)
    assert tensor.qparams.scale.shape == (100, 1)
    assert (np.abs(tensor.codes).max(axis=1) == 127).all()


# --- architecture ---


def test_workflow() -> None:
    """
    **Calibration** (optional): Analyzes representative data to determine optimal scales
    """
    quantizer = Quantizer()
    without = quantizer.quantize(DATA)
    assert (without.dtype, quantizer.dequantize(without).dtype) == (np.int8, np.float32)
    quantizer.calibrate([DATA])
    np.testing.assert_array_equal(quantizer.quantize(DATA), without)


# --- attributes ---

# name: (what the seed says, a check)
CALIBRATED = Quantizer(QuantizationConfig(per_channel=True, buffer_size=64, quantization_type="uint8", symmetric=False))
CALIBRATED.calibrate([DATA[:4]])
LOCK, RLOCK = type(threading.Lock()), type(threading.RLock())
ATTRIBUTES = {
    "`config (QuantizationConfig)`: Configuration settings for quantization": lambda v: isinstance(
        v, QuantizationConfig
    ),
    "`_lock (threading.RLock)`: Reentrant lock for thread safety": lambda v: isinstance(v, RLOCK),
    "`_stats_lock (threading.Lock)`: Lock for statistics access": lambda v: isinstance(v, LOCK),
    "`_cache_lock (threading.Lock)`: Lock for cache operations": lambda v: isinstance(v, LOCK),
    "`_scales (Dict[int, float])`: Scale factors for per-channel quantization": lambda v: (
        list(v) == [0, 1, 2, 3] and v[0] == pytest.approx((DATA[0].max() - DATA[0].min()) / 255)
    ),
    "`_zero_points (Dict[int, float])`: Zero points for per-channel quantization": lambda v: (
        list(v) == [0, 1, 2, 3] and all(0 < z < 255 for z in v.values())
    ),
    "`_global_scale (float)`: Global scale factor": lambda v: v == CALIBRATED.scale,
    "`_global_zero_point (float)`: Global zero point offset": lambda v: v == CALIBRATED.zero_point,
    "`_calibration_data (List)`: Stored calibration data": lambda v: isinstance(v, list) and len(v) == 1,
    "`_is_calibrated (bool)`: Whether the quantizer has been calibrated": lambda v: v is True,
    "`_quantization_stats (Dict)`: Statistics about quantization operations": lambda v: v["quantize_calls"] == 0,
    "`_cache_enabled (bool)`: Whether value caching is enabled": lambda v: v is True,
    "`_cache_size (int)`: Maximum size of value cache": lambda v: v == 256,
    "`_value_cache (OrderedDict)`: LRU cache for dequantization values": lambda v: type(v) is OrderedDict,
    "`_transform_cache (Dict)`: Cache for transform results": lambda v: v == {},
    "`_qmin (int)`: Minimum representable value in quantized range": lambda v: v == 0,
    "`_qmax (int)`: Maximum representable value in quantized range": lambda v: v == 255,
    "`_qrange (int)`: Range of representable values": lambda v: v == 256,
    "`_qtype (np.dtype)`: NumPy dtype for quantized values": lambda v: v == np.dtype(np.uint8),
    "`_buffer_size (int)`: Size of preallocated buffers": lambda v: v == 64,
    "`_input_buffer (np.ndarray)`: Preallocated input buffer": lambda v: (v.dtype, v.shape) == (np.float32, (64,)),
    "`_output_buffer (np.ndarray)`: Preallocated output buffer": lambda v: (v.dtype, v.shape) == (np.uint8, (64,)),
    "`_layer_precision (Dict)`: Mixed precision settings per layer": lambda v: v == {},
}


@pytest.mark.parametrize("statement", ATTRIBUTES, ids=lambda text: text.split()[0].strip("`"))
def test_attribute(statement: str) -> None:
    """### Attributes"""
    name = statement.split()[0].strip("`")
    assert ATTRIBUTES[statement](getattr(CALIBRATED, name))


def test_fresh_attributes() -> None:
    """Whether the quantizer has been calibrated"""
    fresh = Quantizer(config(mixed_precision_layers=["conv1"], enable_mixed_precision=True))
    assert (fresh._is_calibrated, fresh._scales, fresh._zero_points, fresh._calibration_data) == (False, {}, {}, [])
    assert (fresh._global_scale, fresh._global_zero_point) == (1.0, 0.0)
    assert (fresh._input_buffer, fresh._output_buffer) == (None, None)
    assert fresh._layer_precision == {"conv1": {"bits": 16, "type": "int16", "skip": False}}


# --- constructor ---


def test_constructor() -> None:
    """`config (Optional[QuantizationConfig])`: Configuration for the quantizer. If None, defaults are used."""
    assert inspect.signature(Quantizer).parameters["config"].default is None
    assert Quantizer().config == Quantizer(None).config == QuantizationConfig()
    own = config(num_bits=4)
    assert Quantizer(own).config is own


def test_constructor_raises() -> None:
    """None explicitly, but may raise exceptions during internal initialization."""
    with pytest.raises(TypeError, match="expected a QuantizationConfig; received dict"):
        Quantizer({"num_bits": 8})


# --- testing, security ---


def test_tests_exist(checkout: Path) -> None:
    """python -m unittest tests/test_quantizer.py"""
    text = (checkout / "tests" / "test_quantizer.py").read_text(encoding="utf-8")
    assert "unittest.TestCase" in text
    for topic in ("thread", "correct", "large", "cach", "calibrat"):
        assert re.search(rf"def test\w*{topic}", text), topic


def test_no_information_leaks() -> None:
    """Care should be taken when quantizing sensitive numerical data to prevent information leakage"""
    secret = np.full(7, 1234.5, np.float32)
    quantizer = Quantizer()
    quantizer.calibrate([secret, np.zeros(3, np.float32)])
    assert "1234.5" not in json.dumps({**quantizer.get_config(), **quantizer.get_stats()})
    assert str(quantizer._calibration_data) == "[(0.0, 1234.5)]"  # the range, which scale and zero point tell anyway


def test_every_quotation_stands_in_the_seed(shared_dir: Path) -> None:
    seed = " ".join((shared_dir / "seeds" / SEED).read_text(encoding="utf-8").split())
    quotations = [test.__doc__ for name, test in globals().items() if name.startswith("test_") and test.__doc__]
    assert len(quotations) == 25
    assert [text for text in [*quotations, *ATTRIBUTES] if " ".join(text.split()) not in seed] == []
