"""How long a client waits for an answer."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qi.service.problems import Problem, refuse

__all__ = ["Deadline"]


class Deadline:
    """Answers 504 where the application takes too long from the last piece of the body on.

    A thread that computes can't be stopped, so the call ends when the application does: what the request took of the
    service stays taken until then.

    Args:
        app: What to wait for.
        seconds: How long.
    """

    def __init__(self, app: ASGIApp, seconds: float = 60.0) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        clock = _Clock(self._seconds)
        started = late = False

        async def receive_in_time() -> Message:
            return {"type": "http.disconnect"} if late else await clock.receiving(receive)

        async def send_in_time(message: Message) -> None:
            nonlocal started
            if not late:
                started = True
                await send(message)

        task = asyncio.ensure_future(self._app(scope, receive_in_time, send_in_time))
        try:
            while not task.done() and not started and (left := clock.left()) > 0:
                await asyncio.wait({task}, timeout=left)
            if not task.done() and not started:
                late = True
                problem = Problem(504, f"expected an answer within {self._seconds:g} seconds", code="request-timeout")
                await refuse(scope, receive, send, problem)
            await asyncio.wait({task})
        finally:
            task.cancel()
        try:
            if not late:
                task.result()
            elif not task.cancelled():
                task.exception()  # nobody is left to be told
        finally:
            del task  # an exception knows this frame: a cycle, which would keep a body until the garbage is collected


class _Clock:
    """Counts from the last piece of the body on, and stands still while it waits for one."""

    def __init__(self, seconds: float) -> None:
        self._time = asyncio.get_running_loop().time
        self._seconds = seconds
        self._began = self._time()
        self._reading = self._complete = False

    async def receiving(self, receive: Receive) -> Message:
        self._reading = not self._complete
        message = await receive()
        if self._reading:
            self._began = self._time()
            self._reading = False
            self._complete = not message.get("more_body", False)
        return message

    def left(self) -> float:
        return self._seconds if self._reading else self._began + self._seconds - self._time()
