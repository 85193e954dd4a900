"""A client of one wrapper: it speaks ASGI, so that every message and every address can be chosen."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", 5000)


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The code of the problem."""
        return str(json.loads(self.body)["code"])


async def ok(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the body, answers with its length."""
    length, more = 0, True
    while more:
        message = await receive()
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(length).encode()})


def scope_for(
    method: str = "GET",
    path: str = "/",
    headers: Iterable[tuple[str, str]] | Mapping[str, str] = (),
    client: tuple[str, int] | None = LOOPBACK,
    **more: Any,
) -> dict[str, Any]:
    """An HTTP scope."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    return {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in pairs],
        "client": client,
        **more,
    }


def messages(*pieces: bytes) -> list[Message]:
    """The messages of a body."""
    last = len(pieces) - 1
    return [{"type": "http.request", "body": p, "more_body": i < last} for i, p in enumerate(pieces)]


async def exchange(app: ASGIApp, scope: dict[str, Any], body: Iterable[Message] = ()) -> Answer:
    """Sends a request and reads the answer; what follows the given messages never comes.

    The scope gets an event, "answered", that tells the application when the client has all of an answer.
    """
    answered = scope["answered"] = asyncio.Event()
    waiting = list(body) if body else messages(b"")
    sent: list[Message] = []

    async def receive() -> Message:
        if not waiting:
            await asyncio.Event().wait()
        return waiting.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            answered.set()

    await app(scope, receive, send)
    starts = [m for m in sent if m["type"] == "http.response.start"]
    assert len(starts) == 1
    assert sent[0] is starts[0]
    assert not sent[-1].get("more_body", False)
    headers = {name.decode(): value.decode() for name, value in starts[0]["headers"]}
    return Answer(starts[0]["status"], headers, b"".join(m.get("body", b"") for m in sent))


def ask(app: ASGIApp, *args: Any, body: Iterable[Message] = (), **kwargs: Any) -> Answer:
    """`exchange` with the arguments of `scope_for`, from outside of a loop."""
    return asyncio.run(exchange(app, scope_for(*args, **kwargs), body))


def sent_by(response: ASGIApp) -> list[Message]:
    """What a response sends, message by message."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(dict(message) | ({"body": bytes(message["body"])} if "body" in message else {}))

    async def receive() -> Message:
        return await asyncio.Event().wait()  # type: ignore[return-value]

    asyncio.run(response(scope_for(), receive, send))
    return sent
