"""What Prometheus is told."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from qi.errors import NotCalibratedError
from qi.service.metrics import REJECTIONS, SHARED_DIRECTORY, Metrics, _Asked
from qi.service.problems import Problem, problem_response
from qi.service.requests import Exchange, Requests
from tests.service.asgi import scope_for


def samples(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    """Values by name and sorted label values."""
    families = text_string_to_metric_families(metrics.text().decode())
    return {(s.name, tuple(s.labels[k] for k in sorted(s.labels))): s.value for f in families for s in f.samples}


def ended(status: int = 200, problem: str = "") -> Exchange:
    return Exchange(scope_for(), "r", "GET", status, 10, 20, 0.3, problem)


def test_a_request_is_counted_timed_and_weighed() -> None:
    metrics = Metrics()
    metrics.begin(ended())
    assert samples(metrics)[("qi_requests_in_progress", ())] == 1
    metrics.end(ended())
    found = samples(metrics)
    assert found[("qi_requests_in_progress", ())] == 0
    assert found[("qi_request_total", ("GET", "unmatched", "200"))] == 1
    assert found[("qi_request_duration_seconds_sum", ("GET", "unmatched"))] == 0.3
    assert found[("qi_request_duration_seconds_bucket", ("0.25", "GET", "unmatched"))] == 0
    assert found[("qi_request_duration_seconds_bucket", ("0.5", "GET", "unmatched"))] == 1
    assert (found[("qi_bytes_in_total", ())], found[("qi_bytes_out_total", ())]) == (10, 20)


def test_rejections_are_counted_by_their_own_words_alone() -> None:
    metrics = Metrics()
    for code in ("queue-full", "queue-full", "invalid", "whatever a client says", ""):
        metrics.begin(ended(503, code))
        metrics.end(ended(503, code))
    rejected = {key: value for key, value in samples(metrics).items() if key[0] == "qi_rejected_total"}
    assert rejected == {("qi_rejected_total", ("queue-full",)): 2}


def test_work_is_counted() -> None:
    metrics = Metrics()
    metrics.worked("quantize", 100, clipped=3)
    metrics.worked("quantize", 50)
    metrics.cached(hits=2, misses=1)
    found = samples(metrics)
    assert found[("qi_values_total", ("quantize",))] == 150
    assert found[("qi_clipped_total", ())] == 3
    assert found[("qi_cache_total", ("hit",))] == 2
    assert found[("qi_cache_total", ("miss",))] == 1


def test_gauges_are_asked_when_somebody_reads() -> None:
    metrics, instances = Metrics(), ["default"]
    metrics.watch({"instances": lambda: len(instances)})
    assert samples(metrics)[("qi_instances", ())] == 1
    instances.append("another")
    assert samples(metrics)[("qi_instances", ())] == 2


def test_a_gauge_that_fails_hides_no_other() -> None:
    def fails() -> float:
        raise NotCalibratedError

    metrics = Metrics()
    metrics.watch({"broken": fails, "fine": lambda: 2})
    assert math.isnan(samples(metrics)[("qi_broken", ())])
    assert samples(metrics)[("qi_fine", ())] == 2


def test_applications_don_t_share_counters() -> None:
    one, two = Metrics(), Metrics()
    one.worked("quantize", 1)
    assert ("qi_values_total", ("quantize",)) not in samples(two)


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_routes_are_templates(prefix: str) -> None:
    metrics, app, router = Metrics(), FastAPI(), APIRouter()

    @router.get("/instances/{instance_id}")
    async def get(instance_id: str) -> None:
        pass

    app.include_router(router, prefix=prefix)
    app.add_api_route("/metrics", metrics.endpoint)
    app.add_middleware(Requests, observers=[metrics])
    with TestClient(app) as client:
        for name in ("a", "b", "c"):
            assert client.get(f"{prefix}/instances/{name}").status_code == 200
        client.get("/somewhere/else")
        answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = answer.text
    assert 'route="/instances/{instance_id}",status="200"} 3.0' in text.replace(f'"{prefix}/inst', '"/inst')
    assert 'route="unmatched",status="404"} 1.0' in text
    assert "/somewhere" not in text


def test_words_for_rejections_are_those_of_the_problems() -> None:
    for status, code in ((401, "unauthorized"), (503, "queue-full")):
        scope = scope_for()
        problem_response(scope, Problem(status, "", code="" if status == 401 else code))
        assert scope["state"]["problem"] == code
        assert code in REJECTIONS


def test_processes_count_together(tmp_path: Path) -> None:
    """prometheus-client decides how it counts when it is imported: hence processes, one after the other."""
    script = (
        "import os\n"
        "from qi.service.metrics import Metrics, forget_process\n"
        "metrics = Metrics()\n"
        "metrics.watch({'queue_depth': lambda: 2}, own=True)\n"
        "metrics.watch({'instances': lambda: 5})\n"
        "metrics.worked('quantize', 10)\n"
        "print(metrics.text().decode())\n"
        "if {dies}: forget_process(os.getpid())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), SHARED_DIRECTORY: str(tmp_path)}
    told = [
        subprocess.run(
            [sys.executable, "-c", script.replace("{dies}", str(dies))], env=environment,
            capture_output=True, text=True, check=True,
        ).stdout
        for dies in (True, False, False)
    ]  # fmt: skip
    values = [{s.name: s.value for f in text_string_to_metric_families(text) for s in f.samples} for text in told]
    assert [found["qi_values_total"] for found in values] == [10, 20, 30]
    assert [found["qi_queue_depth"] for found in values] == [2, 2, 4]
    assert [found["qi_instances"] for found in values] == [5, 5, 5]


def test_who_takes_long_to_tell_is_not_waited_for_nor_asked_twice() -> None:
    told, asked = threading.Event(), []

    def slow() -> float:
        asked.append(1)
        assert told.wait(60)
        return 3.0

    ask = _Asked(slow, seconds=0.05)
    assert math.isnan(ask())
    assert math.isnan(ask())
    told.set()
    patient = time.monotonic() + 60
    while math.isnan(value := ask()):
        assert time.monotonic() < patient
    assert (value, asked) == (3.0, [1])


def test_every_family_is_there_once_where_processes_count_together(tmp_path: Path) -> None:
    script = (
        "from qi.service.metrics import Metrics\n"
        "metrics = Metrics()\n"
        "metrics.watch({'queue_depth': lambda: 2}, own=True)\n"
        "metrics.watch({'instances': lambda: 5})\n"
        "print(metrics.text().decode())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), SHARED_DIRECTORY: str(tmp_path)}
    told = [
        subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    families = list(text_string_to_metric_families(told[1]))
    names = [family.name for family in families]
    assert sorted(names) == sorted(set(names))
    assert {"qi_instances", "qi_queue_depth", "qi_bytes_in"} <= set(names)
    assert not any("pid" in sample.labels for family in families for sample in family.samples)
