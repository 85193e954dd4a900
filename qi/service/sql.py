"""What stores in SQL databases share: every statement, written so that each of them understands it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol

from qi.service.store import Latest, Record, changed, exists, full, missing, too_much

__all__ = ["Execute", "SqlStore"]


class Execute(Protocol):
    """Executes a statement, with ``?`` where values go; returns its rows."""

    def __call__(self, statement: str, *values: Any) -> Sequence[Any]:
        """Executes it."""


class SqlStore:
    """A store of four tables.

    Of all transactions, one runs at a time: each holds a lock from its beginning, and sees what all before it did.
    """

    shared = True
    remembers = True

    _TABLES = (
        "CREATE TABLE qi_counter (value BIGINT NOT NULL)",
        "INSERT INTO qi_counter VALUES (0)",
        "CREATE TABLE qi_instances ("
        "id TEXT PRIMARY KEY, created BIGINT NOT NULL, revision BIGINT NOT NULL, config TEXT NOT NULL, parameters TEXT)",
        "CREATE TABLE qi_latest ("
        "id TEXT NOT NULL, layer TEXT NOT NULL, sequence BIGINT NOT NULL, size INTEGER NOT NULL, "
        "parameters TEXT NOT NULL, PRIMARY KEY (id, layer))",
    )
    _NEXT = "value + 1"  # a number that was never used before

    def _read(self, statement: str, *values: Any) -> Sequence[Any]:
        """The rows of one statement that changes nothing."""
        raise NotImplementedError

    def _transaction(self) -> AbstractContextManager[Execute]:
        """Statements that take effect as a whole, or not at all."""
        raise NotImplementedError

    def ids(self) -> list[str]:
        """See `Store`."""
        return [id for (id,) in self._read("SELECT id FROM qi_instances ORDER BY created")]

    def get(self, id: str) -> Record | None:
        """See `Store`."""
        for row in self._read("SELECT id, revision, config, parameters FROM qi_instances WHERE id = ?", id):
            return Record(*row)
        return None

    def revision(self, id: str) -> int | None:
        """See `Store`."""
        return _revision(self._read, id)

    def create(self, id: str, config: str, parameters: str | None = None, *, limit: int) -> Record:
        """See `Store`."""
        with self._transaction() as execute:
            if _revision(execute, id) is not None:
                raise exists(id)
            ((count,),) = execute("SELECT count(*) FROM qi_instances")
            if count >= limit:
                raise full(limit)
            revision = self._next(execute)
            execute("INSERT INTO qi_instances VALUES (?, ?, ?, ?, ?)", id, revision, revision, config, parameters)
        return Record(id, revision, config, parameters)

    def replace(self, record: Record) -> Record:
        """See `Store`."""
        with self._transaction() as execute:
            _expect(execute, record.id, record.revision)
            new = replace(record, revision=self._next(execute))
            execute(
                "UPDATE qi_instances SET revision = ?, config = ?, parameters = ? WHERE id = ?",
                new.revision, new.config, new.parameters, new.id,
            )  # fmt: skip
            execute("DELETE FROM qi_latest WHERE id = ?", record.id)
        return new

    def delete(self, id: str, revision: int | None = None) -> None:
        """See `Store`."""
        with self._transaction() as execute:
            _expect(execute, id, revision)
            execute("DELETE FROM qi_instances WHERE id = ?", id)
            execute("DELETE FROM qi_latest WHERE id = ?", id)

    def remember(self, record: Record, layers: tuple[str, ...], parameters: str) -> int:
        """See `Store`."""
        with self._transaction() as execute:
            if _revision(execute, record.id) != record.revision:
                return 0
            sequence = self._next(execute)
            for layer in layers:
                execute(
                    "INSERT INTO qi_latest VALUES (?, ?, ?, ?, ?) ON CONFLICT (id, layer) DO UPDATE SET "
                    "sequence = excluded.sequence, size = excluded.size, parameters = excluded.parameters",
                    record.id, layer, sequence, len(parameters), parameters,
                )  # fmt: skip
            _trim(execute, record.id)
        return sequence

    def recall(self, record: Record, layer: str) -> Latest | None:
        """See `Store`."""
        for _, sequence, parameters in self._read(f"{_LATEST} AND layer = ?", record.id, record.revision, layer):
            return Latest(sequence, parameters)
        return None

    def recall_all(self, record: Record) -> dict[str, Latest]:
        """See `Store`."""
        rows = self._read(_LATEST, record.id, record.revision)
        return {layer: Latest(sequence, parameters) for layer, sequence, parameters in rows}

    def check(self) -> None:
        """See `Store`."""
        self._read("SELECT count(*) FROM qi_instances")

    def _next(self, execute: Execute) -> int:
        ((value,),) = execute(f"UPDATE qi_counter SET value = {self._NEXT} RETURNING value")
        return int(value)


_LATEST = (
    "SELECT layer, sequence, qi_latest.parameters FROM qi_latest JOIN qi_instances ON qi_instances.id = qi_latest.id "
    "WHERE qi_latest.id = ? AND revision = ?"
)


def _revision(execute: Execute, id: str) -> int | None:
    for (revision,) in execute("SELECT revision FROM qi_instances WHERE id = ?", id):
        return int(revision)
    return None


def _expect(execute: Execute, id: str, revision: int | None) -> None:
    found = _revision(execute, id)
    if found is None:
        raise missing(id)
    if revision is not None and found != revision:
        raise changed(id, revision, found)


def _trim(execute: Execute, id: str) -> None:
    """Deletes the oldest latest parameters of an instance, if it has too many."""
    ((layers, size),) = execute("SELECT count(*), sum(size) FROM qi_latest WHERE id = ?", id)
    if not too_much(layers, size):
        return
    for layer, length in execute("SELECT layer, size FROM qi_latest WHERE id = ? ORDER BY sequence, layer", id):
        execute("DELETE FROM qi_latest WHERE id = ? AND layer = ?", id, layer)
        layers, size = layers - 1, size - length
        if not too_much(layers, size):
            return
