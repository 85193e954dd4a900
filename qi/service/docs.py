"""The interactive documentation at ``/docs`` and ``/redoc``, from this service alone.

FastAPI's own pages load their scripts from elsewhere and run inline ones. Here the package fastapi-offline holds the files of
Swagger UI and Redoc, and the browser is told to load nothing of other origins.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from importlib.resources import files

from fastapi import APIRouter, Request, Response

from qi.service.page import HEADERS, TYPES

__all__ = ["available", "router"]

_OWN, _THEIRS = "qi.service.static", "fastapi_offline.static"
_FILES = {
    "/docs": (_OWN, "docs.html"),
    "/docs/docs.css": (_OWN, "docs.css"),
    "/docs/docs.js": (_OWN, "docs.js"),
    "/docs/swagger-ui.css": (_THEIRS, "swagger-ui.css"),
    "/docs/swagger-ui-bundle.js": (_THEIRS, "swagger-ui-bundle.js"),
    "/redoc": (_OWN, "redoc.html"),
    "/redoc/redoc.js": (_OWN, "redoc.js"),
    "/redoc/redoc.standalone.js": (_THEIRS, "redoc.standalone.js"),
}


def available() -> bool:
    """Whether the files are installed."""
    return importlib.util.find_spec("fastapi_offline") is not None


def router() -> APIRouter:
    """The routes of both pages; they need no key, as a key can be typed in there."""
    routes = APIRouter(include_in_schema=False)
    for path, (package, name) in _FILES.items():
        routes.add_api_route(path, functools.partial(_file, package, name), methods=["GET"], name=name)
    return routes
