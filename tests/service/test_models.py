from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

from qi.engine import QuantizationConfig
from qi.errors import ConfigError, InputError
from qi.service.models import (
    CalibrationRequest,
    DequantizationRequest,
    ImportExportParams,
    QuantizationRequest,
    QuantizerConfigModel,
    QuantizerConfigPatch,
    RaggedError,
    array_from_json,
    is_layer_name,
    query_options,
)


@pytest.mark.parametrize(
    ("value", "dtype", "shape"),
    [
        ([[1, 2], [3, 4]], "int64", (2, 2)),
        ([[1.5, 2]], "float64", (1, 2)),
        (7, "int64", ()),
        ([], "float64", (0,)),
        ([[], []], "float64", (2, 0)),
        ([[1, 2.5]], "float64", (1, 2)),
        ([[[0.0, 1], [1, 0]]], "float64", (1, 2, 2)),
        ([[0, 1], [1, 0]], "int64", (2, 2)),
    ],
)
def test_numbers_in_any_number_of_dimensions(value: Any, dtype: str, shape: tuple[int, ...]) -> None:
    array = array_from_json(value)
    assert (array.dtype, array.shape) == (np.dtype(dtype), shape)


@pytest.mark.parametrize("value", [[[1, 2], [3]], [[1], 2], [[[1]], [2]]])
def test_rows_have_one_length(value: Any) -> None:
    with pytest.raises(RaggedError, match="one length"):
        array_from_json(value)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([["1.5"]], "text"),
        ([None, 1], "null"),
        ([[True]], "true or false"),
        ([[1, True]], "true or false"),
        ([[1.5, 2.5], [0.5, False]], "true or false"),
        ([[1.5, None]], "null"),
        ([[1.5], ["2"]], "text"),
        ("abc", "text"),
        ([{}], "objects"),
        ([(1,)], "others"),
    ],
)
def test_what_is_no_number_is_told_by_kind_alone(value: Any, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        array_from_json(value)
    assert "abc" not in str(caught.value)


def test_one_long_text_does_not_make_all_numbers_long() -> None:
    """Numpy would take the longest text's memory for every number."""
    with pytest.raises(InputError, match="text"):
        array_from_json([["a" * 100_000, *([0] * 1_000_000)]])


@pytest.mark.parametrize("value", [[10**400], [0.5, 10**400], [2**63]])
def test_integers_have_an_end(value: Any) -> None:
    with pytest.raises(InputError, match="64 bits"):
        array_from_json(value)


def test_nesting_has_an_end() -> None:
    value: Any = 1.0
    for _ in range(100):
        value = [value]
    with pytest.raises(InputError, match="dimensions"):
        array_from_json(value)


def test_the_default_model_is_the_documented_table() -> None:
    config = QuantizerConfigModel().to_config()
    assert (config.quantization_type, config.quantization_mode, config.num_bits) == ("int8", "dynamic", 8)
    assert (config.symmetric, config.enable_cache, config.cache_size) == (False, True, 1000)


@pytest.mark.parametrize(
    "fields",
    [
        {"quantization_type": "int16"},
        {"quantization_type": "FLOAT16"},
        {"quantization_type": "NONE"},
        {"quantization_type": "MIXED", "custom_quantization_config": {"a": {"bits": 4, "type": "INT8"}}},
        {"quantization_mode": "dynamic_per_channel", "skip_layers": ["x"], "outlier_threshold": 3.0},
    ],
)
def test_what_is_told_can_be_put_back(fields: dict[str, Any]) -> None:
    config = QuantizerConfigModel(**fields).to_config()
    told = QuantizerConfigModel.from_config(config)
    assert told.quantization_type == told.quantization_type.upper()
    assert QuantizerConfigModel(**told.model_dump()).to_config() == config


@pytest.mark.parametrize(("kind", "bits"), [("INT16", 16), ("UINT8", 8), ("INT4", 4)])
def test_bits_are_those_of_the_type_unless_given(kind: str, bits: int) -> None:
    assert QuantizerConfigModel(quantization_type=kind).to_config().num_bits == bits
    assert QuantizerConfigModel(quantization_type=kind, num_bits=3).to_config().num_bits == 3


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="simetric"):
        QuantizerConfigModel(simetric=True)  # type: ignore[call-arg]


def test_a_patch_changes_what_it_names() -> None:
    config = QuantizationConfig(symmetric=False, cache_size=7)
    changed = QuantizerConfigPatch(quantization_type="INT16").apply(config)  # type: ignore[call-arg]
    assert (changed.quantization_type, changed.num_bits, changed.symmetric) == ("int16", 16, False)
    with pytest.raises(ConfigError, match="cache_size"):
        QuantizerConfigPatch(cache_size=-1).apply(config)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="nothing_known"):
        QuantizerConfigPatch(nothing_known=1).apply(config)  # type: ignore[call-arg]


def test_validate_is_an_alias() -> None:
    assert QuantizationRequest.model_validate({"data": [[1]], "validate": False}).validate_input is False
    assert QuantizationRequest(data=[[1]], validate_input=False).validate_input is False


def test_calibration_takes_at_least_one_array() -> None:
    assert [array.shape for array in CalibrationRequest(data=[[[1.0]], [[1.0, 2.0]]]).data] == [(1, 1), (1, 2)]
    with pytest.raises(ValidationError):
        CalibrationRequest(data=[])


def test_a_model_can_be_written_as_json() -> None:
    assert '"data":[[1,2]]' in QuantizationRequest(data=[[1, 2]]).model_dump_json()


def test_options_of_a_query_are_read_as_json_is() -> None:
    found = query_options(
        DequantizationRequest, {"scale": "[0.5, 1]", "zero_point": "x", "layer_name": "1", "data": "1", "other": "2"}
    )
    assert found == {"scale": [0.5, 1], "zero_point": "x", "layer_name": "1"}
    flags = query_options(QuantizationRequest, {"validate": "False", "channel_dim": "-1", "remember": "null"})
    assert query_options(QuantizationRequest, {"remember": "False"}) == {"remember": False}
    assert flags == {"validate": False, "channel_dim": -1, "remember": "null"}
    assert query_options(QuantizationRequest, {"validate": "maybe", "channel_dim": "["}) == {
        "validate": "maybe", "channel_dim": "[",
    }  # fmt: skip


@pytest.mark.parametrize("fields", [{"scale": True}, {"scale": [False]}, {"channel_dim": True}, {"channel_dim": "1"}])
def test_numbers_are_numbers(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DequantizationRequest.model_validate({"data": [1], **fields})


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (DequantizationRequest, {"data": [1], "scale": ["a"] * 1000, "zero_point": 0}),
        (CalibrationRequest, {"data": [["a"]] * 1000}),
        (CalibrationRequest, {"data": [[1]] * 4097}),
        (QuantizerConfigModel, {"skip_layers": [1] * 1000}),
        (QuantizerConfigModel, {"mixed_precision_layers": ["a"] * 4097}),
        (QuantizerConfigModel, {"custom_quantization_config": dict.fromkeys(map(str, range(1000)), 0)}),
        (QuantizerConfigModel, {"custom_quantization_config": {f"\0{i}": {} for i in range(1000)}}),
        (QuantizerConfigModel, {"custom_quantization_config": {str(i): {} for i in range(4097)}}),
        (QuantizerConfigModel, {"custom_quantization_config": {"a": dict.fromkeys(map(str, range(65)), 0)}}),
        (QuantizerConfigModel, {"custom_quantization_config": []}),
        (ImportExportParams, {"parameters": dict.fromkeys(map("\ud800{}".format, range(1000)), 0)}),
    ],
)
def test_many_wrong_entries_are_few_errors(model: type[BaseModel], fields: dict[str, Any]) -> None:
    """Each error takes a kilobyte: as many as a body has entries would be a hundred times the body."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(fields)
    assert caught.value.error_count() <= 2  # a number, or a list of numbers


def test_as_much_as_may_be_is_taken() -> None:
    layers: dict[str, Any] = {f"{i:0512}": {"bits": 4} for i in range(4096)}
    model = QuantizerConfigModel(custom_quantization_config=layers, skip_layers=list(layers))
    assert model.to_config().custom_quantization_config.keys() == layers.keys()
    assert len(CalibrationRequest(data=[[1]] * 4096).data) == 4096


@pytest.mark.parametrize(
    ("name", "right"), [("", True), ("é" * 512, True), ("a" * 513, False), ("a\0", False), ("\ud800", False)]
)
def test_names_of_layers(name: str, right: bool) -> None:
    assert is_layer_name(name) is right
