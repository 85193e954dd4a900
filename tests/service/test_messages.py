"""What a client says and hears: configurations, and codes that keep their parameters."""

from __future__ import annotations

import json

import numpy as np
import pytest

from qi.core import IntGrid, PerChannel, PerGroup, QParams, QTensor
from qi.engine import QuantizationConfig, Quantizer
from qi.errors import ConfigError, UnsupportedError
from qi.service.messages import code_inputs, condition, config_body, path_of, tensor_of
from qi.service.models import QuantizerConfigModel

CODES = np.int8([[1, 2], [3, 4], [5, 6]])


def tensor(axis: int | None, bits: int = 8) -> QTensor:
    if axis is None:
        return QTensor(CODES, QParams(0.5, 3, IntGrid(bits)))
    shape = [3, 1] if axis % 2 == 0 else [1, 2]
    scale = np.arange(1, 1 + max(shape), dtype=np.float32).reshape(shape)
    return QTensor(CODES, QParams(scale, np.ones(shape), IntGrid(bits), PerChannel(axis)))


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize(("bits", "kind"), [(8, "INT8"), (4, "INT4"), (8, "MIXED")])
def test_codes_with_parameters_come_back_as_they_were(axis: int | None, bits: int, kind: str) -> None:
    given = tensor(axis, bits)
    inputs = code_inputs(given)
    told = {"quantization_type": kind, "num_bits": bits} | ({} if axis is None else {"channel_dim": axis})
    back = tensor_of(inputs, told)
    assert back.qparams == given.qparams
    assert np.array_equal(back.codes, CODES)
    assert np.array_equal(back.dequantize(), given.dequantize())


def test_unsigned_codes_stay_unsigned() -> None:
    outputs = {"q": np.uint8([200]), "scale": np.float32([0.5]), "zero_point": np.int32([128])}
    assert tensor_of(outputs, {"quantization_type": "UINT8", "num_bits": 8}).dequantize().tolist() == [36.0]


def test_plain_codes_have_no_parameters() -> None:
    assert list(code_inputs(CODES)) == ["q"]
    assert code_inputs([[1, 2]])["q"].tolist() == [[1, 2]]


def test_numbers_that_are_no_codes_make_no_tensor() -> None:
    outputs = {"q": np.float16([1]), "scale": np.float32([1]), "zero_point": np.int32([0])}
    with pytest.raises(ConfigError, match="float16"):
        tensor_of(outputs, {"quantization_type": "FLOAT16"})


def test_groups_are_refused() -> None:
    grouped = QTensor(np.zeros((4, 2), np.int8), QParams(np.ones((2, 2)), 0, IntGrid(8), PerGroup(0, 2)))
    with pytest.raises(UnsupportedError, match="per tensor or channel"):
        code_inputs(grouped)
    with pytest.raises(UnsupportedError, match="per tensor or channel"):
        config_body(QuantizationConfig(granularity=PerGroup(0, 2)))


@pytest.mark.parametrize(
    "config",
    [
        QuantizationConfig(),
        QuantizationConfig(quantization_type="int16", per_channel=True, skip_layers=["a"], outlier_threshold=3.0),
        QuantizationConfig(granularity="per_channel", num_bits=6),
        QuantizationConfig(enable_mixed_precision=True, custom_quantization_config={"a": {"type": "int4"}}),
    ],
)
def test_the_service_understands_the_engines_configurations(config: QuantizationConfig) -> None:
    understood = QuantizerConfigModel(**json.loads(config_body(config))).to_config()
    x = np.linspace(-1, 2, 12, dtype=np.float32).reshape(3, 4)
    assert understood.to_dict() | {"granularity": None} == config.to_dict() | {"granularity": None}
    assert np.array_equal(Quantizer(understood).quantize(x), Quantizer(config).quantize(x))


def test_fields_are_sent_as_they_are_given() -> None:
    assert json.loads(config_body(None)) == {}
    assert json.loads(config_body({"num_bits": 4})) == {"num_bits": 4}


def test_names_are_quoted_and_conditions_are_etags() -> None:
    assert path_of("a/../b?c") == "/instances/a%2F..%2Fb%3Fc"
    assert condition(7) == {"If-Match": '"7"'}
    assert condition(None) == {}
