"""Real servers of the stores, from the packages ``redis-server`` and ``postgresql`` of Debian and its kin.

Each is a process of its own with a folder of its own, directly below the folder for temporary files: that of pytest is
closed to other users, and PostgreSQL refuses to run as root. Both end with the process that started them, however that ends.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

STORES = ("memory", "sqlite", "redis", "postgresql")
"""The kinds of stores."""

# Runs a command, and ends it once the other end of standard input is closed, as it is at the latest when the process at that
# end is gone; whoever wants to start it again says "keep" first.
_WATCH = """
"$@" >>log 2>&1 </dev/null &
echo $!
read -r word
kill "-$END" $! 2>/dev/null
kill -CONT $! 2>/dev/null
wait $!
[ "$word" = keep ] || rm -rf "$PWD"
"""
_SECONDS = 60.0  # for a server to start


class Server:
    """A server that can be stopped, killed and started again where it was.

    Args:
        command: What runs it.
        folder: Where; it is removed at the end.
        answers: Whether it takes work.
        end: The signal that ends it.
        user: Who runs it; None: who runs this.

    Attributes:
        pid: Of the server.
    """

    def __init__(
        self, command: list[str], folder: Path, answers: Callable[[], bool], end: str, user: str | None = None
    ) -> None:
        self.folder = folder
        self._command, self._answers, self._end, self._user = command, answers, end, user
        self._watch: subprocess.Popen[str] | None = None
        self.pid = 0
        self.start()

    def start(self) -> None:
        """Starts it; returns once it takes work."""
        self._watch = subprocess.Popen(
            ["sh", "-c", _WATCH, "watch", *self._command], cwd=self.folder, user=self._user, start_new_session=True,
            env={"PATH": os.environ["PATH"], "END": self._end, "LC_ALL": "C"}, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self._watch.stdout is not None
        self.pid = int(self._watch.stdout.readline())
        until = time.monotonic() + _SECONDS
        while not self._answers():
            if time.monotonic() > until or not _runs(self.pid):
                pytest.fail(f"{self._command[0]} doesn't start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    def stop(self, *, keep: bool = True) -> None:
        """Ends it, if it still runs."""
        watch, self._watch = self._watch, None
        if watch is None or watch.stdin is None or watch.stdout is None:
            return
        with contextlib.suppress(BrokenPipeError):
            if keep:
                watch.stdin.write("keep\n")
            watch.stdin.close()
        watch.wait(timeout=_SECONDS)
        watch.stdout.close()

    def kill(self) -> None:
        """Ends it and all its processes as a loss of power would, but for what the kernel has not yet written."""
        children = _children(self.pid)
        _signal((self.pid, *children), signal.SIGKILL)
        self.stop()
        while any(_runs(pid) for pid in children):
            time.sleep(0.01)

    def restart(self) -> None:
        """Stops it and starts it again."""
        self.stop()
        self.start()

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """A block in which it takes connections and doesn't answer."""
        pids = (self.pid, *_children(self.pid))
        _signal(pids, signal.SIGSTOP)
        try:
            yield
        finally:
            _signal(pids, signal.SIGCONT)


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    """Sends a signal to processes; some children (one that writes a file anew) end by themselves."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


class RedisServer(Server):
    """Redis, which has every change on the disk before it answers.

    Args:
        options: More of its configuration.

    Attributes:
        address: Host, port and number of the database, as in a URL.
        socket: Path of its other way in.
    """

    def __init__(self, options: str = "") -> None:
        program = _program("redis-server")
        folder = Path(tempfile.mkdtemp(prefix="qi-redis-"))
        port = free_port()
        self.address, self.socket = f"127.0.0.1:{port}/0", folder / "socket"
        self._address = "127.0.0.1", port
        durable = "--appendonly yes --appendfsync always"
        command = (
            f"{program} --bind 127.0.0.1 --port {port} --unixsocket {self.socket} --dir {folder} {durable} {options}"
        )
        super().__init__(command.split(), folder, self._pings, "KILL")

    def url(self, prefix: str) -> str:
        """The URL of a store below a prefix."""
        return f"redis://{self.address}?prefix={prefix}"

    def _pings(self) -> bool:
        try:
            with socket.create_connection(self._address, timeout=5) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(100).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


class PostgresServer(Server):
    """PostgreSQL, on a socket in its folder."""

    def __init__(self) -> None:
        self._programs = Path(_program("postgres", "/usr/lib/postgresql/*/bin")).parent
        folder = Path(tempfile.mkdtemp(prefix="qi-postgres-"))
        user = _other_user()
        if user is not None:
            shutil.chown(folder, user)
        initialize = f"{self._programs / 'initdb'} -D {folder / 'data'} -U qi -A trust -E UTF8 --locale=C --no-sync"
        subprocess.run(initialize.split(), cwd=folder, user=user, check=True, capture_output=True, timeout=_SECONDS)
        # What isn't synchronized is lost with the machine, not with the server.
        command = (
            f"{self._programs / 'postgres'} -D {folder / 'data'} -k {folder} -c listen_addresses= -c fsync=off "
            "-c shared_buffers=16MB -c max_connections=200 -c autovacuum=off"
        )
        super().__init__(command.split(), folder, lambda: self._psql("SELECT 1"), "QUIT", user)

    def url(self, schema: str) -> str:
        """The URL of a store in a new schema."""
        if not self._psql(f"CREATE SCHEMA IF NOT EXISTS {schema}"):
            pytest.fail(f"no schema: {(self.folder / 'log').read_text()[-2000:]}")
        options = quote(f"-csearch_path={schema}", safe="")
        return f"postgresql://qi@/postgres?host={quote(str(self.folder), safe='')}&options={options}"

    def _psql(self, statement: str) -> bool:
        command = [
            str(self._programs / "psql"),
            "-h",
            str(self.folder),
            "-U",
            "qi",
            "-d",
            "postgres",
            "-Xqc",
            statement,
        ]
        return subprocess.run(command, capture_output=True, check=False, timeout=_SECONDS).returncode == 0


class Servers:
    """The servers of one session of tests, started when they are first wanted."""

    def __init__(self) -> None:
        self._started: dict[type[Server], Server] = {}
        self._numbers = itertools.count(1)

    def redis(self) -> RedisServer:
        """The server; skips where there is none."""
        pytest.importorskip("redis", reason="the Python package redis isn't installed", exc_type=ImportError)
        found = self._started.get(RedisServer) or self._started.setdefault(RedisServer, RedisServer())
        assert isinstance(found, RedisServer)
        return found

    def postgres(self) -> PostgresServer:
        """The server; skips where there is none."""
        pytest.importorskip("psycopg", reason="the Python package psycopg isn't installed", exc_type=ImportError)
        found = self._started.get(PostgresServer) or self._started.setdefault(PostgresServer, PostgresServer())
        assert isinstance(found, PostgresServer)
        return found

    def new_store_url(self, kind: str, folder: Path) -> str:
        """The URL of a new store.

        Args:
            kind: One of `STORES`.
            folder: For files.
        """
        number = next(self._numbers)
        if kind == "redis":
            return self.redis().url(f"t{number}")
        if kind == "postgresql":
            return self.postgres().url(f"t{number}")
        return "memory" if kind == "memory" else f"sqlite:///{folder / f'service{number}.db'}"

    def close(self) -> None:
        """Ends all of them."""
        for server in self._started.values():
            server.stop(keep=False)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _program(name: str, *folders: str) -> str:
    """The path of a program; skips where it isn't installed."""
    if sys.platform != "linux":
        pytest.skip("servers are watched by way of /proc")
    found = shutil.which(name)
    for folder in folders:
        newest = sorted(Path("/").glob(f"{folder}/{name}".lstrip("/")), key=lambda path: int(path.parts[-3]))
        found = str(newest[-1]) if newest else found
    if found is None:
        pytest.skip(f"{name} isn't installed")
    return found


def _other_user() -> str | None:
    """A user for a server that refuses to be run by root; None: who runs this is one."""
    if os.geteuid() != 0:
        return None
    names = {user.pw_name for user in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)


def _runs(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for doesn't."""
    found = _state(pid)
    return found is not None and found[0] != "Z"


def _children(pid: int) -> list[int]:
    """The processes that a process has started."""
    every = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
    return [one for one in every if (_state(one) or ("", 0))[1] == pid]


def _state(pid: int) -> tuple[str, int] | None:
    """The state and the parent of a process; None: there is none."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return state, int(parent)
