"""Stores that several processes share, against real servers: what was acknowledged is there, whatever dies."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from qi.service import sqlite_store
from qi.service.app import create_app
from qi.service.client import Client
from qi.service.settings import Settings
from qi.service.store import RevisionError, Store, UnavailableError, open_store
from tests.servers import STORES, Server, Servers

INCREMENT = """
import sys
from dataclasses import replace
from qi.service.store import RevisionError, open_store

store = open_store(sys.argv[1])
for _ in range(int(sys.argv[2])):
    while True:
        found = store.get("a")
        try:
            store.replace(replace(found, config=str(int(found.config) + 1)))
            break
        except RevisionError:
            pass
    store.remember(store.get("a"), ("", "x"), "1")
    print("done", flush=True)
"""


@pytest.fixture(params=["sqlite", "redis", "postgresql"])
def url(request: pytest.FixtureRequest, new_store_url: Callable[[str], str]) -> str:
    return new_store_url(request.param)


@pytest.fixture(params=["redis", "postgresql"])
def server(request: pytest.FixtureRequest, servers: Servers) -> Server:
    return servers.redis() if request.param == "redis" else servers.postgres()


@pytest.fixture
def served(server: Server) -> Iterator[Store]:
    """A store on a server that tests may end; with an instance "a", whose configuration is a number."""
    store = open_store(server.url(f"s{time.monotonic_ns()}"))
    store.create("a", "0", limit=100)
    yield store
    store.close()


@pytest.fixture
def run(checkout: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A function that starts Python in another process."""
    running: list[subprocess.Popen[str]] = []

    def run(*arguments: str, **settings: str) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("QI_API_")}
        environment |= {"PYTHONPATH": str(checkout), "PYTHONUNBUFFERED": "1", **settings}
        process = subprocess.Popen(
            [sys.executable, *arguments], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


Run = Callable[..., "subprocess.Popen[str]"]


def number(store: Store) -> int:
    found = store.get("a")
    assert found is not None
    return int(found.config)


def increment(store: Store) -> None:
    while True:
        found = store.get("a")
        assert found is not None
        try:
            store.replace(replace(found, config=str(int(found.config) + 1)))
            return
        except RevisionError:
            continue


def test_no_change_of_any_process_is_lost(url: str, run: Run) -> None:
    store = open_store(url)
    store.create("a", "0", limit=10)
    processes = [run("-c", INCREMENT, url, "25") for _ in range(3)]
    told = [process.communicate(timeout=120)[0] for process in processes]
    assert told == ["done\n" * 25] * 3
    assert number(store) == 75
    store.close()


def test_who_is_killed_loses_nothing_and_blocks_nobody(url: str, run: Run) -> None:
    store = open_store(url)
    store.create("a", "0", limit=10)
    told = 0
    for _ in range(2):
        process = run("-c", INCREMENT, url, "100000")
        assert process.stdout is not None
        for _ in range(10):
            assert process.stdout.readline() == "done\n"
        process.send_signal(signal.SIGKILL)
        told += 10 + process.stdout.read().count("done")
        started = time.monotonic()
        increment(store)
        assert time.monotonic() - started < 5
        told += 1
    assert told <= number(store) <= told + 2  # what was made and not yet told of
    store.close()


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_no_acknowledged_change_is_lost_with_the_server(how: str, server: Server, served: Store) -> None:
    done, open_questions, running = [0] * 3, [0] * 3, True

    def work(index: int) -> None:
        while running:
            try:
                increment(served)
                done[index] += 1
            except UnavailableError:  # the change was made, or not
                open_questions[index] += 1
                time.sleep(0.01)

    def wait_for(more: int) -> None:
        goal, until = sum(done) + more, time.monotonic() + 60
        while sum(done) < goal:
            assert time.monotonic() < until
            time.sleep(0.01)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    try:
        wait_for(30)
        if how == "kill":
            server.kill()
        else:
            server.stop()
        with pytest.raises(UnavailableError):
            served.check()
        with pytest.raises(UnavailableError):
            served.revision("a")
        server.start()
        wait_for(30)  # by the same store: it connects again
    finally:
        running = False
        for thread in threads:
            thread.join()
    assert sum(done) <= number(served) <= sum(done) + sum(open_questions)


def test_idle_connections_outlive_a_restart(server: Server, served: Store) -> None:
    """Whoever comes after a restart doesn't notice it."""
    before = served.get("a")
    server.restart()
    assert served.get("a") == before
    server.restart()
    increment(served)
    assert number(served) == 1


def test_services_on_several_hosts_see_each_other_at_once(server: Server, run: Run) -> None:
    url = server.url("hosts")
    started = [run("-m", "qi.service", QI_API_STORE=url, QI_API_PORT="0", QI_API_LOG="json") for _ in range(2)]
    clients = [Client(_address(process)) for process in started]
    try:
        _see_each_other(clients)
    finally:
        for client in clients:
            client.close()


def _see_each_other(clients: list[Client]) -> None:
    for count in range(60):
        here, there = clients[count % 2], clients[1 - count % 2]
        here.create(f"i{count}", {"quantization_type": "INT16"})
        assert there.config(f"i{count}")["quantization_type"] == "INT16"
    assert clients[0].instances() == clients[1].instances() == ["default", *(f"i{count}" for count in range(60))]


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"http://[^\s\"]+:\d+", line):
            return found[0]
    raise AssertionError(process.wait())


@contextlib.contextmanager
def answering(**settings: Any) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(**settings)), raise_server_exceptions=False) as client:
        yield client


CALLS: dict[str, tuple[str, str, Any]] = {
    "names": ("GET", "/instances", None),
    "create": ("POST", "/instances/b", {}),
    "config": ("GET", "/instances/default/config", None),
    "change": ("PATCH", "/instances/default/config", {"symmetric": True}),
    "quantize": ("POST", "/instances/default/quantize", {"data": [1.0, 2.0], "remember": True}),
    "dequantize": ("POST", "/instances/default/dequantize", {"data": [1, 2]}),
    "model": ("GET", "/v2/models/default", None),
    "clear": ("POST", "/instances/default/clear_cache", None),
}


def refused(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    """Every call is answered 503, and the operator is told why."""
    for method, path, body in CALLS.values():
        caplog.clear()
        answer = client.request(method, path, json=body)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1"), path
        assert answer.json()["code"] == "store-unavailable"
        assert ("qi.service.store", "ERROR") in [(record.name, record.levelname) for record in caplog.records]
    assert client.get("/health/ready").status_code == 503
    assert client.get("/health/live").status_code == 200


def test_without_its_server_a_service_refuses_and_then_goes_on(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with answering(store=server.url("down")) as client:
        codes = client.post("/instances/default/quantize", json={"data": [1.0, 2.0], "remember": True}).json()["data"]
        server.kill()
        refused(client, caplog)
        server.start()
        assert client.get("/health/ready").status_code == 200
        back = client.post("/instances/default/dequantize", json={"data": codes}).json()["data"]
        assert back == pytest.approx([1.0, 2.0], abs=0.01)
        for method, path, body in CALLS.values():
            assert client.request(method, path, json=body).status_code == 200


def test_a_server_that_lost_its_latest_changes_is_believed(servers: Servers) -> None:
    """As after a restart with ``appendfsync everysec``, or from a copy: what a service has read before isn't there now."""
    import redis

    server = servers.redis()
    config, key = "/instances/default/config", "older:instance:default"
    with (
        answering(store=server.url("older")) as client,
        answering(store=server.url("older")) as other,
        redis.Redis.from_url(f"redis://{server.address}") as own,
    ):
        copy = own.dump(key)
        assert client.patch(config, json={"num_bits": 4, "quantization_type": "INT4"}).status_code == 200
        assert other.get(config).json()["num_bits"] == 4
        own.restore(key, 0, copy, replace=True)
        for one in (client, other, client):
            assert one.get(config).json()["num_bits"] == 8
        assert client.post("/instances/a", json={}).status_code == 200
        own.delete(*own.keys("older:*"))
        for one in (client, other, client):
            assert one.get(config).json()["num_bits"] == 8  # it is always there
            assert one.get("/instances/a/config").status_code == 404
            assert one.get("/instances").json() == ["default"]


def test_a_damaged_store_is_not_the_fault_of_clients(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.db"
    with answering(store=str(path)) as client:
        other = sqlite3.connect(path)
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        other.close()
        with path.open("r+b") as file:
            file.write(os.urandom(path.stat().st_size))
        refused(client, caplog)


@pytest.mark.parametrize("config", ["", "[]", "{}{", '{"quantization_type": "int9"}', '{"nonsense": 1}'])
def test_an_instance_that_nobody_can_read_is_not_either(
    config: str, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with answering(store=url) as client:
        store = open_store(url)
        store.create("odd", config, limit=10)
        answer = client.post("/instances/odd/quantize", json={"data": [1.0]})
        assert (answer.status_code, answer.json()["code"]) == (503, "store-unavailable")
        assert "qi.service.store" in [record.name for record in caplog.records]
        assert client.get("/instances/default/config").status_code == 200
        store.close()


def test_a_locked_file_keeps_nobody_from_computing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_store, "_WAIT", 2.0)
    path, found = tmp_path / "a.db", []
    array = [[0.5] * 100] * 100  # large enough for a thread of those that compute

    def quantize() -> None:
        found.append(client.post("/instances/default/quantize", json={"data": array}).status_code)

    with answering(store=str(path), workers_threads=1) as client:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        threads = [threading.Thread(target=quantize) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        started = time.monotonic()
        for name, body in {"compute_params": {"data": array}, "quantize": {"data": array, "remember": False}}.items():
            assert client.post(f"/instances/default/{name}", json=body).status_code == 200
        assert time.monotonic() - started < 1
        assert found == []
        for thread in threads:
            thread.join()
        assert found == [503] * 4  # nothing was remembered, so nothing is claimed
        other.execute("ROLLBACK")
        other.close()
        assert client.post("/instances/default/quantize", json={"data": array}).status_code == 200


def test_parameters_are_remembered_across_a_network_only_if_the_client_asks(
    new_store_url: Callable[[str], str],
) -> None:
    for kind in STORES:
        with answering(store=new_store_url(kind)) as client:
            quantize, dequantize = (f"/instances/default/{name}" for name in ("quantize", "dequantize"))
            codes = client.post(quantize, json={"data": [1.0, 2.0]}).json()["data"]
            local = kind in ("memory", "sqlite")
            assert client.post(dequantize, json={"data": codes}).status_code == (200 if local else 409)
            client.post("/instances/other", json={})
            client.post("/instances/other/quantize", json={"data": [1.0, 2.0], "remember": not local})
            told = client.post("/instances/other/dequantize", json={"data": codes})
            assert told.status_code == (409 if local else 200)


def test_a_store_that_is_down_is_told_of_in_one_line(run: Run, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 16)
    wrong = {
        "redis://:secret@127.0.0.1:1/0": "ConnectionError",
        "postgresql://me:secret@127.0.0.1:1/x": "OperationalError",
        f"sqlite:///{damaged}": "SQLite file",
        f"sqlite:///{tmp_path}/none/a.db": "folder that exists",
        "postgre://me:secret@127.0.0.1:1/x": "Did you mean",
    }
    # In a process of its own for each: one that doesn't end would answer for ever.
    started = {run("-m", "qi.service", QI_API_STORE=url, QI_API_PORT="0"): told for url, told in wrong.items()}
    for process, told in started.items():
        output = process.communicate(timeout=60)[0]
        assert process.returncode == 2
        assert output.startswith("error: ")
        assert output.count("\n") == 1
        assert told in output
        assert "secret" not in output


def test_the_command_tells_of_it_too(run: Run) -> None:
    process = run("-m", "qi", "serve", "--workers", "2", "--store", "redis://127.0.0.1:1", "--port", "0")
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 2
    assert output.startswith("qi: error: expected a store that can be used; received ConnectionError")
    assert output.count("\n") == 1
