"""The interface as a whole: its OpenAPI document, and which methods a path has."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

__all__ = ["complete", "methods_of"]

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key of the service, where it has keys"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same, in a header of its own"},
}


def complete(app: FastAPI, *, open_paths: tuple[str, ...] = ()) -> None:
    """Makes an application's document tell how keys are sent.

    Args:
        app: The application; its routes are there already.
        open_paths: Paths that need no key.
    """
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = make()
            document.setdefault("components", {})["securitySchemes"] = _SCHEMES
            document["security"] = [{}, *({name: []} for name in _SCHEMES)]
            for path in open_paths:
                for operation in document["paths"].get(path, {}).values():
                    operation["security"] = []
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]


def methods_of(routes: list[BaseRoute], scope: Scope) -> list[str]:
    """The methods that the path of a request has, of all routes together.

    Args:
        routes: The application's.
        scope: The request's.
    """
    return [
        method
        for method in _METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in routes)
    ]
