"""All protections of the service, put around an application in the right order.

From the outside in: the request gets its id and is followed to its end; its Host, its site and its key are checked; only
then does anything read its body, within limits; the innermost wrapper holds the time that the answer may take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fastapi import FastAPI

from qi.service.admission import Admission
from qi.service.auth import OPEN, PROBES, Auth, parse_key
from qi.service.deadline import Deadline
from qi.service.heads import HeadCheck
from qi.service.limits import BodyGuard, BodyLimits
from qi.service.metrics import Metrics
from qi.service.origin import LOCAL_HOSTS, CrossSiteCheck, HostCheck, checked_origins, cors
from qi.service.problems import handle_problems
from qi.service.requests import AccessLog, Observer, Requests

__all__ = ["Guard", "install"]

_METRICS = "/metrics"


@dataclass(frozen=True)
class Guard:
    """What `install` put around an application.

    Attributes:
        metrics: Its counters.
        admission: What its requests in flight take.
    """

    metrics: Metrics
    admission: Admission


def install(
    app: FastAPI,
    *,
    api_keys: Iterable[str] = (),
    allow_anonymous: bool = False,
    open_paths: Iterable[str] = OPEN,
    allowed_hosts: Iterable[str] = LOCAL_HOSTS,
    cors_origins: Iterable[str] = (),
    limits: BodyLimits | None = None,
    admission: Admission | None = None,
    request_timeout: float = 60.0,
    legacy_errors: bool = False,
    metrics: bool = True,
    draining: Callable[[], bool] = lambda: False,
) -> Guard:
    """Protects an application, and makes it answer with problems. Call it once, after the routes are there.

    Args:
        app: The application.
        api_keys: As `qi.service.auth.parse_key` reads them; without any, only clients on this machine are answered.
        allow_anonymous: Whether others are as well.
        open_paths: Paths that need no key; one that ends in "*" stands for all that start so.
        allowed_hosts: Names that it is asked by; "*" for any. Probes are answered by any name, and with keys `/metrics`.
        cors_origins: Origins whose pages may use it.
        limits: What a body may be.
        admission: What the requests in flight may take together.
        request_timeout: Seconds for an answer, from the last piece of the body on.
        legacy_errors: Whether refusals of the arithmetic are answered with 500.
        metrics: Whether there is a route `/metrics`.
        draining: Tells whether the service stops, so that clients should connect anew.

    Returns:
        the counters, to be fed by the operations.

    Raises:
        ConfigError: A key or an origin can't be read.
    """
    admission = admission or Admission()
    counters = Metrics()
    counters.watch(
        {"queue_depth": lambda: admission.in_flight, "memory_reserved_bytes": lambda: admission.memory}, own=True
    )
    observers: tuple[Observer, ...] = (AccessLog(), counters)
    keys, origins = [parse_key(text) for text in api_keys], checked_origins(cors_origins)
    handle_problems(app, legacy_errors=legacy_errors)
    if metrics:
        app.add_api_route(_METRICS, counters.endpoint, include_in_schema=False)
    # Prometheus asks a pod by its address. The Host check is for services without keys: a page knows no key.
    by_any_name = (*PROBES, _METRICS) if keys else PROBES
    # Added last is outermost.
    app.add_middleware(Deadline, seconds=request_timeout)
    app.add_middleware(BodyGuard, limits=limits, admission=admission)
    app.add_middleware(Auth, keys=keys, allow_anonymous=allow_anonymous, open_paths=tuple(open_paths))
    app.add_middleware(CrossSiteCheck, origins=origins)
    app.add_middleware(cors, origins=origins)
    app.add_middleware(HostCheck, allowed=tuple(allowed_hosts), except_paths=by_any_name)
    app.add_middleware(HeadCheck)
    app.add_middleware(Requests, observers=observers, draining=draining, routes=app.routes)
    return Guard(counters, admission)
