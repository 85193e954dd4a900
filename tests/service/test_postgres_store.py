"""What is PostgreSQL's own; what every store does is in `test_store.py`, and what dies in `tests/integration`."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from qi.errors import ConfigError, FileFormatError, MissingDependencyError
from qi.service import postgres_store, redis_store
from qi.service.postgres_store import PostgresStore
from qi.service.store import ExistsError, UnavailableError
from tests.servers import PostgresServer, Servers


@pytest.fixture
def server(servers: Servers) -> PostgresServer:
    return servers.postgres()


@pytest.fixture
def url(server: PostgresServer) -> str:
    return server.url(f"own{time.monotonic_ns()}")


@pytest.fixture
def store(url: str) -> Iterator[PostgresStore]:
    opened = PostgresStore(url)
    yield opened
    opened.close()


@pytest.fixture
def client(url: str, store: PostgresStore) -> Iterator[Any]:
    """A connection of somebody else."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def tables(client: Any) -> list[str]:
    rows = client.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema ORDER BY 1")
    return [name for (name,) in rows]


def test_it_has_four_tables_where_the_url_says(client: Any) -> None:
    assert tables(client) == ["qi_counter", "qi_format", "qi_instances", "qi_latest"]


def test_tables_of_another_version_are_left_alone(url: str, client: Any) -> None:
    client.execute("UPDATE qi_format SET version = 9")
    with pytest.raises(FileFormatError, match="version 1; received version 9"):
        PostgresStore(url)


def test_no_revision_comes_back_from_a_database_that_lost_its_latest_changes(store: PostgresStore, client: Any) -> None:
    record = store.create("a", "1", limit=1)
    client.execute("UPDATE qi_counter SET value = 0")
    assert store.replace(record).revision > record.revision
    client.execute("UPDATE qi_counter SET value = value + 1000000000")  # the clock was put back
    found = store.get("a")
    assert found is not None
    assert store.replace(found).revision > found.revision + 900_000_000


def test_a_connection_is_used_again_and_only_while_it_is_good(store: PostgresStore, client: Any) -> None:
    (first,) = store._idle
    for _ in range(5):
        store.check()
        store.ids()
    store.create("a", "1", limit=1)
    with pytest.raises(ExistsError):
        store.create("a", "1", limit=1)
    assert store._idle == [first]
    client.execute("DROP TABLE qi_latest")
    with pytest.raises(UnavailableError, match="UndefinedTable"):
        store.delete("a")
    assert first.closed
    assert store._idle == []
    assert store.ids() == ["a"]  # the change that failed is undone


def test_changes_take_turns_for_a_while(store: PostgresStore, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = postgres_store._BEGIN.replace("10.0s", "0.2s")
    assert begin.count("0.2s") == 2
    monkeypatch.setattr(postgres_store, "_BEGIN", begin)
    with client.transaction():
        client.execute("UPDATE qi_counter SET value = value + 1")
        with pytest.raises(UnavailableError, match="LockNotAvailable"):
            store.create("a", "1", limit=1)
        assert store.ids() == []  # reading doesn't wait
    store.create("a", "1", limit=1)


def test_who_stops_within_a_change_is_not_waited_for(
    store: PostgresStore, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_store, "_BEGIN", postgres_store._BEGIN.replace("10.0s", "0.3s"))

    def stop_within() -> None:
        with store._transaction() as execute:
            execute("DELETE FROM qi_instances")
            time.sleep(0.6)
            execute("SELECT 1")

    store.create("a", "1", limit=9)
    with pytest.raises(UnavailableError, match="idle-in-transaction"):
        stop_within()
    assert store.create("b", "1", limit=9).id == "b"
    assert store.ids() == ["a", "b"]


def test_many_threads_share_few_connections(store: PostgresStore) -> None:
    store.create("a", "1", limit=100)
    running = True

    def read() -> None:
        while running:
            store.revision("a")

    threads = [threading.Thread(target=read) for _ in range(20)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    running = False
    for thread in threads:
        thread.join()
    assert 1 <= len(store._idle) <= 8


def test_no_connection_in_time_is_told(store: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_store, "_TURN", 0.05)
    monkeypatch.setattr(store, "_reading", threading.Semaphore(0))
    with pytest.raises(UnavailableError, match=r"expected a connection within 0\.05 seconds"):
        store.ids()
    store.create("a", "1", limit=1)  # those who change have their own


def test_a_server_that_hangs_is_not_waited_for(
    server: PostgresServer, store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_store, "_ANSWER", 0.2)
    record = store.create("a", "1", limit=1)
    with server.hanging():
        started = time.monotonic()
        with pytest.raises(UnavailableError):
            store.revision("a")
        assert time.monotonic() - started < 5
    monkeypatch.setattr(postgres_store, "_ANSWER", 15.0)
    assert store.replace(record).revision > record.revision


def test_a_closed_store_says_so(url: str) -> None:
    store = PostgresStore(url)
    store.close()
    with pytest.raises(UnavailableError, match="closed"):
        store.check()
    store.close()


def test_a_database_of_other_characters_is_refused(server: PostgresServer, client: Any) -> None:
    client.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    with pytest.raises(ConfigError, match="expected a database of encoding UTF8; received one of LATIN1"):
        PostgresStore(f"postgresql://qi@/latin?host={server.folder}")


def test_a_url_that_cannot_be_read_is_not_repeated() -> None:
    with pytest.raises(ConfigError, match="expected postgresql://") as caught:
        PostgresStore("postgresql://me:secret@h/x?nonsense=1")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("module", "make", "extra"),
    [(postgres_store, PostgresStore, "postgres"), (redis_store, redis_store.RedisStore, "redis")],
)
def test_what_is_not_installed_is_named(module: Any, make: Any, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    require = module.require
    monkeypatch.setattr(module, "require", lambda name, **options: require(f"missing_{name}", **options))
    with pytest.raises(MissingDependencyError, match=rf"pip install 'quantizers-infrastructure\[{extra}\]'"):
        make("a://b")
