"""Real servers, on ports that are free, in processes of their own."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qi.errors import ConfigError
from qi.service import server
from qi.service.server import check_settings, listening
from qi.service.settings import Settings
from tests.service.processes import started

Start = Callable[..., tuple[subprocess.Popen[str], str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A function that starts ``python -m qi.service`` (or another command) and returns (process, URL)."""
    with contextlib.ExitStack() as stack:

        def start(*command: str, **settings: str) -> tuple[subprocess.Popen[str], str]:
            return stack.enter_context(started(*command, cwd=tmp_path, **settings))[:2]

        yield start


def call(url: str, path: str, body: Any = None, **headers: str) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}{path}", data, {"Content-Type": "application/json", **headers})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_it_serves_and_stops(start: Start) -> None:
    process, url = start()
    assert call(url, "/") == {"status": "healthy", "service": "Quantizer API"}
    assert call(url, "/instances/default/quantize", {"data": [[0.0, 255.0]]})["data"] == [[-128, 127]]
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) in (0, -signal.SIGTERM)


def test_two_processes_see_each_other_at_once(start: Start, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'shared.db'}"
    urls = [start(store=store)[1] for _ in range(2)]
    for number in range(20):
        here, there = urls[number % 2], urls[1 - number % 2]
        call(here, f"/instances/i{number}", {"quantization_type": "INT16"})
        assert call(there, f"/instances/i{number}/config")["quantization_type"] == "INT16"
        with pytest.raises(urllib.error.HTTPError, match="409"):
            call(there, f"/instances/i{number}", {})
        codes = call(here, f"/instances/i{number}/quantize", {"data": [[1.5, number]]})["data"]
        back = call(there, f"/instances/i{number}/dequantize", {"data": codes})["data"]
        assert back == [[pytest.approx(1.5, abs=1e-3), pytest.approx(number, abs=1e-3)]]
    assert call(urls[0], "/instances") == call(urls[1], "/instances")


def test_workers_share_a_port_and_a_store(start: Start, tmp_path: Path) -> None:
    command = ["-m", "qi", "serve", "--workers", "2", "--store", str(tmp_path / "a.db"), "--port", "0"]
    process, url = start(*command)
    for number in range(30):
        call(url, f"/instances/i{number}", {})
        assert call(url, f"/instances/i{number}/config")["num_bits"] == 8
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) in (0, -signal.SIGTERM)


def test_a_killed_server_has_lost_nothing(start: Start, tmp_path: Path) -> None:
    store = str(tmp_path / "a.db")
    process, url = start(store=store)
    for number in range(5):
        call(url, f"/instances/i{number}", {})
    process.kill()
    process.wait()
    _, url = start(store=store)
    assert call(url, "/instances") == ["default", *(f"i{number}" for number in range(5))]


def test_a_request_in_flight_is_answered_before_it_stops(start: Start) -> None:
    process, url = start()
    port = int(url.rpartition(":")[2])
    body = json.dumps({"data": [[1.0, 2.0]]}).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        head = "POST /instances/default/quantize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 100")  # accepted: the handler waits for the body
        process.send_signal(signal.SIGTERM)
        connection.sendall(body)
        answer = b""
        while piece := connection.recv(1000):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 200")
    assert process.wait(timeout=60) in (0, -signal.SIGTERM)


@pytest.mark.parametrize(
    ("settings", "workers", "told"),
    [
        ({"host": "0.0.0.0"}, 1, "API keys"),
        ({"host": "example.com"}, 1, "API keys"),
        ({}, 2, "workers can share"),
        ({"api_keys": "raed:k"}, 2, "before an API key"),
    ],
)
def test_what_cannot_go_well_is_refused(settings: dict[str, Any], workers: int, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_settings(Settings(**settings), workers)


@pytest.mark.parametrize(
    "settings",
    [{"host": "localhost"}, {"host": "::1"}, {"host": "0.0.0.0", "api_keys": "k"},
     {"host": "0.0.0.0", "allow_anonymous": True}],
)  # fmt: skip
def test_what_is_safe_is_not(settings: dict[str, Any]) -> None:
    check_settings(Settings(**settings))


def test_a_worker_is_set_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    theirs = logging.getLogger("uvicorn.error")
    for name, value in (("handlers", []), ("level", theirs.level), ("propagate", True)):
        monkeypatch.setattr(theirs, name, value)  # as it was, afterwards
    monkeypatch.setattr(server, "configure_logging", told.append)
    monkeypatch.setenv("QI_API_LOG", "json")
    monkeypatch.setenv("QI_API_MAX_NDIM", "3")
    assert server.make_worker().state.service.limits.max_ndim == 3
    assert told == ["json"]


def test_workers_get_the_settings_of_the_command() -> None:
    settings = Settings(api_keys="a,read:b", legacy_errors=True, store="a.db")
    found = server._environment(settings)
    assert found == {"QI_API_KEYS": "a,read:b", "QI_API_LEGACY_ERRORS": "True", "QI_API_STORE": "a.db"}
    assert server._url("::1", 1) == "http://[::1]:1"


@pytest.mark.parametrize(
    ("wanted", "there", "pages"), [(True, True, "/ui and /docs"), (True, False, "/ui"), (False, True, "/ui")]
)
def test_the_start_tells_of_the_pages(monkeypatch: pytest.MonkeyPatch, wanted: bool, there: bool, pages: str) -> None:
    monkeypatch.setattr(server.docs, "available", lambda: there)
    assert server._where(Settings(docs=wanted), 1) == f"http://127.0.0.1:1 with {pages}"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_misspelt_setting_is_told_once(tmp_path: Path, workers: int) -> None:
    command = ["-m", "qi", "serve", "--workers", str(workers), "--store", str(tmp_path / "a.db"), "--port", "0"]
    with started(*command, cwd=tmp_path, max_ndims=4) as running:
        call(running.url, "/readyz")
        told = [line for line in running.lines if "QI_API_MAX_NDIMS" in line]
    assert len(told) == 1
    assert "WARNING" in told[0]
    assert "Did you mean 'QI_API_MAX_NDIM'" in told[0]


def test_clients_wait_at_a_socket_that_sends_at_once() -> None:
    """asyncio turns Nagle's algorithm off for sockets that say they are of TCP: else answers wait for 40 ms."""
    with listening("127.0.0.1", 0) as shared:
        assert shared.proto == socket.IPPROTO_TCP
        socket.create_connection(shared.getsockname()[:2], timeout=60).close()  # it waits in the queue


def test_an_address_that_is_taken_is_told() -> None:
    with listening("127.0.0.1", 0) as taken, pytest.raises(ConfigError, match="free address"):
        listening("127.0.0.1", taken.getsockname()[1])


def test_a_wrong_environment_ends_the_command(checkout: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "QI_API_HOST": "0.0.0.0", "QI_API_KEYS": ""}
    command = [sys.executable, "-m", "qi.service"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: expected API keys")


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("store", ["nothing://here", "sqlite:///{folder}"])
def test_a_store_that_does_not_open_is_one_line(checkout: Path, tmp_path: Path, store: str, workers: str) -> None:
    command = [sys.executable, "-m", "qi", "serve", "--port", "0", "--workers", workers]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "QI_API_STORE": store.format(folder=tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("qi: error: expected")
    assert done.stderr.count("\n") == 1


def test_an_address_that_is_taken_is_one_line(checkout: Path) -> None:
    with listening("127.0.0.1", 0) as taken:
        environment = {**os.environ, "PYTHONPATH": str(checkout), "QI_API_PORT": str(taken.getsockname()[1])}
        command = [sys.executable, "-m", "qi.service"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: expected a free address")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("--port=9000", 2)])
def test_the_module_takes_no_arguments(argument: str, code: int, checkout: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qi.service", argument], cwd=checkout, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code
    assert (done.stdout or done.stderr).startswith("usage: python -m qi.service\n\nServes as environment variables say")
