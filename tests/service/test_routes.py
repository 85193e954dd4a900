"""What the seed's contract (tests/seeds) doesn't say: tags, patches, formats, limits."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

X = np.array([[1.2, 3.4, 5.6], [7.8, 9.0, 2.1]], np.float32)
NPY = {"content-type": "application/x-npy", "accept": "application/x-npy"}
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
def test_an_answer_that_nobody_accepts(accept: str, client: TestClient) -> None:
    answer = client.post("/instances/default/quantize", json={"data": [[1]]}, headers={"accept": accept})
    assert answer.status_code == 406
