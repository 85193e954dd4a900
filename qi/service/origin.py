"""Which web pages may ask: none but its own, unless the settings name them.

A service on one's own machine can be reached by every page that its browser opens. Three doors are shut: a foreign name
that points to this machine (Host), requests that a page of another site sends without asking first (uploads and bodyless
POSTs need no preflight), and the reading of answers (CORS).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from qi.errors import ConfigError
from qi.service.auth import PROBES, route_path
from qi.service.problems import Problem, refuse

__all__ = ["LOCAL_HOSTS", "CrossSiteCheck", "HostCheck", "checked_origins", "cors"]

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]", "testserver")

_SAFE = ("GET", "HEAD", "OPTIONS")
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?")
_ORIGIN = re.compile(r"(https?)://([^/?#@\s]+)")
_PORTS = {"http": "80", "https": "443"}
_ASKS = (
    "Accept", "Authorization", "Content-Type", "If-Match", "Inference-Header-Content-Length", "X-API-Key", "X-Request-ID",
)  # fmt: skip
_TELLS = (
    "ETag", "Inference-Header-Content-Length", "Location", "QI-Channel-Dim", "QI-Nonfinite", "QI-Num-Bits", "QI-Original-Shape",
    "QI-Params-Rev", "QI-Quantization-Type", "QI-Scale", "QI-Zero-Point", "Retry-After", "X-Request-ID",
)  # fmt: skip


class HostCheck:
    """Answers requests to names of its own alone; 400 to others.

    Args:
        app: What to protect.
        allowed: Host names without ports; "*.example.com" for all below, "*" for any; an IPv6 address in brackets.
        except_paths: Paths that may be asked for by any name.
    """

    def __init__(
        self, app: ASGIApp, allowed: Iterable[str] = LOCAL_HOSTS, *, except_paths: Iterable[str] = PROBES
    ) -> None:
        self._app = app
        names = [name.strip().lower() for name in allowed]
        self._any = "*" in names
        self._names = frozenset(names)
        self._below = tuple(name[1:] for name in names if name.startswith("*."))
        self._except = frozenset(except_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] == "lifespan" or self._any or route_path(scope) in self._except or self._known(scope):
            await self._app(scope, receive, send)
            return
        problem = Problem(
            400,
            "expected a Host header with a name of this service; received another; do: add it to QI_API_ALLOWED_HOSTS",
            code="unknown-host",
        )
        await refuse(scope, receive, send, problem)

    def _known(self, scope: Scope) -> bool:
        sent = Headers(scope=scope).getlist("host")
        found = _AUTHORITY.fullmatch(sent[0].lower()) if len(sent) == 1 else None
        return found is not None and (found[1] in self._names or found[1].endswith(self._below))


class CrossSiteCheck:
    """Answers 403 where a page of another origin asks for a change. Programs send none of the headers it looks at.

    Args:
        app: What to protect.
        origins: Origins whose pages may; as for `cors`.
    """

    def __init__(self, app: ASGIApp, origins: Iterable[str] = ()) -> None:
        self._app = app
        self._origins = checked_origins(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] == "lifespan" or scope.get("method", "") in _SAFE or self._allowed(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        problem = Problem(
            403,
            "expected a request of the service's own pages or of a program; received one of another site; "
            "do: add its origin to QI_API_CORS_ORIGINS",
            code="cross-site",
        )
        await refuse(scope, receive, send, problem)

    def _allowed(self, headers: Headers) -> bool:
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if "*" in self._origins or (origin is not None and origin.lower() in self._origins):
            return True
        if site is not None:  # a browser's own word, which a page can't forge
            return site in ("same-origin", "none")
        return origin is None or _same(origin, headers.get("host", ""))


def cors(app: ASGIApp, origins: Iterable[str] = ()) -> ASGIApp:
    """Lets pages of some origins read the answers; without origins, none.

    Cookies and logins of the browser are never part of it: who needs a key sends it.

    Args:
        app: What to open.
        origins: As "https://example.com"; "*" for all.

    Raises:
        ConfigError: One isn't an origin.
    """
    allowed = sorted(checked_origins(origins))
    if not allowed:
        return app
    return CORSMiddleware(
        app,
        allow_origins=allowed,
        allow_methods=("GET", "POST", "PUT", "PATCH", "DELETE"),
        allow_headers=_ASKS,
        expose_headers=_TELLS,
    )


def checked_origins(origins: Iterable[str]) -> frozenset[str]:
    """Origins as they are compared: in lower case, without a slash at the end.

    Raises:
        ConfigError: One isn't an origin.

    Example:
        >>> checked_origins(["https://Example.com/"])
        frozenset({'https://example.com'})
    """
    found = frozenset(origin.strip().rstrip("/").lower() for origin in origins)
    for origin in found - {"*"}:
        if not _ORIGIN.fullmatch(origin):
            raise ConfigError(f"expected an origin as 'https://example.com', or '*'; received {origin!r}")
    return found


def _same(origin: str, host: str) -> bool:
    """Whether an origin is the host that is asked. The scheme may differ: a proxy in front may speak TLS."""
    found = _ORIGIN.fullmatch(origin.lower())
    if not found:
        return False
    default = _PORTS[found[1]]
    return found[2].removesuffix(f":{default}") == host.lower().removesuffix(f":{default}")
