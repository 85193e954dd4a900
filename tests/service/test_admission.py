"""What requests take together: memory is a budget, places are few, and both are waited for, for a moment."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qi.service.admission import Admission, Memory, memory_of
from qi.service.limits import BodyGuard
from qi.service.problems import Problem, problem_response
from tests.service.asgi import Answer, ask, exchange, messages, ok, scope_for
from tests.service.guarded import EXPECTS, NPY, SMALL, STALLED, guard, length


def run(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(work(), 20))


class Held:
    """An application that reads the body and then waits until it is let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        await self.go.wait()
        await PlainTextResponse("done")(scope, receive, send)


async def settle() -> None:
    """Lets every task go as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_memory_is_a_budget() -> None:
    async def work() -> None:
        held, admission = Held(), Admission(memory_budget=14_000, max_in_flight=99)
        app = BodyGuard(held, SMALL, admission)

        def send(nbytes: int, *headers: tuple[str, str]) -> Coroutine[Any, Any, Answer]:
            return exchange(app, scope_for("POST", "/", headers), messages(b"x" * nbytes))

        first = asyncio.create_task(send(100, length(100)))
        second = asyncio.create_task(send(1000, length(1000), NPY))
        await settle()
        assert admission.memory == 100 * 20 + 1000 * 5
        full = await send(1000, length(1000), NPY)
        assert (full.status, full.code, full.headers["retry-after"]) == (503, "memory-full", "1")
        chunked = await send(1000, ("Transfer-Encoding", "chunked"), NPY)
        assert (chunked.status, chunked.code) == (503, "memory-full")
        assert admission.memory == 7000
        held.go.set()
        assert [(await t).status for t in (first, second)] == [200, 200]
        assert (admission.memory, admission.in_flight) == (0, 0)
        assert (await send(1000, length(1000), NPY)).status == 200

    run(work)


def test_announcing_a_long_body_holds_no_memory() -> None:
    async def work() -> None:
        admission = Admission(memory_budget=20_000)
        app = BodyGuard(ok, SMALL, admission)

        def send(nbytes: int, *pieces: bytes) -> Coroutine[Any, Any, Answer]:
            return exchange(
                app, scope_for("POST", "/", [length(nbytes), NPY]), messages(*pieces) if pieces else STALLED
            )

        idle = [asyncio.create_task(send(1000)) for _ in range(100)]
        await settle()
        assert admission.memory == 100 * 1 * 5  # of the one byte that has come
        assert (await send(1000, b"x" * 1000)).status == 200
        for task in idle:
            task.cancel()
        await asyncio.wait(idle)
        assert admission.memory == 0

    run(work)


def test_a_body_that_can_t_fit_is_refused_before_it_comes() -> None:
    async def work() -> None:
        admission = Admission(memory_budget=10_000)
        admission.reserve(9000)
        never = exchange(BodyGuard(ok, SMALL, admission), scope_for("POST", "/", [length(900), NPY, EXPECTS]), STALLED)
        assert ((await never).status, admission.memory) == (503, 9000)

    run(work)


class Working:
    """An application that reads the body and says that it needs more, in a thread; the last of several needs waits."""

    def __init__(self, *needs: int, counts: bool = False) -> None:
        self.needs, self.counts = needs, counts
        self.go = asyncio.Event()
        self.late: Memory | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.late = memory = memory_of(scope)
        if self.counts:
            memory.counts()
        while (await receive()).get("more_body"):
            pass
        for nbytes in self.needs:
            await asyncio.to_thread(memory.need, nbytes)
        await self.go.wait()
        await PlainTextResponse("done")(scope, receive, send)


@pytest.mark.parametrize(
    ("counts", "needs", "taken"),
    [
        (False, (), 100 * 20),
        (False, (5000,), 5100),
        (False, (5000, 1000), 5100),  # steps follow each other
        (False, (1000, 5000), 5100),
        (False, (100,), 100 * 20),
        (True, (), 100 * 3),
        (True, (1000,), 1100),
    ],
)
def test_work_and_answer_take_memory_beside_the_body(counts: bool, needs: tuple[int, ...], taken: int) -> None:
    async def work() -> None:
        admission, app = Admission(memory_budget=10_000), Working(*needs, counts=counts)
        guarded = BodyGuard(app, SMALL, admission)
        first = asyncio.create_task(exchange(guarded, scope_for("POST", "/"), messages(b"x" * 100)))
        while not first.done() and admission.memory != taken:
            await asyncio.sleep(0.001)
        await settle()
        assert admission.memory == taken
        app.go.set()
        assert (await first).status == 200
        assert admission.memory == 0
        assert app.late is not None
        app.late.need(1 << 40)  # by work that went on after the answer
        assert admission.memory == 0

    run(work)


def test_work_that_doesn_t_fit_is_told_to_come_again() -> None:
    async def work() -> None:
        admission = Admission(memory_budget=10_000, overload_status=429)
        app = Working(20_000)
        app.go.set()
        send = BodyGuard(refusing(app), SMALL, admission)
        assert (await exchange(send, scope_for("POST", "/"), messages(b"x"))).status == 200  # alone, it may
        admission.reserve(1)
        full = await exchange(send, scope_for("POST", "/"), messages(b"x"))
        assert (full.status, full.code, full.headers["retry-after"]) == (429, "memory-full", "1")
        assert admission.memory == 1

    run(work)


def refusing(app: ASGIApp) -> ASGIApp:
    """The application as FastAPI has it, which answers with the problems that its routes raise."""

    async def answering(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except Problem as problem:
            await problem_response(scope, problem)(scope, receive, send)

    return answering


def test_bodies_on_their_way_leave_half_of_the_memory_for_work() -> None:
    admission = Admission(memory_budget=1000)
    here, coming, alone = (Memory(admission, per_byte=3) for _ in range(3))
    here.arrived(100)
    coming.arrived(60)
    assert admission.arriving == 480
    with pytest.raises(Problem):
        coming.arrived(70)
    here.need(700)  # which is 800 with its body
    assert (admission.memory, admission.arriving) == (980, 180)
    coming.release()
    with pytest.raises(Problem):
        alone.arrived(80)
    here.answers(10)
    alone.arrived(250)  # the only one that is on its way
    assert (admission.memory, admission.arriving) == (110 + 750, 750)
    here.release()
    alone.release()
    assert (admission.memory, admission.arriving) == (0, 0)


def test_a_refused_body_takes_no_memory_while_the_rest_is_thrown_away() -> None:
    async def work() -> None:
        admission, dropping = Admission(), asyncio.Event()
        pieces = messages(b"x" * 60, b"x" * 60, b"x" * 60)

        async def receive() -> Message:
            if len(pieces) == 1:
                await dropping.wait()
            return pieces.pop(0)

        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        task = asyncio.create_task(BodyGuard(ok, SMALL, admission)(scope_for("POST", "/"), receive, send))
        await settle()
        assert (len(pieces), sent, admission.memory) == (1, [], 0)
        dropping.set()
        await task
        assert sent[0]["status"] == 413

    run(work)


def test_threads_take_and_give_back_the_same_memory() -> None:
    admission = Admission(memory_budget=1 << 40)

    def take() -> None:
        for _ in range(2000):
            memory = Memory(admission)
            memory.arrived(10)
            memory.need(1000)
            memory.release()

    threads = [threading.Thread(target=take) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert admission.memory == 0


def test_one_request_may_take_more_than_the_budget() -> None:
    assert ask(guard(memory_budget=10), "POST", "/", [length(50)], body=messages(b"x" * 50)).status == 200


@pytest.mark.parametrize("status", [503, 429])
@pytest.mark.parametrize("patience", [0, 0.02])
def test_the_queue_has_an_end(status: int, patience: float) -> None:
    async def work() -> None:
        held = Held()
        admission = Admission(max_in_flight=2, overload_status=status, retry_after=7, patience=patience)
        app = BodyGuard(held, SMALL, admission)

        def send(body: bytes, **headers: str) -> Coroutine[Any, Any, Answer]:
            return exchange(app, scope_for("POST", "/", headers), messages(body))

        tasks = [asyncio.create_task(send(b"x")) for _ in range(2)]
        await settle()
        assert admission.in_flight == 2
        for headers in ({}, {"Content-Length": "1"}):
            answer = await send(b"x", **headers)
            assert (answer.status, answer.code, answer.headers["retry-after"]) == (status, "queue-full", "7")
        empty = asyncio.create_task(send(b""))  # nothing to work on: not in the queue
        await settle()
        held.go.set()
        assert [(await t).status for t in (*tasks, empty)] == [200] * 3
        assert admission.in_flight == 0

    run(work)


@pytest.mark.parametrize("headers", [{"Content-Length": "1"}, {}])  # waits before its body comes; with its body
def test_a_full_queue_is_waited_for(headers: dict[str, str]) -> None:
    async def work() -> None:
        held, admission = Held(), Admission(max_in_flight=1, patience=20)
        app = BodyGuard(held, SMALL, admission)
        tasks = [asyncio.create_task(exchange(app, scope_for("POST", "/", headers), messages(b"x"))) for _ in range(5)]
        await settle()
        assert (admission.in_flight, admission.memory) == (1, 20 if headers else 5 * 20)
        gone = tasks.pop(1)
        gone.cancel()
        held.go.set()
        assert [(await task).status for task in tasks] == [200] * 4
        assert (admission.in_flight, admission.memory) == (0, 0)

    run(work)


def test_full_memory_is_waited_for() -> None:
    async def work() -> None:
        held, admission = Held(), Admission(memory_budget=10_000, patience=20)
        app = BodyGuard(held, SMALL, admission)
        admission.reserve(9000)
        waiting = asyncio.create_task(exchange(app, scope_for("POST", "/", [length(900), NPY]), messages(b"x" * 900)))
        held.go.set()
        await settle()
        assert not waiting.done()
        admission.reserve(-9000)
        assert (await exchange(app, scope_for("POST", "/"), messages(b"x"))).status == 200  # lets the others look again
        assert (await waiting).status == 200

    run(work)


def test_slow_readers_and_senders_are_not_in_the_queue() -> None:
    async def work() -> None:
        admission = Admission(max_in_flight=1)
        app = BodyGuard(ok, SMALL, admission)
        reading = asyncio.Event()

        async def receive() -> Message:
            return {"type": "http.request", "body": b"x", "more_body": False}

        async def send(message: Message) -> None:
            await reading.wait()

        half = [{"type": "http.request", "body": b"x", "more_body": True}]
        sender = asyncio.create_task(exchange(app, scope_for("POST", "/"), half))
        reader = asyncio.create_task(app(scope_for("POST", "/"), receive, send))
        await settle()
        assert (await exchange(app, scope_for("POST", "/"), messages(b"x"))).status == 200
        reading.set()
        await reader
        sender.cancel()
        await asyncio.wait({sender})
        assert (admission.memory, admission.in_flight) == (0, 0)

    run(work)


def test_while_an_answer_is_read_body_and_answer_alone_take_memory() -> None:
    async def work() -> None:
        admission, reading = Admission(), asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await receive()
            memory_of(scope).need(1 << 20)
            assert admission.memory == (1 << 20) + 10
            await PlainTextResponse("x" * 300)(scope, receive, send)

        async def receive() -> Message:
            return {"type": "http.request", "body": b"x" * 10, "more_body": False}

        async def send(message: Message) -> None:
            await reading.wait()

        task = asyncio.create_task(BodyGuard(app, SMALL, admission)(scope_for("POST", "/"), receive, send))
        await settle()
        assert admission.memory == 310
        reading.set()
        await task
        assert admission.memory == 0

    run(work)
