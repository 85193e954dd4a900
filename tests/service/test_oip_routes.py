"""The protocol over HTTP: models are instances, in JSON and in binary, and errors are in its own form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from qi.engine import QuantizationConfig, Quantizer
from qi.service.app import create_app
from qi.service.oip_routes import router
from qi.service.service import Service
from qi.service.settings import Settings
from qi.service.wire import HEADER_LENGTH, decode_response, encode_request

X = np.linspace(-3, 5, 24, dtype=np.float32).reshape(4, 6)


@pytest.fixture
def service() -> Service:
    service = Service(Settings(max_elements=1000, max_ndim=3, store="memory"))
    service.instances.create("channels", QuantizationConfig(per_channel=True, symmetric=False))
    service.instances.create("half", QuantizationConfig(quantization_type="float16"))
    service.instances.create("none", QuantizationConfig(quantization_type="none"))
    service.instances.create("fixed", QuantizationConfig(quantization_mode="calibrated"))
    return service


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    app = FastAPI()
    app.state.service = service
    app.include_router(router(service))
    with TestClient(app) as client:
        yield client


def infer(client: TestClient, model: str, inputs: dict[str, np.ndarray], **parameters: Any) -> dict[str, Any]:
    parts, length = encode_request(inputs, parameters)
    answer = client.post(f"/v2/models/{model}/infer", content=b"".join(parts), headers={HEADER_LENGTH: str(length)})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/octet-stream"
    outputs, told = decode_response(bytearray(answer.content), int(answer.headers[HEADER_LENGTH]))
    return outputs | {"parameters": told}


def refused(answer: Any, status: int, text: str) -> None:
    assert answer.status_code == status, answer.text
    assert text in answer.json()["error"]
    assert answer.json()["detail"] == answer.json()["error"]


def test_the_server_tells_what_it_is(client: TestClient) -> None:
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert client.get("/v2/health/live").status_code == 200


def test_a_server_that_drains_is_alive_but_not_ready(client: TestClient, service: Service) -> None:
    assert client.get("/v2/health/ready").json() == {"ready": True}
    service.draining = True
    refused(client.get("/v2/health/ready"), 503, "stopping")
    assert client.get("/v2/health/live").status_code == 200


@pytest.mark.parametrize(
    ("model", "codes"), [("default", "INT8"), ("channels", "INT8"), ("half", "FP16"), ("none", "FP32")]
)
def test_metadata_says_what_infer_then_gives(client: TestClient, model: str, codes: str) -> None:
    told = client.get(f"/v2/models/{model}").json()
    assert told["name"] == model
    assert [(output["name"], output["datatype"]) for output in told["outputs"]] == [
        ("q", codes),
        ("scale", "FP32"),
        ("zero_point", "INT32"),
    ]
    body = {"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]}]}
    answer = client.post(f"/v2/models/{model}/infer", json=body).json()
    assert [output["datatype"] for output in answer["outputs"]] == [output["datatype"] for output in told["outputs"]]


def test_json_and_binary_give_what_the_engine_gives(client: TestClient) -> None:
    quantizer = Quantizer(QuantizationConfig(symmetric=False))
    codes = quantizer.quantize(X)
    outputs = infer(client, "default", {"x": X})
    assert np.array_equal(outputs["q"], codes)
    assert outputs["scale"].tolist() == [np.float32(quantizer.scale)]
    assert outputs["zero_point"].tolist() == [quantizer.zero_point]
    assert outputs["parameters"]["quantization_type"] == "INT8"
    body = {"inputs": [{"name": "x", "shape": [4, 6], "datatype": "FP32", "data": X.tolist()}]}
    answer = client.post("/v2/models/default/infer", json=body).json()
    assert np.array_equal(np.reshape(answer["outputs"][0]["data"], (4, 6)), codes)
    assert answer["outputs"][0]["shape"] == [4, 6]


@pytest.mark.parametrize("channel_dim", [0, 1, -1])
def test_scales_of_channels_come_and_go_as_arrays(client: TestClient, channel_dim: int) -> None:
    outputs = infer(client, "channels", {"x": X}, channel_dim=channel_dim)
    axis = channel_dim % 2
    assert outputs["scale"].shape == tuple(X.shape[i] if i == axis else 1 for i in range(2))
    infer(client, "channels", {"x": 100 * X}, channel_dim=channel_dim)  # the latest parameters are others now
    given = {name: outputs[name] for name in ("q", "scale", "zero_point")}
    (y,) = (infer(client, "channels", given, operation="dequantize")["y"],)
    assert np.array_equal(y, (outputs["q"] - outputs["zero_point"]).astype(np.float32) * outputs["scale"])
    flat = given | {name: given[name].ravel() for name in ("scale", "zero_point")}
    again = infer(client, "channels", flat, operation="dequantize", channel_dim=channel_dim)["y"]
    assert np.array_equal(again, y)


def test_codes_without_parameters_are_read_with_the_latest(client: TestClient) -> None:
    outputs = infer(client, "default", {"x": X})
    infer(client, "default", {"x": 9 * X}, remember=False)
    y = infer(client, "default", {"q": outputs["q"]}, operation="dequantize")["y"]
    both = infer(client, "default", {"x": X}, operation="quantize_dequantize")["y"]
    assert np.array_equal(y, both)
    assert np.abs(y - X).max() <= 0.51 * outputs["scale"][0]


def test_numbers_that_are_no_codes(client: TestClient) -> None:
    outputs = infer(client, "half", {"x": X})
    assert np.array_equal(outputs["q"], X.astype(np.float16))
    assert (outputs["scale"].tolist(), outputs["zero_point"].tolist()) == ([1], [0])
    assert infer(client, "half", {"q": outputs["q"]}, operation="dequantize")["y"].dtype == np.float32


def test_versions_are_revisions(client: TestClient, service: Service) -> None:
    (version,) = client.get("/v2/models/default").json()["versions"]
    assert client.get(f"/v2/models/default/versions/{version}/ready").json() == {"name": "default", "ready": True}
    service.instances.put("default", Quantizer(QuantizationConfig(quantization_type="uint8")))
    refused(client.get(f"/v2/models/default/versions/{version}/ready"), 404, "expected version")
    refused(client.get(f"/v2/models/default/versions/{version}"), 404, "expected version")
    refused(client.post(f"/v2/models/default/versions/{version}/infer"), 404, "expected version")


def test_a_model_that_isnt_there(client: TestClient) -> None:
    for path in ("/v2/models/nobody", "/v2/models/nobody/ready"):
        refused(client.get(path), 404, "nobody")
    refused(client.post("/v2/models/nobody/infer", json={}), 404, "nobody")


def test_a_model_that_isnt_calibrated(client: TestClient) -> None:
    body = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}
    answer = client.post("/v2/models/fixed/infer", json=body)
    refused(answer, 409, "calibrate")
    assert answer.json()["code"] == "not-calibrated"


TENSOR = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}
CODES = {"name": "q", "shape": [1], "datatype": "INT8", "data": [1]}
SCALE = {"name": "scale", "shape": [1], "datatype": "FP32", "data": [1]}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"inputs": [TENSOR | {"name": "y"}]}, "expected inputs ['x']"),
        ({"inputs": []}, "expected inputs"),
        ({"inputs": [CODES, SCALE], "parameters": {"operation": "dequantize"}}, "expected inputs"),
        ({"inputs": [TENSOR], "parameters": {"operation": "quantise"}}, "Did you mean 'quantize'"),
        ({"inputs": [TENSOR], "parameters": {"operation": 1}}, "expected operation of another kind"),
        ({"inputs": [TENSOR], "parameters": {"channel_dimm": 0}}, "Did you mean 'channel_dim'"),
        ({"inputs": [TENSOR], "parameters": {"channel_dim": True}}, "channel_dim"),
        ({"inputs": [TENSOR], "parameters": {"validate": "no"}}, "validate"),
        ({"inputs": [TENSOR], "parameters": {"layer_name": "a" * 513}}, "layer_name"),
        ({"inputs": [CODES], "parameters": {"operation": "dequantize", "validate": True}}, "no validate"),
        ({"inputs": [TENSOR], "outputs": [{"name": "scal"}]}, "Did you mean 'scale'"),
        ({"inputs": [TENSOR | {"shape": [1, 1, 1, 1]}]}, "at most 3 dimensions"),
        ({"inputs": [TENSOR | {"shape": [1001]}]}, "from 0 to 1000"),
        ({"inputs": [TENSOR | {"data": [1e39]}]}, "infinity"),
    ],
)
def test_what_is_wrong_is_400(client: TestClient, body: dict[str, Any], text: str) -> None:
    refused(client.post("/v2/models/default/infer", json=body), 400, text)


def test_parameters_for_other_servers_do_no_harm(client: TestClient) -> None:
    body = {"inputs": [TENSOR], "parameters": {"priority": 3, "timeout": 10, "sequence_id": 1}}
    assert client.post("/v2/models/default/infer", json=body).status_code == 200


def test_scales_that_dont_fit(client: TestClient) -> None:
    def answer(scale: list[int], zero_point: list[int], **parameters: Any) -> Any:
        q = np.zeros((2, 2), np.int8)
        inputs = {"q": q, "scale": np.ones(scale, np.float32), "zero_point": np.zeros(zero_point, np.int32)}
        parts, length = encode_request(inputs, {"operation": "dequantize", **parameters})
        return client.post("/v2/models/channels/infer", content=b"".join(parts), headers={HEADER_LENGTH: str(length)})

    refused(answer([2], [1]), 400, "one shape")
    refused(answer([2, 2], [2, 2]), 400, "channel_dim alone")
    refused(answer([2, 1], [2, 1], channel_dim=1), 400, "channel_dim alone")
    refused(answer([3, 1], [3, 1]), 400, "expected")
    refused(answer([0], [0]), 400, "expected")


@pytest.mark.parametrize("length", ["-1", "1.5", "²", "9" * 20, ""])
def test_header_lengths_are_numbers(client: TestClient, length: str) -> None:
    answer = client.post("/v2/models/default/infer", content=b"{}", headers=[(HEADER_LENGTH, length.encode())])
    refused(answer, 400, HEADER_LENGTH)


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v2/models/default/infer", {"Content-Encoding": "gzip"}, 415),
        ("/v2/models/default/infer", {"Host": "elsewhere.example"}, 400),
        ("/v2/models/default/nothing", {}, 404),
    ],
)
def test_errors_from_around_the_routes_have_its_form_too(path: str, headers: dict[str, str], status: int) -> None:
    with TestClient(create_app(Settings(store="memory"))) as client:
        refused(client.post(path, headers=headers), status, "")
        other = client.post("/instances/default/quantize", headers=headers | {"Content-Encoding": "gzip"})
        assert "error" not in other.json()


def test_the_document_describes_it(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    content = paths["/v2/models/{model}/infer"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "application/octet-stream"}
    example = content["application/json"]["example"]
    assert client.post("/v2/models/default/infer", content=json.dumps(example)).status_code == 200
