"""What the benchmarks of the service share: servers as processes of their own, and one array in every form it can travel in."""

from __future__ import annotations

import http.client
import importlib.metadata
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

from qi.service.formats import ARROW, FORMATS, JSON, NPY, SAFETENSORS, Limits
from qi.service.wire import HEADER_LENGTH, decode_response, encode_request

HOST = "127.0.0.1"
_BOUNDARY = "a-boundary-of-the-benchmarks"


class Server(NamedTuple):
    """A server that answers."""

    port: int
    pid: int

    def connection(self) -> http.client.HTTPConnection:
        """A new connection, which stays open."""
        return http.client.HTTPConnection(HOST, self.port, timeout=120)

    def memory(self, name: str) -> int:
        """Bytes that the process has now ("VmRSS"), or had at most ("VmHWM")."""
        found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        return int(found[1]) * 1024 if found else 0

    def seconds(self) -> float:
        """What the process has had of the processors, its threads' time together."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def forget_peak(self) -> None:
        """Makes "VmHWM" begin at what the process has now."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def metrics(self, name: str, label: str = "", **wanted: str) -> dict[str, float]:
        """What `/metrics` tells under a name: by the values of a label, of samples whose other labels are as wanted."""
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(get(self.connection(), "/metrics").decode()):
            for sample in family.samples:
                if sample.name == name and wanted.items() <= sample.labels.items():
                    key = sample.labels.get(label, "")
                    found[key] = found.get(key, 0) + sample.value
        return found


@contextmanager
def running(*command: str, **environment: str) -> Iterator[Server]:
    """A process that runs `python COMMAND` and answers on a port, whose number takes the place of "PORT"."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    own = {name: value for name, value in os.environ.items() if not name.startswith("QI_API_")}
    texts = [text.replace("PORT", str(port)) for text in command]
    own |= {name: value.replace("PORT", str(port)) for name, value in environment.items()}
    with tempfile.TemporaryFile() as log:
        root = Path(__file__).resolve().parents[2]
        process = subprocess.Popen([sys.executable, *texts], cwd=root, env=own, stdout=log, stderr=log)
        try:
            _wait(process, port, log)
            yield Server(port, process.pid)
        finally:
            process.terminate()
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Any) -> None:
    ends = time.monotonic() + 60
    while True:
        try:
            socket.create_connection((HOST, port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > ends:
                log.seek(0)
                message = f"expected a server that starts; it said: {log.read()[-2000:].decode()}"
                raise RuntimeError(message) from None
            time.sleep(0.02)


def service(**settings: Any) -> Any:
    """The service with default settings, but for those given."""
    own = {f"QI_API_{name.upper()}": str(value) for name, value in settings.items()}
    return running("-m", "qi.service", QI_API_PORT="PORT", **own)


def plain() -> Any:
    """`plain_app`, as FastAPI's manual starts it."""
    return running("-m", "uvicorn", "tests.benchmarks.serving:plain_app", "--factory", "--port", "PORT")


class PlainRequest(BaseModel):
    """What the plain endpoint takes."""

    data: list[list[float]]


class PlainResponse(BaseModel):
    """What it answers."""

    data: list[list[int]]
    scale: float
    zero_point: int


def plain_app() -> FastAPI:
    """The same operation as most people write it."""
    app = FastAPI()

    @app.get("/")
    async def root() -> dict[str, str]:
        return {"status": "healthy"}

    @app.post("/quantize", response_model=PlainResponse)
    async def quantize(request: PlainRequest) -> Any:
        array = np.array(request.data, dtype=np.float32)
        low, high = min(float(array.min()), 0.0), max(float(array.max()), 0.0)
        scale = (high - low) / 255
        zero_point = round(-128 - low / scale)
        codes = np.clip(np.round(array / scale) + zero_point, -128, 127).astype(np.int8)
        return {"data": codes.tolist(), "scale": scale, "zero_point": zero_point}

    return app


class Form(NamedTuple):
    """A request with an array in it, and how to read the array of its answer."""

    path: str
    body: bytes
    headers: dict[str, str]
    read: Callable[[bytes, Mapping[str, str]], np.ndarray]


def json_form(array: np.ndarray, path: str, *, short: bool = False, **fields: Any) -> Form:
    """As JSON: with 17 digits, as Python writes what has been a float32, or short, with those that a float32 needs."""
    body = json.dumps({"data": array.tolist(), **fields}).encode()
    if short:
        body = orjson.dumps({"data": array, **fields}, option=orjson.OPT_SERIALIZE_NUMPY)
    return Form(path, body, {"Content-Type": JSON}, lambda answer, _: np.array(json.loads(answer)["data"]))


def binary_forms(array: np.ndarray, operation: str = "quantize", **fields: float) -> dict[str, Form]:
    """An array in every binary form that the service takes, answered in the same one; `fields` are options."""
    query = "?" + "&".join(f"{name}={value}" for name, value in fields.items()) if fields else ""
    path = f"/instances/default/{operation}{query}"
    npy = BytesIO()
    np.save(npy, array)
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="x.npy"\r\n\r\n'
    multipart = head.encode() + npy.getvalue() + f"\r\n--{_BOUNDARY}--\r\n".encode()
    forms = {"npy": _binary(path, npy.getvalue(), NPY, NPY)}
    for name, media_type in (("safetensors", SAFETENSORS), ("Arrow", ARROW)):
        forms[name] = _binary(path, b"".join(FORMATS.get(media_type).encode(array)), media_type, media_type)
    forms["OIP binary"] = _inference(array, operation, fields)
    forms["multipart"] = _binary(path, multipart, f"multipart/form-data; boundary={_BOUNDARY}", NPY)
    return forms


def _binary(path: str, body: bytes, sent: str, wanted: str) -> Form:
    def read(answer: bytes, _: Mapping[str, str]) -> np.ndarray:
        return FORMATS.get(wanted).decode(answer, Limits())

    return Form(path, body, {"Content-Type": sent, "Accept": wanted}, read)


def _inference(array: np.ndarray, operation: str, fields: Mapping[str, float]) -> Form:
    name, output = {"quantize": ("x", "q"), "dequantize": ("q", "y")}.get(operation, ("x", "y"))
    tensors = {key: np.float32([value]) for key, value in fields.items()}
    parts, length = encode_request({name: array, **tensors}, {"operation": operation})
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(length)}

    def read(answer: bytes, told: Mapping[str, str]) -> np.ndarray:
        return decode_response(answer, int(told[HEADER_LENGTH]))[0][output]

    return Form("/v2/models/default/infer", b"".join(parts), headers, read)


def post(connection: http.client.HTTPConnection, form: Form) -> tuple[bytes, Mapping[str, str]]:
    """The answer to a request, which has to be 200.

    Raises:
        RuntimeError: It is another.
    """
    connection.request("POST", form.path, form.body, form.headers)
    response = connection.getresponse()
    answer = response.read()
    if response.status != 200:
        raise RuntimeError(f"expected 200 of {form.path}; received {response.status}: {answer[:300]!r}")
    return answer, response.headers  # type: ignore[return-value]


def get(connection: http.client.HTTPConnection, path: str = "/") -> bytes:
    """The answer to a request without a body."""
    connection.request("GET", path)
    return connection.getresponse().read()


def quantile(values: list[float], share: float) -> float:
    """The value below which a share of the values lies."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def machine() -> str:
    """What the numbers depend on besides the processor."""
    version = importlib.metadata.version
    speedups = [name for name in ("uvloop", "httptools") if importlib.util.find_spec(name)]
    told = ", ".join(f"{name} {version(name)}" for name in ("uvicorn", "fastapi", "pydantic", "orjson", *speedups))
    return f"Python {sys.version.split()[0]}, {told}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
