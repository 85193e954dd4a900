"""A line of requests that wait for their turn, for a moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["Turns"]


class Turns:
    """Who has waited longest comes first. It belongs to one event loop.

    Args:
        unused: Is called where a turn came to somebody who was leaving: what it was a turn for is free again.
    """

    def __init__(self, unused: Callable[[], None]) -> None:
        self._unused = unused
        self._line: dict[asyncio.Future[None], None] = {}

    def __len__(self) -> int:
        return len(self._line)

    async def wait(self, seconds: float) -> bool:
        """Waits until `call` reaches this one.

        Args:
            seconds: How long at most.

        Returns:
            whether it did.
        """
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line[turn] = None
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await turn
        except TimeoutError:
            return turn.done() and not turn.cancelled()  # both came at the same time
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._unused()
            raise
        finally:
            self._line.pop(turn, None)
        return True

    def call(self) -> bool:
        """Tells the first that its turn has come; False if nobody waits."""
        while self._line:
            turn = next(iter(self._line))
            del self._line[turn]
            if not turn.done():
                turn.set_result(None)
                return True
        return False
