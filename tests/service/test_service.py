from __future__ import annotations

import threading
from pathlib import Path

import anyio
import pytest

from qi.errors import ConfigError
from qi.service.service import SMALL, Service
from qi.service.settings import Settings
from qi.service.store import UnavailableError


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
def test_only_large_work_and_stores_that_take_time_need_threads(store: str, threaded: bool, tmp_path: Path) -> None:
    service = Service(Settings(store="memory" if store == "memory" else str(tmp_path / "a.db")))
    here = threading.get_ident()
    assert anyio.run(service.work, threading.get_ident, SMALL) == here
    assert anyio.run(service.work, threading.get_ident, SMALL + 1) != here
    assert (anyio.run(service.store, threading.get_ident) != here) is threaded
    service.close()


def test_who_waits_for_the_store_keeps_nobody_from_computing(tmp_path: Path) -> None:
    service = Service(Settings(store=str(tmp_path / "a.db"), workers_threads=1, max_queue=20))
    service.instances.ids()
    released, order = threading.Event(), []

    async def use() -> None:
        async def store() -> None:
            await service.store(lambda: released.wait(timeout=60))
            order.append("stored")

        async with anyio.create_task_group() as group:
            for _ in range(21):  # as many as are let in at a time
                group.start_soon(store)
            await anyio.sleep(0)
            await service.work(lambda: order.append("computed"), SMALL + 1)
            await service.store(lambda: order.append("read"))
            released.set()

    anyio.run(use)
    assert order == ["computed", "read", *["stored"] * 21]
    service.close()


def test_nobody_waits_for_ever_for_a_turn_at_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qi.service.service._STORE_WAIT", 0.1)
    service = Service(Settings(store=str(tmp_path / "a.db")))
    service.instances.ids()
    monkeypatch.setattr(service, "_storing", anyio.CapacityLimiter(1))
    released, told = threading.Event(), []

    async def use() -> None:
        async def first() -> None:
            told.append(await service.store(lambda: released.wait(timeout=60)))  # longer than one waits for a turn

        async with anyio.create_task_group() as group:
            group.start_soon(first)
            await anyio.sleep(0.02)
            with pytest.raises(UnavailableError, match="too many wait"):
                await service.store(lambda: told.append("late"))
            released.set()

    anyio.run(use)
    assert told == [True]
    service.close()


def test_it_is_not_ready_while_it_stops_nor_without_its_store(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    service = Service(Settings(store=str(tmp_path / "missing" / "a.db")))
    assert not service.ready()
    assert ("qi.service.store", "ERROR") in [(record.name, record.levelname) for record in caplog.records]
    with pytest.raises(ConfigError):
        service.instances.ids()
    good = Service(Settings())
    assert good.ready()
    good.draining = True
    assert not good.ready()
