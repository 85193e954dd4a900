"""Several processes: what they count and what they log, under this command and under uvicorn's own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.service.processes import Running, started

COMMANDS = {
    "qi": ("-m", "qi", "serve", "--workers", "2", "--port", "0"),
    "uvicorn": ("-m", "uvicorn", "qi.service.main:app", "--workers", "2", "--port", "0", "--no-access-log"),
}
REQUESTS = 40


def ask(server: Running, path: str, body: Any = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{server.url}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:  # every call connects anew: any worker may answer
        return bytes(answer.read())


def wait_for(server: Running) -> None:
    """uvicorn tells its address before anybody listens there."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            ask(server, "/livez")
            return
        time.sleep(0.1)


def metrics(server: Running) -> dict[str, float]:
    families = text_string_to_metric_families(ask(server, "/metrics").decode())
    found: dict[str, float] = {}
    for family in families:
        for sample in family.samples:
            if sample.labels.get("route", "/instances/{instance_id}/quantize") == "/instances/{instance_id}/quantize":
                found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


def wait_until_counted(server: Running) -> None:
    """A request is counted once its answer has been sent, and gauges are told once a second: a client may be faster."""
    deadline = time.monotonic() + 30
    while (found := metrics(server)).get("qi_request_total", 0) < REQUESTS or found["qi_queue_depth"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("command", COMMANDS)
def test_workers_count_together_and_log_in_one_form(tmp_path: Path, command: str) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()
    variables = {"PROMETHEUS_MULTIPROC_DIR": str(folder)} if command == "uvicorn" else {}
    with started(*COMMANDS[command], cwd=tmp_path, variables=variables, store=tmp_path / "a.db", log="json") as server:
        wait_for(server)
        for _ in range(REQUESTS):
            ask(server, "/instances/default/quantize", {"data": [[1.0, 2.0, 3.0]]})
        wait_until_counted(server)
        for _ in range(6):  # whichever answers
            found = metrics(server)
            assert found["qi_request_total"] == REQUESTS
            assert found["qi_request_duration_seconds_count"] == REQUESTS
            assert found["qi_values_total"] == 3 * REQUESTS
            assert found["qi_instances"] == 1
            assert found["qi_requests_in_progress"] in (1, 2)  # this one, and perhaps the end of the one before
            assert found["qi_queue_depth"] == 0
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(timeout=60)
    records = [json.loads(line) for line in server.lines if line.startswith("{")]
    routes = [record["route"] for record in records if record["logger"] == "qi.service.access"]
    assert routes.count("/instances/{instance_id}/quantize") == REQUESTS
    assert not [line for line in server.lines if "Traceback" in line]


def test_a_worker_that_dies_is_replaced_and_what_it_counted_stays(tmp_path: Path) -> None:
    with started(*COMMANDS["qi"], cwd=tmp_path, store=tmp_path / "a.db", log="json") as server:
        for _ in range(REQUESTS):
            ask(server, "/instances/default/quantize", {"data": [[1.0]]})
        wait_until_counted(server)
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        if not children.exists():
            pytest.skip("this system doesn't tell a process' children")
        commands = {int(pid): Path(f"/proc/{pid}/cmdline").read_text() for pid in children.read_text().split()}
        workers = [pid for pid, text in commands.items() if "spawn_main" in text]
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        deadline = time.monotonic() + 60
        while len([pid for pid in children.read_text().split() if int(pid) not in commands]) < 1:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        for _ in range(6):
            found = metrics(server)
            assert found["qi_request_total"] == REQUESTS
            assert found["qi_requests_in_progress"] in (1, 2)  # this one, and perhaps the end of the one before
