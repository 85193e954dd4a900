"""The page at ``/ui``: a person drops a .npy file, sees what quantization makes of it, and takes the result along.

Plain HTML and JavaScript, in files of their own, which call the same endpoints as everybody. The browser is told to run
nothing else: no inline scripts, nothing of other origins.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files

from fastapi import APIRouter, Request, Response

__all__ = ["PATHS", "router"]

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}

_FILES = {
    "/ui": "ui.html",
    "/ui/ui.css": "ui.css",
    "/ui/npy.js": "npy.js",
    "/ui/oip.js": "oip.js",
    "/ui/measures.js": "measures.js",
    "/ui/charts.js": "charts.js",
    "/ui/ui.js": "ui.js",
}

PATHS = tuple(_FILES)
"""The page's paths, which need no key: there is nothing in them, and a key can be typed in there."""

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def router() -> APIRouter:
    """The routes of the page.

    Example:
        >>> [route.path for route in router().routes][:2]
        ['/ui', '/ui/ui.css']
    """
    routes = APIRouter(include_in_schema=False)
    for path, name in _FILES.items():
        _add(routes, path, name)
    return routes


def _add(routes: APIRouter, path: str, name: str) -> None:
    """One file at one path; a browser that has it already is told so."""
    content = files("qi.service.static").joinpath(name).read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {**_HEADERS, "ETag": tag}
    media_type = _TYPES[name[name.rindex(".") :]]

    @routes.get(path, name=name)
    async def file(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=media_type)
