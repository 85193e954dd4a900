"""The store in a SQLite file: survives restarts, and every process of one machine sees its changes at once."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from qi.errors import ConfigError, FileFormatError
from qi.service.sql import Execute, SqlStore
from qi.service.store import STORES, UnavailableError, unavailable

__all__ = ["SqliteStore"]

_VERSION = 2
_APPLICATION = 0x71695376  # "qiSv"
_WAIT = 10.0  # seconds that others may write, of this process and of others together


@STORES.register("sqlite")
class SqliteStore(SqlStore):
    """Instances in one file, with SQLite's write-ahead log; a change that was answered survives a loss of power.

    Args:
        url: ``sqlite:///relative/path`` or ``sqlite:////absolute/path``. The file is made where there is none.

    Raises:
        ConfigError: There is no such folder.
        FileFormatError: The file is something else.
        UnavailableError: It can't be opened.
    """

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
        except BaseException as error:
            self._writer.close()
            if isinstance(error.__cause__, sqlite3.DatabaseError) and not isinstance(error.__cause__, _PASSING):
                raise FileFormatError(f"expected a SQLite file; received {error.__cause__}") from error
            raise

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
            for statement in self._TABLES:
                execute(statement)
            execute(f"PRAGMA application_id = {_APPLICATION}")
            execute(f"PRAGMA user_version = {_VERSION}")

    def _read(self, statement: str, *values: Any) -> Sequence[Any]:
        with _held(self._reading), _unavailable():
            return self._reader.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Execute]:
        until = time.monotonic() + _WAIT
        with _held(self._writing), _unavailable():
            self._writer.execute(f"PRAGMA busy_timeout = {max(0, int(1000 * (until - time.monotonic())))}")
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield lambda statement, *values: self._writer.execute(statement, values).fetchall()
                self._writer.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # a full disk may have ended it already
                    self._writer.execute("ROLLBACK")
                raise


_PASSING = (sqlite3.OperationalError, sqlite3.ProgrammingError)
"""Errors that don't say that the file is damaged, or no SQLite file."""


@contextlib.contextmanager
def _held(lock: threading.Lock) -> Iterator[None]:
    """Holds a lock.

    Raises:
        UnavailableError: Others hold it for too long.
    """
    if not lock.acquire(timeout=_WAIT):
        raise UnavailableError(f"expected the store within {_WAIT:g} seconds; received no turn, for others use it")
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _unavailable() -> Iterator[None]:
    """Errors of SQLite as ours, those of a damaged file included."""
    try:
        yield
    except (sqlite3.Error, PermissionError, IsADirectoryError) as error:
        raise unavailable(error) from error
