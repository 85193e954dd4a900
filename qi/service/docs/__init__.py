"""The interactive documentation at ``/docs``, from this service alone.

FastAPI's own page loads its scripts from elsewhere and runs inline ones. Here the package fastapi-offline holds the files of
Swagger UI, and the browser is told to run nothing of other origins. ``/redoc`` leads there: Redoc needs inline styles.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

__all__ = ["PATHS", "available", "router"]

_THEIRS = "fastapi_offline"
_FILES = {
    "/docs": "docs.html",
    "/docs/docs.css": "docs.css",
    "/docs/docs.js": "docs.js",
    "/docs/swagger-ui.css": "static/swagger-ui.css",
    "/docs/swagger-ui-bundle.js": "static/swagger-ui-bundle.js",
}
PATHS = tuple(_FILES)
"""The page's paths. They need no key, as there is nothing of anybody in them, and a key can be typed in there."""

_TYPES = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def available() -> bool:
    """Whether the files are installed."""
    return importlib.util.find_spec(_THEIRS) is not None


def router() -> APIRouter:
    """The routes of the page."""
    routes = APIRouter(include_in_schema=False)
    for path, name in _FILES.items():
        routes.add_api_route(path, _answering(name), methods=["GET"], name=name)
    routes.add_api_route("/redoc", _elsewhere, methods=["GET"])
    return routes


async def _elsewhere() -> Response:
    return RedirectResponse("docs")


def _answering(name: str) -> Callable[[Request], Awaitable[Response]]:
    """What answers with a file; a browser that has it already is told so."""

    async def file(request: Request) -> Response:
        content, tag = _read(name)
        headers = {
            "Content-Security-Policy": _POLICY,
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
            "ETag": tag,
        }
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=_TYPES[name.rpartition(".")[2]])

    return file


@functools.cache  # two megabytes, which few processes are ever asked for
def _read(name: str) -> tuple[bytes, str]:
    """A file and its tag."""
    content = files(_THEIRS if name.startswith("static/") else __name__).joinpath(name).read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:16]}"'
