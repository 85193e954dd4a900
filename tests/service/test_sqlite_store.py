from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from qi.errors import ConfigError, FileFormatError
from qi.service import sqlite_store
from qi.service.sqlite_store import SqliteStore
from qi.service.store import UnavailableError

CREATING = """
import sys
from qi.service.sqlite_store import SqliteStore
store = SqliteStore(sys.argv[1])
for number in range(100_000):
    store.create(f"i{number}", "{}", limit=1_000_000)
    print(number, flush=True)
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'a b.db'}"


def test_it_is_there_after_a_restart(url: str) -> None:
    store = SqliteStore(url)
    record = store.create("a", "{}", "{}", limit=10)
    sequence = store.remember(record, ("x",), "1")
    store.close()
    store = SqliteStore(url)
    assert store.get("a") == record
    assert store.recall_all(record)["x"].sequence == sequence
    assert store.create("b", "{}", limit=10).revision > sequence
    store.close()


def test_two_that_have_it_open_see_each_other_at_once(url: str) -> None:
    one, two = SqliteStore(url), SqliteStore(url)
    record = one.create("a", "{}", limit=10)
    assert two.get("a") == record
    changed = two.replace(record)
    assert one.revision("a") == changed.revision
    two.remember(changed, ("",), "p")
    latest = one.recall(changed, "")
    assert latest is not None
    assert latest.parameters == "p"
    one.delete("a")
    assert two.ids() == []
    one.close()
    two.close()


def test_a_killed_process_loses_no_change_that_it_told_of(url: str, checkout: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", CREATING, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(25)]
        process.send_signal(signal.SIGKILL)
        told += [int(line) for line in process.stdout.read().split("\n")[:-1]]
    store = SqliteStore(url)
    assert {f"i{number}" for number in told} <= set(store.ids())
    assert store.create("after", "{}", limit=1_000_000).revision > len(told)
    store.close()


def test_others_may_not_read_it(url: str, tmp_path: Path) -> None:
    SqliteStore(url).close()
    assert stat.S_IMODE((tmp_path / "a b.db").stat().st_mode) == 0o600


def test_every_commit_is_on_the_disk(url: str) -> None:
    store = SqliteStore(url)
    assert store._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._writer.execute("PRAGMA synchronous").fetchone() == (2,)
    store.close()


def test_another_file_is_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a database, and long enough to be looked at as one" * 20)
    with pytest.raises(FileFormatError, match="SQLite"):
        SqliteStore(f"sqlite:///{text}")
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    with pytest.raises(FileFormatError, match="another database"):
        SqliteStore(f"sqlite:///{other}")
    with sqlite3.connect(other) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("mine",)]
    connection.close()


@pytest.mark.parametrize("path", ["", "missing/folder/a.db"])
def test_a_path_needs_its_folder(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="folder that exists"):
        SqliteStore(f"sqlite:///{path}")


def test_what_cannot_be_used_says_so(url: str, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError):
        SqliteStore(f"sqlite:///{tmp_path}")
    store = SqliteStore(url)
    store.close()
    with pytest.raises(UnavailableError, match="closed"):
        store.check()


def test_those_who_write_wait_for_each_other_only_for_a_while(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_store, "_WAIT", 0.3)
    store = SqliteStore(url)
    record = store.create("a", "{}", limit=10)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    failed: list[float] = []

    def change() -> None:
        started = time.monotonic()
        with pytest.raises(UnavailableError):
            store.replace(record)
        failed.append(time.monotonic() - started)

    threads = [threading.Thread(target=change) for _ in range(6)]
    for thread in threads:
        thread.start()
    assert store.get("a") == record  # reading doesn't wait
    for thread in threads:
        thread.join()
    assert len(failed) == 6
    assert max(failed) < 1.5  # not 6 times 0.3
    other.execute("ROLLBACK")
    other.close()
    assert store.replace(record).revision > record.revision
    store.close()


def test_a_file_that_is_damaged_later_is_a_store_that_cannot_be_used(url: str) -> None:
    store = SqliteStore(url)
    record = store.create("a", "{}" * 5000, limit=10)
    other = sqlite3.connect(store.path)
    other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    other.close()
    with store.path.open("r+b") as file:
        file.write(os.urandom(store.path.stat().st_size))
    for call in (store.ids, store.check, lambda: store.get("a"), lambda: store.replace(record)):
        with pytest.raises(UnavailableError, match="DatabaseError"):
            call()
    store.close()
    with pytest.raises(FileFormatError, match="expected a SQLite file"):
        SqliteStore(url)


def test_a_failed_change_leaves_nothing_behind(url: str) -> None:
    store = SqliteStore(url)

    def change() -> None:
        with store._transaction() as execute:
            execute("INSERT INTO qi_instances VALUES ('a', 1, 1, '{}', NULL)")
            execute("INSERT INTO missing VALUES (1)")

    with pytest.raises(UnavailableError, match="no such table"):
        change()
    assert store.ids() == []
    assert store.create("b", "{}", limit=10).id == "b"
    store.close()
