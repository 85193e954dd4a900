"""How long a body may be, and how slow, beside what the requests in flight take together (`qi.service.admission`)."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from typing import NoReturn

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qi.errors import ConfigError
from qi.service.admission import ARRIVING, Admission, Memory
from qi.service.auth import route_path
from qi.service.problems import Problem, problem_response

__all__ = ["BINARY_TYPES", "BodyGuard", "BodyLimits"]

_MIB = 1 << 20
BINARY_TYPES = (
    "application/octet-stream", "application/vnd.apache.arrow.tensor", "application/vnd.safetensors", "application/x-npy",
    "application/x-safetensors", "multipart/form-data",
)  # fmt: skip
"""Media types whose bodies are arrays as they lie in memory, or nearly."""

_LINGER_BYTES = 64 * _MIB  # what is thrown away of a refused body, so that clients get to read the answer
_LINGER_SECONDS = 2.0


@dataclass(frozen=True)
class BodyLimits:
    """What a body may be.

    Attributes:
        max_json_bytes: Bytes of a body of JSON, or of a media type that isn't known.
        max_binary_bytes: Bytes of the others.
        json_factor: Bytes of memory for each byte of JSON, unless who reads it counts by itself (`Memory.counts`).
        binary_factor: Bytes of memory for each of the others.
        timeout: Seconds for a body to arrive, and for a client to read the answer, ...
        min_rate: ... and bytes of either that give another second.
        binary_types: Media types of the others.
    """

    max_json_bytes: int = 16 * _MIB
    max_binary_bytes: int = 256 * _MIB
    json_factor: int = 40
    binary_factor: int = ARRIVING
    timeout: float = 30.0
    min_rate: int = _MIB
    binary_types: Iterable[str] = BINARY_TYPES

    def __post_init__(self) -> None:
        for name in ("max_json_bytes", "max_binary_bytes", "json_factor", "binary_factor", "timeout", "min_rate"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"expected {name} above 0; received {name}={getattr(self, name)!r}")


class BodyGuard:
    """Refuses bodies that are too large, too slow, encoded, or too many at a time: 413, 408, 415, 503.

    Args:
        app: What to protect.
        limits: What a body may be.
        admission: What the requests of all such guards share.
    """

    def __init__(self, app: ASGIApp, limits: BodyLimits | None = None, admission: Admission | None = None) -> None:
        self._app = app
        self._limits = limits or BodyLimits()
        self._admission = admission or Admission()
        self._binary = frozenset(self._limits.binary_types)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        body = _Body(scope, receive, send, self._limits, self._admission, self._is_binary(scope, headers))
        try:
            await body.start(headers)
            await self._app(scope, body.receive, body.send)
        except Exception:
            # Whatever an application makes of a body that was refused on the way is answered by the refusal alone.
            if body.refusal is None and not body.abandoned:
                raise
        finally:
            body.release()
        if body.refusal is not None:
            # Its traceback is a cycle, which would keep what has come of the body until the garbage is collected.
            body.refusal.__traceback__ = None
            await body.answer()

    def _is_binary(self, scope: Scope, headers: Headers) -> bool:
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        # A header of JSON and then bytes, whatever type it goes by; its parser limits the JSON.
        inference = "inference-header-content-length" in headers and route_path(scope).startswith("/v2/")
        return media_type in self._binary or inference


class _Body:
    """The body of one request."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, limits: BodyLimits, admission: Admission, binary: bool
    ) -> None:
        self.refusal: Problem | None = None
        self.abandoned = False  # by a client that doesn't read the answer
        self._scope, self._receive, self._send = scope, receive, send
        self._limits, self._admission = limits, admission
        self._binary = binary
        self._limit = limits.max_binary_bytes if binary else limits.max_json_bytes
        self._memory = Memory(admission, limits.binary_factor if binary else limits.json_factor)
        scope.setdefault("state", {})["memory"] = self._memory
        self._began = asyncio.get_running_loop().time()
        self._declared: int | None = None
        self._waits = False  # for a word before it sends the body
        self._received = self._sent = 0
        self._waited = 0.0  # seconds for the client to read the answer
        self._complete = self._entered = self._started = self._answered = False

    async def start(self, headers: Headers) -> None:
        """Looks at what a request says of its body, and waits for its turn."""
        self._waits = headers.get("expect", "").lower() == "100-continue"
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            self._refuse(
                Problem(
                    415,
                    f"expected a body without Content-Encoding; received {encoding[:40]!a}; do: send it as it is",
                    code="content-encoding",
                    headers={"Accept-Encoding": "identity"},
                )
            )
        lengths = set(headers.getlist("content-length"))
        if lengths:
            text = lengths.pop()
            if lengths or not re.fullmatch("[0-9]{1,18}", text):
                self._refuse(Problem(400, "expected one Content-Length of digits; received others"))
            self._declared = int(text)
            self._check_size(self._declared)
        if self._declared or "transfer-encoding" in headers:
            await self._admitted(self._admission.come((self._declared or 0) * ARRIVING))
            self._began = asyncio.get_running_loop().time()

    async def receive(self) -> Message:
        """The next piece of the body."""
        if self.refusal is not None:
            raise self.refusal
        if self._complete:
            return await self._receive()
        seconds = self._limits.timeout + self._received / self._limits.min_rate
        try:
            async with asyncio.timeout_at(self._began + seconds):
                message = await self._receive()
        except TimeoutError:
            self._refuse(Problem(408, f"expected the body within {seconds:.0f} seconds", code="body-timeout"))
        if message["type"] == "http.request":
            await self._take(message)
        return message

    async def _take(self, message: Message) -> None:
        self._received += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        self._check_size(self._received)
        try:
            self._memory.arrived(self._received)
        except Problem as problem:
            self._refuse(problem)
        if self._complete and self._received:
            await self._admitted(self._admission.enter())
            self._entered = True

    async def send(self, message: Message) -> None:
        """Sends a piece of the answer, or in place of the answer that the body was refused."""
        if self.refusal is not None and not self._started:
            await self.answer()
        elif not self._answered:
            if not self._started:
                self._started = True
                self._leave()
                length = Headers(raw=message["headers"]).get("content-length")
                if length is not None and message["status"] < 500:  # after a 504 the work goes on
                    self._memory.answers(int(length))
            await self._send_in_time(message)

    async def _send_in_time(self, message: Message) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        self._sent += len(message.get("body", b""))
        seconds = self._limits.timeout + self._sent / self._limits.min_rate - self._waited
        try:
            async with asyncio.timeout(seconds):
                await self._send(message)
        except TimeoutError:
            self.abandoned = True
            raise ClientDisconnect from None
        self._waited += clock() - began

    async def answer(self) -> None:
        """Sends that the body was refused."""
        if self.refusal is None or self._started or self._answered:
            return
        self._answered = True
        if not self._complete and self.refusal.status_code != 408 and not self._waits:
            await self._drain()
        response = problem_response(self._scope, self.refusal)
        if not self._complete and self._scope.get("http_version", "1.1").startswith("1"):
            MutableHeaders(raw=response.raw_headers)["connection"] = "close"
        await response(self._scope, self._receive, self._send)

    async def _drain(self) -> None:
        """Throws away the rest of the body: many clients send all of it before they look for an answer."""
        if (self._declared or 0) - self._received > _LINGER_BYTES:
            return
        dropped = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while not self._complete and dropped <= _LINGER_BYTES:
                    message = await self._receive()
                    dropped += len(message.get("body", b""))
                    self._complete = not message.get("more_body", False)

    def release(self) -> None:
        """Gives back what the request took."""
        self._memory.release()
        self._leave()
        self._admission.go_on()

    def _leave(self) -> None:
        """Makes room in the queue: the work is done once an answer starts, however slowly its client reads it."""
        if self._entered:
            self._entered = False
            self._admission.leave()

    def _check_size(self, nbytes: int) -> None:
        if nbytes <= self._limit:
            return
        kind, other = "other than JSON", "fewer numbers at a time"
        if not self._binary:
            kind = "of JSON"
            other = f"the array as application/x-npy, up to {self._limits.max_binary_bytes} bytes"
        self._refuse(
            Problem(
                413,
                f"expected a body {kind} of at most {self._limit} bytes; received more; do: send {other}",
                code="body-too-large",
            )
        )

    async def _admitted(self, waiting: Awaitable[None]) -> None:
        try:
            await waiting
        except Problem as problem:
            self._refuse(problem)

    def _refuse(self, problem: Problem) -> NoReturn:
        self.refusal = problem
        self._memory.release()  # for those that come on, while the rest of the body is thrown away
        raise problem
