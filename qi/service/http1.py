"""HTTP/1.1 as uvicorn speaks it, with what it leaves out: heads are bounded in size and time, and the end loses nothing.

A head is what comes before a body: the request line and the headers. Everybody may send one, before any key is checked.
What a chunked body brings besides its content is bounded likewise, and dropped.
``uvicorn --http qi.service.http1:BoundedProtocol`` uses it too, with the default limits.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h11
import orjson
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.h11_impl import H11Protocol

from qi.errors import ConfigError, InputError
from qi.service.heads import origin_form

__all__ = ["BoundedH11Protocol", "BoundedProtocol", "HeadLimits"]

_LEAVE = 0.2  # seconds for what a client had sent when the server was told to stop
_LINGER = 1.0  # seconds in which a refused client may read why, ...
_LINGER_BYTES = 8 << 20  # ... and bytes that it may still send meanwhile
_PIECE = 4096
_PER_BYTE = 16  # bytes of framing that come with a chunk of one byte: its size in eight digits, and two ends of lines
_MAX_CHUNK = (1 << 64) - 1
_WORDS = {
    400: ("Bad Request", "bad-request", "expected a request of HTTP/1.1; received another"),
    408: ("Request Timeout", "head-timeout", "expected the request line and the headers sooner"),
    431: ("Request Header Fields Too Large", "head-too-large", "expected a shorter head, or less around a body"),
}


@dataclass(frozen=True)
class HeadLimits:
    """What a head may be.

    Attributes:
        max_bytes: Its length, more or less: parsers count differently. As many may be spent in a chunked body on what is
            no content: extensions of chunks, and trailers, which nobody reads.
        timeout: Seconds from a connection, or the first byte of a later request, to the end of the head.
    """

    max_bytes: int = 1 << 16
    timeout: float = 10.0

    def __post_init__(self) -> None:
        for name in ("max_bytes", "timeout"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"expected {name} above 0; received {name}={getattr(self, name)!r}")


# What follows is mixed into a protocol of uvicorn; both have the same attributes, and no common base that says so.
_Base: Any = H11Protocol if TYPE_CHECKING else object


class _Bounded(_Base):  # type: ignore[misc]
    """What both parsers share."""

    def __init__(self, *args: Any, limits: HeadLimits | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits or HeadLimits()
        self._timer: asyncio.TimerHandle | None = None
        self._pending = 0  # bytes of a head that isn't complete
        self._refused = self._stopping = False
        self._dropped = 0

    def connection_made(self, transport: Any) -> None:
        """Somebody connected, who has to say something."""
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._forget_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self._refused:
            self._drop(len(data))
            return
        self._feed(data)
        if self._stopping and not self._idle():
            self.cycle.keep_alive = False
        self._watch()

    def _feed(self, data: bytes) -> None:
        raise NotImplementedError

    def _idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        """Lets the time of a head run, from its beginning and not from its latest byte."""
        if not self._idle() or self._refused:
            self._forget_timer()
        elif self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(self._limits.timeout, self._too_late)

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        self._timer = None
        if self._pending:
            self._refuse(408)
        elif not self.transport.is_closing():
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no request."""
        error = sys.exception()
        too_large = isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431
        self._refuse(431 if too_large else 400)

    def _refuse(self, status: int) -> None:
        """Answers, listens on for a moment so that the answer arrives, and closes."""
        if self._refused or self.transport.is_closing():
            return
        if not self._idle():
            if (
                not self._is_body_of_first()
            ):  # an earlier request of this connection gets its answer, and nothing after it
                self.cycle.keep_alive = False
                self.flow.pause_reading()
                return
            self.cycle.disconnected = True  # what waits for the rest of the body needn't wait
            self.cycle.message_event.set()
        self._refused = True
        self._forget_timer()
        phrase, code, detail = _WORDS[status]
        problem = {"type": "about:blank", "title": phrase, "status": status, "detail": detail, "code": code}
        body = orjson.dumps(problem | {"instance": "", "request_id": ""})
        head = (
            f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_LINGER, self.transport.close)

    def _is_body_of_first(self) -> bool:
        """Whether what came last is the body of a request to which nothing has been answered, with none before it."""
        alone = not getattr(self, "pipeline", ())
        return alone and bool(self.cycle.more_body) and not self.cycle.response_started

    def _refuse_framing(self) -> None:
        """A body comes with too much that isn't content."""
        if self._idle():  # it has been answered, and the rest is only let by
            self.transport.close()
        else:
            self._refuse(431)

    def _drop(self, nbytes: int) -> None:
        self._dropped += nbytes
        if self._dropped > _LINGER_BYTES:
            self.transport.abort()

    def shutdown(self) -> None:
        """The server stops: what has been asked is answered first, also where the question is still on its way."""
        self._stopping = True
        if self._idle():
            self.loop.call_later(_LEAVE, self._leave)
        else:
            super().shutdown()

    def _leave(self) -> None:
        if self._idle() and not self._pending and not self.transport.is_closing():
            super().shutdown()

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: whether another protocol could be installed is no client's business to have logged."""


class _TooLargeError(ValueError):
    """Ends the parsing of a head; the parser makes its own error of it."""


class _H11Connection(h11.Connection):
    """The parser h11, which believes any target, size of a chunk, and number of extensions."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(h11.SERVER, max_bytes)
        self.chunked = False
        self.framing = 0  # bytes of this body that are no content, less those that its content may bring along

    def receive_data(self, data: bytes) -> None:
        """Bytes came."""
        if self.their_state is h11.SEND_BODY:
            self.framing += len(data)
        super().receive_data(data)

    def next_event(self) -> Any:
        """What they say."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self.framing, self.chunked = 0, any(name == b"transfer-encoding" for name, _ in event.headers)
            return _asked(event)
        if isinstance(event, h11.Data):
            self.framing -= (1 + _PER_BYTE) * len(event.data)
        if getattr(self._reader, "_bytes_in_chunk", 0) > _MAX_CHUNK:
            raise h11.RemoteProtocolError("size of a chunk")
        return event


def _asked(request: h11.Request) -> h11.Request:
    """A request with a path as its target."""
    try:
        target = origin_form(request.target, (value for name, value in request.headers if name == b"host"))
    except InputError as error:
        raise h11.RemoteProtocolError("target") from error
    if target == request.target:
        return request
    headers = request.headers.raw_items()
    return h11.Request(method=request.method, headers=headers, target=target, http_version=request.http_version)


class BoundedH11Protocol(_Bounded, H11Protocol):
    """With the parser h11, which counts what it keeps of a head."""

    conn: _H11Connection

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = _H11Connection(self._limits.max_bytes)

    def _feed(self, data: bytes) -> None:
        position = 0
        while position < len(data) and not self._refused:
            # In pieces where there can be more than content: h11 looks at what it keeps, and so what comes at once is
            # limited as well.
            small = self.conn.their_state is h11.IDLE or self.conn.chunked
            end = position + _PIECE if small else len(data)
            H11Protocol.data_received(self, data[position:end])
            position = end
            if self.conn.their_state is h11.SEND_BODY and self.conn.framing > self._limits.max_bytes:
                self._refuse_framing()
        waiting = self.conn.their_state is h11.IDLE and self._idle()
        self._pending = len(self.conn.trailing_data[0]) if waiting else 0


try:
    import httptools
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ImportError:
    BoundedProtocol: Callable[..., asyncio.Protocol] = BoundedH11Protocol
    """The faster parser of those that are installed, as uvicorn would choose."""
else:

    class BoundedHttpToolsProtocol(_Bounded, HttpToolsProtocol):
        """With the parser httptools, which would keep a head of any length."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._in_body = self._too_large = self._resuming = False
            self._length = 0
            self._framing = 0  # as h11's above
            self._data = b""

        def _feed(self, data: bytes) -> None:
            self._data = data
            if self._in_body:
                self._framing += len(data)
            HttpToolsProtocol.data_received(self, data)
            if self._in_body and self._framing > self._limits.max_bytes:
                self._refuse_framing()
            self._pending = self._pending + len(data) if self._idle() and not self._in_body else 0
            if self._pending > self._limits.max_bytes:
                self._refuse(431)

        def on_message_begin(self) -> None:
            """A head begins."""
            if not self._resuming:
                self._length = 0
                super().on_message_begin()

        def on_url(self, url: bytes) -> None:
            """A piece of the path came."""
            if not self._resuming:
                self._count(len(url))
                super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            """A header came, or a field of the trailer: that is no header, whoever has checked those, and nobody needs it."""
            if not self._resuming:
                self._count(len(name) + len(value) + 4)
                if not self._in_body:
                    super().on_header(name, value)

        def on_headers_complete(self) -> None:
            """The head is here."""
            self._in_body, self._framing = True, 0
            if not self._resuming:
                self.url = origin_form(self.url, (value for name, value in self.headers if name == b"host"))
                super().on_headers_complete()
            self._resuming = False

        def on_body(self, body: bytes) -> None:
            """A piece of the body came. The usual one, which finds nothing before it, is handed on without a copy."""
            self._framing -= (1 + _PER_BYTE) * len(body)
            if self.cycle.body or self.cycle.response_complete:
                super().on_body(body)
                return
            self.cycle.body = body  # type: ignore[assignment]  # it is read, cut off, and added to: bytes can all that
            if len(body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            self.cycle.message_event.set()

        def on_message_complete(self) -> None:
            """The body is here, too; the parser believes that where an upgrade is offered, there is none."""
            if not self.parser.should_upgrade():
                self._in_body = False
                super().on_message_complete()

        def _unsupported_upgrade_warning(self) -> None:
            """Goes on as if no upgrade had been offered, which Java's client does with every request.

            The parser has stopped after the head, and would take the body for another request. Another parser is told the
            body's length, and reads it.
            """
            stopped = sys.exception()
            rest = self._data[stopped.args[0] :] if stopped is not None else b""
            framing = [field for field in self.headers if field[0] in (b"content-length", b"transfer-encoding")]
            self.parser = httptools.HttpRequestParser(self)
            self._resuming = True
            head = b"".join(b"%s: %s\r\n" % field for field in framing)
            self._feed(b"POST / HTTP/1.1\r\n" + head + b"\r\n" + rest)

        def _count(self, nbytes: int) -> None:
            self._length += nbytes
            if self._length > self._limits.max_bytes:
                self._too_large = True
                raise _TooLargeError

        def send_400_response(self, msg: str) -> None:
            """Answers what is no request."""
            self._refuse(431 if self._too_large else 400)

    BoundedProtocol = BoundedHttpToolsProtocol
