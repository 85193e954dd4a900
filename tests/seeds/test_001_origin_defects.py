"""What the first implementation of seed 001 did wrong (R1 to R12), and the switch that brings its statuses back.

R5's and R7's answers, the limits of R8 and the stress of R12 have more tests beside the modules in question.
"""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from qi.service import operations
from qi.service.app import create_app
from qi.service.service import Service
from qi.service.settings import Settings

DATA = [[1.2, 3.4, 5.6], [7.8, 9.0, 2.1]]
DEFAULT = "/instances/default"


@pytest.fixture
def make() -> Iterator[Callable[..., TestClient]]:
    """A function from settings to a client."""
    clients = []

    def make(**settings: Any) -> TestClient:
        client = TestClient(create_app(Settings(store="memory", **settings)), raise_server_exceptions=False)
        clients.append(client.__enter__())
        return client

    yield make
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(make: Callable[..., TestClient]) -> TestClient:
    return make()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


USER_ERRORS = {
    "unknown type": ("POST", "/instances/a", {"quantization_type": "int4x"}, 422),
    "ragged rows": ("POST", f"{DEFAULT}/quantize", {"data": [[1], [1, 2]]}, 422),
    "channel_dim out of range": ("POST", f"{DEFAULT}/quantize", {"data": DATA, "channel_dim": 5}, 422),
    "code out of dtype": ("POST", f"{DEFAULT}/dequantize", {"data": [[300]]}, 422),
    "parameters with a bad type": (
        "POST", f"{DEFAULT}/parameters", {"parameters": {"global_scale": 1, "quantization_type": "zz"}}, 422,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", USER_ERRORS)
@pytest.mark.parametrize("legacy", [False, True])
def test_r1_errors_of_the_user_are_not_the_servers(legacy: bool, name: str, make: Callable[..., TestClient]) -> None:
    client = make(legacy_errors=legacy)
    client.post(f"{DEFAULT}/quantize", json={"data": DATA})
    method, path, body, status = USER_ERRORS[name]
    answer = client.request(method, path, json=body)
    assert answer.status_code == (500 if legacy else status)
    assert ": expected " in answer.json()["detail"]


@pytest.mark.parametrize("legacy", [False, True])
def test_r1_nan_and_junk(legacy: bool, make: Callable[..., TestClient]) -> None:
    client = make(legacy_errors=legacy)
    json_headers = {"content-type": "application/json"}
    nan = client.post(f"{DEFAULT}/quantize", content=b'{"data": [[NaN]]}', headers=json_headers)
    assert nan.status_code == (500 if legacy else 422)
    assert nan.json()["detail"].startswith("Quantization error: expected no NaN")
    junk = client.post(f"{DEFAULT}/upload_numpy", files={"file": ("a.npy", b"junk")})
    assert junk.status_code == (500 if legacy else 400)


def test_r1_names_in_lower_case(client: TestClient) -> None:
    assert client.post("/instances/a", json={"quantization_type": "uint8"}).status_code == 200
    assert client.get("/instances/a/config").json()["quantization_type"] == "UINT8"


@pytest.mark.parametrize("legacy", [False, True])
def test_r2_an_unknown_operation_is_400(legacy: bool, make: Callable[..., TestClient]) -> None:
    files = {"file": ("a.npy", npy(np.zeros(3)))}
    answer = make(legacy_errors=legacy).post(f"{DEFAULT}/upload_numpy?operation=zz", files=files)
    assert answer.status_code == 400
    assert "Invalid operation" in answer.json()["detail"]


@pytest.mark.parametrize("name", ["INT8", "UINT8", "INT16", "FLOAT16", "NONE", "MIXED"])
def test_r3_a_configuration_can_be_put_back(name: str, client: TestClient) -> None:
    client.post("/instances/a", json={"quantization_type": name})
    told = client.get("/instances/a/config").json()
    assert client.put("/instances/a/config", json=told).status_code == 200
    assert client.get("/instances/a/config").json() == told


@pytest.mark.parametrize("name", ["__class__", "__members__", "name"])
def test_r3_a_name_is_no_attribute(name: str, client: TestClient) -> None:
    for field in ("quantization_type", "quantization_mode"):
        assert client.put(f"{DEFAULT}/config", json={field: name}).status_code == 422


def test_r4_numbers_beyond_float16(client: TestClient) -> None:
    client.post("/instances/a", json={"quantization_type": "FLOAT16"})
    assert client.post("/instances/a/quantize", json={"data": [[1e6]]}).status_code == 422
    halves = client.post("/instances/a/quantize", json={"data": [[0.1, 1e6]], "validate": False}).json()["data"]
    assert halves[0][1] == 65504.0
    back = client.post("/instances/a/dequantize", json={"data": halves})
    assert back.json()["data"] == [[pytest.approx(0.1, abs=1e-4), 65504.0]]


def test_r5_an_upload_gives_the_array(client: TestClient) -> None:
    files = {"file": ("a.npy", npy(np.array([0.0, 255.0])))}
    answer = client.post(f"{DEFAULT}/upload_numpy", files=files, headers={"accept": "application/x-npy"})
    assert np.load(io.BytesIO(answer.content)).tolist() == [-128, 127]


def test_r6_validate_is_honoured(client: TestClient) -> None:
    for name in ("quantize", "quantize_dequantize"):
        for validate, status in ((True, 422), (False, 200)):
            body = json.dumps({"data": [[1.0, float("nan")]], "validate": validate})
            headers = {"content-type": "application/json"}
            assert client.post(f"{DEFAULT}/{name}", content=body, headers=headers).status_code == status


def test_r6_an_upload_of_fractions_has_no_codes(client: TestClient) -> None:
    client.post(f"{DEFAULT}/quantize", json={"data": DATA})
    files = {"file": ("a.npy", npy(np.array([0.5])))}
    assert client.post(f"{DEFAULT}/upload_numpy?operation=dequantize", files=files).status_code == 422


def test_r7_no_origin_is_allowed_by_default(client: TestClient) -> None:
    headers = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    for answer in (client.get("/instances", headers=headers), client.options("/instances/a", headers=headers)):
        assert "access-control-allow-origin" not in answer.headers
        assert "access-control-allow-credentials" not in answer.headers
    assert client.post("/instances/a", json={}, headers={"origin": "http://evil.example"}).status_code == 403


@pytest.mark.parametrize("name", ["a%20b%0A", "x" * 3000, "%2e%2e", "-a", "%00"])
def test_r8_names_have_a_form(name: str, client: TestClient) -> None:
    assert client.post(f"/instances/{name}", json={}).status_code in (404, 405, 422)
    assert client.get("/instances").json() == ["default"]


def test_r8_there_are_limits(make: Callable[..., TestClient]) -> None:
    client = make(max_instances=1, max_json_bytes=1024)
    assert client.post("/instances/a", json={}).status_code == 429
    assert client.post(f"{DEFAULT}/quantize", json={"data": [[0.5] * 1000]}).status_code == 413
    assert client.put(f"{DEFAULT}/config", json={"skip_layers": ["a" * 600]}).status_code in (413, 422)


def test_r8_others_than_this_machine_need_a_key() -> None:
    app = create_app(Settings(store="memory"))
    with TestClient(app, client=("203.0.113.9", 5000)) as client:
        for path in ("/instances", "/metrics", "/v2/models/default", f"/v1{DEFAULT}/config"):
            assert client.get(path).status_code == 403


def test_r9_work_does_not_stall_others(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request is answered while another one's work has not ended: it waits for that."""
    answered = threading.Event()
    service: Service = client.app.state.service  # type: ignore[attr-defined]

    def slow(*args: Any, **options: Any) -> Any:
        assert answered.wait(timeout=60)
        return operations.quantize(*args, **options)

    monkeypatch.setitem(operations.OPERATIONS, "quantize", slow)
    body, headers = npy(np.zeros(100_000, np.float32)), {"content-type": "application/x-npy"}
    statuses: list[int] = []

    def work() -> None:
        statuses.append(client.post(f"{DEFAULT}/quantize", content=body, headers=headers).status_code)

    thread = threading.Thread(target=work)
    thread.start()
    while service._working.borrowed_tokens == 0 and thread.is_alive():
        time.sleep(0)
    assert client.get("/").status_code == 200
    answered.set()
    thread.join()
    assert statuses == [200]


def test_r10_every_process_sees_the_same_instances(tmp_path: Any) -> None:
    store = f"sqlite:///{tmp_path / 'a.db'}"
    with TestClient(create_app(Settings(store=store))) as one, TestClient(create_app(Settings(store=store))) as two:
        for number in range(30):
            here, there = (one, two) if number % 2 else (two, one)
            assert here.post(f"/instances/i{number}", json={}).status_code == 200
            assert there.get(f"/instances/i{number}/config").status_code == 200
            assert there.post(f"/instances/i{number}", json={}).status_code == 409


def test_r11_errors_are_few_and_do_not_echo(client: TestClient) -> None:
    body = b'{"data": [["secret"' + b', "secret"' * 50_000 + b"]]}"
    answer = client.post(f"{DEFAULT}/quantize", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert len(answer.content) < 2000
    assert "secret" not in answer.text
    many = client.post(f"{DEFAULT}/calibrate", json={"data": [["x"]] * 1000})
    assert (many.status_code, len(many.json()["detail"])) == (422, 1)
    unknown = client.post(f"{DEFAULT}/calibrate", json={"data": [[1]], **dict.fromkeys("abcdefghijkl", 0)})
    assert (unknown.status_code, len(unknown.json()["detail"])) == (422, 10)


ODD = [None, True, 0, -1, 1e400, "", "a", [], [[]], {}, {"data": None}, {"data": {}}, {"data": [[[]]]}, {"data": 1e308}]


@pytest.mark.parametrize(
    "path", ["quantize", "dequantize", "quantize_dequantize", "calibrate", "compute_params", "parameters"]
)
def test_r12_nothing_that_is_sent_is_the_servers_fault(path: str, client: TestClient) -> None:
    for body in ODD:
        content = json.dumps(body)
        answer = client.post(f"{DEFAULT}/{path}", content=content, headers={"content-type": "application/json"})
        assert answer.status_code < 500, content
    for name in ("PUT", "PATCH"):
        for body in ODD:
            options = {"content": json.dumps(body), "headers": {"content-type": "application/json"}}
            assert client.request(name, f"{DEFAULT}/config", **options).status_code < 500
