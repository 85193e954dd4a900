"""The service under load: what it can do, and what becomes of 2 and 10 times as many clients. A part of `service`."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.benchmarks.serving import HOST, Server, get, service

MIB = 1 << 20
SEARCHED, RUN = 3, 10
"""Seconds of a step of the search for the capacity, and of a run."""
MOST = 64
"""Connections that the search ends at."""
ENOUGH = 1.1
"""Times the throughput that twice the connections have to bring to be worth it."""
BEYOND = 256
"""Connections that are more than the service lets in."""

_SCRIPT = """
wrk.method = "METHOD"
if "BODY" ~= "" then
  local file = io.open("BODY", "rb")
  wrk.body = file:read("*a")
  file:close()
  wrk.headers["Content-Type"] = "application/x-npy"
  wrk.headers["Accept"] = "application/x-npy"
end
local threads, prepared = {}, nil
function setup(thread) table.insert(threads, thread) end
function init(args) prepared = wrk.format(); sent = 0 end
function request() sent = sent + 1; return prepared end
function done(summary, latency, requests)
  local count, errors = -1, summary.errors  -- wrk asks for one request that it doesn't send
  for _, thread in ipairs(threads) do count = count + thread:get("sent") end
  local us = function(share) return latency:percentile(share) end
  io.write(string.format(
    '\\n{"seconds": %f, "sent": %d, "answered": %d, "refused": %d, "broken": %d, "slow": %d, '
    .. '"p50": %f, "p90": %f, "p99": %f, "max": %f}\\n',
    summary.duration / 1e6, count, summary.requests, errors.status, errors.connect + errors.read + errors.write,
    errors.timeout, us(50) / 1e3, us(90) / 1e3, us(99) / 1e3, latency.max / 1e3))
end
"""
"""Counts what is sent; refused are answers from 400 on, broken are connections, slow is what took above the time-out."""


class Told(NamedTuple):
    """What wrk says of a run; times in ms."""

    seconds: float
    sent: int
    answered: int
    refused: int
    broken: int
    slow: int
    p50: float
    p90: float
    p99: float
    max: float


def load() -> None:
    """Throughput, latency and refusals at 1, 2 and 10 times the capacity in connections; whether anything is lost or hangs."""
    if shutil.which("wrk") is None:
        print("\nload: skipped, there is no wrk; Debian's package of that name has it")
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, body in {"GET /": None, "1,000 floats": npy_of(1000), "100,000 floats": npy_of(100_000)}.items():
            with service() as server:
                _Load(server, Path(folder), name, body).run()


def npy_of(size: int) -> bytes:
    """A .npy file."""
    file = BytesIO()
    np.save(file, np.random.default_rng(0).standard_normal(size).astype(np.float32))
    return file.getvalue()


class _Load:
    """One kind of request."""

    def __init__(self, server: Server, folder: Path, name: str, body: bytes | None) -> None:
        self._server, self._name = server, name
        self._path = "/" if body is None else "/instances/default/quantize"
        # What is turned away has no route yet.
        self._counts = {"route": "/"} if body is None else {"method": "POST"}
        self._script, data = folder / "script.lua", folder / "body.npy"
        data.write_bytes(body or b"")
        script = _SCRIPT.replace("METHOD", "GET" if body is None else "POST")
        self._script.write_text(script.replace("BODY", "" if body is None else str(data)))

    def run(self) -> None:
        """Searches for the capacity, then loads the service by multiples of it."""
        capacity = self._capacity()
        print(f"{'':20}{'clients':>8}{'200/s':>8}{'p50':>8}{'p90':>8}{'p99':>8}{'max':>8}    503  what else")
        for times in (1, 2, 10):
            self._row(f"{times}x", times * capacity)
        self._row("beyond the queue", BEYOND)

    def _capacity(self) -> int:
        """The fewest connections that bring nearly all the throughput there is."""
        connections, rate, told = 1, self._rate(1), []
        while connections < MOST:
            told.append(f"{connections}: {rate:.0f}")
            more = self._rate(2 * connections)
            if more < ENOUGH * rate:
                told.append(f"{2 * connections}: {more:.0f}")
                break
            connections, rate = 2 * connections, more
        print(
            f"\n{self._name}, answers a second by connections: {', '.join(told)}; capacity: {connections}", flush=True
        )
        return connections

    def _rate(self, connections: int) -> float:
        told = self._wrk(connections, SEARCHED)
        return (told.answered - told.refused) / told.seconds

    def _wrk(self, connections: int, seconds: int) -> Told:
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(self._script)]
        url = f"http://{HOST}:{self._server.port}{self._path}"
        done = subprocess.run([*command, url], capture_output=True, text=True, check=True, timeout=seconds + 60)
        return Told(**json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{"))))

    def _row(self, name: str, connections: int) -> None:
        server = self._server
        settled(server)
        before, memory = self._counted(), server.memory("VmRSS")
        server.forget_peak()
        told = self._wrk(connections, RUN)
        begun = time.perf_counter()
        get(server.connection(), "/livez")
        first = time.perf_counter() - begun
        waited = settled(server)
        peak, left = server.memory("VmHWM"), server.memory("VmRSS")
        statuses, reasons = (_grown(*both) for both in zip(before, self._counted(), strict=True))
        share = statuses.get("503", 0) / max(1, sum(statuses.values()))
        times = "".join(f"{value:8.1f}" for value in (told.p50, told.p90, told.p99, told.max))
        rate = (told.answered - told.refused) / told.seconds
        print(f"{name:20}{connections:8}{rate:8.0f}{times} {share:6.1%}", end="  ")
        print(f"{_account(told, connections, statuses)}; {reasons or 'none refused'}", end="; ")
        print(f"GET after it {first * 1e3:.0f} ms, idle after {waited:.1f} s", end="; ")
        print(f"MiB {memory / MIB:.0f}, at most {peak / MIB:.0f}, then {left / MIB:.0f}", flush=True)

    def _counted(self) -> tuple[dict[str, float], dict[str, float]]:
        """Answers by status, and refusals by reason, as the service counts them."""
        metrics = self._server.metrics
        return metrics("qi_request_total", "status", **self._counts), metrics("qi_rejected_total", "reason")


def settled(server: Server, most: float = 30.0) -> float:
    """Seconds until the service has no other request than the one that asks.

    Raises:
        RuntimeError: It has still.
    """
    begun = time.perf_counter()
    while (left := server.metrics("qi_requests_in_progress")[""]) > 1:
        if time.perf_counter() - begun > most:
            raise RuntimeError(f"expected no request in progress after {most:g} s; there are {left:g}")
        time.sleep(0.02)
    return time.perf_counter() - begun


def _grown(before: dict[str, float], after: dict[str, float]) -> dict[str, int]:
    """By how much counters have grown; without those that have not."""
    grown = {label: int(value - before.get(label, 0)) for label, value in after.items()}
    return {label: count for label, count in grown.items() if count}


def _account(told: Told, connections: int, statuses: dict[str, int]) -> str:
    """Whether each request that wrk sent has one answer.

    When wrk stops, every connection has one request on its way: these alone may be missing in its count, and in the
    service's as far as they never arrived or were answered to nobody.
    """
    good, gone = statuses.get("200", 0), statuses.get("499", 0)
    bad = sum(statuses.values()) - good - gone
    missing = (
        told.sent - told.answered - told.broken,
        good - (told.answered - told.refused),
        bad - told.refused,
        sum(statuses.values()) - told.answered,
    )
    lost = told.broken or told.slow or not all(0 <= count <= connections for count in missing)
    numbers = f"sent {told.sent}, answered {told.answered}, the service counts {statuses}"
    if lost:
        return f"NOT ALL ANSWERED: {numbers}, broken {told.broken}, slow {told.slow}"
    return f"nothing lost ({numbers})"
