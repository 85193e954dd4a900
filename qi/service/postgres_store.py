"""The store in a PostgreSQL database: every process of every host sees its changes at once."""

from __future__ import annotations

import contextlib
import select
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from qi.errors import ConfigError, FileFormatError, QiError
from qi.optional import require
from qi.service.sql import Execute, SqlStore
from qi.service.store import STORES, UnavailableError, unavailable

__all__ = ["PostgresStore"]

_VERSION = 1
_FORMAT = f"CREATE TABLE qi_format AS SELECT {_VERSION} AS version"
_LOCK = 0x71695376  # "qiSv": held while tables are made
_CONNECT = 5  # seconds until a connection must be there
_ANSWER = 15.0  # seconds until a statement must be answered
_TURN = 10.0  # seconds that others may take, of this process or of others
_READERS, _WRITERS = 8, 2  # connections of one process

_BEGIN = f"""
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL lock_timeout = '{_TURN}s';
SET LOCAL idle_in_transaction_session_timeout = '{_TURN}s';
"""


@STORES.register("postgres")
@STORES.register("postgresql")
class PostgresStore(SqlStore):
    """Instances in a PostgreSQL database of encoding UTF8; a change that was answered survives what its commits survive.

    Its tables, whose names start with ``qi_``, are made where there are none. Changes take turns, by a lock on one row. A
    process has 10 connections at most.

    Args:
        url: ``postgresql://user:password@host:port/database``, with the options of libpq, as
            ``?options=-csearch_path%3Dname`` for a schema of one's own.

    Raises:
        ConfigError: The URL can't be read, or the database doesn't hold all characters.
        FileFormatError: The tables are of another version.
        UnavailableError: The server doesn't answer.
        MissingDependencyError: psycopg isn't installed.
    """

    remembers = False

    # Microseconds: a server that lost its latest changes still gives numbers that it never gave before.
    _NEXT = "greatest(value + 1, floor(extract(epoch FROM clock_timestamp()) * 1000000)::bigint)"

    def __init__(self, url: str) -> None:
        self._psycopg = require("psycopg", extra="postgres", feature="the PostgreSQL store")
        try:
            given = self._psycopg.conninfo.conninfo_to_dict(url)
        except self._psycopg.Error as error:  # the URL may hold a password
            raise ConfigError("expected postgresql://user@host:port/database; received another URL") from error
        self._class = _bounded(self._psycopg.Connection)
        self._options = {
            "client_encoding": "utf8",
            "connect_timeout": _CONNECT,
            "application_name": "qi.service",
            **given,
        }
        self._idle: list[Any] = []
        self._lock = threading.Lock()
        self._reading, self._writing = threading.Semaphore(_READERS), threading.Semaphore(_WRITERS)
        self._closed = False
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """See `Store`."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _prepare(self) -> None:
        """Makes tables where there are none; one process after the other, should several start at once."""
        with self._connection(self._writing) as execute:
            if not _there(execute):
                with _committed(execute, f"{_BEGIN} SELECT pg_advisory_xact_lock({_LOCK})"):
                    for statement in () if _there(execute) else (*self._TABLES, _FORMAT):
                        execute(statement)
            ((version,),) = execute("SELECT version FROM qi_format")
            ((encoding,),) = execute("SHOW server_encoding")
        if encoding != "UTF8":
            raise ConfigError(f"expected a database of encoding UTF8; received one of {encoding}")
        if version != _VERSION:
            raise FileFormatError(f"expected tables of this service, version {_VERSION}; received version {version}")

    def _read(self, statement: str, *values: Any) -> Sequence[Any]:
        with self._connection(self._reading) as execute:
            return execute(statement, *values)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Execute]:
        begin = f"{_BEGIN} SELECT value FROM qi_counter FOR UPDATE"
        with self._connection(self._writing) as execute, _committed(execute, begin):
            yield execute

    @contextlib.contextmanager
    def _connection(self, turns: threading.Semaphore) -> Iterator[Execute]:
        """A connection that nobody else uses; it is kept afterwards, unless something went wrong with it."""
        if not turns.acquire(timeout=_TURN):
            raise UnavailableError(
                f"expected a connection within {_TURN:g} seconds; received none, for others use them"
            )
        try:
            with self._open_connection() as execute:
                yield execute
        finally:
            turns.release()

    @contextlib.contextmanager
    def _open_connection(self) -> Iterator[Execute]:
        try:
            connection = self._taken() or self._class.connect(**self._options, autocommit=True, prepare_threshold=None)
        except self._psycopg.Error as error:
            raise unavailable(error) from error
        good = False

        def execute(statement: str, *values: Any) -> Sequence[Any]:
            cursor = connection.execute(statement.replace("?", "%s"), values or None)
            return cursor.fetchall() if cursor.description else ()

        try:
            yield execute
            good = True
        except self._psycopg.Error as error:
            raise unavailable(error) from error
        except QiError:  # an answer, as that there is no such instance
            good = True
            raise
        finally:
            self._give(connection, good)

    def _taken(self) -> Any:
        """A kept connection; None: there is none. Those that the server has closed meanwhile are given up."""
        with self._lock:
            if self._closed:
                raise UnavailableError("expected an open store; received one that was closed")
            while self._idle:
                connection = self._idle.pop()
                poll = select.poll()
                poll.register(connection.fileno(), select.POLLIN)
                if not poll.poll(0):
                    return connection
                connection.close()
        return None

    def _give(self, connection: Any, good: bool) -> None:
        with self._lock:
            if good and not self._closed:
                self._idle.append(connection)
                return
        connection.close()


def _there(execute: Execute) -> bool:
    # Not to_regclass: within a transaction it doesn't see what others have committed since.
    return bool(execute("SELECT 1 FROM pg_class WHERE relname = 'qi_format' AND pg_table_is_visible(oid)"))


@contextlib.contextmanager
def _committed(execute: Execute, begin: str) -> Iterator[None]:
    """A transaction; what goes wrong in the database ends the connection, and so the transaction."""
    execute(begin)
    try:
        yield
    except QiError:
        execute("ROLLBACK")
        raise
    execute("COMMIT")


def _bounded(base: Any) -> Any:
    """A class of connections that wait for answers no longer than `_ANSWER`."""

    def wait(self: Any, *arguments: Any, **options: Any) -> Any:
        return base.wait(self, *arguments, **{"timeout": _ANSWER} | options)

    return type("Connection", (base,), {"wait": wait})
