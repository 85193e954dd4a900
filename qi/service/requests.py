"""Who asked what, when and how it went: request ids, and a log without data and without keys.

One wrapper follows every request and tells its observers, the log and the metrics, when it begins and when it ends.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal, Protocol, TextIO

import fastapi.routing
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qi.service.auth import route_path
from qi.service.problems import Problem, refuse

__all__ = ["AccessLog", "Exchange", "Observer", "Requests", "Templates", "configure_logging", "logged"]

LOGGER = "qi.service"
UNMATCHED = "unmatched"
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


@dataclass
class Exchange:
    """A request and its answer.

    Attributes:
        scope: The ASGI scope; its state is `request.state` of the application.
        request_id: Its name in logs, in answers, and in the client's own records.
        method: The HTTP method; "OTHER" for what isn't one of the usual.
        status: Status of the answer; 0 before there is one, 499 if the client left.
        bytes_in: Bytes of the body that arrived.
        bytes_out: Bytes of the answer that were sent.
        seconds: How long it took.
        problem: The code of the error that was answered; "" if none was.
        error: The exception that nobody expected.
    """

    scope: Scope = field(repr=False)
    request_id: str
    method: str
    status: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    problem: str = ""
    error: BaseException | None = None

    @property
    def route(self) -> str:
        """The template of the route: "/instances/{instance_id}/quantize". "unmatched" before and without one."""
        route = self.scope.get("state", {}).get("route") or getattr(self.scope.get("route"), "path", "")
        return route if isinstance(route, str) and route else UNMATCHED

    @property
    def instance(self) -> str:
        """The instance that the path names; "" if it names none, "?" for what can't be one's name."""
        params = self.scope.get("path_params") or {}
        name = str(params.get("instance_id", params.get("model", "")))
        return name if not name or _ID.fullmatch(name) else "?"


class Templates:
    """Finds the route of a request that was refused before it got there.

    Args:
        routes: The application's.
    """

    def __init__(self, routes: Sequence[BaseRoute] = ()) -> None:
        # Newer versions of FastAPI keep routers that were included apart, and have a function that walks through them.
        walk: Callable[[Sequence[BaseRoute]], Iterable[Any]] = getattr(fastapi.routing, "iter_route_contexts", iter)
        self._known = [
            (
                compile_path(each.path)[0],
                getattr(each, "methods", None) or (),
                getattr(each, "original_route", each).path,
            )
            for each in walk(routes)
            if getattr(each, "path", None)
        ]

    def find(self, scope: Scope) -> str:
        """The template of the path, of a route with the method if there is one; "" without a route."""
        path, method = route_path(scope), scope["method"]
        found = [(methods, template) for pattern, methods, template in self._known if pattern.match(path)]
        return next((template for methods, template in found if method in methods), found[0][1] if found else "")


class Observer(Protocol):
    """What wants to know of requests."""

    def begin(self, exchange: Exchange) -> None:
        """A request has arrived."""

    def end(self, exchange: Exchange) -> None:
        """Its answer has been sent, or nobody is left to get one."""


class Requests:
    """Gives every request an id, answers 500 where the application fails, and tells the observers.

    Args:
        app: What answers.
        observers: Whom to tell.
        draining: Tells whether the service stops: clients are told to connect anew, and so to another.
        routes: What requests are counted as that are refused before they get to one.
    """

    def __init__(
        self,
        app: ASGIApp,
        observers: Iterable[Observer] = (),
        *,
        draining: Callable[[], bool] = lambda: False,
        routes: Sequence[BaseRoute] = (),
    ) -> None:
        self._app = app
        self._templates = Templates(routes)
        self._draining = draining
        self._observers = tuple(observers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        exchange = Exchange(scope, request_id, method)
        began = time.perf_counter()
        for observer in self._observers:
            observer.begin(exchange)
        try:
            await self._answer(exchange, receive, send)
        finally:
            exchange.seconds = time.perf_counter() - began
            exchange.problem = scope["state"].get("problem", "")
            if exchange.route == UNMATCHED:
                scope["state"]["route"] = self._templates.find(scope)
            for observer in self._observers:
                observer.end(exchange)

    async def _answer(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        async def counted_receive() -> Message:
            message = await receive()
            exchange.bytes_in += len(message.get("body", b""))
            return message

        async def counted_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = exchange.request_id
                headers["X-Content-Type-Options"] = "nosniff"  # what a client sent is never a page
                if self._draining() and exchange.scope.get("http_version", "1.1").startswith("1"):
                    headers["Connection"] = "close"
            exchange.bytes_out += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(exchange.scope, counted_receive, counted_send)
        except ClientDisconnect:
            exchange.status = exchange.status or 499
        except Exception as error:  # whatever a bug raises: the client learns its id, the log where it was
            exchange.error = error
            if exchange.status:
                return
            problem = Problem(
                500, f"expected no failure here; received one; do: report the request id {exchange.request_id}"
            )
            await refuse(exchange.scope, receive, counted_send, problem)


class AccessLog:
    """Writes one record for every request, at its end."""

    def __init__(self) -> None:
        self._log = logging.getLogger(f"{LOGGER}.access")

    def begin(self, exchange: Exchange) -> None:
        """Writes nothing."""

    def end(self, exchange: Exchange) -> None:
        """Writes the record; of an exception its class and place alone, as its text can hold data."""
        fields: dict[str, Any] = {
            "request_id": exchange.request_id,
            "method": exchange.method,
            "route": exchange.route,
            "status": exchange.status,
            "bytes_in": exchange.bytes_in,
            "bytes_out": exchange.bytes_out,
            "ms": round(exchange.seconds * 1000, 3),
        }
        if exchange.instance:
            fields["instance"] = exchange.instance
        if exchange.problem:
            fields["problem"] = exchange.problem
        if exchange.error is not None:
            fields["error"] = type(exchange.error).__name__
            fields["at"] = _places(exchange.error)
        level = logging.ERROR if exchange.error is not None else logging.INFO
        self._log.log(level, "request", extra={"fields": fields})


def configure_logging(
    style: Literal["json", "console"] = "console", *, level: int = logging.INFO, stream: TextIO | None = None
) -> logging.Handler:
    """Makes the service's log visible: called by what runs a server, never by an import.

    Args:
        style: One JSON object a line, or a line for people.
        level: What is too unimportant to show is below it.
        stream: Where to write; the standard error if None.

    Returns:
        the handler, which took the place of an earlier one.
    """
    logger = logging.getLogger(LOGGER)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_JsonFormatter() if style == "json" else _ConsoleFormatter())
    for old in [h for h in logger.handlers if isinstance(h.formatter, _JsonFormatter | _ConsoleFormatter)]:
        logger.removeHandler(old)
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    return handler


@contextlib.contextmanager
def logged(style: Literal["json", "console"]) -> Iterator[None]:
    """A block in which the service's log is visible; as it was before, if somebody has seen to that.

    Args:
        style: See `configure_logging`.
    """
    logger = logging.getLogger(LOGGER)
    if logger.handlers:
        yield
        return
    level, propagate = logger.level, logger.propagate
    handler = configure_logging(style)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(
            {
                "time": _timestamp(record),
                "level": record.levelname,
                "logger": record.name,
                "message": record.getMessage(),
                **getattr(record, "fields", {}),
            }
        )


class _ConsoleFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={_shown(value)}" for name, value in getattr(record, "fields", {}).items())
        message = record.getMessage().encode("unicode_escape").decode("ascii")  # one record, one line
        return f"{_timestamp(record)} {record.levelname} {message} {fields}".rstrip()


def _shown(value: object) -> str:
    return json.dumps(value) if isinstance(value, list) or " " in str(value) else str(value)


def _timestamp(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def _places(error: BaseException) -> list[str]:
    """Where an exception came from: the functions and lines, without the folders of this machine."""
    frames = traceback.extract_tb(error.__traceback__)[-5:]
    return [f"{PurePath(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
