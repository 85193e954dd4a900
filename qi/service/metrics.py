"""What Prometheus reads: `GET /metrics`. Labels are route templates and words of ours, never what a client sent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from qi.errors import QiError
from qi.service.requests import Exchange

__all__ = ["REJECTIONS", "Metrics"]

REJECTIONS = frozenset(
    (
        "body-timeout", "body-too-large", "content-encoding", "cross-site", "memory-full", "not-local", "queue-full",
        "request-timeout", "scope", "unauthorized", "unknown-host",
    )
)  # fmt: skip
"""Codes of problems that stand for a request which never got to the arithmetic."""

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The counters of one application; an observer of its requests.

    They are those of one process: with several workers, each answers with its own.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter("request", "Requests that were answered.", "method", "route", "status")
        self._rejected = self._counter("rejected", "Requests that were turned away before any work.", "reason")
        self._bytes_in = self._counter("bytes_in", "Bytes of bodies that arrived.")
        self._bytes_out = self._counter("bytes_out", "Bytes of answers.")
        self._values = self._counter("values", "Numbers that were worked on.", "operation")
        self._clipped = self._counter("clipped", "Numbers that saturated.")
        self._cache = self._counter("cache", "Looks into the caches of results.", "outcome")
        self._duration = Histogram(
            "qi_request_duration_seconds",
            "Time from a request to the end of its answer.",
            ("method", "route"),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._in_progress = Gauge("qi_requests_in_progress", "Requests without an answer yet.", registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"qi_{name}", text, labels, registry=self.registry)

    def begin(self, exchange: Exchange) -> None:
        """A request has arrived."""
        self._in_progress.inc()

    def end(self, exchange: Exchange) -> None:
        """A request has been answered."""
        self._in_progress.dec()
        labels = (exchange.method, exchange.route)
        self._requests.labels(*labels, str(exchange.status)).inc()
        self._duration.labels(*labels).observe(exchange.seconds)
        self._bytes_in.inc(exchange.bytes_in)
        self._bytes_out.inc(exchange.bytes_out)
        if exchange.problem in REJECTIONS:
            self._rejected.labels(exchange.problem).inc()

    def worked(self, operation: str, values: int, clipped: int = 0) -> None:
        """An operation has been done.

        Args:
            operation: "quantize", "dequantize", ...: one of few names.
            values: Numbers that it was done on.
            clipped: Numbers of them that saturated.
        """
        self._values.labels(operation).inc(values)
        self._clipped.inc(clipped)

    def cached(self, *, hits: int = 0, misses: int = 0) -> None:
        """A cache has been looked into."""
        self._cache.labels("hit").inc(hits)
        self._cache.labels("miss").inc(misses)

    def watch(self, gauges: Mapping[str, Callable[[], float]]) -> None:
        """Adds numbers that are asked for when somebody reads the metrics.

        Args:
            gauges: Functions by name; `{"instances": ...}` is shown as `qi_instances`. NaN is shown for one that fails:
                what doesn't depend on it can still be read.
        """
        for name, function in gauges.items():
            gauge = Gauge(f"qi_{name}", f"Now: {name.replace('_', ' ')}.", registry=self.registry)
            gauge.set_function(partial(_asked, function))

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    async def endpoint(self, request: Request) -> Response:
        """Answers `GET /metrics`."""
        return Response(self.text(), headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})


def _asked(function: Callable[[], float]) -> float:
    try:
        return function()
    except QiError:
        return math.nan
