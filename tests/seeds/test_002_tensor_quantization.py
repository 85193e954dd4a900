"""Seed 002, the tensor API: the seed's own tests by their names, then a test for each thing that it documents.

The docstring of a test is the line that it checks, word for word; the last test finds it in the seed. Where QI differs on
purpose, the test says so: ranges always hold 0, rounding is half to even, and 0 width gives scale 1.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qi.core import PerChannel, PerTensor, QParams, QTensor, pack
from qi.engine import (
    BitWidth,
    DynamicRangeCalibrator,
    Granularity,
    QuantizationAwareTraining,
    QuantizationConfig,
    QuantizationMode,
    QuantizationParams,
    QuantizedTensor,
    Quantizer,
)

DATA = np.random.default_rng(0).normal(size=(6, 10)).astype(np.float32)
INT8, INT4 = QuantizationConfig.int8_symmetric(), QuantizationConfig.int4_per_channel()
CONFIGS = [INT8, QuantizationConfig.int8_asymmetric(), INT4]


def array(shape: tuple[int, ...], values: list[float]) -> np.ndarray:
    return np.array(values, np.float32).reshape(shape)


# --- the seed's own tests ---


def test_int8_symmetric_quantization() -> None:
    tensor = array((2, 3), [-1.0, 0.0, 1.0, -2.0, 2.0, 0.5])
    dequantized = Quantizer.dequantize_tensor(Quantizer.quantize_tensor(tensor, QuantizationConfig.int8_symmetric()))
    assert dequantized.shape == tensor.shape
    np.testing.assert_allclose(dequantized, tensor, atol=0.1)


def test_int8_asymmetric_quantization() -> None:
    quantized = Quantizer.quantize_tensor(array((2, 2), [0.0, 1.0, 2.0, 3.0]), QuantizationConfig.int8_asymmetric())
    assert quantized.params.config.mode == QuantizationMode.Asymmetric
    dequantized = Quantizer.dequantize_tensor(quantized)
    assert dequantized[0, 0] == pytest.approx(0.0, abs=0.05)
    assert dequantized[1, 1] == pytest.approx(3.0, abs=0.05)


def test_int4_per_channel_quantization() -> None:
    tensor = array((2, 4), [-1.0, 0.0, 1.0, 2.0, -10.0, -5.0, 5.0, 10.0])
    quantized = Quantizer.quantize_tensor(tensor, QuantizationConfig.int4_per_channel())
    assert len(quantized.params.scale) == 2
    assert len(quantized.params.zero_point) == 2
    assert Quantizer.dequantize_tensor(quantized).shape == tensor.shape


def test_bit_width_levels() -> None:
    assert (BitWidth.Int8.levels(), BitWidth.Int4.levels(), BitWidth.Int2.levels()) == (256, 16, 4)


def test_bit_width_ranges() -> None:
    assert (BitWidth.Int8.qmin(), BitWidth.Int8.qmax()) == (-128, 127)
    assert (BitWidth.Int4.qmin(), BitWidth.Int4.qmax()) == (-8, 7)


def test_compression_ratio() -> None:
    assert Quantizer.compression_ratio(QuantizationConfig.int8_symmetric()) == 4.0
    config = QuantizationConfig.new(QuantizationMode.Symmetric, BitWidth.Int4, Granularity.PerTensor)
    assert Quantizer.compression_ratio(config) == 8.0


def test_quantization_error() -> None:
    tensor = np.ones((3, 3), np.float32)
    error = Quantizer.quantization_error(tensor, Quantizer.quantize_tensor(tensor, INT8))
    assert error < 0.01


def test_qat_registration() -> None:
    qat = QuantizationAwareTraining.new(True)
    qat.register_layer("layer1", QuantizationConfig.int8_symmetric())
    qat.register_layer("layer2", QuantizationConfig.int4_per_channel())
    assert len(qat.registered_layers()) == 2
    assert qat.get_config("layer1") is not None
    assert qat.get_config("layer3") is None


def test_fake_quantization() -> None:
    qat = QuantizationAwareTraining(True)
    qat.register_layer("fc1", QuantizationConfig.int8_symmetric())
    tensor = array((2, 2), [1.0, 2.0, 3.0, 4.0])
    found = qat.fake_quantize(tensor, "fc1")
    assert found.shape == tensor.shape
    assert 0 < np.abs(found - tensor).max() < 0.02


def test_dynamic_range_calibrator() -> None:
    calibrator = DynamicRangeCalibrator.new()
    calibrator.collect("layer1", array((2, 2), [0.0, 1.0, 2.0, 3.0]))
    calibrator.collect("layer1", array((2, 2), [-1.0, 0.0, 1.0, 4.0]))
    assert calibrator.get_range("layer1") == (-1.0, 4.0)


def test_calibrator_finalize() -> None:
    calibrator = DynamicRangeCalibrator()
    tensor = np.ones((2, 2), np.float32)
    calibrator.collect("layer1", tensor)
    calibrator.collect("layer2", tensor)
    configs = calibrator.finalize(QuantizationConfig.int8_symmetric())
    assert len(configs) == 2
    assert {"layer1", "layer2"} <= set(configs)


def test_calibrator_reset() -> None:
    calibrator = DynamicRangeCalibrator()
    calibrator.collect("layer1", np.ones((2, 2), np.float32))
    assert calibrator.num_samples == 1
    calibrator.reset()
    assert calibrator.num_samples == 0
    assert calibrator.get_range("layer1") is None


def test_zero_tensor_quantization() -> None:
    tensor = np.zeros((3, 3), np.float32)
    for config in CONFIGS:
        np.testing.assert_array_equal(Quantizer.dequantize_tensor(Quantizer.quantize_tensor(tensor, config)), tensor)


def test_extreme_values_quantization() -> None:
    greatest = float(np.finfo(np.float32).max)
    for factor in (1e-6, 1.0):
        tensor = array((2, 2), [-greatest * factor, greatest * factor, -1000.0, 1000.0])
        dequantized = Quantizer.dequantize_tensor(Quantizer.quantize_tensor(tensor, INT8))
        assert dequantized.shape == tensor.shape
        np.testing.assert_allclose(dequantized[0], tensor[0], rtol=0.01)


# --- what the seed documents ---


def test_post_training_quantization() -> None:
    """Post-training quantization (PTQ)"""
    weights = np.zeros((10, 10), np.float32)  # the seed's example, line by line
    config = QuantizationConfig.int8_symmetric()
    quantized = Quantizer.quantize_tensor(weights, config)
    dequantized = Quantizer.dequantize_tensor(quantized)
    np.testing.assert_array_equal(dequantized, weights)


@pytest.mark.parametrize(
    ("mode", "spelled", "value"),
    [(QuantizationMode.SYMMETRIC, "Symmetric", "symmetric"), (QuantizationMode.ASYMMETRIC, "Asymmetric", "asymmetric")],
)
def test_quantization_mode(mode: QuantizationMode, spelled: str, value: str) -> None:
    """Quantization mode determines the quantization strategy."""
    assert getattr(QuantizationMode, spelled) is mode
    assert mode == value
    assert QuantizationMode(spelled) is QuantizationMode(value.upper()) is mode


def test_symmetric_range() -> None:
    """Symmetric quantization: range is [-max, max]"""
    params = Quantizer.quantize_tensor(array((3,), [0.0, 1.0, 5.1]), INT8).params
    assert params.scale.item() == pytest.approx(2 * 5.1 / 255)
    assert params.zero_point.item() == 0


def test_asymmetric_range() -> None:
    """Asymmetric quantization: range is [min, max]"""
    params = Quantizer.quantize_tensor(array((3,), [-1.0, 0.0, 1.55]), QuantizationConfig.int8_asymmetric()).params
    assert params.scale.item() == pytest.approx(0.01)
    assert params.zero_point.item() == round(-128 + 1.0 / 0.01)
    above = Quantizer.quantize_tensor(array((3,), [5.0, 5.5, 6.0]), QuantizationConfig.int8_asymmetric())
    assert above.params.zero_point.item() == -128  # the range is stretched to hold 0; the seed's isn't
    np.testing.assert_allclose(above.dequantize(), [5.0, 5.5, 6.0], atol=0.012)


@pytest.mark.parametrize(
    ("name", "levels", "qmin", "qmax"), [("Int8", 256, -128, 127), ("Int4", 16, -8, 7), ("Int2", 4, -2, 1)]
)
def test_bit_width(name: str, levels: int, qmin: int, qmax: int) -> None:
    """Bit-width for quantization."""
    width = getattr(BitWidth, name)
    assert width is getattr(BitWidth, name.upper()) is BitWidth(name)
    assert width == name.lower()
    assert (width.levels(), width.qmin(), width.qmax()) == (levels, qmin, qmax)
    config = QuantizationConfig.new("symmetric", name, "PerTensor")
    assert config.bit_width is width
    tensor = Quantizer.quantize_tensor(DATA, config)
    assert (tensor.data.min() >= qmin, tensor.data.max() <= qmax) == (True, True)


def test_granularity() -> None:
    """Quantization granularity (per-tensor or per-channel)."""
    assert Granularity.PerTensor is Granularity.PER_TENSOR is Granularity("PerTensor")
    assert Granularity.PerChannel is Granularity.PER_CHANNEL is Granularity("per_channel")
    assert (Granularity.PerTensor == "per_tensor", Granularity.PerChannel == "per_channel") == (True, True)


def test_per_tensor() -> None:
    """Single scale/zero-point for entire tensor"""
    params = Quantizer.quantize_tensor(DATA, INT8).params
    assert (params.granularity, params.scale.shape, len(params.scale)) == (PerTensor(), (1, 1), 1)


def test_per_channel() -> None:
    """Separate scale/zero-point per output channel (axis 0)"""
    config = QuantizationConfig.new("asymmetric", "int8", "per_channel")
    tensor = Quantizer.quantize_tensor(DATA, config)
    assert (tensor.params.granularity, tensor.params.scale.shape) == (PerChannel(0), (6, 1))
    for i, row in enumerate(DATA):
        alone = Quantizer.quantize_tensor(row, QuantizationConfig.int8_asymmetric())
        np.testing.assert_array_equal(tensor.data[i], alone.data)


def test_configuration_fields() -> None:
    """Configuration for quantization."""
    config = QuantizationConfig.new(QuantizationMode.Asymmetric, BitWidth.Int2, Granularity.PerChannel)
    assert config.mode is QuantizationMode.ASYMMETRIC
    assert config.bit_width is BitWidth.INT2
    assert config.granularity is Granularity.PER_CHANNEL
    assert {config.eps for config in CONFIGS} == {1e-8}


def test_eps() -> None:
    """Small epsilon to avoid division by zero"""
    tiny = array((4,), [1e-9, -1e-9, 5e-10, 0.0])
    quantized = Quantizer.quantize_tensor(tiny, INT8)  # the seed's floor of 1e-8 leaves 0 of these; QI has no floor
    np.testing.assert_allclose(quantized.dequantize(), tiny, atol=1e-11)
    assert Quantizer.quantize_tensor(np.zeros(3, np.float32), INT8).params.scale.item() == 1.0


@pytest.mark.parametrize(
    ("constructor", "mode", "width", "granularity"),
    [
        ("int8_symmetric", "symmetric", "int8", "per_tensor"),
        ("int8_asymmetric", "asymmetric", "int8", "per_tensor"),
        ("int4_per_channel", "symmetric", "int4", "per_channel"),
    ],
)
def test_default_configurations(constructor: str, mode: str, width: str, granularity: str) -> None:
    """Creates a default int8 symmetric per-tensor configuration."""
    config = getattr(QuantizationConfig, constructor)()
    assert (config.mode, config.bit_width, config.granularity) == (mode, width, granularity)
    assert config == QuantizationConfig.new(mode, width, granularity)


def test_serialize() -> None:
    """Serialize, Deserialize"""
    for config in CONFIGS:
        assert QuantizationConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    quantized = Quantizer.quantize_tensor(DATA, INT4)
    again = pickle.loads(pickle.dumps(quantized))
    np.testing.assert_array_equal(again.data, quantized.data)
    assert again.params == quantized.params


def test_quantization_params() -> None:
    """Quantization parameters (scale and zero-point)."""
    assert QuantizationParams is QParams
    params = Quantizer.quantize_tensor(DATA, INT4).params
    assert (params.scale.dtype, params.zero_point.dtype) == (np.float32, np.int32)
    assert params.config is INT4


def test_quantized_tensor() -> None:
    """Quantized tensor representation."""
    assert QuantizedTensor is QTensor
    quantized = Quantizer.quantize_tensor(DATA, INT8)
    assert (quantized.data.dtype, quantized.data.shape) == (np.int8, DATA.shape)
    with pytest.raises(dataclasses.FrozenInstanceError):
        quantized.params = None


@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 4), (2, 0, 3), (1, 2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.bits}{c.mode}")
def test_any_number_of_dimensions(shape: tuple[int, ...], config: QuantizationConfig) -> None:
    """Quantizes a 2D tensor using the specified configuration."""
    tensor = np.asarray(np.random.default_rng(1).normal(size=shape), np.float32)
    if shape == () and config is INT4:
        with pytest.raises(ValueError, match="rank 0"):  # a scalar has no channels
            Quantizer.quantize_tensor(tensor, config)
        return
    quantized = Quantizer.quantize_tensor(tensor, config)
    assert quantized.dequantize().shape == shape
    bound = np.broadcast_to(quantized.params.scale, shape) * 0.50001
    assert (np.abs(Quantizer.dequantize_tensor(quantized) - tensor) <= bound).all()


def test_quantize_tensor_refuses() -> None:
    """* `tensor` - Input floating-point tensor"""
    for bad in ([[1.0]], np.array(["a"]), np.array([1j])):
        with pytest.raises(TypeError):
            Quantizer.quantize_tensor(bad, INT8)
    with pytest.raises(TypeError, match="expected a QuantizationConfig"):
        Quantizer.quantize_tensor(DATA, "int8")
    with pytest.raises(ValueError, match="error_on_nan"):
        Quantizer.quantize_tensor(np.float32([np.nan]), INT8.replace(error_on_nan=True))
    assert Quantizer.quantize_tensor(np.float32([np.nan, 1.0]), INT8).nan_count == 1


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.bits}{c.mode}")
def test_the_seeds_formulas(config: QuantizationConfig) -> None:
    """Computes scale and zero-point from min/max values."""
    quantized = Quantizer.quantize_tensor(DATA, config)
    axis = 1 if config is INT4 else None
    lo, hi = DATA.min(axis=axis, keepdims=True), DATA.max(axis=axis, keepdims=True)
    qmin, qmax = config.bit_width.qmin(), config.bit_width.qmax()
    if config.mode == "symmetric":
        scale, zero = 2 * np.maximum(np.abs(lo), np.abs(hi)) / (qmax - qmin), np.zeros_like(lo)
    else:
        scale = (hi - lo) / (qmax - qmin)
        zero = np.rint(qmin - lo / scale)
    np.testing.assert_allclose(quantized.params.scale, scale, rtol=1e-6)
    np.testing.assert_array_equal(quantized.params.zero_point, zero)
    codes = np.clip(np.rint(DATA / quantized.params.scale) + zero, qmin, qmax)
    np.testing.assert_array_equal(quantized.data, codes)
    np.testing.assert_array_equal(quantized.dequantize(), quantized.params.scale * (codes.astype(np.float32) - zero))


def test_dequantize_tensor() -> None:
    """Dequantizes a quantized tensor back to float32."""
    assert Quantizer.dequantize_tensor(Quantizer.quantize_tensor(DATA, INT8)).dtype == np.float32
    with pytest.raises(TypeError, match="expected a QuantizedTensor"):
        Quantizer.dequantize_tensor(DATA)


@pytest.mark.parametrize(("width", "ratio"), [("int8", 4.0), ("int4", 8.0), ("int2", 16.0)])
def test_compression_is_true(width: str, ratio: float) -> None:
    """Computes the compression ratio achieved by quantization."""
    config = QuantizationConfig.new("symmetric", width, "per_tensor")
    assert Quantizer.compression_ratio(config) == ratio
    quantized = Quantizer.quantize_tensor(np.ones((64, 64), np.float32), config)
    assert quantized.data_nbytes * ratio == 64 * 64 * 4
    assert quantized.nbytes == quantized.data_nbytes + 4
    assert quantized.compression_ratio == 64 * 64 * 4 / quantized.nbytes
    assert pack(quantized.data, config.bits).nbytes == quantized.data_nbytes


def test_quantization_error_is_the_mse() -> None:
    """Estimates the quantization error (MSE) for a tensor."""
    quantized = Quantizer.quantize_tensor(DATA, INT4)
    expected = np.mean((DATA.astype(np.float64) - quantized.dequantize()) ** 2)
    assert Quantizer.quantization_error(DATA, quantized) == pytest.approx(expected, rel=1e-12)
    empty = np.zeros((0, 3), np.float32)
    assert Quantizer.quantization_error(empty, Quantizer.quantize_tensor(empty, INT8)) == 0.0
    with pytest.raises(ValueError, match="expected two arrays of one shape"):
        Quantizer.quantization_error(DATA[:2], quantized)


# --- quantization-aware training ---


def test_simulate_quantization() -> None:
    """Whether to simulate quantization during training"""
    qat = QuantizationAwareTraining(simulate_quantization=False)
    qat.register_layer("fc1", INT8)
    found = qat.fake_quantize(DATA, "fc1")
    np.testing.assert_array_equal(found, DATA)
    assert found is not DATA


def test_register_layer() -> None:
    """Layer name to quantization config mapping"""
    qat = QuantizationAwareTraining(True)
    qat.register_layer("fc1", INT8)
    qat.register_layer("fc1", INT4)  # as a map does: the latest wins
    assert (qat.registered_layers(), qat.get_config("fc1")) == (["fc1"], INT4)
    for name, config in (("fc1", "int8"), (5, INT8)):
        with pytest.raises(TypeError):
            qat.register_layer(name, config)


def test_fake_quantize_is_quantize_then_dequantize() -> None:
    """This applies fake quantization: quantize then immediately dequantize,"""
    qat = QuantizationAwareTraining(True)
    for config in CONFIGS:
        qat.register_layer("fc1", config)
        expected = Quantizer.dequantize_tensor(Quantizer.quantize_tensor(DATA, config))
        np.testing.assert_array_equal(qat.fake_quantize(DATA, "fc1"), expected)
    np.testing.assert_array_equal(qat.fake_quantize(DATA, "unknown"), DATA)


def test_straight_through() -> None:
    """Simulates quantization during forward pass (straight-through estimator)."""
    torch = pytest.importorskip("torch")
    qat = QuantizationAwareTraining(True)
    qat.register_layer("fc1", QuantizationConfig.int8_asymmetric())
    x = torch.tensor(DATA, requires_grad=True)
    found = qat.fake_quantize(x, "fc1")
    np.testing.assert_array_equal(found.detach().numpy(), qat.fake_quantize(DATA, "fc1"))
    found.sum().backward()
    assert set(np.unique(x.grad.numpy())) <= {0.0, 1.0}
    assert x.grad.numpy().mean() > 0.9


# --- calibration ---


def test_collected_statistics() -> None:
    """Collected min/max statistics per layer"""
    calibrator = DynamicRangeCalibrator()
    calibrator.collect("a", DATA)
    calibrator.collect("b", 2 * DATA)
    assert calibrator.get_range("a") == (DATA.min(), DATA.max())
    assert calibrator.get_range("b") == (2 * DATA.min(), 2 * DATA.max())
    assert calibrator.get_range("c") is None


def test_number_of_samples() -> None:
    """Number of samples collected"""
    calibrator = DynamicRangeCalibrator()
    assert calibrator.num_samples == 0
    for bad, error in ((np.array([]), ValueError), (np.float32([np.nan]), ValueError), ([1.0], TypeError)):
        with pytest.raises(error):
            calibrator.collect("a", bad)
    assert (calibrator.num_samples, calibrator.get_range("a")) == (0, None)
    calibrator.collect("a", np.float32([np.inf, 1.0]))
    assert (calibrator.num_samples, calibrator.get_range("a")) == (1, (1.0, 1.0))


def test_finalize_params_uses_what_was_collected() -> None:
    """Finalizes calibration and returns quantization configs."""
    calibrator = DynamicRangeCalibrator()
    calibrator.collect("a", DATA)
    calibrator.collect("b", 3 * DATA)
    config = QuantizationConfig.int8_asymmetric()
    assert calibrator.finalize(config) == {"a": config, "b": config}
    params: dict[str, Any] = calibrator.finalize_params(config)
    for name, factor in (("a", 1), ("b", 3)):
        expected = Quantizer.quantize_tensor(factor * DATA, config).params
        assert params[name].scale == expected.scale.item()
        assert params[name].zero_point == expected.zero_point.item()


def test_merge() -> None:
    """Dynamic range calibration for post-training quantization."""
    first, second = DynamicRangeCalibrator(), DynamicRangeCalibrator()
    first.collect("a", DATA[:3])
    second.collect("a", DATA[3:])
    second.collect("b", DATA)
    first.merge(second)
    assert (first.get_range("a"), first.num_samples) == ((DATA.min(), DATA.max()), 3)
    assert first.get_range("b") == second.get_range("b")


def test_every_quotation_stands_in_the_seed(shared_dir: Path) -> None:
    seed = " ".join((shared_dir / "seeds" / "002_tensorlogic_quantization_rs.txt").read_text(encoding="utf-8").split())
    tests = {name: test for name, test in globals().items() if name.startswith("test_")}
    quotations = [test.__doc__ for test in tests.values() if test.__doc__]
    assert len(quotations) == 28
    assert [text for text in quotations if " ".join(text.split()) not in seed] == []
    assert [name for name in tests if f"fn {name}()" in seed] == list(tests)[:14]
    assert seed.count("#[test]") == 14
