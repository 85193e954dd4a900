"""What Prometheus reads: `GET /metrics`. Labels are route templates and words of ours, never what a client sent."""

from __future__ import annotations

import math
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping

import anyio.to_thread
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, multiprocess
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from qi.errors import QiError
from qi.service.requests import Exchange

__all__ = ["REJECTIONS", "SHARED_DIRECTORY", "Metrics", "forget_process"]

SHARED_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable that names the folder in which several processes count together; set before they start."""

REJECTIONS = frozenset(
    (
        "body-timeout", "body-too-large", "content-encoding", "cross-site", "head-too-large", "memory-full", "not-local",
        "queue-full", "request-timeout", "scope", "transfer-encoding", "unauthorized", "unknown-host",
    )
)  # fmt: skip
"""Codes of problems that stand for a request which never got to the arithmetic."""

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The counters of one application; an observer of its requests.

    Where the environment names a folder (`SHARED_DIRECTORY`), they are those of all processes that count there, whichever
    answers; else those of this one.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._folder = os.environ.get(SHARED_DIRECTORY)
        self._asked = CollectorRegistry() if self._folder else self.registry
        self._own: dict[Gauge, Callable[[], float]] = {}
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
        self._in_progress = self._summed("requests_in_progress", "Requests without an answer yet.")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"qi_{name}", text, labels, registry=self.registry)

    def _summed(self, name: str, text: str) -> Gauge:
        """A number of each process, of which the sum is shown."""
        return Gauge(f"qi_{name}", text, registry=self.registry, multiprocess_mode="livesum")

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

    def watch(self, gauges: Mapping[str, Callable[[], float]], *, own: bool = False) -> None:
        """Adds numbers that are asked for when somebody reads the metrics.

        Args:
            gauges: Functions by name; `{"instances": ...}` is shown as `qi_instances`. NaN is shown for one that fails, or
                takes longer than a second: what doesn't depend on it can still be read.
            own: Whether they are of this process alone, so that the sum over all is to be shown. Others are told then
                whenever `refresh` is called.
        """
        for name, function in gauges.items():
            text = f"Now: {name.replace('_', ' ')}."
            ask = _Asked(function)
            if own and self._folder:
                self._own[self._summed(name, text)] = ask
                continue
            self._asked.register(_AskedGauge(f"qi_{name}", text, ask))

    @property
    def shared(self) -> bool:
        """Whether several processes count together."""
        return bool(self._folder)

    def refresh(self) -> None:
        """Tells the other processes the numbers of this one that aren't counters."""
        for gauge, function in self._own.items():
            gauge.set(function())

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        if not self._folder:
            return generate_latest(self.registry)
        self.refresh()
        everybodys = CollectorRegistry()
        multiprocess.MultiProcessCollector(everybodys, self._folder)  # type: ignore[no-untyped-call]
        return generate_latest(everybodys) + generate_latest(self._asked)

    async def endpoint(self, request: Request) -> Response:
        """Answers `GET /metrics`."""
        text = await anyio.to_thread.run_sync(self.text)  # a gauge may ask a store, which may be far away
        return Response(text, headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})


def forget_process(pid: int) -> None:
    """Takes the numbers of a process that died out of the sums; what it counted stays.

    Args:
        pid: Its number.
    """
    if os.environ.get(SHARED_DIRECTORY):
        multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]


class _AskedGauge(Collector):
    """A gauge without a value of its own: a `Gauge` would leave one in the folder that processes share."""

    def __init__(self, name: str, text: str, ask: Callable[[], float]) -> None:
        self._name, self._text, self._ask = name, text, ask

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Asks."""
        yield GaugeMetricFamily(self._name, self._text, value=self._ask())


class _Asked:
    """A number that somebody else knows, who may take long to tell: then NaN, and nobody asks again meanwhile."""

    def __init__(self, function: Callable[[], float], seconds: float = 1.0) -> None:
        self._function, self._seconds = function, seconds
        self._lock = threading.Lock()
        self._answer: queue.SimpleQueue[float] | None = None  # of the thread that is asking

    def __call__(self) -> float:
        with self._lock:  # scrapes come one after the other
            if self._answer is None:
                self._answer = queue.SimpleQueue()
                threading.Thread(target=self._ask, args=(self._answer,), daemon=True).start()
            try:
                value = self._answer.get(timeout=self._seconds)
            except queue.Empty:
                return math.nan
            self._answer = None
            return value

    def _ask(self, answer: queue.SimpleQueue[float]) -> None:
        try:
            answer.put(self._function())
        except QiError:
            answer.put(math.nan)
