"""What the seed's contract (tests/seeds) doesn't say: tags, patches, formats, limits."""

from __future__ import annotations

import inspect
import io
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from qi.service import latest, operations
from qi.service.models import QuantizerConfigModel
from qi.service.routes import router

X = np.array([[1.2, 3.4, 5.6], [7.8, 9.0, 2.1]], np.float32)
NPY = {"content-type": "application/x-npy", "accept": "application/x-npy"}
JSON = {"content-type": "application/json"}
CONFIG = "/instances/default/config"


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def array_of(response: Any) -> np.ndarray:
    assert response.status_code == 200, response.text
    return np.load(io.BytesIO(response.content))


def test_a_configuration_changes_only_for_who_has_seen_it(client: TestClient) -> None:
    tag = client.get(CONFIG).headers["etag"]
    first = client.put(CONFIG, json={}, headers={"if-match": tag})
    assert first.status_code == 200
    for change in (
        client.put(CONFIG, json={}, headers={"if-match": tag}),
        client.patch(CONFIG, json={}, headers={"if-match": tag}),
        client.post("/instances/default/calibrate", json={"data": [[[1.0]]]}, headers={"if-match": tag}),
        client.post(
            "/instances/default/parameters", json={"parameters": {"global_scale": 1}}, headers={"if-match": tag}
        ),
    ):
        assert (change.status_code, change.json()["code"]) == (412, "instance-changed")
    assert client.get(CONFIG).headers["etag"] == first.headers["etag"]
    assert client.put(CONFIG, json={}, headers={"if-match": "*"}).status_code == 200


def test_deletion_can_ask_for_a_revision(client: TestClient) -> None:
    created = client.post("/instances/a", json={})
    assert created.headers["location"] == "/instances/a/config"
    assert client.delete("/instances/a", headers={"if-match": '"0"'}).status_code == 412
    assert client.delete("/instances/a", headers={"if-match": created.headers["etag"]}).status_code == 200


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_creation_tells_where_the_instance_is(prefix: str, client: TestClient) -> None:
    answer = client.post(f"{prefix}/instances/a", json={})
    assert answer.headers["location"] == f"{prefix}/instances/a/config"
    assert client.get(answer.headers["location"]).headers["etag"] == answer.headers["etag"]


def test_a_patch_is_documented_field_by_field(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    put, patch = (
        document["paths"]["/instances/{instance_id}/config"][name]["requestBody"]["content"]["application/json"]
        for name in ("put", "patch")
    )
    assert set(patch["schema"]["properties"]) == set(put["schema"]["properties"]) == set(client.get(CONFIG).json())
    assert not any("default" in field for field in patch["schema"]["properties"].values())


def test_a_patch_changes_some_fields(client: TestClient) -> None:
    before = client.get(CONFIG).json()
    assert client.patch(CONFIG, json={"quantization_type": "int16", "skip_layers": ["a"]}).status_code == 200
    after = client.get(CONFIG).json()
    assert after == {**before, "quantization_type": "INT16", "num_bits": 16, "skip_layers": ["a"]}
    bad = client.patch(CONFIG, json={"cache_sise": 1})
    assert bad.status_code == 422
    assert bad.json()["detail"].startswith("Error updating configuration: cache_sise")
    assert client.get(CONFIG).json() == after


def test_the_list_can_be_short(client: TestClient) -> None:
    client.post("/instances/a", json={})
    assert client.get("/instances?limit=1").json() == ["default"]
    assert client.get("/instances?limit=0").status_code == 422


def test_arrays_in_and_out_as_bytes(client: TestClient) -> None:
    x = np.random.default_rng(0).normal(size=(3, 4, 5, 6)).astype(np.float32)
    answer = client.post("/instances/default/quantize", content=npy(x), headers=NPY)
    codes = array_of(answer)
    assert (codes.shape, codes.dtype) == (x.shape, np.int8)
    sent = f"scale={answer.headers['qi-scale']}&zero_point={answer.headers['qi-zero-point']}"
    for path in ("/instances/default/dequantize", f"/instances/default/dequantize?{sent}"):
        back = array_of(client.post(path, content=npy(codes), headers=NPY))
        assert np.abs(back - x).max() <= float(answer.headers["qi-scale"]) / 2 * (1 + 1e-5)
    both = array_of(client.post("/instances/default/quantize_dequantize", content=npy(x), headers=NPY))
    assert np.array_equal(both, back)


@pytest.mark.parametrize("name", ["calibrate", "compute_params"])
def test_other_endpoints_read_bytes_too(name: str, client: TestClient) -> None:
    answer = client.post(f"/instances/default/{name}", content=npy(X), headers={"content-type": "application/x-npy"})
    assert answer.json()["scale"] == pytest.approx(9 / 255)


def test_an_upload_can_give_the_array(client: TestClient) -> None:
    files = {"file": ("a.NPY", npy(X))}
    accept = {"accept": "application/x-npy"}
    codes = array_of(client.post("/instances/default/upload_numpy", files=files, headers=accept))
    path = "/instances/default/upload_numpy?operation=dequantize"
    back = array_of(client.post(path, files={"file": ("b.npy", npy(codes))}, headers=accept))
    assert np.abs(back - X).max() < 0.02
    told = client.post(path, files={"file": ("b.npy", npy(codes))}).json()
    assert told == {
        "message": "Array dequantized successfully", "shape": [2, 3], "dtype": "float32", "original_shape": [2, 3],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "content", "kind", "status"),
    [
        ({"max_ndim": 2}, b'{"data": [[[1]]]}', "application/json", 422),
        ({"max_elements": 2}, b'{"data": [[1, 2, 3]]}', "application/json", 422),
        ({"max_elements": 2}, npy(X), "application/x-npy", 400),
        ({"max_json_bytes": 1024}, b'{"data": [' + b"1," * 2000 + b"1]}", "application/json", 413),
        ({"max_binary_bytes": 1024}, npy(np.zeros(1000)), "application/x-npy", 413),
    ],
)
def test_limits(
    settings: dict[str, int], content: bytes, kind: str, status: int, make_client: Callable[..., TestClient]
) -> None:
    client = make_client(**settings)
    answer = client.post("/instances/default/quantize", content=content, headers={"content-type": kind})
    assert answer.status_code == status, answer.text


def test_a_quota(make_client: Callable[..., TestClient]) -> None:
    client = make_client(max_instances=2)
    assert client.post("/instances/a", json={}).status_code == 200
    full = client.post("/instances/b", json={})
    assert (full.status_code, full.json()["code"]) == (429, "too-many-instances")


def test_what_is_not_a_number_in_json_is_counted(client: TestClient) -> None:
    client.post("/instances/a", json={"quantization_type": "NONE"})
    answer = client.post("/instances/a/quantize", content=b'{"data": [NaN, 1], "validate": false}',
                         headers={"content-type": "application/json"})  # fmt: skip
    assert answer.json()["data"] == [None, 1.0]
    assert answer.headers["qi-nonfinite"] == "1"


def test_layers_with_slashes(client: TestClient) -> None:
    client.put(CONFIG, json={"enable_mixed_precision": True, "mixed_precision_layers": ["block/conv"]})
    answer = client.get("/instances/default/layer_params/block/conv").json()
    assert answer == {"bits": 16, "type": "INT16", "skip": False}


@pytest.mark.parametrize("accept", ["text/html", "application/x-npy;q=0"])
@pytest.mark.parametrize("path", ["quantize", "upload_numpy"])
def test_an_answer_that_nobody_accepts_changes_nothing(path: str, accept: str, client: TestClient) -> None:
    client.post("/instances/default/quantize", json={"data": [[0, 1]]})
    before = [client.get(f"/instances/default/{name}").json() for name in ("stats", "parameters")]
    body: dict[str, Any] = {"json": {"data": [[0, 100]]}}
    if path == "upload_numpy":
        body = {"files": {"file": ("a.npy", npy(100 * X))}}
    answer = client.post(f"/instances/default/{path}", headers={"accept": accept}, **body)
    assert (answer.status_code, answer.json()["code"]) == (406, "not-acceptable")
    assert [client.get(f"/instances/default/{name}").json() for name in ("stats", "parameters")] == before


def test_tags_can_be_several(client: TestClient) -> None:
    tag = client.get(CONFIG).headers["etag"]
    assert client.put(CONFIG, json={}, headers={"if-match": f'"999", {tag}'}).status_code == 200
    tag = client.get(CONFIG).headers["etag"]
    apart = [("if-match", '"x"'), ("if-match", tag)]
    assert client.patch(CONFIG, json={}, headers=apart).status_code == 200
    gone = client.put(CONFIG, json={}, headers={"if-match": f'"seven", W/{tag}'})
    assert (gone.status_code, gone.json()["code"]) == (412, "instance-changed")
    assert "-1" not in gone.json()["detail"]


@pytest.mark.parametrize("path", ["clear_cache", "reset_stats"])
def test_what_forgets_can_ask_for_a_revision(path: str, client: TestClient) -> None:
    codes = client.post("/instances/default/quantize", json={"data": [[0, 1]]}).json()["data"]
    for _ in range(2):
        client.post("/instances/default/dequantize", json={"data": codes})
    assert client.post(f"/instances/default/{path}", headers={"if-match": '"999"'}).status_code == 412
    client.post("/instances/default/dequantize", json={"data": codes})
    found = client.get("/instances/default/stats").json()
    assert (found["dequantize_calls"], found["cache_hits"]) == (3, 2)
    tag = client.get(CONFIG).headers["etag"]
    assert client.post(f"/instances/default/{path}", headers={"if-match": tag}).status_code == 200


FORM = {"content-type": "multipart/form-data; boundary=XX"}
PART = b'--XX\r\nContent-Disposition: form-data; name="file"'


# Starlette leaves the file of a form that ends too early to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("content", "status"),
    [
        (PART + b'; filename="a.npy"\r\n\r\n' + npy(X) + b"\r\n--XX--\r\n", 200),
        (PART + b"\r\n\r\n" + b"text" + b"\r\n--XX--\r\n", 400),
        (PART + b'; filename="a.npy"\r\n\r\n' + npy(X), 400),
        (b"--XX--\r\n", 400),
        (b"junk", 400),
        (b"", 400),
    ],
)
def test_a_form_that_holds_no_file(content: bytes, status: int, client: TestClient) -> None:
    for path in ("upload_numpy", "quantize"):
        answer = client.post(f"/instances/default/{path}", content=content, headers=FORM)
        assert answer.status_code == status, answer.text


STRICT: list[tuple[str, str, Any]] = [
    ("PUT", "config", {"num_bits": "8"}),
    ("PUT", "config", {"num_bits": True}),
    ("PUT", "config", {"num_bits": 8.5}),
    ("PUT", "config", {"quantize_bias": 0}),
    ("PUT", "config", {"symmetric": "yes"}),
    ("PATCH", "config", {"min_percentile": "1"}),
    ("POST", "quantize", {"data": [1], "channel_dim": True}),
    ("POST", "quantize", {"data": [1], "channel_dim": "0"}),
    ("POST", "quantize", {"data": [1], "validate": 1}),
    ("POST", "quantize", {"data": [1], "layer_name": "a\0"}),
    ("POST", "dequantize", {"data": [1], "scale": True, "zero_point": 0}),
    ("POST", "dequantize", {"data": [1], "scale": [True], "zero_point": [0]}),
    ("POST", "dequantize", {"data": [1], "scale": "1", "zero_point": "0"}),
    ("POST", "compute_params", {"data": [1], "channel_idx": False}),
]


@pytest.mark.parametrize(("method", "path", "body"), STRICT)
def test_values_have_their_type(method: str, path: str, body: Any, client: TestClient) -> None:
    answer = client.request(method, f"/instances/default/{path}", json=body)
    assert answer.status_code == 422, answer.text


def test_whole_numbers_may_have_a_point(client: TestClient) -> None:
    assert client.put(CONFIG, json={"num_bits": 4.0, "cache_size": 7.0}).status_code == 200
    assert client.get(CONFIG).json()["num_bits"] == 4


@pytest.mark.parametrize("query", ["validate=False&channel_dim=-1", "validate=1&remember=true", "layer_name=7"])
def test_options_of_the_query_are_texts(query: str, client: TestClient) -> None:
    assert client.post(f"/instances/default/quantize?{query}", content=npy(X), headers=NPY).status_code == 200
    sent = "scale=[0.5,1]&zero_point=[0,0]&channel_dim=0"
    back = client.post(f"/instances/default/dequantize?{sent}", content=npy(np.ones((2, 3), np.int8)), headers=NPY)
    assert array_of(back).tolist() == [[0.5] * 3, [1.0] * 3]


def test_names_of_layers_that_nobody_can_read_again(client: TestClient) -> None:
    layer = '{"scale":1,"zero_point":0,"channel_dim":null}'
    for name in (r"\ud800", "a" * 513, r"\u0000"):
        for extra in ("", ',"global_zero_point":0,"x":NaN'):
            body = f'{{"parameters":{{"global_scale":1.0,"layers":{{"{name}":{layer}}}{extra}}}}}'
            answer = client.post("/instances/default/parameters", content=body, headers=JSON)
            assert answer.status_code == 422
    assert client.get("/instances/default/parameters").json()["layers"] == {}


@pytest.mark.parametrize("path", ["quantize", "quantize_dequantize", "calibrate", "upload_numpy"])
def test_channels_have_a_limit(path: str, client: TestClient) -> None:
    client.put(CONFIG, json={"per_channel": True})
    for channels, status in ((1 << 16, 200), ((1 << 16) + 1, 422)):
        content = npy(np.ones((channels, 1), np.int8))
        sent: dict[str, Any] = {"content": content, "headers": NPY | {"accept": "*/*"}}
        if path == "upload_numpy":
            sent = {"files": {"file": ("a.npy", content)}}
        answer = client.post(f"/instances/default/{path}", **sent)
        assert answer.status_code == status, answer.text[:300]
    assert "at most 65536 channels" in answer.json()["detail"]


def test_a_body_that_is_no_json(client: TestClient) -> None:
    for content in (b"", b"{", b"\xff", b'{"num_bits": 1e400}'):
        assert client.put(CONFIG, content=content, headers=JSON).status_code == 422


def test_every_status_is_documented(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            found = set(operation["responses"])
            if path.startswith("/instances"):
                assert found >= {"200", "400", "422", "503", "504"}, (method, path)
            if "{instance_id}" in path and (method, path) != ("post", "/instances/{instance_id}"):
                assert "404" in found, (method, path)
            if any(one["name"] == "if-match" for one in operation.get("parameters", ())):
                assert "412" in found, (method, path)
            if "requestBody" in operation:
                assert {"400", "413", "415"} <= found, (method, path)


def test_links_lead_to_operations(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    all_of_them = [one for path in document["paths"].values() for one in path.values()]
    known = {one["operationId"] for one in all_of_them}
    linked = {link["operationId"] for one in all_of_them for link in one["responses"]["200"].get("links", {}).values()}
    assert {"get_config", "update_config", "import_parameters", "delete_instance"} <= linked <= known


def test_no_dependency_takes_a_thread(client: TestClient) -> None:
    """Plain functions would be called in a thread, for every request."""
    checked = 0
    for route in router.routes:
        waiting = list(route.dependant.dependencies)  # type: ignore[attr-defined]
        while waiting:
            found = waiting.pop()
            assert inspect.iscoroutinefunction(found.call), found.call
            waiting += found.dependencies
            checked += 1
    assert checked > 20


def test_what_is_long_is_not_made_on_the_loop(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a store in memory, too."""
    client.put(CONFIG, json={"skip_layers": [f"layer{i:04}" for i in range(4096)]})
    service: Any = client.app.state.service  # type: ignore[attr-defined]
    places: dict[str, int] = {}

    def watch(where: Any, name: str) -> None:
        found = getattr(where, name)

        def called(*args: Any) -> Any:
            places[name] = threading.get_ident()
            return found(*args)

        monkeypatch.setattr(where, name, called)

    watch(service.instances, "get")  # which runs on the loop
    watch(operations, "layer_params")
    watch(operations, "stats")
    watch(latest, "exported")
    watch(QuantizerConfigModel, "from_config")
    for path in ("layer_params/a", "stats", "parameters", "config"):
        assert client.get(f"/instances/default/{path}").status_code == 200
    loop = places.pop("get")
    assert len(places) == 4
    assert loop not in places.values()


def test_a_key_for_reading_changes_nothing_that_others_get(make_client: Callable[..., TestClient]) -> None:
    client = make_client(api_keys="read:r,write:w")
    quantize, codes = "/instances/default/quantize", {"data": [[10]]}
    infer = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1000]}]}

    def post(key: str, path: str, **more: Any) -> Any:
        return client.post(path, headers={"x-api-key": key}, **more)

    assert post("w", quantize, json={"data": [[-1, 1]]}).status_code == 200
    before = post("r", "/instances/default/dequantize", json=codes).json()
    for answer in (
        post("r", quantize, json={"data": [[1000]]}),
        post("r", quantize, json={"data": [[1000]], "remember": None}),
        post("r", f"{quantize}?remember=false", json={"data": [[1000]]}),
        post("r", "/instances/default/upload_numpy", files={"file": ("a.npy", npy(1000 * X))}),
        post("r", "/v2/models/default/infer", json=infer),
    ):
        assert answer.status_code == 200, answer.text
    for refused in (
        post("r", quantize, json={"data": [[1000]], "remember": True}),
        post("r", f"{quantize}?remember=true", json={"data": [[1000]]}),
        post("r", "/v2/models/default/infer", json={**infer, "parameters": {"remember": True}}),
    ):
        assert (refused.status_code, refused.json()["code"]) == (403, "scope")
        assert "API key for writing" in refused.json()["detail"]
    assert post("r", "/instances/default/dequantize", json=codes).json() == before
    assert post("w", quantize, json={"data": [[1000]], "remember": True}).status_code == 200
    assert post("r", "/instances/default/dequantize", json=codes).json() != before


def test_settings_that_contradict_each_other_are_the_clients_fault(client: TestClient) -> None:
    client.post("/instances/default/calibrate", json={"data": [[1, -2]]})
    assert client.patch(CONFIG, json={"symmetric": True}).status_code == 200
    answer = client.patch(CONFIG, json={"quantization_mode": "ASYMMETRIC"})
    assert answer.status_code == 422
    assert "go together" in answer.json()["detail"]


UPLOAD = "/instances/default/upload_numpy"


def test_an_upload_does_what_was_asked_or_nothing(client: TestClient) -> None:
    files = {"file": ("a.npy", npy(X))}
    for more in ({"data": {"operation": "dequantize"}}, {"params": {"operatoin": "dequantize"}}):
        answer = client.post(UPLOAD, files=files, **more)  # type: ignore[arg-type]
        found = answer.json()
        assert (answer.status_code, found["code"]) == (400, "unknown-option")
        assert "expected one of operation, validate, channel_dim, layer_name" in found["detail"]
    assert "Did you mean 'operation'" in found["detail"]
    assert client.get("/instances/default/stats").json()["quantize_calls"] == 0


def test_an_upload_without_a_form_is_told_where_to_go(client: TestClient) -> None:
    answer = client.post(UPLOAD, content=npy(X), headers=NPY)
    assert answer.status_code == 400
    assert "/instances/{instance_id}/quantize as application/x-npy" in answer.json()["detail"]
    assert array_of(client.post("/instances/default/quantize", content=npy(X), headers=NPY)).dtype == np.int8
