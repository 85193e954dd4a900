"""Errors as RFC 9457 says them (`application/problem+json`), in bodies that clients of FastAPI still read.

Every body has `type`, `title`, `status`, `detail`, `instance`, `code` and `request_id`. `code` is a word for programs. A
client that reads `detail` alone, as FastAPI's clients do, finds there what it always found.
"""

from __future__ import annotations

import contextlib
import http
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qi.errors import FileFormatError, MissingDependencyError, NotCalibratedError, QiError
from qi.service.document import methods_of

__all__ = [
    "PROBLEM_JSON", "Problem", "documented", "failing", "handle_problems", "problem_of", "problem_response", "refuse",
    "validation_errors",
]  # fmt: skip

PROBLEM_JSON = "application/problem+json"
MAX_ERRORS = 10
"""Validation errors that an answer tells of; a body with a million wrong numbers has a million."""
_MAX_TEXT = 2000
_PHRASES = {
    413: "Content Too Large",
    422: "Unprocessable Content",
}  # as RFC 9110 has it; Python up to 3.12 has older ones

_STATUS: tuple[tuple[type[QiError], int, str], ...] = (
    (NotCalibratedError, 409, "not-calibrated"),
    (FileFormatError, 400, "bad-data"),
    (MissingDependencyError, 415, "format-unavailable"),
    (QiError, 422, "invalid"),
)


class Problem(HTTPException):
    """An answer that is an error.

    Args:
        status: HTTP status, 400 to 599.
        detail: What went wrong and what to do, for people. It mustn't hold a client's data.
        code: A word for programs, as "body-too-large"; derived from the status if empty.
        headers: Headers of the answer.
        fault: Whether the arithmetic refused what the client asked for: what the first version of this interface
            answered with 500.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        code: str = "",
        headers: Mapping[str, str] | None = None,
        fault: bool = False,
    ) -> None:
        super().__init__(status, detail, dict(headers or {}))
        self.code = code or _code(status)
        self.fault = fault


def problem_of(error: QiError, prefix: str = "") -> Problem:
    """What a client is told of an error of QI.

    Args:
        error: 409 for what isn't calibrated, 400 for bytes that aren't what they claim to be, 422 for the rest.
        prefix: What `detail` starts with: "Quantization error".

    Example:
        >>> from qi.errors import InputError
        >>> problem = problem_of(InputError("expected rows"), "Quantization error")
        >>> problem.status_code, problem.detail
        (422, 'Quantization error: expected rows')
    """
    status, code = next((status, code) for kind, status, code in _STATUS if isinstance(error, kind))
    return Problem(status, f"{prefix}: {error}" if prefix else str(error), code=code, fault=True)


@contextlib.contextmanager
def failing(prefix: str) -> Iterator[None]:
    """A block in which errors of QI become the client's.

    Args:
        prefix: What `detail` starts with.

    Raises:
        Problem: See `problem_of`.
    """
    try:
        yield
    except QiError as error:
        raise problem_of(error, prefix) from error


def problem_response(scope: Scope, problem: HTTPException, extra: Mapping[str, Any] | None = None) -> Response:
    """The answer to a request: a body of RFC 9457.

    Args:
        scope: The ASGI scope; the problem's code is left in its state, for logs and metrics.
        problem: What went wrong.
        extra: More members of the body; they may replace others.
    """
    code = getattr(problem, "code", "") or _code(problem.status_code)
    state = scope.setdefault("state", {})
    state["problem"] = code
    detail = problem.detail
    body = {
        "type": "about:blank",
        "title": _phrase(problem.status_code),
        "status": problem.status_code,
        "detail": _clean(detail) if isinstance(detail, str) else detail,
        "instance": quote(scope.get("path", "")[:500], errors="replace"),
        "code": code,
        "request_id": state.get("request_id", ""),
        **({"error": str(detail)} if _inference(scope) else {}),
        **(extra or {}),
    }
    return Response(orjson.dumps(body), problem.status_code, problem.headers, PROBLEM_JSON)


async def refuse(scope: Scope, receive: Receive, send: Send, problem: HTTPException) -> None:
    """Answers from outside of the application, as a middleware does."""
    await problem_response(scope, problem)(scope, receive, send)


def handle_problems(app: FastAPI, *, legacy_errors: bool = False) -> None:
    """Makes an application answer with problems.

    Args:
        app: The application; its handlers for HTTP errors, validation errors and the errors of QI are replaced.
        legacy_errors: Answer 500 where the arithmetic refuses a request, as the first version of this interface did.
    """

    async def problem(request: Request, error: Exception) -> Response:
        found = problem_of(error) if isinstance(error, QiError) else error
        if not isinstance(found, HTTPException):
            raise error
        if found.status_code == 405:  # of all routes; the one that says so knows its own methods alone
            found.headers = {"Allow": ", ".join(methods_of(request.app.routes, request.scope))}
        if legacy_errors and getattr(found, "fault", False):
            found = Problem(500, str(found.detail), code=getattr(found, "code", ""), headers=found.headers)
        return problem_response(request.scope, found)

    async def invalid(request: Request, error: Exception) -> Response:
        errors = validation_errors(error.errors() if isinstance(error, RequestValidationError) else ())
        found = Problem(422, "; ".join(_sentence(e) for e in errors), code="invalid-request")
        if PROBLEM_JSON in request.headers.get("accept", ""):
            return problem_response(request.scope, found, {"errors": errors})
        response = problem_response(request.scope, found, {"detail": errors})
        response.headers["content-type"] = "application/json"  # RFC 9457 wants a text in `detail`
        return response

    app.add_exception_handler(HTTPException, problem)
    app.add_exception_handler(QiError, problem)
    app.add_exception_handler(RequestValidationError, invalid)


def validation_errors(errors: Sequence[Any]) -> list[dict[str, Any]]:
    """What clients are told of pydantic's errors: the first ones, without what they sent.

    Args:
        errors: As `ValidationError.errors()` gives them.

    Returns:
        `type`, `loc` and `msg` of at most `MAX_ERRORS`.
    """
    return [
        {
            "type": str(error.get("type", "")),
            "loc": [part if type(part) is int else _clean(str(part))[:100] for part in error.get("loc", ())],
            "msg": _clean(str(error.get("msg", "")))[:300],
        }
        for error in errors[:MAX_ERRORS]
    ]


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route, for its OpenAPI document.

    Args:
        statuses: The statuses of errors that it may answer with.

    Example:
        >>> documented(404)[404]["description"]
        'Not Found'
    """
    listed = {"schema": _SCHEMA | {"properties": _PROPERTIES | {"detail": {"type": "array", "items": _ERROR}}}}
    plain = {PROBLEM_JSON: {"schema": _SCHEMA}}
    return {
        status: {
            "description": _phrase(status),
            "content": {**plain, "application/json": listed} if status == 422 else dict(plain),
        }
        for status in statuses
    }


_ERROR = {
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "loc": {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]}},
        "msg": {"type": "string"},
    },
    "required": ["type", "loc", "msg"],
}
_PROPERTIES: dict[str, Any] = {
    **{name: {"type": "string"} for name in ("type", "title", "detail", "instance", "code", "request_id")},
    "status": {"type": "integer"},
    "errors": {"type": "array", "items": _ERROR, "maxItems": MAX_ERRORS},
}
_SCHEMA: dict[str, Any] = {
    "title": "Problem",
    "type": "object",
    "properties": _PROPERTIES,
    "required": [name for name in _PROPERTIES if name != "errors"],
}


def _inference(scope: Scope) -> bool:
    """Whether it is a path of the Open Inference Protocol, whose clients look for a member "error"."""
    path: str = scope.get("path", "").removeprefix(scope.get("root_path", ""))
    return path.startswith("/v2/")


def _sentence(error: Mapping[str, Any]) -> str:
    return f"{'.'.join(map(str, error['loc']))}: {error['msg']}"


def _clean(text: str) -> str:
    """A text that is one of Unicode (JSON from clients can hold half characters), and not endless."""
    return text[:_MAX_TEXT].encode("utf-8", "replace").decode("utf-8")


def _phrase(status: int) -> str:
    if status in _PHRASES:
        return _PHRASES[status]
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def _code(status: int) -> str:
    return re.sub("[^a-z]+", "-", _phrase(status).lower())
