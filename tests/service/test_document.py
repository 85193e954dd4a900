from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from qi.service.document import methods_of


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/", ["GET"]),
        ("/instances/a", ["POST", "DELETE"]),
        ("/v1/instances/a/config", ["GET", "PUT", "PATCH"]),
        ("/instances/a/parameters", ["GET", "POST"]),
        ("/v2/models/a/infer", ["POST"]),
        ("/nothing", []),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(path: str, methods: list[str], client: TestClient) -> None:
    scope = {"type": "http", "path": path, "root_path": "", "headers": [], "query_string": b""}
    assert methods_of(client.app.routes, scope) == methods  # type: ignore[attr-defined]
    answer = client.request("TRACE", path)
    assert answer.status_code == (405 if methods else 404)
    assert answer.headers.get("allow", "") == ", ".join(methods)


def test_keys_are_documented(make_client: Callable[..., TestClient]) -> None:
    client = make_client(api_keys=["read:secret"])
    document = client.get("/openapi.json", headers={"X-API-Key": "secret"}).json()
    schemes: dict[str, Any] = document["components"]["securitySchemes"]
    assert {"type": "http", "scheme": "bearer"}.items() <= schemes["bearer"].items()
    assert document["security"] == [{}, {"bearer": []}, {"key": []}]
    for headers in ({schemes["key"]["name"]: "secret"}, {"Authorization": "Bearer secret"}):
        assert client.get("/instances", headers=headers).status_code == 200
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if operation.get("security") == []:
                assert client.request(method, path).status_code == 200


def test_every_protection_is_documented_everywhere(make_client: Callable[..., TestClient]) -> None:
    for settings, statuses in (({}, set()), ({"overload_status": 429}, {"429"})):
        paths = make_client(**settings).get("/openapi.json").json()["paths"]
        for path, operations in paths.items():
            for operation in operations.values():
                wanted = {"400", "401", "403", "408", "413", "415", "431", "503", "504"} | statuses
                assert wanted <= set(operation["responses"]), path


def test_options_in_the_query_have_a_type(client: TestClient) -> None:
    """None of them can be null there, and their limits are in words that schemas have."""
    paths = client.get("/openapi.json").json()["paths"]
    asked = [one for path in paths.values() for method in path.values() for one in method.get("parameters", ())]
    for parameter in asked:
        if parameter["in"] != "path":
            schema = parameter["schema"]
            assert not {"ge", "gt", "le", "lt"} & set(schema), parameter
            assert {"type": "null"} not in schema.get("anyOf", ()), parameter
    assert {"limit", "channel_dim", "operation", "if-match"} <= {parameter["name"] for parameter in asked}


def test_every_documented_example_is_taken_as_it_stands(make_client: Callable[..., TestClient]) -> None:
    """Pages fill their forms with it, and with the examples and defaults of parameters."""
    document = make_client().get("/openapi.json").json()
    told = set()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if content is None:
                continue
            client, url, query = make_client(), path, {}
            for parameter in operation["parameters"]:
                schema = parameter["schema"]
                value = parameter.get("example", schema.get("example", schema.get("default")))
                if parameter["in"] == "path" and value is not None:
                    url = url.replace(f"{{{parameter['name']}}}", value)
                elif parameter["in"] == "query" and value is not None:
                    query[parameter["name"]] = value
            answer = client.request(method, url, json=content["example"], params=query)
            assert answer.status_code == 200, (method, url, answer.text)
            told.add(path.rpartition("/")[2])
    assert told >= {
        "quantize",
        "dequantize",
        "quantize_dequantize",
        "calibrate",
        "compute_params",
        "config",
        "parameters",
    }


def test_what_is_to_be_calibrated_with_is_described(client: TestClient) -> None:
    found = client.get("/openapi.json").json()["paths"]["/instances/{instance_id}/calibrate"]["post"]
    data = found["requestBody"]["content"]["application/json"]["schema"]["properties"]["data"]
    assert data["description"].startswith("A list of arrays: each element is one array")


def test_arrays_can_be_asked_for(client: TestClient) -> None:
    for name in ("quantize", "upload_numpy"):
        found = client.get("/openapi.json").json()["paths"][f"/instances/{{instance_id}}/{name}"]["post"]
        assert "Accept: application/x-npy" in found["responses"]["200"]["description"]
