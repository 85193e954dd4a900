"""How much a client may send, how slowly, and how many may do so at once.

Memory is counted before it is taken: of a body as its bytes arrive, so that nobody holds any by announcing a long one; of
the work and the answer by estimate (`qi.service.costs`), just before. Requests that don't fit wait for a moment, most of
them before their body is read, and are told to come again then: told at once, clients that do so keep the service busy with
telling them, and hardly any work is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass, field
from typing import NoReturn

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qi.errors import ConfigError
from qi.service.auth import route_path
from qi.service.problems import Problem, problem_response
from qi.service.turns import Turns

__all__ = ["BINARY_TYPES", "Admission", "BodyGuard", "BodyLimits", "Memory", "memory_of"]

_MIB = 1 << 20
BINARY_TYPES = (
    "application/octet-stream", "application/vnd.apache.arrow.tensor", "application/vnd.safetensors", "application/x-npy",
    "application/x-safetensors", "multipart/form-data",
)  # fmt: skip
"""Media types whose bodies are arrays as they lie in memory, or nearly."""

_LINGER_BYTES = 64 * _MIB  # what is thrown away of a refused body, so that clients get to read the answer
_LINGER_SECONDS = 2.0
_ARRIVING = 3  # copies of a body while it arrives: its pieces, all of them joined, and what the connection holds


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
    binary_factor: int = _ARRIVING
    timeout: float = 30.0
    min_rate: int = _MIB
    binary_types: Iterable[str] = BINARY_TYPES

    def __post_init__(self) -> None:
        for name in ("max_json_bytes", "max_binary_bytes", "json_factor", "binary_factor", "timeout", "min_rate"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"expected {name} above 0; received {name}={getattr(self, name)!r}")


@dataclass
class Admission:
    """What the requests in flight take together.

    Bodies that are on their way may fill half of the memory, so that there is some for the work on those that are here: all
    would be refused otherwise where many come at a time.

    Attributes:
        memory_budget: Bytes of memory for them; one alone may take more.
        max_in_flight: Requests whose body is here and whose answer isn't.
        overload_status: What others are answered: 503 or 429.
        retry_after: Seconds after which they should come again.
        patience: Seconds that a request waits for its turn before it is told so.
        memory: Bytes that are taken.
        arriving: Those of them that bodies take on which no work has begun.
        in_flight: Requests that are in flight.
    """

    memory_budget: int = 2048 * _MIB
    max_in_flight: int = 64
    overload_status: int = 503
    retry_after: int = 1
    patience: float = 0.5
    memory: int = field(default=0, init=False)
    arriving: int = field(default=0, init=False)
    in_flight: int = field(default=0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)
    _coming: Turns = field(init=False, repr=False, compare=False)  # with their body still to be read
    _here: Turns = field(init=False, repr=False, compare=False)  # with all of it in memory

    def __post_init__(self) -> None:
        self._coming, self._here = Turns(self.go_on), Turns(self.leave)

    def reserve(self, nbytes: int, own: int = 0, *, arriving: int = 0) -> None:
        """Takes memory; from any thread.

        Args:
            nbytes: How much; below 0: gives it back.
            own: What of the memory that is taken is the request's own.
            arriving: How much more of all that is a body's on which no work has begun; below 0: less.

        Raises:
            Problem: There isn't enough.
        """
        with self._lock:
            self._check_memory(nbytes, own, arriving)
            self.memory += nbytes
            self.arriving += arriving

    def _check_memory(self, nbytes: int, own: int, arriving: int) -> None:
        over = self.memory > own and self.memory + nbytes > self.memory_budget
        crowded = self.arriving > own and self.arriving + arriving > self.memory_budget // 2
        if (nbytes > 0 and over) or (arriving > 0 and crowded):
            raise self._full("memory")

    async def come(self, nbytes: int) -> None:
        """Waits until there is room for a request; takes none, as its body may be long in coming.

        Args:
            nbytes: Memory that the body is going to take.

        Raises:
            Problem: There was none in time.
        """
        time = asyncio.get_running_loop().time
        ends, waited = time() + self.patience, False
        while (problem := self._refusal(nbytes)) is not None or (self._coming and not waited):
            waited = await self._coming.wait(ends - time())
            if not waited:
                raise problem or self._full("queue")

    async def enter(self) -> None:
        """Lets a request in whose body is here, once there is a place.

        Raises:
            Problem: There was none in time.
        """
        if self.in_flight < self.max_in_flight:
            self.in_flight += 1
        elif not await self._here.wait(self.patience):
            raise self._full("queue")

    def leave(self) -> None:
        """Makes a place free: for the first that waits with its body, or else for the others."""
        if not self._here.call():
            self.in_flight -= 1
            self.go_on()

    def go_on(self) -> None:
        """Lets those look again who wait for room: all where nothing else would, later."""
        for _ in range(1 if self.in_flight else self.max_in_flight):
            self._coming.call()

    def _refusal(self, nbytes: int) -> Problem | None:
        """Why a request can't come in now."""
        if self.in_flight >= self.max_in_flight:
            return self._full("queue")
        try:
            with self._lock:
                self._check_memory(nbytes, own=0, arriving=nbytes)
        except Problem as problem:
            return problem
        return None

    def _full(self, what: str) -> Problem:
        return Problem(
            self.overload_status,
            f"expected fewer requests at a time (the {what} is full); do: try again",
            code=f"{what}-full",
            headers={"Retry-After": str(self.retry_after)},
        )


class Memory:
    """What one request takes of the budget. All of it is given back when the request has been answered.

    Threads may call it.

    Args:
        admission: Whose budget.
        per_byte: Bytes of memory for each byte of the body.
    """

    def __init__(self, admission: Admission, per_byte: int = _ARRIVING) -> None:
        self._admission = admission
        self._per_byte = per_byte
        self._lock = threading.Lock()
        self._body = self._taken = self._arriving = 0
        self._released = False

    def counts(self) -> None:
        """Says that who reads the body counts what its parsing takes: only its bytes are counted as they arrive."""
        self._per_byte = min(self._per_byte, _ARRIVING)

    def arrived(self, nbytes: int) -> None:
        """Takes memory for the bytes of the body that are here, of which there are `nbytes` in all.

        Raises:
            Problem: There isn't enough.
        """
        with self._lock:
            self._body = nbytes
            more = nbytes * self._per_byte - self._taken
            if more > 0:
                self._admission.reserve(more, self._taken, arriving=more)
                self._taken += more
                self._arriving += more

    def need(self, nbytes: int) -> None:
        """Takes what the request is going to need at one time, beside its body.

        Steps follow each other: the largest counts, not their sum.

        Raises:
            Problem: There isn't enough.
        """
        with self._lock:
            if not self._released:
                more = max(self._body + nbytes - self._taken, 0)
                self._admission.reserve(more, self._taken, arriving=-self._arriving)
                self._taken += more
                self._arriving = 0

    def answers(self, nbytes: int) -> None:
        """Keeps memory for the body and an answer of so many bytes: the work is done, and what else it took is free."""
        with self._lock:
            surplus = max(self._taken - self._body - nbytes, 0)
            self._admission.reserve(-surplus, arriving=-self._arriving)
            self._taken -= surplus
            self._arriving = 0

    def release(self) -> None:
        """Gives everything back; what is asked for later isn't counted."""
        with self._lock:
            self._admission.reserve(-self._taken, arriving=-self._arriving)
            self._taken = self._arriving = 0
            self._released = True


def memory_of(source: Request | Scope) -> Memory:
    """The memory of a request; one without a bound, where no `BodyGuard` guards the application."""
    scope = source.scope if isinstance(source, Request) else source
    found = scope.get("state", {}).get("memory")
    return found if isinstance(found, Memory) else Memory(Admission())


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
            await self._admitted(self._admission.come((self._declared or 0) * _ARRIVING))
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
