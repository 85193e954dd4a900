"""More than the seed's own statements, which tests/seeds checks: memory, groups, frameworks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from qi.core import PerGroup
from qi.engine.config import QuantizationConfig
from qi.engine.tensors import (
    DynamicRangeCalibrator,
    QuantizationAwareTraining,
    compression_ratio,
    dequantize_tensor,
    quantization_error,
    quantize_tensor,
)
from qi.errors import ConfigError, NotCalibratedError, UnsupportedError
from tests.backends import Torch

CONFIGS = [
    QuantizationConfig.new(mode, width, granularity)
    for mode in ("symmetric", "asymmetric")
    for width in ("int8", "int4", "int2")
    for granularity in ("per_tensor", "per_channel")
]
tensors = hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=3), elements=st.floats(-1e6, 1e6, width=32))


@given(st.sampled_from(CONFIGS), tensors)
def test_errors_are_at_most_half_a_step(config: QuantizationConfig, x: np.ndarray) -> None:
    x.flags.writeable = False
    quantized = quantize_tensor(x, config)
    found = dequantize_tensor(quantized)
    slack = 1 if config.mode == "symmetric" and config.bits == 2 else 0.5  # of 2 bits the positive half has one code
    assert (np.abs(found - x) <= slack * 1.00001 * quantized.params.scale + 1e-6 * np.abs(x)).all()
    assert (found[x == 0] == 0).all()
    assert quantization_error(x, quantized) == pytest.approx(np.mean((found.astype(np.float64) - x) ** 2), abs=1e-30)


@given(st.sampled_from(CONFIGS), tensors)
def test_fake_quantization_is_the_round_trip(config: QuantizationConfig, x: np.ndarray) -> None:
    qat = QuantizationAwareTraining()
    qat.register_layer("a", config)
    np.testing.assert_array_equal(qat.fake_quantize(x, "a"), dequantize_tensor(quantize_tensor(x, config)))


def test_groups() -> None:
    config = QuantizationConfig("int4", granularity=PerGroup(0, 32, 1))
    x = np.random.default_rng(0).normal(size=(70, 5)).astype(np.float32)
    quantized = quantize_tensor(x, config)
    assert quantized.params.scale.shape == (3, 5)
    assert quantized.nbytes == 70 * 5 // 2 + 15 * 4
    assert np.abs(dequantize_tensor(quantized) - x).max() < np.abs(x).max() / 14


def test_ratio_counts_bits() -> None:
    assert [compression_ratio(QuantizationConfig(kind)) for kind in ("int16", "uint8", "float16", "none")] == [
        2,
        4,
        2,
        1,
    ]


def test_tensors_of_a_framework_keep_their_gradients() -> None:
    torch = Torch()
    qat = QuantizationAwareTraining()
    qat.register_layer("a", QuantizationConfig())
    x = np.float32([[-1.0, 0.3], [0.7, 0.99]])
    (gradient,) = torch.gradients(lambda t: qat.fake_quantize(t, "a"), x)
    assert gradient[0, 1] == gradient[1, 0] == 1.0
    unknown = torch.tensor(x)
    assert qat.fake_quantize(unknown, "b") is unknown


def test_calibrated_parameters_want_something_to_go_by() -> None:
    calibrator = DynamicRangeCalibrator()
    with pytest.raises(NotCalibratedError, match=r"do: call collect\(\) first"):
        calibrator.finalize_params(QuantizationConfig())
    calibrator.collect("a", np.float32([1.0, -3.0]))
    with pytest.raises(ConfigError, match="expected a configuration per tensor; received granularity=per_channel"):
        calibrator.finalize_params(QuantizationConfig.int4_per_channel())
    params = calibrator.finalize_params(QuantizationConfig.int8_symmetric())["a"]
    assert params.scale == np.float32(6 / 255)
    assert params.config == QuantizationConfig.int8_symmetric()
    with pytest.raises(UnsupportedError, match="expected a DynamicRangeCalibrator"):
        calibrator.merge({"a": (0, 1)})
    with pytest.raises(UnsupportedError, match="expected the name of a layer"):
        calibrator.collect(5, np.float32([1.0]))
    assert calibrator.num_samples == 1


def test_merging_with_itself_changes_no_range() -> None:
    calibrator = DynamicRangeCalibrator()
    calibrator.collect("a", np.float32([1.0]))
    calibrator.merge(calibrator)
    assert (calibrator.get_range("a"), calibrator.num_samples) == ((1.0, 1.0), 2)
