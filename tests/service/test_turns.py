"""Waiting in line: in order, not for ever, and nobody takes a turn along."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from qi.service.turns import Turns


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 20))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_who_has_waited_longest_comes_first() -> None:
    async def work() -> None:
        turns, came = Turns(lambda: None), []

        async def wait(name: int) -> None:
            assert await turns.wait(20)
            came.append(name)

        tasks = [asyncio.create_task(wait(name)) for name in range(3)]
        await settle()
        assert len(turns) == 3
        for count in (1, 2, 3):
            assert turns.call()
            await settle()
            assert came == list(range(count))
        assert not turns.call()
        await asyncio.gather(*tasks)

    run(work)


def test_waiting_ends() -> None:
    async def work() -> None:
        turns = Turns(lambda: None)
        assert not await turns.wait(0.01)
        assert not await turns.wait(-1)
        assert len(turns) == 0
        assert not turns.call()

    run(work)


def test_a_turn_that_comes_with_the_end_of_the_time_counts() -> None:
    async def work() -> None:
        turns = Turns(lambda: None)
        loop = asyncio.get_running_loop()
        waiting = asyncio.create_task(turns.wait(0.01))
        await settle()
        # Both in one step of the loop: the call first, then the time-out before the task has run again.
        loop.call_at(loop.time() + 0.005, turns.call)
        time.sleep(0.03)
        assert await waiting

    run(work)


def test_who_leaves_passes_its_turn_on() -> None:
    async def work() -> None:
        unused: list[str] = []
        turns = Turns(lambda: unused.append("turn"))
        gone, called = (asyncio.create_task(turns.wait(20)) for _ in range(2))
        await settle()
        gone.cancel()
        await settle()
        assert (unused, len(turns)) == ([], 1)  # it had none
        assert turns.call()
        called.cancel()
        await asyncio.wait({called})
        assert unused == ["turn"]

    run(work)
