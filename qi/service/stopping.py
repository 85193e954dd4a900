"""The end of a server: told to stop, it says so, answers what was asked, and only then goes.

1. Readiness turns to 503, and answers tell clients to connect anew; balancers have time to look elsewhere.
2. New connections are no longer taken up, those in the queue are.
3. What is being answered is, within the time that the operator grants.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

__all__ = ["StoppingServer", "refuse_new", "when_told_to_stop"]

_SETTLE = 0.2  # seconds in which those that wait in the queue are accepted
_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_ATTACH_FILTER = 26  # SO_ATTACH_FILTER of Linux, which Python's module doesn't name
_NO_NEW = (
    (0x30, 0, 0, 13),  # load the byte of TCP's flags,
    (0x54, 0, 0, 2),  # of which SYN alone,
    (0x15, 0, 1, 2),  # and if that is set
    (0x06, 0, 0, 0),  # drop the packet,
    (0x06, 0, 0, 0xFFFFFFFF),  # else keep it whole
)


class StoppingServer(uvicorn.Server):
    """A server that says where it listens, and loses no request when it is told to stop.

    Args:
        config: What uvicorn is told.
        delay: Seconds between the signal and the end of listening; none after SIGINT, which a person sends.
        announce: Is called once clients are answered.
    """

    def __init__(self, config: uvicorn.Config, delay: float, announce: Callable[[], None] | None = None) -> None:
        super().__init__(config)
        self._delay, self._announce = delay, announce
        self._hurry = False

    async def startup(self, sockets: Any = None) -> None:
        """Starts to listen."""
        await super().startup(sockets)
        if self.started and self._announce is not None:
            self._announce()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Told to stop."""
        self._hurry = self._hurry or sig == signal.SIGINT
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: Any = None) -> None:
        """Stops, in the order that this module tells."""
        end = asyncio.get_running_loop().time() + self._delay
        while not self._hurry and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.05)
        for server in self.servers:
            for listening in server.sockets:
                refuse_new(listening)
        await asyncio.sleep(_SETTLE)
        await super().shutdown(sockets)


def refuse_new(listening: Any) -> None:
    """Lets nobody else into the queue of a socket, where the system can do that; who is in it can be accepted still.

    Closing the socket would throw out those in the queue, who believe that they are connected.

    Args:
        listening: The socket. Processes that share it share this, too.
    """
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _NO_NEW))
    with contextlib.suppress(OSError):
        listening.setsockopt(
            socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HL", len(_NO_NEW), ctypes.addressof(program))
        )


@contextlib.contextmanager
def when_told_to_stop(call: Callable[[], None]) -> Iterator[None]:
    """A block in which a function is called before whatever else the signals to stop do.

    Nothing is changed outside of the main thread, nor where nobody handles the signals.

    Args:
        call: The function.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def told(number: int, frame: Any) -> None:
        call()
        before[number](number, frame)

    found = {number: signal.getsignal(number) for number in _SIGNALS}
    before: dict[int, Any] = {number: handler for number, handler in found.items() if callable(handler)}
    for number in before:
        signal.signal(number, told)
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is told:
                signal.signal(number, handler)
