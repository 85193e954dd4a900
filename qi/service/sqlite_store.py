"""The store in a SQLite file: survives restarts, and every process of one machine sees its changes at once."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from qi.errors import ConfigError, FileFormatError
from qi.service.store import MAX_LAYERS, STORES, Latest, Record, UnavailableError, changed, exists, full, missing

__all__ = ["SqliteStore"]

_VERSION = 1
_APPLICATION = 0x71695376  # "qiSv"
_WAIT = 10.0  # seconds that another process may write

_SCHEMA = """
CREATE TABLE IF NOT EXISTS counter (value INTEGER NOT NULL);
INSERT INTO counter SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM counter);
CREATE TABLE IF NOT EXISTS instances (
    id TEXT PRIMARY KEY, created INTEGER NOT NULL, revision INTEGER NOT NULL, config TEXT NOT NULL, parameters TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS latest (
    id TEXT NOT NULL, layer TEXT NOT NULL, sequence INTEGER NOT NULL, parameters TEXT NOT NULL, PRIMARY KEY (id, layer)
) WITHOUT ROWID;
"""


@STORES.register("sqlite")
class SqliteStore:
    """Instances in one file, with SQLite's write-ahead log; a change that was answered survives a loss of power.

    Args:
        url: ``sqlite:///relative/path`` or ``sqlite:////absolute/path``. The file is made where there is none.

    Raises:
        ConfigError: There is no such folder.
        FileFormatError: The file is something else.
        UnavailableError: It can't be opened.
    """

    shared = True

    def __init__(self, url: str) -> None:
        path = Path(unquote(url.removeprefix("sqlite:///")))
        if not path.name or url == path.name or not path.resolve().parent.is_dir():
            raise ConfigError(f"expected sqlite:///path in a folder that exists; received {url!r}")
        self.path = path.resolve()
        with _unavailable():
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        # Apart, so that those who read don't wait for those who write.
        self._reading, self._writing = threading.Lock(), threading.Lock()
        self._writer = self._connect()
        try:
            self._prepare()
            self._reader = self._connect()
        except BaseException:
            self._writer.close()
            raise

    def ids(self) -> list[str]:
        """See `Store`."""
        return [id for (id,) in self._read("SELECT id FROM instances ORDER BY created")]

    def get(self, id: str) -> Record | None:
        """See `Store`."""
        for row in self._read("SELECT id, revision, config, parameters FROM instances WHERE id = ?", id):
            return Record(*row)
        return None

    def revision(self, id: str) -> int | None:
        """See `Store`."""
        for (revision,) in self._read("SELECT revision FROM instances WHERE id = ?", id):
            return int(revision)
        return None

    def create(self, id: str, config: str, parameters: str | None = None, *, limit: int) -> Record:
        """See `Store`."""
        with self._transaction() as execute:
            if _revision(execute, id) is not None:
                raise exists(id)
            ((count,),) = execute("SELECT count(*) FROM instances")
            if count >= limit:
                raise full(limit)
            revision = _next(execute)
            execute("INSERT INTO instances VALUES (?, ?, ?, ?, ?)", id, revision, revision, config, parameters)
        return Record(id, revision, config, parameters)

    def replace(self, record: Record) -> Record:
        """See `Store`."""
        with self._transaction() as execute:
            _expect(execute, record.id, record.revision)
            new = replace(record, revision=_next(execute))
            execute(
                "UPDATE instances SET revision = ?, config = ?, parameters = ? WHERE id = ?",
                new.revision, new.config, new.parameters, new.id,
            )  # fmt: skip
            execute("DELETE FROM latest WHERE id = ?", record.id)
        return new

    def delete(self, id: str, revision: int | None = None) -> None:
        """See `Store`."""
        with self._transaction() as execute:
            _expect(execute, id, revision)
            execute("DELETE FROM instances WHERE id = ?", id)
            execute("DELETE FROM latest WHERE id = ?", id)

    def remember(self, record: Record, layers: tuple[str, ...], parameters: str) -> int:
        """See `Store`."""
        with self._transaction() as execute:
            if _revision(execute, record.id) != record.revision:
                return 0
            sequence = _next(execute)
            for layer in layers:
                execute("INSERT OR REPLACE INTO latest VALUES (?, ?, ?, ?)", record.id, layer, sequence, parameters)
            ((count,),) = execute("SELECT count(*) FROM latest WHERE id = ?", record.id)
            if count > MAX_LAYERS:
                execute(
                    "DELETE FROM latest WHERE id = ?1 AND layer IN "
                    "(SELECT layer FROM latest WHERE id = ?1 ORDER BY sequence, layer DESC LIMIT ?2)",
                    record.id, count - MAX_LAYERS,
                )  # fmt: skip
        return sequence

    def recall(self, record: Record, layer: str) -> Latest | None:
        """See `Store`."""
        for sequence, parameters in self._read(f"{_LATEST} AND latest.layer = ?", record.id, record.revision, layer):
            return Latest(sequence, parameters)
        return None

    def recall_all(self, record: Record) -> dict[str, Latest]:
        """See `Store`."""
        rows = self._read(_LATEST.replace("SELECT", "SELECT layer,", 1), record.id, record.revision)
        return {layer: Latest(sequence, parameters) for layer, sequence, parameters in rows}

    def check(self) -> None:
        """See `Store`."""
        self._read("SELECT value FROM counter")

    def close(self) -> None:
        """See `Store`."""
        with self._writing, self._reading:
            self._reader.close()
            self._writer.close()

    def _connect(self) -> sqlite3.Connection:
        with _unavailable():
            return sqlite3.connect(self.path, timeout=_WAIT, isolation_level=None, check_same_thread=False)

    def _prepare(self) -> None:
        """Makes tables where there are none; one process after the other, should several start at once."""
        with _unavailable():
            self._writer.execute("PRAGMA journal_mode = WAL")
            self._writer.execute("PRAGMA synchronous = FULL")
        with self._transaction() as execute:
            ((version,),) = execute("PRAGMA user_version")
            ((application,),) = execute("PRAGMA application_id")
            ((tables,),) = execute("SELECT count(*) FROM sqlite_master")
            if (application, version) == (_APPLICATION, _VERSION):
                return
            if tables:
                raise FileFormatError(
                    f"expected a file of this service, version {_VERSION}; received {str(self.path)!r}, another database"
                )
            for statement in _SCHEMA.split(";")[:-1]:
                execute(statement)
            execute(f"PRAGMA application_id = {_APPLICATION}")
            execute(f"PRAGMA user_version = {_VERSION}")

    def _read(self, statement: str, *values: Any) -> list[Any]:
        with self._reading, _unavailable():
            return self._reader.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Any]:
        """A function that executes a statement; what it did takes effect as a whole, or not at all."""
        with self._writing, _unavailable():
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield lambda statement, *values: self._writer.execute(statement, values).fetchall()
                self._writer.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # a full disk may have ended it already
                    self._writer.execute("ROLLBACK")
                raise


_LATEST = (
    "SELECT sequence, latest.parameters FROM latest JOIN instances USING (id) "
    "WHERE latest.id = ? AND instances.revision = ?"
)


@contextlib.contextmanager
def _unavailable() -> Iterator[None]:
    """Errors of SQLite as ours."""
    try:
        yield
    except (sqlite3.OperationalError, sqlite3.ProgrammingError, PermissionError, IsADirectoryError) as error:
        raise UnavailableError(f"expected a store that can be used; received {error}") from error
    except sqlite3.DatabaseError as error:
        raise FileFormatError(f"expected a SQLite file; received {error}") from error


def _next(execute: Any) -> int:
    """A number that was never used before."""
    ((value,),) = execute("UPDATE counter SET value = value + 1 RETURNING value")
    return int(value)


def _revision(execute: Any, id: str) -> int | None:
    for (revision,) in execute("SELECT revision FROM instances WHERE id = ?", id):
        return int(revision)
    return None


def _expect(execute: Any, id: str, revision: int | None) -> None:
    found = _revision(execute, id)
    if found is None:
        raise missing(id)
    if revision is not None and found != revision:
        raise changed(id, revision, found)
