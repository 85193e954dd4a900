"""What the head of a request may say, whichever server read it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from qi.errors import InputError
from qi.service.problems import Problem, refuse

__all__ = ["HeadCheck", "origin_form"]

_MAX_FIELDS = 200
_MAX_BYTES = 1 << 17  # servers have limits of their own below it, or none
_ABSOLUTE = re.compile(rb"(https?)://([^/?#]+)(.*)", re.IGNORECASE)
_PORTS = {b"http": b":80", b"https": b":443"}


class HeadCheck:
    """Answers 431 to heads that are too large, and 400 to bodies sent in another way than whole or chunked, or in both.

    Args:
        app: What to protect.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] == "lifespan" or (problem := _problem(scope)) is None:
            await self._app(scope, receive, send)
        else:
            await refuse(scope, receive, send, problem)


def _problem(scope: Scope) -> Problem | None:
    fields = scope["headers"]
    length = len(scope.get("raw_path") or b"") + len(scope.get("query_string", b""))
    length += sum(len(name) + len(value) for name, value in fields)
    if len(fields) > _MAX_FIELDS or length > _MAX_BYTES:
        text = f"expected at most {_MAX_FIELDS} headers and {_MAX_BYTES} bytes of path and headers; received more"
        return Problem(431, text, code="head-too-large", headers={"Connection": "close"})
    codings = [value.strip().lower() for name, value in fields if name == b"transfer-encoding"]
    if not codings:
        return None
    whole = any(name == b"content-length" for name, _ in fields)
    if codings != [b"chunked"] or whole or scope.get("http_version") == "1.0":
        # Whoever is in front might read the body's end elsewhere.
        text = "expected a body with Content-Length, or with Transfer-Encoding: chunked and HTTP/1.1; received another"
        return Problem(400, text, code="transfer-encoding", headers={"Connection": "close"})
    return None


def origin_form(target: bytes, hosts: Iterable[bytes]) -> bytes:
    """What a request asks for: path and query, also where its target is a URL, as proxies are sent.

    The URL's host counts more than the Host header, by which names are checked, and so it has to be the same.

    Args:
        target: Second word of the request line.
        hosts: Values of the Host header.

    Raises:
        InputError: It is neither a path nor a URL of the host that the header names.

    Example:
        >>> origin_form(b"http://localhost:8000/a?b", [b"localhost:8000"])
        b'/a?b'
    """
    if target.startswith(b"/") or target == b"*":
        return target
    found = _ABSOLUTE.fullmatch(target)
    if found:
        default = _PORTS[found[1].lower()]
        if [found[2].lower().removesuffix(default)] == [host.lower().removesuffix(default) for host in hosts]:
            return found[3] if found[3].startswith(b"/") else b"/" + found[3]
    raise InputError("expected a path, or a URL of the host that the Host header names; received another target")
