"""What clients may send to the service to hurt it: an answer of the 400s, in bounded memory and time, and the next request
is served."""

from __future__ import annotations

import io
import time
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from fastapi.testclient import TestClient

from qi.service.app import create_app
from qi.service.npy import write_npy
from qi.service.settings import Settings
from tests.service.test_npy import ATTACKS, GOOD

REFUSED = {400, 408, 411, 413, 415, 422}
NPY_HEADERS = {"Content-Type": "application/x-npy"}
JSON_HEADERS = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    settings = Settings(max_json_bytes=1 << 20, max_binary_bytes=8 << 20, store="memory")
    with TestClient(create_app(settings), raise_server_exceptions=False) as found:
        yield found


def bounded(client: TestClient, path: str, **request: Any) -> Any:
    """The answer, which must not have taken more memory than a few times the body, nor seconds of the processor."""
    tracemalloc.start()
    try:
        began = time.process_time()
        answer = client.post(path, **request)
        assert time.process_time() - began < 5
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50_000_000
    assert len(answer.content) < 20_000
    assert client.get("/livez").status_code == 200
    return answer


@pytest.mark.parametrize("name", ATTACKS)
def test_npy_attacks_by_every_door(client: TestClient, name: str) -> None:
    data = ATTACKS[name]
    upload = bounded(client, "/instances/default/upload_numpy", files={"file": ("x.npy", data)})
    assert upload.status_code == 400
    assert upload.json()["detail"].startswith("Error processing file: expected")
    for path in ("quantize", "dequantize", "quantize_dequantize", "calibrate", "compute_params"):
        raw = bounded(
            client, f"/v1/instances/default/{path}", content=data, headers={"Content-Type": "application/x-npy"}
        )
        assert raw.status_code == 400


@pytest.mark.parametrize("kind", ["application/x-safetensors", "application/vnd.apache.arrow.tensor"])
@pytest.mark.parametrize("data", [b"", b"\0" * 8, b"\xff" * 100, GOOD, b"{" * 5000])
def test_other_formats(client: TestClient, kind: str, data: bytes) -> None:
    pytest.importorskip("pyarrow")
    answer = bounded(client, "/instances/default/quantize", content=data, headers={"Content-Type": kind})
    assert answer.status_code == 400


def bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.npy", b"\0" * 50_000_000)
    return file.getvalue()


@pytest.mark.parametrize(
    ("files", "statuses"),
    [
        ({"file": ("x.npy", bomb())}, {400}),
        ({"file": ("x.npz", bomb())}, {400}),
        ({"file": ("../../x.npy", GOOD)}, {200}),
        ({"file": ("X.NPY", GOOD)}, {200}),
        ({"file": ("x\r\ny.npy", GOOD)}, {200, 400}),
        ({"file": ("é\u202e.npy", GOOD)}, {200}),
        ({"file": ("x.txt", GOOD)}, {400}),
        ({"file": ("x" * 5000 + ".npy", GOOD)}, {200, 400}),
        ({"other": ("x.npy", GOOD)}, {400}),
        ([("file", ("x.npy", GOOD))] * 1001, {400}),
        ([(f"f{i}", (None, "v")) for i in range(1001)], {400}),
        ([("file", (None, "text"))], {400}),
        ([("file", ("x.npy", GOOD, "x" * 100_000))], {200, 400}),
        ([("file", ("x.npy", GOOD, "text/html", {"X-Y": "z" * 100_000}))], {200, 400}),
    ],
)
def test_forms(client: TestClient, files: Any, statuses: set[int]) -> None:
    assert bounded(client, "/instances/default/upload_numpy", files=files).status_code in statuses


@pytest.mark.parametrize(
    "content_type", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=x"]
)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--x",
        b"--x\r\n\r\n--x--",
        b"--x\r\nContent-Disposition: form-data\r\n\r\n\r\n--x--",
        b"--x\r\nContent-Disposition: form-data; name=" + b"x" * 100_000,
        b"--x\r\n" + b"X-Y: z\r\n" * 10_000,
        b"before\r\n" * 300_000 + b"--x--",
        b"\r\n" * 1_000_000,
    ],
)
def test_damaged_forms(client: TestClient, content_type: str, body: bytes) -> None:
    for path in ("upload_numpy", "quantize"):
        answer = bounded(client, f"/instances/default/{path}", content=body, headers={"Content-Type": content_type})
        assert answer.status_code in REFUSED


def test_a_file_that_is_too_large_leaves_nothing(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    answer = bounded(client, "/instances/default/upload_numpy", files={"file": ("x.npy", b"\0" * (9 << 20))})
    assert answer.status_code == 413
    assert list(tmp_path.iterdir()) == []


ROWS = b'{"data": %s}'
JSON_ATTACKS = {
    "nothing": b"",
    "not JSON": b"{",
    "not UTF-8": b'{"data": "\xff"}',
    "no object": b"[]",
    "no data": b"{}",
    "null": ROWS % b"null",
    "2000 lists": ROWS % (b"[" * 2000 + b"]" * 2000),
    "100000 lists": ROWS % (b"[" * 100_000),
    "200 lists": ROWS % (b"[" * 200 + b"1" + b"]" * 200),
    "deep and NaN": ROWS % (b"[" * 50_000 + b"NaN"),
    "9 dimensions": ROWS % (b"[" * 9 + b"1" + b"]" * 9),
    "ragged": ROWS % b"[[1, 2], [3]]",
    "ragged deeper": ROWS % b"[[[1], [2]], [[3], 4]]",
    "texts": ROWS % b'[["1.5"]]',
    "booleans": ROWS % b"[[true]]",
    "nulls": ROWS % b"[[null]]",
    "objects": ROWS % b'[[{"__class__": 1}]]',
    "half a character": ROWS % b'[["\\ud800"]]',
    "200000 texts": ROWS % (b"[[" + b'"a",' * 200_000 + b"1]]"),
    "bool as dimension": b'{"data": [[1]], "channel_dim": true}',
    "huge dimension": b'{"data": [[1]], "channel_dim": 99999999999999999999999}',
    "text as dimension": b'{"data": [[1]], "channel_dim": "x"}',
    "layer of half a character": b'{"data": [[1]], "layer_name": "\\ud800"}',
    "layer of 1e5 characters": b'{"data": [[1]], "layer_name": "' + b"x" * 100_000 + b'"}',
    "too long": ROWS % (b"[[" + b"1," * 600_000 + b"1]]"),
    "two keys": b'{"data": [1], "data": "x"}',
    "escapes": ROWS % (b'"' + b"\\u00e4" * 150_000 + b'"'),
}
CALIBRATING = {"9 dimensions", "ragged", "ragged deeper"}  # a list of arrays, each of its own shape


@pytest.mark.parametrize("name", JSON_ATTACKS)
@pytest.mark.parametrize("operation", ["quantize", "dequantize", "quantize_dequantize", "compute_params", "calibrate"])
def test_json(client: TestClient, operation: str, name: str) -> None:
    path = f"/instances/default/{operation}"
    answer = bounded(client, path, content=JSON_ATTACKS[name], headers=JSON_HEADERS)
    assert answer.status_code in REFUSED | ({200} if operation == "calibrate" and name in CALIBRATING else set())


@pytest.mark.parametrize("rows", [b"[]", b"[[],[]]", b"[[[]]]", b"[" + b"[]," * 100_000 + b"[]]"])
def test_rows_of_nothing_are_arrays_of_nothing(client: TestClient, rows: bytes) -> None:
    for operation in ("quantize", "quantize_dequantize", "dequantize"):
        answer = client.post(f"/instances/default/{operation}", content=ROWS % rows, headers=JSON_HEADERS)
        assert (answer.status_code, answer.json()["data"]) == (200, orjson.loads(rows))


OPERATIONS = ("quantize", "quantize_dequantize", "dequantize", "compute_params")
NUMBERS = ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1" * 400, "1e300"]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_numbers_that_float32_has_not(client: TestClient, operation: str, number: str) -> None:
    body = ROWS % f"[[{number}, 1.0]]".encode()
    answer = bounded(client, f"/instances/default/{operation}", content=body, headers=JSON_HEADERS)
    assert answer.status_code == 422


@pytest.mark.parametrize(
    "array",
    [
        np.array([1e300, 1.0]),
        np.array([-1e39, 1.0]),
        np.array([0x7FC00001, 0], np.uint32).view(np.float32),  # NaN with a payload, ...
        np.array([0xFFFFFFFF, 0], np.uint32).view(np.float32),
        np.array([0x7F800001, 0], np.uint32).view(np.float32),  # ... and one that signals
        np.array([np.inf, 1.0], np.float16),
    ],
)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_numbers_in_files_that_float32_has_not(client: TestClient, operation: str, array: np.ndarray) -> None:
    answer = bounded(client, f"/instances/default/{operation}", content=write_npy(array), headers=NPY_HEADERS)
    assert answer.status_code == 422


def test_numbers_in_files_that_float32_has(client: TestClient) -> None:
    subnormal = np.array([0, 255], np.uint16).view(np.float16)
    client.post("/instances/files", json={})
    found = client.post("/instances/files/quantize", content=write_npy(subnormal), headers=NPY_HEADERS).json()
    assert found["data"] == [-128, 127]
    assert found["scale"] == pytest.approx(2.0**-24, rel=1e-6)
    lenient = "/instances/files/quantize?validate=false"
    found = client.post(lenient, content=write_npy(np.float32([np.nan, 0, 255])), headers=NPY_HEADERS).json()
    client.delete("/instances/files")
    assert found["data"] == [-128, -128, 127]


@pytest.mark.parametrize(
    "name", ["a b", "a%0Ab", "%2e%2e", "a%2Fb", "x" * 129, "-a", "%00", "%F0%9F%92%A9", "a%C2%85b"]
)
def test_names_of_instances(client: TestClient, name: str) -> None:
    assert client.post(f"/instances/{name}", json={}).status_code in REFUSED | {404, 405}
    assert client.get("/instances").json() == ["default"]


def test_json_over_the_limit_is_told_the_way(client: TestClient) -> None:
    answer = client.post("/instances/default/quantize", content=JSON_ATTACKS["too long"], headers=JSON_HEADERS)
    assert answer.status_code == 413
    assert "application/x-npy" in answer.json()["detail"]
    array = np.zeros((2000, 300), np.float32)
    binary = client.post(
        "/instances/default/quantize", content=write_npy(array), headers={"Content-Type": "application/x-npy"}
    )
    assert binary.status_code == 200
