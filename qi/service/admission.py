"""What the requests in flight take together: memory and places, and who waits for them.

Memory is counted before it is taken: of a body as its bytes arrive, so that nobody holds any by announcing a long one; of
the work and the answer by estimate (`qi.service.costs`), just before. Requests that don't fit wait for a moment, most of
them before their body is read, and are told to come again then: told at once, clients that do so keep the service busy with
telling them, and hardly any work is done.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.types import Scope

from qi.service.problems import Problem
from qi.service.turns import Turns

__all__ = ["ARRIVING", "Admission", "Memory", "memory_of"]

_MIB = 1 << 20
ARRIVING = 3
"""Copies of a body while it arrives: its pieces, all of them joined, and what the connection holds."""


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

    def __init__(self, admission: Admission, per_byte: int = ARRIVING) -> None:
        self._admission = admission
        self._per_byte = per_byte
        self._lock = threading.Lock()
        self._body = self._taken = self._arriving = 0
        self._released = False

    def counts(self) -> None:
        """Says that who reads the body counts what its parsing takes: only its bytes are counted as they arrive."""
        self._per_byte = min(self._per_byte, ARRIVING)

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
