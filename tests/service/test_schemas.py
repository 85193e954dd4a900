"""What the schemas allow is what the service takes, where JSON Schema can say it."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from qi.engine import QuantizationConfig, Quantizer
from qi.service import schemas
from qi.service.models import QuantizerConfigModel, array_from_json


@pytest.mark.parametrize("schema", [schemas.ARRAY, schemas.RESULT, schemas.LAYER, schemas.LAYERS, schemas.PARAMETERS])
def test_they_are_schemas(schema: dict[str, Any]) -> None:
    Draft202012Validator.check_schema(schema)
    for example in schema.get("examples", ()):
        Draft202012Validator(schema).validate(example)


@pytest.mark.parametrize("value", [1, 1.5, [], [1], [[1, 2.5]], [[[[[[[[1]]]]]]]], [[], []]])
def test_numbers_in_up_to_eight_dimensions(value: Any) -> None:
    Draft202012Validator(schemas.ARRAY).validate(value)
    Draft202012Validator(schemas.RESULT).validate(value)
    array_from_json(value)


@pytest.mark.parametrize("value", [None, "1", [None], [[True]], [{}], [[[[[[[[[1]]]]]]]]]])
def test_what_is_no_number(value: Any) -> None:
    assert not Draft202012Validator(schemas.ARRAY).is_valid(value)


@pytest.mark.parametrize("own", [{"type": "INT4", "bits": 3}, {"mode": "SYMMETRIC"}, {"per_channel": True}])
def test_settings_of_a_layer(own: dict[str, Any]) -> None:
    Draft202012Validator(schemas.LAYER).validate(own)
    QuantizationConfig(quantization_type="int16", custom_quantization_config={"a": own})


@pytest.mark.parametrize("name", ["a", "block/conv", "a" * 512, "", "a\0", "a" * 513])
def test_names_of_layers(name: str) -> None:
    good = "\0" not in name and len(name) <= 512
    assert Draft202012Validator(schemas.LAYERS).is_valid({name: {}}) is good
    try:
        QuantizerConfigModel(custom_quantization_config={name: {}})
    except ValidationError:
        assert not good
    else:
        assert good


def test_an_export_is_one(client: TestClient) -> None:
    client.post("/instances/default/calibrate", json={"data": [[[1.0]]]})
    exported = client.get("/instances/default/parameters").json()
    assert set(exported) == set(schemas.PARAMETERS["properties"]) == set(Quantizer().export_parameters())
    Draft202012Validator(schemas.PARAMETERS).validate(exported)
