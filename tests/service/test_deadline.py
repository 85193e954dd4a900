"""Answers that take too long."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from qi.service.admission import Admission, memory_of
from qi.service.deadline import Deadline
from qi.service.limits import BodyGuard
from tests.service.asgi import ask, exchange, messages, ok, scope_for


def run(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(work(), 20))


def test_late_answers_are_504_and_what_they_took_stays_taken() -> None:
    async def work() -> None:
        admission = Admission()
        scope = scope_for("POST", "/")

        async def late(scope: Scope, receive: Receive, send: Send) -> None:
            while (await receive()).get("more_body"):
                pass
            memory_of(scope).need(1 << 20)
            await scope["answered"].wait()
            taken.append(admission.memory)
            await PlainTextResponse("late")(scope, receive, send)

        taken: list[int] = []
        answer = await exchange(BodyGuard(Deadline(late, 0.02), None, admission), scope, messages(b"x"))
        assert (answer.status, answer.code) == (504, "request-timeout")
        assert b"late" not in answer.body
        assert taken == [(1 << 20) + 1]
        assert admission.memory == 0

    run(work)


def test_the_time_counts_from_the_last_piece_of_the_body() -> None:
    async def work() -> int:
        pieces = messages(b"x", b"x")

        async def receive() -> Message:
            await asyncio.sleep(0.15)
            return pieces.pop(0)

        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        await Deadline(ok, 0.1)(scope_for("POST", "/"), receive, send)
        return int(sent[0]["status"])

    assert run(work) == 200


def test_an_answer_that_has_begun_may_take_its_time() -> None:
    async def streaming(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(0.05)
        await send({"type": "http.response.body", "body": b"late"})

    assert ask(Deadline(streaming, 0.01)).body == b"late"


def test_errors_in_time_pass_and_later_ones_are_nobody_s() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/late":
            await scope["answered"].wait()
        raise KeyError(scope["path"])

    with pytest.raises(KeyError):
        ask(Deadline(broken, 5.0))
    assert ask(Deadline(broken, 0.01), "GET", "/late").status == 504


def test_a_late_application_learns_that_nobody_waits() -> None:
    seen: list[Message] = []

    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        await scope["answered"].wait()
        seen.append(await receive())

    assert ask(Deadline(late, 0.01)).status == 504
    assert seen == [{"type": "http.disconnect"}]


def test_a_server_that_stops_stops_the_application() -> None:
    async def work() -> None:
        started, stopped = asyncio.Event(), asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()

        call = asyncio.create_task(exchange(Deadline(app, 9.0), scope_for()))
        await started.wait()
        call.cancel()
        await asyncio.wait({call})
        await stopped.wait()

    run(work)


def test_start_and_stop_pass() -> None:
    passed = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        passed.append(scope["type"])

    asyncio.run(Deadline(app)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert passed == ["lifespan"]


def test_what_a_failing_request_had_is_forgotten_at_once() -> None:
    kept: list[weakref.ref[asyncio.Event]] = []

    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        body = asyncio.Event()  # anything that a weak reference can follow
        kept.append(weakref.ref(body))
        raise ClientDisconnect

    async def work() -> None:
        try:
            await exchange(Deadline(failing, 20), scope_for("POST", "/"), messages(b"x"))
        except ClientDisconnect:
            return
        raise AssertionError

    gc.disable()
    try:
        run(work)
        assert kept[0]() is None
    finally:
        gc.enable()
