"""SIGTERM while clients ask as fast as they can: what was accepted is answered."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from tests.service.processes import Running, started

SMALL = json.dumps({"data": [[1.0, 2.0]]}).encode()


def request(body: bytes, media_type: str, connection: str) -> bytes:
    head = (
        f"POST /instances/default/quantize HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media_type}\r\n"
        f"Connection: {connection}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def large() -> bytes:
    file = io.BytesIO()
    np.save(file, np.ones((500, 1000), np.float32))
    return file.getvalue()


class Client(threading.Thread):
    """Asks until it can't connect any more, and counts what became of every request that it sent."""

    def __init__(self, port: int, body: bytes, media_type: str, keep: bool) -> None:
        super().__init__(daemon=True)
        self._port, self._keep = port, keep
        self._request = request(body, media_type, "keep-alive" if keep else "close")
        self.answered = 0
        self.lost: list[str] = []

    def run(self) -> None:
        while True:
            try:
                connection = socket.create_connection(("127.0.0.1", self._port), timeout=30)
            except OSError:  # nobody listens any more
                return
            with connection:
                while self._ask(connection):
                    pass

    def _ask(self, connection: socket.socket) -> bool:
        """Whether another request may be sent here."""
        try:
            connection.sendall(self._request)
            head = self._read(connection)
        except OSError as error:
            self.lost.append(repr(error))
            return False
        if not head.startswith(b"HTTP/1.1 200"):
            self.lost.append(repr(head[:100]))
            return False
        self.answered += 1
        return self._keep and b"connection: close" not in head.lower()

    @staticmethod
    def _read(connection: socket.socket) -> bytes:
        """The head of a complete answer."""
        told = b""
        while True:
            piece = connection.recv(1 << 20)
            if not piece:
                raise ConnectionError(f"the end after {told[:60]!r}")
            told += piece
            head, blank, body = told.partition(b"\r\n\r\n")
            if blank:
                fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
                if len(body) >= int(fields[b"content-length"]):
                    return head


def readiness(url: str, seen: list[int], stop: threading.Event) -> None:
    """What a prober sees, until nobody answers."""
    while not stop.is_set():
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=10) as answer:
                seen.append(answer.status)
        except urllib.error.HTTPError as error:
            seen.append(error.code)
            error.close()
        except OSError:
            return
        time.sleep(0.02)


def hammered(server: Running, seconds: float) -> tuple[list[Client], list[int]]:
    """The clients and what readiness said, after the server was told to stop in the midst of it."""
    clients = [Client(server.port, SMALL, "application/json", keep) for keep in (True, True, False, False)]
    clients += [Client(server.port, large(), "application/x-npy", keep) for keep in (True, False)]
    seen: list[int] = []
    done = threading.Event()
    prober = threading.Thread(target=readiness, args=(server.url, seen, done), daemon=True)
    for thread in (prober, *clients):
        thread.start()
    time.sleep(seconds)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=60) in (0, -signal.SIGTERM)
    done.set()
    for thread in (prober, *clients):
        thread.join(timeout=40)
        assert not thread.is_alive()
    return clients, seen


@pytest.mark.parametrize("workers", [1, 2])
def test_what_was_accepted_is_answered(tmp_path: Path, workers: int) -> None:
    command = ["-m", "qi", "serve", "--workers", str(workers), "--store", str(tmp_path / "a.db"), "--port", "0"]
    with started(*command, cwd=tmp_path, shutdown_delay=0.5) as server:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{server.url}/readyz", timeout=60) as ready:
            assert ready.status == 200  # the workers are there
        clients, seen = hammered(server, 1.5)
    assert [client.lost for client in clients] == [[]] * len(clients)
    assert min(client.answered for client in clients) > 3
    assert seen[0] == 200
    assert seen[-1] == 503  # said before nobody listened


def test_a_person_does_not_wait(tmp_path: Path) -> None:
    with started(cwd=tmp_path, shutdown_delay=30) as server:
        server.process.send_signal(signal.SIGINT)
        began = time.monotonic()
        server.process.wait(timeout=60)
    assert time.monotonic() - began < 15


def test_time_for_requests_in_flight_ends(tmp_path: Path) -> None:
    with started(cwd=tmp_path, grace=1, shutdown_delay=0) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(request(SMALL, "application/json", "close")[:-5])  # the rest never comes
            time.sleep(0.2)
            server.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            server.process.wait(timeout=60)
        assert 0.8 < time.monotonic() - began < 15
