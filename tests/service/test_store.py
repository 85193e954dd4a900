"""What every store does: run on all that are there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qi.errors import ConfigError
from qi.service import store as stores
from qi.service.store import ExistsError, FullError, MemoryStore, MissingError, RevisionError, Store, open_store


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = open_store(store_url)
    yield opened
    opened.close()


def test_what_is_created_is_there(store: Store) -> None:
    record = store.create("a", '{"x": 1}', "{}", limit=10)
    assert store.get("a") == record
    assert (record.id, record.config, record.parameters) == ("a", '{"x": 1}', "{}")
    assert store.revision("a") == record.revision
    store.check()


def test_names_come_in_the_order_of_creation(store: Store) -> None:
    for id in ("b", "c", "a"):
        store.create(id, "{}", limit=10)
    store.replace(store.get("b"))  # type: ignore[arg-type]
    assert store.ids() == ["b", "c", "a"]


def test_what_is_not_there(store: Store) -> None:
    assert (store.get("a"), store.revision("a"), store.ids()) == (None, None, [])
    with pytest.raises(MissingError, match="Quantizer instance a not found"):
        store.delete("a")
    record = store.create("a", "{}", limit=10)
    store.delete("a")
    with pytest.raises(MissingError):
        store.replace(record)


def test_a_name_is_taken_once(store: Store) -> None:
    store.create("a", "{}", limit=10)
    with pytest.raises(ExistsError, match="already exists"):
        store.create("a", "{}", limit=10)


def test_there_is_a_limit(store: Store) -> None:
    store.create("a", "{}", limit=2)
    store.create("b", "{}", limit=2)
    with pytest.raises(FullError, match="at most 2"):
        store.create("c", "{}", limit=2)


def test_a_change_wants_the_revision_it_was_made_for(store: Store) -> None:
    first = store.create("a", "1", limit=10)
    second = store.replace(stores.replace(first, config="2"))
    assert second.revision > first.revision
    assert store.get("a") == second
    with pytest.raises(RevisionError, match=f"expected revision {first.revision} of instance a"):
        store.replace(stores.replace(first, config="3"))
    with pytest.raises(RevisionError):
        store.delete("a", first.revision)
    assert store.get("a") == second
    store.delete("a", second.revision)
    assert store.get("a") is None


def test_a_revision_never_comes_back(store: Store) -> None:
    before = store.create("a", "{}", limit=10)
    store.delete("a")
    assert store.create("a", "{}", limit=10).revision > before.revision


def test_latest_parameters_are_kept_by_layer(store: Store) -> None:
    record = store.create("a", "{}", limit=10)
    assert store.recall(record, "") is None
    one = store.remember(record, ("", "x"), "1")
    two = store.remember(record, ("",), "2")
    assert two > one
    assert (store.recall(record, ""), store.recall(record, "x")) == (stores.Latest(two, "2"), stores.Latest(one, "1"))
    assert {name: latest.parameters for name, latest in store.recall_all(record).items()} == {"": "2", "x": "1"}


def test_latest_parameters_end_with_their_revision(store: Store) -> None:
    record = store.create("a", "{}", limit=10)
    store.remember(record, ("",), "1")
    changed = store.replace(record)
    assert (store.recall(record, ""), store.recall(changed, ""), store.recall_all(record)) == (None, None, {})
    assert store.remember(record, ("",), "late") == 0
    assert store.recall(changed, "") is None
    store.delete("a")
    assert store.remember(changed, ("",), "later") == 0
    assert store.recall_all(changed) == {}


def test_the_oldest_layers_go_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("qi.service.store", "qi.service.sqlite_store"):
        monkeypatch.setattr(f"{module}.MAX_LAYERS", 3)
    record = store.create("a", "{}", limit=10)
    for name in "abcab":
        store.remember(record, (name,), name)
    store.remember(record, ("d",), "d")
    assert sorted(store.recall_all(record)) == ["a", "b", "d"]


def test_changes_from_many_threads_are_all_there(store: Store) -> None:
    record = store.create("a", "0", limit=100)

    def change(name: str) -> None:
        store.create(name, "{}", limit=100)
        for _ in range(10):
            while True:
                found = store.get("a")
                assert found is not None
                try:
                    store.replace(stores.replace(found, config=str(int(found.config) + 1)))
                    break
                except RevisionError:
                    continue

    threads = [threading.Thread(target=change, args=(f"t{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = store.get("a")
    assert found is not None
    assert found.config == "40"
    assert found.revision > record.revision
    assert len(store.ids()) == 5


def test_a_store_is_found_by_its_url(tmp_path: Path) -> None:
    assert isinstance(open_store("memory"), MemoryStore)
    plain = open_store(str(tmp_path / "plain.db"))
    assert plain.shared
    plain.close()
    assert (tmp_path / "plain.db").is_file()
    with pytest.raises(ConfigError, match="Did you mean 'sqlite'"):
        open_store("sqlit:///a")
    with pytest.raises(ConfigError, match="URL of a store"):
        open_store("")
