"""The application: routes, protections and life of one service."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import Response

from qi._version import __version__
from qi.errors import QiError
from qi.service import docs, document, oip_routes, page
from qi.service.admission import Admission
from qi.service.answers import STATUSES, store_problem
from qi.service.auth import HEALTH
from qi.service.guard import install
from qi.service.limits import BodyLimits
from qi.service.metrics import Metrics
from qi.service.models import HealthResponse
from qi.service.problems import Problem, documented, problem_response
from qi.service.requests import logged
from qi.service.routes import router
from qi.service.service import Service
from qi.service.settings import Settings, warn_of_misspelt
from qi.service.stopping import when_told_to_stop

__all__ = ["create_app"]

TITLE = "Quantizer API"
_DESCRIPTION = """Quantization of arrays over HTTP: named quantizers, calibration, parameters and statistics.

Every path is there below `/v1` too. Arrays are JSON, or `application/x-npy`, `application/x-safetensors` or Arrow tensors,
by Content-Type and Accept; options of binary bodies are in the query string."""


_TELL_SECONDS = 1.0
_REFUSALS = (400, 401, 403, 408, 413, 415, 431, 503, 504)
"""What the protections answer, whatever the route."""


def create_app(settings: Settings | None = None, *, log: bool = False) -> FastAPI:
    """The application of one service.

    Args:
        settings: What the operator has set; what the environment says by default.
        log: Whether the application makes its log visible while it runs, unless somebody has done so before.

    Returns:
        An ASGI application; ``app.state.service`` is its `qi.service.service.Service`.

    Raises:
        ConfigError: A key or an origin of the settings can't be read.

    Example:
        >>> app = create_app(Settings(max_ndim=4))
        >>> app.state.service.limits.max_ndim
        4
    """
    service = Service(settings)
    app = FastAPI(
        title=TITLE,
        description=_DESCRIPTION,
        version=__version__,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service, app.state.log = service, log
    refusals = documented(*_REFUSALS, service.settings.overload_status)
    for prefix in ("", "/v1"):
        app.include_router(_health_router(prefix), include_in_schema=not prefix, responses=refusals)
        app.include_router(router, prefix=prefix, include_in_schema=not prefix, responses=refusals)
    app.include_router(oip_routes.router(service), responses=refusals)
    app.include_router(page.router())
    if service.settings.docs and docs.available():
        app.include_router(docs.router())
    document.complete(app, open_paths=HEALTH)
    _protect(app, service)
    return app


def _health_router(prefix: str) -> APIRouter:
    """What tells whether the service runs, and how it is used."""
    router = APIRouter(tags=["health"])

    async def live() -> HealthResponse:
        """Whether the service lives."""
        return HealthResponse(status="healthy", service=TITLE)

    async def ready(request: Request) -> HealthResponse:
        """Whether the service takes work: not while it stops, nor without its store."""
        service: Service = request.app.state.service
        if not await service.store(service.ready):
            raise Problem(503, "expected a service that takes work; this one can't now", code="not-ready")
        return HealthResponse(status="ready", service=TITLE)

    async def get_documentation(request: Request) -> dict[str, Any]:
        """Every endpoint, with examples."""
        return _documentation(request.app.openapi())

    for path in (
        *filter(None, (prefix,)),
        f"{prefix}/",
        f"{prefix}/health",
        f"{prefix}/health/live",
        f"{prefix}/livez",
    ):
        router.add_api_route(path, live, methods=["GET"])
    for path in (f"{prefix}/health/ready", f"{prefix}/readyz"):
        router.add_api_route(path, ready, methods=["GET"], responses=documented(503))
    router.add_api_route(f"{prefix}/documentation", get_documentation, methods=["GET"])
    return router


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Opens the store before the first request, and closes it after the last answer."""
    service: Service = app.state.service

    def drain() -> None:
        service.draining = True

    service.draining = False
    with contextlib.ExitStack() as stack:
        if app.state.log:
            stack.enter_context(logged(service.settings.log))
            warn_of_misspelt()
        stack.enter_context(when_told_to_stop(drain))
        stack.callback(service.close)
        stack.callback(drain)
        service.instances.ids()
        stack.callback(asyncio.create_task(_tell(app.state.metrics)).cancel)
        yield


async def _tell(metrics: Metrics) -> None:
    """Keeps other processes' metrics up to date with those of this one."""
    while metrics.shared:
        metrics.refresh()
        await asyncio.sleep(_TELL_SECONDS)


def _protect(app: FastAPI, service: Service) -> None:
    """Limits, keys, checks of origins, logs and metrics around the routes."""
    settings = service.settings
    guard = install(
        app,
        api_keys=[key.get_secret_value() for key in settings.api_keys],
        allow_anonymous=settings.allow_anonymous,
        allowed_hosts=settings.allowed_hosts,
        cors_origins=settings.cors_origins,
        limits=BodyLimits(
            max_json_bytes=settings.max_json_bytes,
            max_binary_bytes=settings.max_binary_bytes,
            timeout=settings.body_timeout,
        ),
        admission=Admission(
            memory_budget=settings.memory_budget,
            max_in_flight=settings.threads + settings.max_queue,
            overload_status=settings.overload_status,
            patience=settings.queue_timeout,
        ),
        request_timeout=settings.request_timeout,
        legacy_errors=settings.legacy_errors,
        metrics=settings.metrics,
        draining=lambda: service.draining,
    )
    app.state.metrics = guard.metrics

    def observe(counts: Mapping[str, int]) -> None:
        name = "quantize" if counts.get("quantize_calls") else "dequantize"
        guard.metrics.worked(name, counts.get("total_values", 0), counts.get("clipped_values", 0))
        if "cache_hits" in counts or "cache_misses" in counts:
            guard.metrics.cached(hits=counts.get("cache_hits", 0), misses=counts.get("cache_misses", 0))

    async def problem(request: Request, error: Exception) -> Response:
        found = store_problem(error) if isinstance(error, QiError) else None
        if found is None:
            raise error
        return problem_response(request.scope, found)

    service.observe = observe
    guard.metrics.watch({"instances": lambda: len(service.instances.ids())})
    for kind in STATUSES:
        app.add_exception_handler(kind, problem)


def _documentation(document: Mapping[str, Any]) -> dict[str, Any]:
    """What the OpenAPI document says, for people."""
    endpoints = [
        {
            "path": path,
            "method": method.upper(),
            "description": operation.get("description", operation.get("summary", "")),
            "parameters": [parameter["name"] for parameter in operation.get("parameters", ())],
        }
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    json = {"headers": {"Content-Type": "application/json"}}
    return {
        "title": document["info"]["title"],
        "description": document["info"]["description"],
        "version": document["info"]["version"],
        "endpoints": endpoints,
        "examples": {
            "create_instance": {
                "method": "POST", "path": "/instances/custom_quantizer", **json,
                "body": {"quantization_type": "INT8", "num_bits": 8, "symmetric": True},
            },
            "quantize": {
                "method": "POST", "path": "/instances/default/quantize", **json,
                "body": {"data": [[1.2, 3.4, 5.6], [7.8, 9.0, 2.1]], "validate": True},
            },
        },
    }  # fmt: skip
