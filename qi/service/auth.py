"""Who may ask: API keys with scopes, and without keys nobody but the machine itself."""

from __future__ import annotations

import functools
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from qi.errors import ConfigError
from qi.service.problems import Problem, refuse

__all__ = [
    "HEALTH",
    "OPEN",
    "PROBES",
    "ApiKey",
    "Auth",
    "is_local",
    "parse_key",
    "remembering",
    "route_path",
    "scope_of",
]

KeyScope = Literal["read", "write"]

_PROBES = ("/health", "/health/live", "/health/ready", "/livez", "/readyz")
PROBES = (*_PROBES, *(f"/v1{path}" for path in _PROBES), "/v2/health/live", "/v2/health/ready")
"""Paths that an orchestrator asks, by the address of a container: they say whether the service runs, and nothing else."""
HEALTH = ("/", "/v1", "/v1/", *PROBES)
"""Those, and where people look."""
OPEN = (*HEALTH, "/ui", "/ui/*", "/docs", "/docs/*", "/redoc")
"""What needs no key: health, and the pages, which hold no data and ask for a key themselves."""

_COMPUTES = re.compile(
    r"(?:/v1)?/instances/[^/]+/(?:quantize|dequantize|quantize_dequantize|compute_params|upload_numpy)"
    r"|/v2/models/[^/]+(?:/versions/[^/]+)?/infer"
)
_SAFE = ("GET", "HEAD", "OPTIONS")
_FORWARDED = re.compile(rb"forwarded|via|x-real-ip|x-forwarded-.+")
_GIVEN = "qi.key"  # where a request's scope has that of its key
_IN_PROCESS = "testclient"  # what Starlette's test client calls itself; no socket has such an address


@dataclass(frozen=True)
class ApiKey:
    """A key, of which only the hash is kept.

    Attributes:
        digest: SHA-256 of the key.
        scope: "read" asks and computes, and changes nothing that others get; "write" also creates, changes and deletes.
    """

    digest: bytes = field(repr=False)
    scope: KeyScope = "write"


def parse_key(text: str) -> ApiKey:
    """Reads a key as it stands in a setting.

    Args:
        text: The key, or `sha256:` and its hash in hexadecimal; before that `read:` or `write:`, else it is for writing.
            A key with a colon in it needs its scope before it.

    Raises:
        ConfigError: It is empty, can't be sent in a header, or its scope is none. The message doesn't hold it.

    Example:
        >>> parse_key("read:correct-horse").scope
        'read'
    """
    scope: KeyScope = "read" if text.startswith("read:") else "write"
    key = text.removeprefix(f"{scope}:")
    if re.fullmatch(r"sha256:[0-9a-fA-F]{64}", key):
        return ApiKey(bytes.fromhex(key[7:]), scope)
    if not re.fullmatch(r"[!-~]+", key) or key.startswith("sha256:"):
        raise ConfigError(
            "expected an API key of printable ASCII without spaces, or 'sha256:' and 64 hexadecimal digits, after 'read:' or "
            f"'write:'; received a text of {len(text)} characters"
        )
    if key == text and ":" in key:  # "raed:KEY" isn't a key for writing that is spelt so
        raise ConfigError(
            f"expected 'read:' or 'write:' before an API key; received a text of {len(text)} characters with another word "
            "before its colon; do: write 'write:' before a key that has a colon in it"
        )
    return ApiKey(hashlib.sha256(key.encode("ascii")).digest(), scope)


def scope_of(method: str, path: str) -> KeyScope:
    """What a request needs a key for; "write" for whatever isn't known to only ask or compute.

    Args:
        method: The HTTP method.
        path: The path of the route, decoded.

    Example:
        >>> scope_of("POST", "/instances/default/quantize"), scope_of("POST", "/instances/quantize")
        ('read', 'write')
    """
    return "read" if method in _SAFE or (method == "POST" and _COMPUTES.fullmatch(path)) else "write"


def route_path(scope: Scope) -> str:
    """The path that the application's routes see: without the prefix under which a proxy serves it."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    return path[len(root) :] or "/" if root and path.startswith(f"{root}/") else path


def is_local(scope: Scope) -> bool:
    """Whether a request comes from this machine: from a loopback address, and not through a proxy.

    What a proxy says of whom it asks for doesn't count: others can have written it. A proxy that says nothing isn't seen.
    """
    client = scope.get("client")
    if not client:
        return False  # a socket in the file system: nobody says who is behind it
    if any(_FORWARDED.fullmatch(name) for name, _ in scope["headers"]):
        return False
    return client[0] == _IN_PROCESS or _is_loopback(client[0])


def remembering(scope: Scope, remember: bool | None) -> bool | None:
    """Whether a request may leave parameters that others read codes by: not with a key for reading.

    Args:
        scope: Its ASGI scope, as it came through `Auth`.
        remember: What it asks for; None: as the store does.

    Raises:
        Problem: 403, it asks for it with a key for reading.

    Example:
        >>> remembering({}, None), remembering({"qi.key": "read"}, None)
        (None, False)
    """
    if scope.get(_GIVEN) != "read":
        return remember
    if remember:
        raise Problem(
            403,
            "expected an API key for writing to remember parameters, which others would get; received one for reading; "
            "do: leave out remember, and send scale and zero_point with the codes",
            code="scope",
        )
    return False


class Auth:
    """Lets through who may ask; answers 401 or 403 otherwise.

    Args:
        app: What to protect.
        keys: The keys. If there are any, everybody needs one; without, clients on this machine need none and others get
            nothing, whatever address the server listens on.
        allow_anonymous: Whether others do without keys as well.
        open_paths: Paths that need no key where there are keys; one that ends in "*" stands for all that start so.
        probes: Paths that are answered to everybody, keys or not.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Iterable[ApiKey] = (),
        *,
        allow_anonymous: bool = False,
        open_paths: Iterable[str] = OPEN,
        probes: Iterable[str] = PROBES,
    ) -> None:
        self._app = app
        self._probes = frozenset(probes)
        self._keys = tuple(keys)
        self._allow_anonymous = allow_anonymous
        paths = tuple(open_paths)
        self._open = frozenset(path for path in paths if not path.endswith("*"))
        self._open_below = tuple(path[:-1] for path in paths if path.endswith("*"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] == "lifespan" or (problem := self._problem(scope)) is None:
            await self._app(scope, receive, send)
        else:
            await refuse(scope, receive, send, problem)

    def _problem(self, scope: Scope) -> Problem | None:
        path = route_path(scope)
        if path in self._probes:
            return None
        if not self._keys:
            if self._allow_anonymous or is_local(scope):
                return None
            return Problem(
                403,
                "expected a client on this machine, as the service has no API keys; received another; "
                "do: set QI_API_KEYS",
                code="not-local",
            )
        if path in self._open or path.startswith(self._open_below):
            return None
        headers = Headers(scope=scope)
        given = scope[_GIVEN] = self._scope_given(headers)
        if given is None:
            told = (
                "expected a known API key; received one that isn't; do: ask who runs the service for another"
                if _sent(headers)
                else "expected an API key; do: send it as 'Authorization: Bearer ...' or 'X-API-Key: ...'"
            )
            return Problem(401, told, headers={"WWW-Authenticate": "Bearer"})
        if given == "read" and scope_of(scope.get("method", ""), path) == "write":
            return Problem(403, "expected an API key for writing; received one for reading", code="scope")
        return None

    def _scope_given(self, headers: Headers) -> KeyScope | None:
        """The scope of the key that was sent; every key is compared, so that the time tells nothing."""
        digests = [hashlib.sha256(text.encode("latin-1")).digest() for text in _sent(headers)]
        matches = [key.scope for d in digests for key in self._keys if hmac.compare_digest(key.digest, d)]
        return "write" if "write" in matches else "read" if matches else None


def _sent(headers: Headers) -> list[str]:
    """The keys of a request."""
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    texts = (headers.get("x-api-key", ""), bearer.strip() if scheme.lower() == "bearer" else "")
    return [text for text in texts if text]


@functools.lru_cache(256)  # nearly every request comes from the same few
def _is_loopback(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
