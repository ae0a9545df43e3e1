"""A machine that the network does not reach any more, while it has been sent something.

The kernel's keepalive is for connections that are idle: while something is under way it repeats that instead,
for a quarter of an hour. Its TCP_USER_TIMEOUT is shorter, and no help: it also ends the connection to a
server that is there and receives nothing for so long. Such a server is only slow, and would do later what it
was sent, after what would be sent to the next one. So it is looked at here what the kernel knows: whether it
repeats itself, and when it last heard from the peer's.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import final

from ..._sync.ticker import Ticker
from .connection import Connection

__all__ = ["ReachWatch"]

TICKS = 4


@final
class ReachWatch:
    """Of all connections of a device."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        dead_after: float,
        connections: Callable[[], Iterable[Connection]],
    ) -> None:
        """What has not been acknowledged for *dead_after* seconds, and at most a quarter longer, ends."""
        self._dead_after = dead_after
        self._connections = connections
        self._seen: dict[Connection, int] = {}  # ticks in which nothing was heard
        self._ticker = Ticker(loop, dead_after / TICKS, self._tick)

    def stop(self) -> None:
        self._ticker.stop()

    def _tick(self) -> None:
        seen, self._seen = self._seen, {}
        for connection in tuple(self._connections()):
            if connection.over is None and connection.is_unheard_for(self._dead_after / TICKS):
                ticks = self._seen[connection] = seen.get(connection, -1) + 1
                if ticks >= TICKS:
                    connection.end(
                        f"the server's machine has not been reached for {self._dead_after:g} seconds"
                    )
