"""Heads, on raw sockets, with both parsers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn

from qi.errors import ConfigError
from qi.service import http1
from qi.service.heads import HeadCheck
from qi.service.http1 import BoundedH11Protocol, BoundedProtocol, HeadLimits
from tests.service.asgi import ok

LIMITS = HeadLimits(max_bytes=4096, timeout=0.5)
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(params=["h11", "httptools"])
def protocol(request: pytest.FixtureRequest) -> Any:
    if request.param == "httptools":
        pytest.importorskip("httptools")
        return http1.BoundedHttpToolsProtocol
    return BoundedH11Protocol


@pytest.fixture
def running(protocol: Any) -> Iterator[Callable[..., tuple[uvicorn.Server, int]]]:
    """A function that starts a server and returns it with its port."""
    with contextlib.ExitStack() as stack:

        def run(app: Any = ok) -> tuple[uvicorn.Server, int]:
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            config = uvicorn.Config(
                app, http=functools.partial(protocol, limits=LIMITS), log_config=None, access_log=False, ws="none",
                lifespan="off", timeout_graceful_shutdown=10, h11_max_incomplete_event_size=LIMITS.max_bytes,
            )  # fmt: skip
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
            thread.start()
            stack.callback(thread.join)
            stack.callback(setattr, server, "should_exit", True)
            while not server.started:
                time.sleep(0.01)
            return server, listening.getsockname()[1]

        yield run


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def everything(connection: socket.socket) -> bytes:
    """What comes until the end."""
    told = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            told += piece
    return told


def test_a_request_is_answered(running: Any) -> None:
    _, port = running()
    with connect(port) as connection:
        for _ in range(2):
            connection.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello")
            answer = connection.recv(65536)
            while not answer.endswith((b"\r\n5", b"5\r\n0\r\n\r\n")):
                answer += connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "head",
    [
        GET + b"X-A: " + b"a" * 100_000,
        GET + b"X-A: " + b"a" * 100_000 + b"\r\n\r\n",
        GET + b"".join(b"X-%d: b\r\n" % i for i in range(2000)) + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=["endless", "whole", "many", "path"],
)
def test_a_large_head_is_refused(running: Any, head: bytes) -> None:
    _, port = running()
    with connect(port) as connection:
        connection.sendall(head)
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "head-too-large"


def test_a_head_without_end_takes_no_memory_and_no_time(running: Any) -> None:
    _, port = running()
    sent = 0
    with connect(port) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(GET + b"X-A: ")
        while sent < 64:
            connection.sendall(b"a" * (1 << 20))
            sent += 1
    assert sent < 64


def test_a_head_of_the_allowed_length_is_not(running: Any) -> None:
    _, port = running()
    with connect(port) as connection:
        connection.sendall(GET + b"X-A: " + b"a" * 3000 + b"\r\nConnection: close\r\n\r\n")
        assert everything(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("head", [b"", b"G", GET])
def test_half_a_head_has_its_time(running: Any, head: bytes) -> None:
    _, port = running()
    with connect(port) as connection:
        connection.sendall(head)
        began = time.monotonic()
        answer = everything(connection)
    assert 0.3 < time.monotonic() - began < 5
    assert answer.startswith(b"HTTP/1.1 408 ") == bool(head)


def test_an_empty_line_is_no_way_to_stay(running: Any) -> None:
    _, port = running()
    with connect(port) as connection:
        connection.sendall(b"\r\n")
        began = time.monotonic()
        everything(connection)
    assert time.monotonic() - began < 5


def test_a_head_that_trickles_has_no_more(running: Any) -> None:
    _, port = running()
    with connect(port) as connection:
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                connection.sendall(b"X")
                time.sleep(0.05)
    assert time.monotonic() - began < 4


def test_half_a_head_after_a_request_has_its_time(running: Any) -> None:
    _, port = running()
    with connect(port) as connection:
        connection.sendall(GET + b"\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(GET)
        began = time.monotonic()
        assert b"HTTP/1.1 408 " in everything(connection)
    assert time.monotonic() - began < 4  # uvicorn's own time for silence ends with the first byte


def test_a_slow_body_is_no_business_of_the_head(running: Any) -> None:
    _, port = running()
    with connect(port) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 3\r\n\r\n")
        for letter in b"abc":
            time.sleep(0.4)
            connection.sendall(bytes([letter]))
        assert everything(connection).startswith(b"HTTP/1.1 200")


def test_nonsense_is_told_from_what_is_too_large(running: Any) -> None:
    _, port = running()
    with connect(port) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "bad-request"


def test_a_wish_for_websockets_leaves_no_advice_in_the_log(running: Any, caplog: pytest.LogCaptureFixture) -> None:
    _, port = running()
    with caplog.at_level(logging.INFO, "uvicorn.error"), connect(port) as connection:
        connection.sendall(
            GET + b"Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert everything(connection).startswith(b"HTTP/1.1 200")
    assert "pgrade" not in caplog.text


async def slowly(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.sleep(0.3)
    await ok(scope, receive, send)


def test_what_is_on_its_way_when_the_server_stops_is_answered(running: Any) -> None:
    server, port = running(slowly)
    with contextlib.ExitStack() as stack:
        working, begun, silent = (stack.enter_context(connect(port)) for _ in range(3))
        working.sendall(GET + b"\r\n")
        begun.sendall(GET)
        time.sleep(0.1)
        server.should_exit = True
        time.sleep(0.15)
        begun.sendall(b"\r\n")
        silent.sendall(GET + b"\r\n")  # within the moment that is left to what was sent before the end
        for connection in (working, begun, silent):
            assert everything(connection).startswith(b"HTTP/1.1 200")


def test_silent_connections_do_not_keep_a_server_from_stopping(running: Any) -> None:
    server, port = running()
    with connect(port) as connection:
        connection.sendall(GET + b"\r\n")
        connection.recv(65536)
        server.should_exit = True
        began = time.monotonic()
        assert everything(connection) == b""
    assert time.monotonic() - began < 3


def test_limits_are_checked() -> None:
    assert BoundedProtocol is not None
    for wrong in ({"max_bytes": 0}, {"timeout": 0.0}):
        with pytest.raises(ConfigError):
            HeadLimits(**wrong)


def test_a_body_arrives_as_it_was_sent(running: Any) -> None:
    """However it was cut: the first piece isn't copied, and others are added to it."""

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            await asyncio.sleep(0.05)
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    _, port = running(echo)
    body = bytes(range(256)) * 4000
    with connect(port) as connection:
        connection.sendall(
            f"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        )
        for start in range(0, 3000, 1000):
            connection.sendall(body[start : start + 1000])
            time.sleep(0.02)
        connection.sendall(body[3000:])
        assert everything(connection).partition(b"\r\n\r\n")[2] == body


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("framing", "body"), [("Content-Length: 5", b"hello"), ("Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n")]
)
def test_an_offered_upgrade_loses_no_body(running: Any, framing: str, body: bytes, at_once: bool) -> None:
    """Java's client offers HTTP/2 with every request; the body mustn't be taken for a request of its own."""
    _, port = running()
    head = f"POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n{framing}\r\n\r\n"
    with connect(port) as connection:
        for _ in range(2):
            if at_once:
                connection.sendall(head.encode() + body)
            else:
                connection.sendall(head.encode())
                time.sleep(0.1)
                connection.sendall(body)
            answer = b""
            while not answer.endswith(b"\r\n0\r\n\r\n"):
                answer += connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")
            assert answer.partition(b"\r\n\r\n")[2] == b"1\r\n5\r\n0\r\n\r\n"


@pytest.mark.parametrize("piece", [b"no length\r\n", b"fffffffffffffffffffff\r\n", b"-1\r\n"])
def test_nonsense_within_a_body_is_answered_at_once(running: Any, piece: bytes) -> None:
    _, port = running()
    with connect(port) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        time.sleep(0.1)
        connection.sendall(piece)
        began = time.monotonic()
        assert everything(connection).startswith(b"HTTP/1.1 400 ")
    assert time.monotonic() - began < 3


def test_nonsense_after_a_request_does_not_answer_it(running: Any) -> None:
    _, port = running(slowly)
    with connect(port) as connection:
        connection.sendall(GET + b"\r\n")
        time.sleep(0.1)
        connection.sendall(b"nonsense\r\n\r\n")
        assert everything(connection).startswith(b"HTTP/1.1 200")


POST = b"POST / HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"


async def tell(scope: Any, receive: Any, send: Any) -> None:
    """Answers with what was asked for, and with the names of the headers."""
    while (await receive()).get("more_body"):
        pass
    told = [scope["raw_path"], scope["query_string"], *sorted(name for name, _ in scope["headers"])]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b" ".join(told)})


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("upgrade", [b"", b"Upgrade: h2c\r\n"])
def test_fields_of_a_trailer_are_no_headers(running: Any, at_once: bool, upgrade: bytes) -> None:
    """Neither keys nor names nor addresses: what stands before a service checks and sets them in the head alone."""
    _, port = running(tell)
    connection_field = b"Connection: close, Upgrade\r\n" if upgrade else b"Connection: close\r\n"
    head = POST + upgrade + connection_field + b"Transfer-Encoding: chunked\r\n\r\n"
    fields = b"X-API-Key: k\r\nX-Forwarded-For: 127.0.0.1\r\nHost: evil\r\nContent-Encoding: gzip\r\nExpect: 100-continue\r\n"
    rest = b"1\r\na\r\n0\r\n" + fields + b"\r\n"
    with connect(port) as connection:
        if at_once:
            connection.sendall(head + rest)
        else:
            connection.sendall(head)
            time.sleep(0.1)
            connection.sendall(rest)
        answer = everything(connection)
    names = b"connection host transfer-encoding" + b" upgrade" * bool(upgrade)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"\r\n/  " + names + b"\r\n" in answer


@pytest.mark.parametrize(
    "pieces",
    [
        [b"1;" + b"a" * 100_000],
        [b"1;" + b"a" * 200 + b"\r\nx\r\n"] * 500,
        [b"1\r\nx\r\n0\r\nX: " + b"a" * 100_000],
        [b"1\r\nx\r\n0\r\n" + b"X: a\r\n" * 20_000],
        [b"1\r\nx\r\n0\r\n" + b"X: a\r\n" * 20_000 + b"\r\n"],
    ],
    ids=["extension", "extensions", "field", "fields", "trailer"],
)
def test_what_comes_beside_the_content_of_a_body_is_bounded(running: Any, pieces: list[bytes]) -> None:
    _, port = running()
    with connect(port) as connection:
        connection.sendall(CHUNKED)
        time.sleep(0.1)
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                connection.sendall(piece)
        assert everything(connection).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("at_once", [True, False])
def test_small_chunks_with_short_extensions_are_a_body(running: Any, at_once: bool) -> None:
    _, port = running()
    body = b"00000001;a=b\r\nx\r\n" * 2000 + b"0\r\nX: a\r\n\r\n"
    with connect(port) as connection:
        if at_once:
            connection.sendall(CHUNKED + body)
        else:
            connection.sendall(CHUNKED)
            time.sleep(0.1)
            connection.sendall(body)
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"\r\n2000\r\n" in answer


@pytest.mark.parametrize("sent", [b"F" * 20 + b"\r\n", b"F" * 20 + b"\r\nhello", b"1" + b"0" * 16 + b"\r\n"])
def test_a_chunk_has_no_size_beyond_all_numbers(running: Any, sent: bytes) -> None:
    _, port = running()
    with connect(port) as connection:
        connection.sendall(CHUNKED + sent)
        assert everything(connection).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "fields",
    [b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"],
)
def test_a_body_has_one_end(running: Any, fields: bytes) -> None:
    """No matter which of both lengths a proxy believes, nothing that follows is taken for a request."""
    _, port = running(HeadCheck(ok))
    with connect(port) as connection:
        connection.sendall(POST + fields + b"\r\n0\r\n\r\n" + GET + b"\r\n")
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    ("target", "asked"),
    [
        (b"http://localhost/a?b", b"/a b"),
        (b"HTTP://LOCALHOST:80/a", b"/a "),
        (b"http://localhost", b"/ "),
        (b"http://localhost?b", b"/ b"),
        (b"http://evil.example/a", None),
        (b"http://localhost@evil.example/a", None),
        (b"http://user@localhost/a", None),
        (b"http://localhost:8000/a", None),
        (b"ftp://localhost/a", None),
        (b"http:///a", None),
    ],
)
def test_a_target_names_the_host_that_the_header_names(running: Any, target: bytes, asked: bytes | None) -> None:
    _, port = running(tell)
    with connect(port) as connection:
        connection.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 400 " if asked is None else b"HTTP/1.1 200 ")
    assert asked is None or b"\r\n" + asked + b" connection host\r\n" in answer
