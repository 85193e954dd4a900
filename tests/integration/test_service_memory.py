"""What requests take of a server's memory, as the kernel counts it: bounds of binary bodies, and estimates that hold."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from qi.service.costs import parsed_bytes, work_bytes
from qi.service.formats import JSON, MAX_CHANNELS, NPY
from qi.service.npy import write_npy
from qi.service.wire import HEADER_LENGTH, encode_request

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="only Linux tells how much memory a process has had"
)

NOISE = 16 << 20  # what threads, allocators and the first use of a module take


class Server:
    """A server in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.address = ""
        for line in process.stdout or ():
            if found := re.search(r"http://[^\s]+:\d+", line):
                self.address = urlsplit(found[0]).netloc
                break
        self.status = Path(f"/proc/{process.pid}/status")

    def memory(self, name: str) -> int:
        """VmRSS or VmHWM, in bytes."""
        found = re.search(rf"{name}:\s+(\d+) kB", self.status.read_text())
        assert found is not None
        return int(found[1]) << 10

    def ask(self, path: str, body: bytes, kind: str = NPY, accept: str = NPY, method: str = "POST", **more: str) -> int:
        """The status; the answer is read as it comes."""
        path = path if path.startswith("/") else f"/instances/default/{path}"
        connection = http.client.HTTPConnection(self.address, timeout=100)
        connection.request(method, path, body, {"Content-Type": kind, "Accept": accept, **more})
        answer = connection.getresponse()
        while answer.read(1 << 20):
            pass
        connection.close()
        return answer.status

    def taken(self, path: str, body: bytes, kind: str = NPY, accept: str = NPY, status: int = 200, **more: str) -> int:
        """The most memory that a request took, beyond what there was before."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        before = self.memory("VmRSS")
        assert self.ask(path, body, kind, accept, **more) == status
        return self.memory("VmHWM") - before


@pytest.fixture
def start(checkout: Path, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """A function that starts a server with an instance of the given fields, and warms it up."""
    processes: list[subprocess.Popen[str]] = []

    def start(settings: Mapping[str, str] | None = None, **config: object) -> Server:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("QI_API_")}
        environment |= {
            "PYTHONPATH": str(checkout),
            "PYTHONUNBUFFERED": "1",
            "QI_API_PORT": "0",
            "OMP_NUM_THREADS": "1",
            **(settings or {}),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "qi.service"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        processes.append(process)
        server = Server(process)
        server.ask("config", json.dumps(config).encode(), JSON, JSON, "PUT")
        for path in ("quantize", "quantize_dequantize", "dequantize?scale=1&zero_point=0"):
            for accept in (NPY, JSON):
                server.ask(path, write_npy(np.ones((100, 100))), NPY, accept)
        return server

    yield start
    for process in processes:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


NUMBERS = np.resize(np.linspace(-3, 3, 1001, dtype=np.float32), (2000, 4000))
CODES = np.resize(np.arange(-128, 128, dtype=np.int8), (2000, 4000))


@pytest.mark.parametrize(
    ("path", "array"),
    [
        ("quantize", NUMBERS),
        ("quantize_dequantize", NUMBERS),
        ("dequantize?scale=0.5&zero_point=3", CODES),
        ("dequantize?scale=0.5&zero_point=3", CODES.astype(np.float32)),
    ],
)
def test_a_binary_request_takes_at_most_four_times_its_array(
    path: str, array: np.ndarray, start: Callable[..., Server]
) -> None:
    assert NUMBERS.nbytes == 32_000_000  # of real numbers, on the way in or out
    assert start().taken(path, write_npy(array)) < 4 * NUMBERS.nbytes


@pytest.mark.parametrize("operation", ["quantize", "quantize_dequantize"])
def test_an_inference_request_takes_at_most_four_times_its_array(operation: str, start: Callable[..., Server]) -> None:
    parts, length = encode_request({"x": NUMBERS}, {"operation": operation})
    server = start()
    taken = server.taken("/v2/models/default/infer", b"".join(parts), **{HEADER_LENGTH: str(length)})
    assert taken < 4 * NUMBERS.nbytes


def test_codes_of_small_integers_take_at_most_four_times_what_comes_and_goes(start: Callable[..., Server]) -> None:
    # Instances have `optimize_memory` off by default: numbers become float32 all at once.
    assert start().taken("quantize", write_npy(CODES.view(np.uint8))) < 4 * (CODES.nbytes + CODES.nbytes)


def test_an_upload_takes_at_most_five_times_its_array(start: Callable[..., Server]) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="x.npy"\r\n\r\n'
    body = head + write_npy(NUMBERS) + b"\r\n--x--\r\n"
    taken = start().taken("upload_numpy?operation=quantize_dequantize", body, "multipart/form-data; boundary=x")
    assert taken < 5 * NUMBERS.nbytes


@pytest.mark.parametrize(
    ("operation", "array", "accept"),
    [
        ("quantize", CODES, JSON),
        ("quantize_dequantize", NUMBERS, JSON),
        ("quantize", CODES.reshape(-1)[:1_000_000].reshape(-1, 1), JSON),
        ("quantize_dequantize", CODES.reshape(-1)[:300_000].reshape(-1, 1, 1, 1), JSON),
    ],
)
def test_answers_in_json_stay_within_the_estimate(
    operation: str, array: np.ndarray, accept: str, start: Callable[..., Server]
) -> None:
    taken = start().taken(operation, write_npy(array), accept=accept)
    assert taken < array.nbytes + work_bytes(operation, [array], media_type=accept) + NOISE


@pytest.mark.parametrize("piece", [b"[],", b"[1],", b"0.5,", b'{"a":1},'])
def test_bodies_in_json_stay_within_the_estimate(piece: bytes, start: Callable[..., Server]) -> None:
    body = b'{"data": [%s1]}' % (piece * ((4 << 20) // len(piece)))
    data = np.empty(body.count(b","), np.float64)
    status = 200 if piece[:1].isdigit() else 422
    taken = start().taken("quantize", body, JSON, JSON, status)
    assert taken < len(body) + max(parsed_bytes(body), work_bytes("quantize", [data])) + NOISE


def test_channels_are_few_and_stay_within_the_estimate(start: Callable[..., Server]) -> None:
    server = start(per_channel=True)
    many = np.resize(CODES, (1 << 20, 1))
    for operation in ("quantize", "quantize_dequantize", "calibrate"):
        assert (
            server.taken(f"{operation}?channel_dim=0", write_npy(many), accept=JSON, status=422)
            < 3 * many.nbytes + NOISE
        )
    most = many[:MAX_CHANNELS]
    for operation in ("quantize", "quantize_dequantize", "calibrate"):
        taken = server.taken(f"{operation}?channel_dim=0", write_npy(most), accept=JSON)
        assert taken < work_bytes(operation, [most], channels=len(most)) + NOISE


def test_requests_together_stay_within_the_budget(start: Callable[..., Server]) -> None:
    budget = 256 << 20
    server = start({"QI_API_MEMORY_BUDGET": str(budget), "QI_API_WORKERS_THREADS": "8"})
    body = write_npy(NUMBERS)
    before = server.memory("VmRSS")
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: server.ask("quantize_dequantize", body), range(16)))
    assert {200} <= set(statuses) <= {200, 503}
    assert server.memory("VmHWM") - before < budget + NOISE
