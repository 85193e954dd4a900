"""What every store does: run on all that there are, against real servers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qi.errors import ConfigError, QiError
from qi.service import store as stores
from qi.service.store import (
    ExistsError,
    FullError,
    MemoryStore,
    MissingError,
    RevisionError,
    Store,
    UnavailableError,
    open_store,
    unavailable,
)
from tests.servers import STORES

ODD = "%s ? $1 ' \" ` \\ : ; -- /*\n\t\x7f é 語 😀 {} [*] "


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
    monkeypatch.setattr(stores, "MAX_LAYERS", 3)
    record = store.create("a", "{}", limit=10)
    for name in "abcab":
        store.remember(record, (name,), name)
    store.remember(record, ("d",), "d")
    assert sorted(store.recall_all(record)) == ["a", "b", "d"]


def test_the_longest_go_first_where_they_take_too_much(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MAX_BYTES", 1000)
    record = store.create("a", "{}", limit=10)
    for name, length in {"a": 300, "b": 300, "c": 300}.items():
        store.remember(record, (name,), "x" * length)
    store.remember(record, ("a",), "y" * 250)  # takes the place of the first, and is the newest now
    assert sorted(store.recall_all(record)) == ["a", "b", "c"]
    store.remember(record, ("d", "e"), "z" * 240)
    assert sorted(store.recall_all(record)) == ["a", "d", "e"]
    record = store.replace(record)
    store.remember(record, ("f",), "x" * 900)  # what was there before no longer counts
    assert list(store.recall_all(record)) == ["f"]


def test_names_may_hold_any_characters(store: Store) -> None:
    ids = [ODD, "a" * 128, "a:b", "*", "default"]
    for id in ids:
        record = store.create(id, id, ODD, limit=10)
        store.remember(record, ("", ODD, "x" * 512), ODD)
        assert store.get(id) == record
        assert sorted(store.recall_all(record)) == ["", ODD, "x" * 512]
        assert store.recall(record, ODD) == store.recall(record, "")
    assert store.ids() == ids
    store.delete(ODD)
    assert store.ids() == ids[1:]


def test_parameters_may_be_long_and_go_again(store: Store) -> None:
    long = "[0.123456789]" * 80_000  # a megabyte
    record = store.create("a", long, long, limit=10)
    assert store.get("a") == record
    store.remember(record, ("",), long)
    assert store.recall_all(record)[""].parameters == long
    record = store.replace(stores.replace(record, config="{}", parameters=None))
    assert store.get("a") == record
    assert record.parameters is None


def at_once(call: Callable[[int], object], threads: int = 8) -> list[object]:
    """What several threads get that call something at the same time: results, or errors of QI."""
    together, found = threading.Barrier(threads), []

    def one(number: int) -> None:
        together.wait(timeout=60)
        try:
            found.append(call(number))
        except QiError as error:
            found.append(error)

    running = [threading.Thread(target=one, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return found


def test_a_limit_holds_where_many_create_at_once(store: Store) -> None:
    found = at_once(lambda number: store.create(f"i{number}", "{}", limit=5))
    assert sum(isinstance(one, FullError) for one in found) == 3
    assert len(store.ids()) == 5


def test_one_of_many_that_do_the_same_at_once_succeeds(store: Store) -> None:
    found = at_once(lambda number: store.create("a", str(number), limit=10))
    assert sum(isinstance(one, ExistsError) for one in found) == 7
    record = store.get("a")
    assert record in found
    assert record is not None
    found = at_once(lambda number: store.replace(stores.replace(record, config=str(number))))
    assert sum(isinstance(one, RevisionError) for one in found) == 7
    assert store.get("a") in found
    found = at_once(lambda number: store.delete("a"))
    assert sum(isinstance(one, MissingError) for one in found) == 7


def test_many_that_remember_at_once_get_numbers_of_their_own(store: Store) -> None:
    record = store.create("a", "{}", limit=10)
    found = at_once(lambda number: store.remember(record, ("", f"l{number}"), str(number)))
    assert len(set(found)) == 8
    assert store.recall_all(record)[""].sequence == max(found)  # type: ignore[type-var]


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


@pytest.mark.parametrize("kind", STORES[1:])
def test_all_that_have_it_open_see_each_other_at_once(kind: str, new_store_url: Callable[[str], str]) -> None:
    url = new_store_url(kind)
    opened: list[Any] = at_once(lambda number: open_store(url), 4)  # makes tables once
    one, two = opened[:2]
    record = one.create("a", "{}", limit=10)
    assert two.get("a") == record
    changed = two.replace(record)
    assert one.revision("a") == changed.revision
    two.remember(changed, ("",), "p")
    assert one.recall(changed, "") == two.recall(changed, "")
    assert one.recall(changed, "").parameters == "p"
    one.delete("a")
    assert (two.ids(), two.revision("a")) == ([], None)
    for store in opened:
        store.close()
    again = open_store(url)
    assert again.create("a", "{}", limit=10).revision > changed.revision
    again.close()


def test_what_a_library_says_is_told_in_one_line() -> None:
    error = unavailable(OSError("no route\n\tto host"))
    assert isinstance(error, UnavailableError)
    assert str(error) == "expected a store that can be used; received OSError: no route to host"


def test_a_store_is_found_by_its_url(tmp_path: Path) -> None:
    assert isinstance(open_store("memory"), MemoryStore)
    plain = open_store(str(tmp_path / "plain.db"))
    assert plain.shared
    plain.close()
    assert (tmp_path / "plain.db").is_file()
    with pytest.raises(ConfigError, match="Did you mean 'sqlite'"):
        open_store("sqlit:///a")
    for scheme in ("redis", "rediss", "unix", "postgres", "postgresql"):
        assert scheme in stores.STORES
    with pytest.raises(ConfigError, match="URL of a store"):
        open_store("")
