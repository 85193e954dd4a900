"""Bodies: too large, too slow, encoded, too many."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from qi.errors import ConfigError
from qi.service import limits as module
from qi.service.admission import Admission
from qi.service.limits import BodyGuard, BodyLimits
from qi.service.problems import Problem
from tests.service.asgi import ask, messages, ok, scope_for
from tests.service.guarded import SMALL, guard, length


@pytest.mark.parametrize(
    ("content_type", "limit"),
    [
        ("application/json", 100),
        ("application/vnd.api+json", 100),
        ("text/plain", 100),
        ("", 100),
        ("application/x-npy", 1000),
        ("Application/X-NPY ; a=b", 1000),
        ("application/x-safetensors", 1000),
        ("application/vnd.apache.arrow.tensor", 1000),
        ("multipart/form-data; boundary=x", 1000),
        ("application/octet-stream", 1000),
    ],
)
@pytest.mark.parametrize("declared", [True, False])
def test_a_body_has_a_length_by_its_media_type(content_type: str, limit: int, declared: bool) -> None:
    for nbytes, status in ((limit, 200), (limit + 1, 413)):
        how = length(nbytes) if declared else ("Transfer-Encoding", "chunked")
        pieces = messages(*[b"x"] * nbytes)
        answer = ask(guard(), "POST", "/", [how, ("Content-Type", content_type)], body=pieces)
        assert answer.status == status
    assert answer.code == "body-too-large"
    assert str(limit) in answer.body.decode()
    assert (limit == 1000) or b"application/x-npy, up to 1000 bytes" in answer.body


def test_inference_headers_make_a_body_binary_on_their_own_paths_alone() -> None:
    headers = [length(500), ("Inference-Header-Content-Length", "10"), ("Content-Type", "application/json")]
    body = messages(b"x" * 500)
    assert ask(guard(), "POST", "/v2/models/a/infer", headers, body=list(body)).status == 200
    assert ask(guard(), "POST", "/instances/a/quantize", headers, body=list(body)).status == 413
    assert ask(guard(), "POST", "/v2/models/a/infer", headers[:1], body=list(body)).status == 413


@pytest.mark.parametrize(
    "headers",
    [[length(1), length(2)], [("Content-Length", "-1")], [("Content-Length", "1e3")], [("Content-Length", "")]],
)
def test_lengths_that_are_none(headers: list[tuple[str, str]]) -> None:
    assert ask(guard(), "POST", "/", headers, body=messages(b"x")).status == 400


def test_a_body_longer_than_it_says_hits_the_same_limit() -> None:
    assert ask(guard(), "POST", "/", [length(3)], body=messages(b"x" * 60, b"x" * 60)).status == 413


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip", "GZIP"])
def test_encoded_bodies_are_refused(encoding: str) -> None:
    answer = ask(guard(), "POST", "/", [length(3), ("Content-Encoding", encoding)], body=messages(b"abc"))
    assert (answer.status, answer.code) == (415, "content-encoding")
    assert answer.headers["accept-encoding"] == "identity"
    assert ask(guard(), "POST", "/", [("Content-Encoding", "Identity")]).status == 200


def run(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(work(), 20))


def test_a_body_that_stops_is_408_and_the_connection_ends() -> None:
    slow = guard(BodyLimits(timeout=0.02))
    stalled = [{"type": "http.request", "body": b"x", "more_body": True}]
    answer = ask(slow, "POST", "/", [length(10)], body=stalled)
    assert (answer.status, answer.code) == (408, "body-timeout")
    assert answer.headers["connection"] == "close"


def test_a_large_body_has_more_time_than_a_small_one() -> None:
    async def work() -> int:
        pieces = messages(b"x" * 100, b"x")

        async def receive() -> Message:
            if len(pieces) == 1:
                await asyncio.sleep(0.1)
            return pieces.pop(0)

        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        await BodyGuard(ok, BodyLimits(timeout=0.05, min_rate=5))(scope_for("POST", "/"), receive, send)
        return int(sent[0]["status"])

    assert run(work) == 200


def test_an_application_that_catches_everything_can_t_hide_a_refusal() -> None:
    async def catching(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            while (await receive()).get("more_body"):
                pass
        except Exception:
            await PlainTextResponse("hidden", 400)(scope, receive, send)

    async def wrapping(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            while (await receive()).get("more_body"):
                pass
        except HTTPException as error:
            raise RuntimeError from error

    for app in (catching, wrapping):
        answer = ask(BodyGuard(app, SMALL), "POST", "/", body=messages(b"x" * 60, b"x" * 60))
        assert (answer.status, answer.code) == (413, "body-too-large")


def test_other_errors_pass() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise Problem(418, "") if scope["path"] == "/tea" else KeyError(1)

    with pytest.raises(KeyError):
        ask(BodyGuard(broken))
    with pytest.raises(Problem):
        ask(BodyGuard(broken), "GET", "/tea")


def test_the_rest_of_a_refused_body_is_thrown_away_first() -> None:
    waiting = messages(b"x" * 60, b"x" * 60, b"x" * 60)
    answer = ask(guard(), "POST", "/", [length(180)], body=waiting)
    assert answer.status == 413
    assert "connection" not in answer.headers  # all of it was read: the connection can be used again


@pytest.mark.parametrize("headers", [[length(1 << 40)], [length(180), ("Expect", "100-continue")]])
def test_a_client_that_waits_or_has_no_end_is_answered_at_once(headers: list[tuple[str, str]]) -> None:
    waiting = messages(b"x" * 60, b"x" * 60, b"x" * 60)
    answer = ask(guard(), "POST", "/", headers, body=waiting)
    assert answer.status == 413
    assert answer.headers["connection"] == "close"


def test_a_refused_body_is_not_read_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LINGER_SECONDS", 0.01)
    stalled = [{"type": "http.request", "body": b"x" * 101, "more_body": True}]
    answer = ask(guard(), "POST", "/", body=stalled)
    assert answer.headers["connection"] == "close"
    monkeypatch.setattr(module, "_LINGER_BYTES", 100)
    endless = [{"type": "http.request", "body": b"x" * 101, "more_body": True}] * 9
    assert ask(guard(), "POST", "/", body=endless).status == 413


class Marker:
    """Something that a weak reference can follow."""


def test_a_refused_body_is_forgotten_at_once() -> None:
    kept: list[weakref.ref[Marker]] = []

    async def reading(scope: Scope, receive: Receive, send: Send) -> None:
        marker = Marker()
        kept.append(weakref.ref(marker))
        while (await receive()).get("more_body"):
            pass

    gc.disable()
    try:
        assert ask(BodyGuard(reading, SMALL), "POST", "/", body=messages(b"x" * 60, b"x" * 60)).status == 413
        assert kept[0]() is None
    finally:
        gc.enable()


def test_a_client_that_never_reads_is_given_up() -> None:
    async def work() -> None:
        admission = Admission()

        async def receive() -> Message:
            return {"type": "http.request", "body": b"x", "more_body": False}

        async def send(message: Message) -> None:
            await asyncio.Event().wait()

        await BodyGuard(ok, BodyLimits(timeout=0.02), admission)(scope_for("POST", "/"), receive, send)
        assert admission.memory == 0

    run(work)


@pytest.mark.parametrize(("rate", "all_of_it"), [(1, True), (1 << 20, False)])
def test_a_client_that_reads_by_the_drop_is_given_up(rate: int, all_of_it: bool) -> None:
    """Each piece comes in time, but all take longer than that; unless a few bytes give much more of it."""

    async def work() -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(5):
                await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})

        async def receive() -> Message:
            return {"type": "http.request", "body": b"x", "more_body": False}

        sent: list[Message] = []

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body":
                await asyncio.sleep(0.15)
                sent.append(message)

        await BodyGuard(app, BodyLimits(timeout=0.4, min_rate=rate))(scope_for("POST", "/"), receive, send)
        assert (len(sent) == 5) == all_of_it

    run(work)


@pytest.mark.parametrize(
    "name", ["max_json_bytes", "max_binary_bytes", "json_factor", "binary_factor", "timeout", "min_rate"]
)
def test_limits_are_above_zero(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}=0"):
        BodyLimits(**{name: 0})


def test_start_and_stop_pass() -> None:
    passed = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        passed.append(scope["type"])

    asyncio.run(BodyGuard(app)({"type": "lifespan"}, None, None))
    assert passed == ["lifespan"]
