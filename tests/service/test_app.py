from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from qi.errors import ConfigError
from qi.service.app import create_app
from qi.service.settings import Settings
from qi.service.store import UnavailableError


@pytest.mark.parametrize("path", ["/health", "/health/live", "/livez", "/v1/health", "/v1", "/v2/health/live"])
def test_it_lives(path: str, client: TestClient) -> None:
    assert client.get(path).status_code == 200


@pytest.mark.parametrize("path", ["/health/ready", "/readyz", "/v1/readyz", "/v2/health/ready"])
def test_it_is_ready_until_it_is_to_stop(path: str, client: TestClient) -> None:
    assert client.get(path).status_code == 200
    client.app.state.service.draining = True  # type: ignore[attr-defined]
    assert client.get(path).status_code == 503
    assert client.get("/livez").status_code == 200


def test_it_starts_only_with_its_store(tmp_path: Path) -> None:
    app = create_app(Settings(store=str(tmp_path / "missing" / "a.db")))
    with pytest.raises(ConfigError, match="folder that exists"), TestClient(app):
        pass


def test_limits_are_those_of_the_settings() -> None:
    limits = create_app(Settings(max_elements=5, max_ndim=2, max_channels=3)).state.service.limits
    assert (limits.max_elements, limits.max_ndim, limits.max_channels) == (5, 2, 3)


def test_a_wrong_environment_is_told_without_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QI_API_GRACE", "hunter2")
    with pytest.raises(ConfigError, match="QI_API_GRACE") as caught:
        create_app()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("log", [True, False])
def test_an_application_that_logs_by_itself_tells_of_misspelt_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], log: bool
) -> None:
    monkeypatch.setenv("QI_API_MAX_NDIMS", "4")
    with TestClient(create_app(log=log)):
        pass
    assert capsys.readouterr().err.count("QI_API_MAX_NDIMS") == log


def test_a_store_that_fails_is_503(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise UnavailableError("secret path")

    monkeypatch.setattr(client.app.state.service.instances.store, "revision", fail)  # type: ignore[attr-defined]
    for answer in (client.get("/instances/default/config"), client.get("/v2/models/default")):
        assert answer.status_code == 503
        assert "secret" not in answer.text


def test_instances_are_there_after_a_restart(make_client: Callable[..., TestClient], tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'a.db'}"
    first = make_client(store=store)
    first.post("/instances/a", json={"quantization_type": "UINT8"})
    scale = first.post("/instances/a/calibrate", json={"data": [[[1.0, 5.0]]]}).json()["scale"]
    first.app.state.service.close()  # type: ignore[attr-defined]
    second = make_client(store=store)
    assert second.get("/instances").json() == ["default", "a"]
    assert second.get("/instances/a/parameters").json()["global_scale"] == scale


def test_metrics_count_the_work(client: TestClient) -> None:
    client.post("/instances/default/quantize", json={"data": [[1.0, 2.0, 3.0]]})
    client.post("/instances/default/dequantize", json={"data": [[1, 2]]})
    text = client.get("/metrics").text
    assert 'qi_values_total{operation="quantize"} 3.0' in text
    assert 'qi_values_total{operation="dequantize"} 2.0' in text
    assert 'qi_cache_total{outcome="miss"} 1.0' in text
    assert "qi_instances 1.0" in text


def test_settings_reach_the_protections(make_client: Callable[..., TestClient]) -> None:
    client = make_client(api_keys="read:reader,writer", metrics=False, docs=False, cors_origins="https://a.example")
    assert client.get("/instances").status_code == 401
    assert client.get("/instances", headers={"x-api-key": "reader"}).status_code == 200
    assert client.post("/instances/a", json={}, headers={"x-api-key": "reader"}).status_code == 403
    assert client.post("/instances/a", json={}, headers={"authorization": "Bearer writer"}).status_code == 200
    assert client.get("/", headers={"origin": "https://a.example"}).headers["access-control-allow-origin"]
    for path in ("/metrics", "/docs", "/redoc"):
        assert client.get(path, headers={"x-api-key": "reader"}).status_code == 404


def test_the_document_describes_every_route(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    quantize = document["paths"]["/instances/{instance_id}/quantize"]["post"]
    assert "application/x-npy" in quantize["requestBody"]["content"]
    assert "QuantizationResponse" in document["components"]["schemas"]
    assert {"400", "401", "403", "404", "406", "409", "413", "415", "422", "503"} <= set(quantize["responses"])
    assert not any(path.startswith("/v1") for path in document["paths"])
    assert "/v2/models/{model}/infer" in document["paths"]


def test_the_document_tells_what_can_be_done_with_a_new_instance(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    links = paths["/instances/{instance_id}"]["post"]["responses"]["200"]["links"]
    names = [operation.get("operationId") for operations in paths.values() for operation in operations.values()]
    assert len(names) == len(set(names))
    assert {link["operationId"] for link in links.values()} <= set(names)
    assert "delete_instance" in links
