"""Calls over HTTP with nothing but the standard library: connections that stay open, another try where that is safe.

`qi.service.client` is made of it. Any number of threads may share one `Connection`.
"""

from __future__ import annotations

import http.client
import json
import random
import selectors
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from qi.errors import ConfigError, InputError, NotCalibratedError, QiError

__all__ = [
    "AccessError",
    "Backoff",
    "BadRequestError",
    "ConflictError",
    "Connection",
    "NotFoundError",
    "NotReadyError",
    "Reply",
    "ServiceError",
    "UnreachableError",
]

_BUSY = (429, 503)
_MAX_IDLE = 8
_MAX_TEXT = 2000


class ServiceError(QiError):
    """The service refused, or failed.

    Attributes:
        status: The HTTP status; 0: there was no answer.
        code: What went wrong, in one word, where the service says so.
        request_id: By which the service's log knows the request, where it says so.
    """

    status: int = 0
    code: str = ""
    request_id: str = ""


class BadRequestError(ServiceError, InputError):
    """What was sent isn't what the service takes."""


class AccessError(ServiceError, PermissionError):
    """The key is missing or wrong, or doesn't allow this."""


class NotFoundError(ServiceError, LookupError):
    """There is no instance of this name."""


class ConflictError(ServiceError, ValueError):
    """The instance exists already, or has changed meanwhile."""


class NotReadyError(ServiceError, NotCalibratedError):
    """The instance has no parameters yet: calibrate it first."""


class UnreachableError(ServiceError, ConnectionError):
    """There is no service there, or it is busy, and stayed so."""


@dataclass(frozen=True)
class Backoff:
    """How often and when a request is sent again.

    Attributes:
        tries: How often it is sent in all, from 1.
        first: Seconds before the second time; doubled every time.
        most: Seconds between two times, at most, whatever the service wishes.
        rng: Spreads the waits of clients that were refused together, by up to half; None: seconds are exact.

    Raises:
        ConfigError: A number is out of range.

    Example:
        >>> backoff = Backoff(tries=4, first=0.5, most=1.5)
        >>> [backoff.seconds(n) for n in range(3)], backoff.seconds(0, asked=1.0), backoff.seconds(0, asked=60.0)
        ([0.5, 1.0, 1.5], 1.0, 1.5)
    """

    tries: int = 4
    first: float = 0.1
    most: float = 5.0
    rng: random.Random | None = None

    def __post_init__(self) -> None:
        if self.tries < 1 or self.first < 0 or self.most < 0:
            raise ConfigError(f"expected tries from 1, first and most from 0; received {self}")

    def seconds(self, failures: int, asked: float = 0.0) -> float:
        """How long to wait after so many failures but one, and after the service asked for `asked` seconds."""
        wait = max(self.first * 2.0 ** min(failures, 60), asked)
        return min(wait * (1 + self.rng.random() / 2) if self.rng else wait, self.most)


@dataclass(frozen=True, eq=False)
class Reply:
    """An answer.

    Attributes:
        status: The HTTP status.
        headers: By lower-case names.
        body: All of it.
    """

    status: int
    headers: Mapping[str, str]
    body: bytearray

    def json(self) -> Any:
        """The body, read as JSON.

        Raises:
            ServiceError: It is none.
        """
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise ServiceError(f"expected an answer in JSON; received {bytes(self.body[:80])!r}") from error


class Connection:
    """A service at a URL.

    Args:
        url: ``http://host:port`` or ``https://...``, with a path if the service lies below one.
        headers: Sent with every request.
        timeout: Seconds that the service may be silent.
        backoff: How often and when a request is sent again.
        sleep: Waits for so many seconds.

    Raises:
        ConfigError: The URL is none of these, or a header isn't made of printable ASCII.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        timeout: float = 60.0,
        backoff: Backoff | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        extra = parts.username or parts.query or parts.fragment
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or extra:
            raise ConfigError(f"expected a URL like http://host:8000; received url={url!r}")
        for name, value in (headers or {}).items():
            if not (value.isascii() and value.isprintable()):
                raise ConfigError(f"expected {name} of printable ASCII characters; received others")
        self.url = url.rstrip("/")
        self._host, self._port = parts.hostname, port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._path = parts.path.rstrip("/")
        self._headers = dict(headers or {})
        self._timeout = timeout
        self._backoff = backoff or Backoff()
        self._sleep = sleep
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []

    def close(self) -> None:
        """Closes what is open. Calls open it again."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def call(
        self,
        method: str,
        path: str,
        parts: Sequence[bytes | memoryview] = (),
        headers: Mapping[str, str] | None = None,
        *,
        repeatable: bool = True,
    ) -> Reply:
        """Sends a request, again where that is safe, and gives the answer.

        A service that is busy says so before it does anything, so the request is sent again. If the connection breaks,
        nobody knows how far it came: it is sent again only if it is repeatable, or nothing of it had been sent.

        Args:
            method: GET, POST, ...
            path: From "/"; quoted.
            parts: The body, in pieces.
            headers: Besides those of all requests.
            repeatable: Whether doing it twice is as good as once.

        Returns:
            The answer, its status being 2xx.

        Raises:
            ServiceError: It was refused (its subclasses say why), or there is nobody there (`UnreachableError`).
        """
        sent = {**self._headers, **(headers or {})}
        if parts or method in ("POST", "PUT", "PATCH"):
            sent["Content-Length"] = str(sum(memoryview(part).nbytes for part in parts))
        for failures in range(self._backoff.tries):
            last = failures == self._backoff.tries - 1
            try:
                reply = self._once(method, self._path + path, parts, sent)
            except (OSError, http.client.HTTPException) as error:
                refused = isinstance(error, ConnectionRefusedError)
                if last or isinstance(error, TimeoutError) or not (repeatable or refused):
                    raise UnreachableError(
                        f"expected an answer of {self.url}; received none: {str(error) or type(error).__name__}"
                    ) from error
                asked = ""
            else:
                if reply.status < 300:
                    return reply
                asked = reply.headers.get("retry-after", "")
                if last or reply.status not in _BUSY or (reply.status == 429 and not asked):
                    raise error_of(reply)
            self._sleep(self._backoff.seconds(failures, _seconds(asked)))
        raise UnreachableError(f"expected an answer of {self.url}; received none")

    def _once(self, method: str, path: str, parts: Sequence[bytes | memoryview], headers: Mapping[str, str]) -> Reply:
        connection = self._take()
        try:
            try:
                connection.request(method, path, list(parts) or None, dict(headers))
            except (BrokenPipeError, ConnectionResetError):
                if connection.sock is None:
                    raise
                # Whoever refuses a body early stops reading it: the answer may be there nevertheless.
            answer = connection.getresponse()
            headers_of = {name.lower(): value for name, value in answer.getheaders()}
            reply = Reply(answer.status, headers_of, _body(answer))
        except BaseException:
            connection.close()
            raise
        if answer.will_close:
            connection.close()
        else:
            self._give_back(connection)
        return reply

    def _take(self) -> http.client.HTTPConnection:
        """An open connection that the other side hasn't closed meanwhile, or a new one."""
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                break
            if connection.sock is not None and not _readable(connection.sock):
                return connection
            connection.close()
        if self._tls is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout, context=self._tls)

    def _give_back(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            if len(self._idle) < _MAX_IDLE:
                self._idle.append(connection)
                return
        connection.close()


def _body(answer: http.client.HTTPResponse) -> bytearray:
    """All of a body, where arrays made of it can be written to."""
    length = answer.length
    if length is None:
        return bytearray(answer.read())
    body = bytearray(length)
    view, start = memoryview(body), 0
    while start < length:
        count = answer.readinto(view[start:])
        if not count:
            raise http.client.IncompleteRead(bytes(body[:start]), length - start)
        start += count
    return body


def error_of(reply: Reply) -> ServiceError:
    """The error that an answer stands for, with the service's own words."""
    try:
        body = json.loads(reply.body)
    except ValueError:
        body = {}
    body = body if isinstance(body, dict) else {}
    detail = body.get("detail") or body.get("error") or reply.body[:_MAX_TEXT].decode("utf-8", "replace")
    text = detail if isinstance(detail, str) else json.dumps(detail)
    code = str(body.get("code") or "")
    request_id = str(body.get("request_id") or reply.headers.get("x-request-id", ""))
    known = f", request {request_id}" if request_id else ""
    error = _class_of(reply.status, code)(f"{text[:_MAX_TEXT]} (HTTP {reply.status}{known})")
    error.status, error.code, error.request_id = reply.status, code, request_id
    return error


def _class_of(status: int, code: str) -> type[ServiceError]:
    if status in _BUSY:
        return UnreachableError
    if status in (401, 403):
        return AccessError
    if status == 404:
        return NotFoundError
    if status in (409, 412):
        return NotReadyError if "calibrated" in code else ConflictError
    return BadRequestError if 400 <= status < 500 else ServiceError


def _seconds(text: str) -> float:
    """Retry-After, where it is a number."""
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0.0


def _readable(sock: Any) -> bool:
    """Whether there is something to read of a connection that nothing was asked of: its end, that is."""
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        return bool(selector.select(0))
