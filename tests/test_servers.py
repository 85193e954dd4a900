"""The servers that tests start end with the tests, however those end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import servers as started
from tests.servers import PostgresServer, RedisServer, Servers

START = """
import sys, time
from tests import servers
server = getattr(servers, sys.argv[1])()
print(server.pid, server.folder, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("name", ["redis", "postgres"])
def test_they_end_with_a_killed_process(name: str, servers: Servers, checkout: Path) -> None:
    kind = type(getattr(servers, name)())  # skips where it isn't installed
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", START, kind.__name__]
    with subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid, folder = process.stdout.readline().split()
        assert started._runs(int(pid))
        process.send_signal(signal.SIGKILL)
    until = time.monotonic() + 60
    while Path(folder).exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    assert not started._runs(int(pid))


@pytest.mark.parametrize("kind", [RedisServer, PostgresServer])
def test_without_the_program_a_test_is_skipped(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(started.shutil, "which", lambda name: None)
    monkeypatch.setattr(started.Path, "glob", lambda *arguments: iter(()))
    with pytest.raises(pytest.skip.Exception, match="isn't installed"):
        kind()
