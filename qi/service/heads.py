"""What the head of a request may say, whichever server read it."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from qi.service.problems import Problem, refuse

__all__ = ["HeadCheck"]

_MAX_FIELDS = 200
_MAX_BYTES = 1 << 17  # servers have limits of their own below it, or none


class HeadCheck:
    """Answers 431 to heads that are too large, and 400 to bodies sent in another way than whole or chunked.

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
    if codings not in ([], [b"chunked"]):  # whoever is in front might read the body's end elsewhere
        text = "expected Transfer-Encoding: chunked, or none; received another"
        return Problem(400, text, code="transfer-encoding", headers={"Connection": "close"})
    return None
