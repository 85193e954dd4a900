"""Connections: kept open, tried again where that is safe and nowhere else, and errors that say what the service said."""

from __future__ import annotations

import json
import random
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from qi.errors import ConfigError, InputError, NotCalibratedError
from qi.service.connection import (
    AccessError,
    Backoff,
    BadRequestError,
    ConflictError,
    Connection,
    NotFoundError,
    NotReadyError,
    ServiceError,
    UnreachableError,
)

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers as the server's script says, one entry a request; the last one again and again."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_any(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            self.server.seen.append(self)
            step = self.server.script.pop(0) if len(self.server.script) > 1 else self.server.script[0]
        step(self)

    do_GET = do_POST = do_any  # noqa: N815

    def log_message(self, *args: object) -> None:
        """Nothing."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.seen: list[Handler] = []
        self.script: list[Answer] = [says(200, {"ok": True})]
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that end are what is tested."""


def says(status: int, body: Any = None, **headers: str) -> Answer:
    def answer(handler: Handler) -> None:
        data = json.dumps(body).encode() if not isinstance(body, bytes) else body
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def hangs_up(handler: Handler) -> None:
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def breaks_off(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "10")
    handler.end_headers()
    handler.wfile.write(b"half")
    hangs_up(handler)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def connection(server: Server, waits: list[float]) -> Iterator[Connection]:
    connection = Connection(server.url, {"X-Mine": "yes"}, timeout=20, sleep=waits.append)
    yield connection
    connection.close()


def test_what_is_sent_arrives(server: Server, connection: Connection) -> None:
    reply = connection.call("POST", "/a?b=1", [b"12", memoryview(b"345")], {"Content-Type": "x/y"})
    (seen,) = server.seen
    assert (seen.command, seen.path, seen.body) == ("POST", "/a?b=1", b"12345")
    assert (seen.headers["X-Mine"], seen.headers["Content-Type"]) == ("yes", "x/y")
    assert (reply.status, reply.json(), reply.headers["content-length"]) == (200, {"ok": True}, "12")


def test_one_connection_serves_many_requests(server: Server, connection: Connection) -> None:
    for _ in range(3):
        connection.call("GET", "/")
    assert len({handler.client_address for handler in server.seen}) == 1
    connection.close()
    connection.call("GET", "/")
    assert len({handler.client_address for handler in server.seen}) == 2


def test_threads_share_it(server: Server, connection: Connection) -> None:
    barrier = threading.Barrier(4)

    def echo(handler: Handler) -> None:
        barrier.wait(20)  # all four are under way at once
        says(200, handler.body)(handler)

    server.script = [echo]
    found: dict[int, bytes] = {}

    def call(n: int) -> None:
        found[n] = bytes(connection.call("POST", "/", [b"%d" % n]).body)

    threads = [threading.Thread(target=call, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: b"%d" % n for n in range(4)}


def test_a_connection_that_the_service_closed_is_replaced_before_use(server: Server, connection: Connection) -> None:
    closed = threading.Event()

    def answers_and_closes(handler: Handler) -> None:
        says(200, {})(handler)  # without saying that it is going to
        hangs_up(handler)
        closed.set()

    server.script = [answers_and_closes, says(200, {})]
    connection.call("POST", "/", repeatable=False)
    assert closed.wait(20)
    connection.call("POST", "/", repeatable=False)
    assert len(server.seen) == 2


@pytest.mark.parametrize("failure", [hangs_up, breaks_off])
def test_a_broken_connection_is_tried_again_only_if_it_is_safe(
    server: Server, connection: Connection, waits: list[float], failure: Answer
) -> None:
    server.script = [failure, failure, says(200, {"third": 1})]
    assert connection.call("POST", "/").json() == {"third": 1}
    assert waits == [0.1, 0.2]
    server.script = [failure, says(200, {})]
    with pytest.raises(UnreachableError, match="expected an answer of http"):
        connection.call("POST", "/", repeatable=False)
    assert len(server.seen) == 4


def test_a_busy_service_is_asked_again_whatever_it_is_asked(
    server: Server, connection: Connection, waits: list[float]
) -> None:
    server.script = [
        says(503, {}, Retry_After="2"),
        says(429, {}, Retry_After="1"),
        says(503, {}),
        says(200, {"now": 1}),
    ]
    assert connection.call("POST", "/", repeatable=False).json() == {"now": 1}
    assert waits == [2.0, 1.0, 0.4]


def test_a_service_that_stays_busy_is_given_up(server: Server, connection: Connection, waits: list[float]) -> None:
    server.script = [says(503, {"detail": "expected less"}, Retry_After="tomorrow")]
    with pytest.raises(UnreachableError, match=r"expected less \(HTTP 503\)"):
        connection.call("GET", "/")
    assert (len(server.seen), len(waits)) == (4, 3)


def test_too_many_of_something_isnt_busy(server: Server, connection: Connection) -> None:
    server.script = [says(429, {"detail": "expected fewer instances"})]
    with pytest.raises(UnreachableError, match="fewer instances"):
        connection.call("POST", "/")
    assert len(server.seen) == 1


def test_nobody_there(waits: list[float]) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and doesn't listen
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(UnreachableError, match="refused"):
            Connection(url, backoff=Backoff(tries=2), sleep=waits.append).call("POST", "/", repeatable=False)
    assert waits == [0.1]


def test_silence_is_not_tried_again(server: Server, waits: list[float]) -> None:
    go_on = threading.Event()
    server.script = [lambda handler: (go_on.wait(20), hangs_up(handler))]  # type: ignore[list-item, return-value]
    with pytest.raises(UnreachableError, match="timed out"):
        Connection(server.url, timeout=0.05, sleep=waits.append).call("GET", "/")
    go_on.set()
    assert (len(server.seen), waits) == (1, [])


def test_a_refusal_before_the_body_was_read_arrives(server: Server, waits: list[float]) -> None:
    """The service answers to the headers alone, and closes: with a large body, sending it fails."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def refuse() -> None:
            peer, _ = listening.accept()
            with peer:
                received = b""
                while b"\r\n\r\n" not in received:
                    received += peer.recv(65536)
                peer.sendall(
                    b'HTTP/1.1 413 No\r\nContent-Length: 19\r\nConnection: close\r\n\r\n{"detail":"smaller"}'[:-1]
                )
                peer.shutdown(socket.SHUT_WR)
                while peer.recv(1 << 20):  # what was under way
                    pass

        thread = threading.Thread(target=refuse)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(BadRequestError) as caught:
            Connection(url, timeout=20).call("POST", "/", [bytes(1 << 22)])
        thread.join()
    assert caught.value.status == 413


@pytest.mark.parametrize(
    ("status", "code", "kind", "builtin"),
    [
        (400, "bad-data", BadRequestError, InputError),
        (413, "", BadRequestError, ValueError),
        (422, "invalid", BadRequestError, ValueError),
        (401, "", AccessError, PermissionError),
        (403, "", AccessError, PermissionError),
        (404, "", NotFoundError, LookupError),
        (409, "instance-exists", ConflictError, ValueError),
        (412, "instance-changed", ConflictError, ValueError),
        (409, "not-calibrated", NotReadyError, NotCalibratedError),
        (500, "", ServiceError, Exception),
        (302, "", ServiceError, Exception),
    ],
)
def test_errors_are_of_their_kind(
    server: Server, connection: Connection, status: int, code: str, kind: type[ServiceError], builtin: type[Exception]
) -> None:
    server.script = [says(status, {"detail": "expected a; received b", "code": code, "request_id": "r-1"})]
    with pytest.raises(builtin, match=rf"^expected a; received b \(HTTP {status}, request r-1\)$") as caught:
        connection.call("POST", "/")
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.code, caught.value.request_id) == (status, code, "r-1")
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"error": "expected x"}, "expected x"),
        ({"detail": [{"msg": "no number"}]}, "no number"),
        (b"<html>Bad Gateway</html>", "Bad Gateway"),
        ([1], r"\[1\]"),
        (b"\xff", "\ufffd"),
    ],
)
def test_errors_of_other_forms_are_told_too(server: Server, connection: Connection, body: Any, text: str) -> None:
    server.script = [says(400, body)]
    with pytest.raises(BadRequestError, match=text):
        connection.call("GET", "/")


def test_an_answer_that_is_no_json(server: Server, connection: Connection) -> None:
    server.script = [says(200, b"<html>")]
    reply = connection.call("GET", "/")
    with pytest.raises(ServiceError, match="expected an answer in JSON"):
        reply.json()


def test_a_service_below_a_path(server: Server) -> None:
    connection = Connection(server.url + "/below/")
    connection.call("GET", "/instances")
    connection.close()
    assert server.seen[0].path == "/below/instances"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://a", ("a", 80)),
        ("https://a/b", ("a", 443)),
        ("http://[::1]", ("::1", 80)),
        ("http://[::1]:8000", ("::1", 8000)),
    ],
)
def test_urls_name_a_host_and_a_port(url: str, address: tuple[str, int]) -> None:
    connection = Connection(url)._take()
    assert (connection.host, connection.port) == address


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://a", "http://", "http://a:b", "http://u:p@a", "http://a/?q", "http://a/#f", ""]
)
def test_urls_that_arent_of_a_service(url: str) -> None:
    with pytest.raises(ConfigError, match="expected a URL"):
        Connection(url)


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "ключ"])
def test_headers_that_cant_be_sent_arent_told(value: str) -> None:
    with pytest.raises(ConfigError, match="X-Key") as caught:
        Connection("http://a", {"X-Key": value})
    assert value not in str(caught.value)


def test_waits_spread_within_bounds() -> None:
    exact, spread = Backoff(first=1.0, most=100.0), Backoff(first=1.0, most=100.0, rng=random.Random(0))
    found = [spread.seconds(n) / exact.seconds(n) for n in range(5)]
    assert all(1 <= ratio <= 1.5 for ratio in found)
    assert len(set(found)) == 5
    for wrong in ({"tries": 0}, {"first": -1.0}, {"most": -1.0}):
        with pytest.raises(ConfigError, match="tries from 1"):
            Backoff(**wrong)  # type: ignore[arg-type]
