"""A database is a store by two methods: here SQLite in memory. What every store does is in `test_store.py`."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from qi.service.sql import Execute, SqlStore
from qi.service.store import RevisionError


class InMemory(SqlStore):
    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        for statement in self._TABLES:
            self.connection.execute(statement)

    def _read(self, statement: str, *values: Any) -> Sequence[Any]:
        return self.connection.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Execute]:
        self.connection.execute("BEGIN")
        try:
            yield self._read
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")


@pytest.fixture
def store() -> Iterator[InMemory]:
    made = InMemory()
    yield made
    made.connection.close()


def test_it_is_a_store(store: InMemory) -> None:
    record = store.create("a", "{}", limit=2)
    sequence = store.remember(record, ("", "x"), "1")
    assert store.recall_all(record).keys() == {"", "x"}
    changed = store.replace(record)
    assert record.revision < sequence < changed.revision
    assert store.ids() == ["a"]
    store.check()
    store.delete("a", changed.revision)
    assert store._read("SELECT (SELECT count(*) FROM qi_instances), (SELECT count(*) FROM qi_latest)") == [(0, 0)]


def test_what_is_refused_uses_no_number(store: InMemory) -> None:
    record = store.create("a", "{}", limit=2)
    store.replace(record)
    before = store._read("SELECT value FROM qi_counter")
    with pytest.raises(RevisionError):
        store.replace(record)
    assert store.remember(record, ("",), "1") == 0
    assert store._read("SELECT value FROM qi_counter") == before


def test_two_methods_are_needed() -> None:
    with pytest.raises(NotImplementedError):
        SqlStore().ids()
    with pytest.raises(NotImplementedError):
        SqlStore().delete("a")
