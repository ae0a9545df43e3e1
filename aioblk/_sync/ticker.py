"""What happens again and again on a loop, until it is stopped: ``call_later()`` does a thing once."""

import asyncio
from collections.abc import Callable
from typing import final

__all__ = ["Ticker"]


@final
class Ticker:
    """Runs from when it is made until it is stopped. While the loop stands still no tick passes, and none is
    made up for."""

    __slots__ = ("_every", "_loop", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, every: float, tick: Callable[[], object]) -> None:
        """*tick* is called every so many seconds, for the first time when so many have passed. What it raises
        is the loop's, and the next one comes all the same."""
        self._loop = loop
        self._every = every
        # The timer alone has the tick, so that a ticker that has stopped is in no circle with who has it.
        self._timer: asyncio.TimerHandle | None = loop.call_later(every, self._run, tick)

    @property
    def is_running(self) -> bool:
        return self._timer is not None

    def stop(self) -> None:
        """No tick comes any more; idempotent, and may be called by a tick."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _run(self, tick: Callable[[], object]) -> None:
        self._timer = self._loop.call_later(self._every, self._run, tick)
        tick()
