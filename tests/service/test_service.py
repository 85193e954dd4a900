from __future__ import annotations

import threading
from pathlib import Path

import anyio
import pytest

from qi.errors import ConfigError
from qi.service.service import SMALL, Service
from qi.service.settings import Settings


def test_it_opens_when_it_is_first_used(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    service = Service(Settings(store=str(path)))
    assert not path.exists()
    assert service.instances.ids() == ["default"]
    assert path.exists()
    assert service.instances is service.instances
    service.close()
    assert service.ready()  # opened again
    service.close()


def test_large_work_is_done_in_a_bounded_number_of_threads() -> None:
    service = Service(Settings(workers_threads=2))
    lock, running, most = threading.Lock(), 0, 0
    meeting = threading.Barrier(2)

    def work() -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        meeting.wait(timeout=60)
        with lock:
            running -= 1
        return threading.current_thread().name

    async def use() -> set[str]:
        names: set[str] = set()

        async def one() -> None:
            names.add(await service.work(work, SMALL + 1))

        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(one)
        return names

    names = anyio.run(use)
    assert most == 2
    assert threading.current_thread().name not in names


@pytest.mark.parametrize(("store", "threaded"), [("memory", False), ("sqlite", True)])
def test_small_work_needs_a_thread_only_where_the_store_takes_time(store: str, threaded: bool, tmp_path: Path) -> None:
    service = Service(Settings(store="memory" if store == "memory" else str(tmp_path / "a.db")))
    here = threading.get_ident()
    found = [anyio.run(service.work, threading.get_ident, 10), anyio.run(service.store, threading.get_ident)]
    assert [ident != here for ident in found] == [threaded, threaded]
    service.close()


def test_it_is_not_ready_while_it_stops_nor_without_its_store(tmp_path: Path) -> None:
    service = Service(Settings(store=str(tmp_path / "missing" / "a.db")))
    assert not service.ready()
    with pytest.raises(ConfigError):
        service.instances.ids()
    good = Service(Settings())
    assert good.ready()
    good.draining = True
    assert not good.ready()
