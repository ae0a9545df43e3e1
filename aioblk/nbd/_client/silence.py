"""A server that answers no more: it has commands, and nothing comes.

As with libblkio's devices (_queues/silence.py), nothing is added to the path of a request. Four times in the
longest time allowed a tick passes. A connection is silent when more than four have passed in which it had
commands and no more than a trickle went either way, or when its oldest command is that old and one that was
sent so much later has been answered. While the loop stands still no tick passes.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import final

from ..._sync.ticker import Ticker
from .connection import Connection

__all__ = ["SilenceWatch"]

TICKS = 4
LEAST = 4096  # bytes in a tick; less is silence


@final
class SilenceWatch:
    """Of all connections of a device."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        lost_after: float,
        connections: Callable[[], Iterable[Connection]],
        on_silence: Callable[[str], object],
    ) -> None:
        """*on_silence* is called with what has not been answered for *lost_after* seconds."""
        self._lost_after = lost_after
        self._connections = connections
        self._on_silence = on_silence
        self._seen: dict[Connection, tuple[int, int, int]] = {}  # bytes moved, answers, ticks of silence
        self._ticker = Ticker(loop, lost_after / TICKS, self._tick)

    @property
    def is_watching(self) -> bool:
        return self._ticker.is_running

    def stop(self) -> None:
        self._ticker.stop()

    def _tick(self) -> None:
        seen, self._seen = self._seen, {}
        for connection in self._connections():
            connection.tick += 1
            if not connection.in_flight:
                continue
            connection.look()  # the loop may have been kept from taking what has been there for long
            oldest = next(iter(connection.in_flight.values()), None)
            if oldest is None or connection.over is not None:
                continue
            moved, answers, ticks = seen.get(connection, (connection.moved, connection.answers, 0))
            is_still = connection.moved - moved < LEAST and connection.answers == answers
            ticks = ticks + 1 if is_still and connection in seen else 0
            self._seen[connection] = connection.moved, connection.answers, ticks
            if ticks >= TICKS or connection.answered_tick - oldest.tick > TICKS:
                self._on_silence(
                    f"the server has not answered for {self._lost_after:g} seconds (lost_after); the oldest"
                    f" command that it has is at offset {oldest.offset}, length {oldest.length}"
                )
                return
