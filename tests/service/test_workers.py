"""The supervisor: who dies is replaced, who can't start ends it all, and a request finds somebody meanwhile."""

from __future__ import annotations

import os
import signal
import socket
import time
import urllib.request
from pathlib import Path
from typing import Any, ClassVar

import pytest
import uvicorn
from uvicorn.config import STARTUP_FAILURE

from qi.errors import ConfigError
from qi.service import workers
from qi.service.workers import Workers
from tests.service.processes import started


class Fake:
    """A process that was started, and lives or doesn't."""

    made: ClassVar[list[Fake]] = []

    def __init__(self, alive: bool = True, exitcode: int | None = None) -> None:
        self.alive, self.exitcode, self.pid, self.calls = alive, exitcode, 4242, []
        Fake.made.append(self)

    def is_alive(self, timeout: float) -> bool:
        return self.alive

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self.calls.append(name)


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Any:
    Fake.made = []
    forgotten: list[int] = []
    monkeypatch.setattr(workers, "forget_process", forgotten.append)
    with socket.socket() as shared:
        found = Workers(uvicorn.Config("qi.service.main:app", workers=2), [shared], 0.0)
        monkeypatch.setattr(found, "_start", Fake)
        found.forgotten = forgotten
        yield found


def test_as_many_are_started_as_asked_for(supervisor: Any) -> None:
    supervisor.init_processes()
    assert len(supervisor.processes) == len(Fake.made) == 2


def test_the_dead_are_replaced_and_their_gauges_forgotten(supervisor: Any) -> None:
    alive, dead = Fake(), Fake(alive=False, exitcode=-9)
    supervisor.processes = [alive, dead]
    supervisor.keep_subprocess_alive()
    assert supervisor.processes == [alive, Fake.made[2]]
    assert dead.calls == ["kill", "join"]
    assert supervisor.forgotten == [4242]


def test_who_cannot_start_ends_the_others_too(supervisor: Any) -> None:
    alive, broken = Fake(), Fake(alive=False, exitcode=STARTUP_FAILURE)
    supervisor.processes = [alive, broken]
    with pytest.raises(ConfigError, match="expected workers that start; one didn't, and its log says why"):
        supervisor.keep_subprocess_alive()
    assert alive.calls == ["terminate", "join"]
    assert len(Fake.made) == 2, "no other is tried"


def test_who_was_told_to_stop_is_not_replaced(supervisor: Any) -> None:
    supervisor.processes = [dead := Fake(alive=False)]
    supervisor.should_exit.set()
    supervisor.keep_subprocess_alive()
    assert supervisor.processes == [dead]


def test_the_sockets_copy_is_closed_first(supervisor: Any) -> None:
    supervisor.processes = [Fake()]
    supervisor.terminate_all()
    assert supervisor.sockets[0].fileno() == -1


@pytest.mark.parametrize("name", ["handle_hup", "handle_ttin", "handle_ttou"])
def test_other_signals_change_nothing(supervisor: Any, name: str) -> None:
    supervisor.init_processes()
    before = list(supervisor.processes)
    getattr(supervisor, name)()
    assert supervisor.processes == before
    assert not any(process.calls for process in before)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads who is whose child from /proc")
def test_a_killed_worker_is_missed_by_nobody_for_long(tmp_path: Path) -> None:
    with started(
        "-m", "qi", "serve", "--workers", "2", "--store", str(tmp_path / "a.db"), "--port", "0", cwd=tmp_path
    ) as run:
        children = Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children")

        def servers() -> list[int]:
            found = [int(pid) for pid in children.read_text().split()]
            return [pid for pid in found if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()]

        urllib.request.urlopen(run.url, timeout=60).close()
        killed = servers()[0]
        os.kill(killed, signal.SIGKILL)
        until = time.monotonic() + 90
        while len([pid for pid in servers() if pid != killed]) < 2:
            assert time.monotonic() < until, "nobody came in its place"
            time.sleep(0.1)
        for _ in range(10):
            with urllib.request.urlopen(run.url, timeout=60) as answer:
                assert answer.status == 200
