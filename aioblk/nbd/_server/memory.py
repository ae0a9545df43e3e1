"""The memory that clients' data travel through, divided so that nobody can take it away from the others.

Half of it is shared out evenly: each client has as much for itself as there would be if all places were
taken. The other half is for who can use it, but nobody holds more of it than is left then. So one client
alone gets a quarter of all there is, and however many hold on to all they can get, the next one still has its
own.
"""

import asyncio
from typing import final

from ..._memory.arena import Arena, ArenaBuffer

GRANULE = 4096  # what the smallest buffer takes


@final
class Memory:
    """All of it. Belongs to one event loop."""

    def __init__(self, arena: Arena, *, clients: int) -> None:
        """What is free of an arena, for at most so many clients at a time: a page for each at least."""
        statistics = arena.statistics()
        size = statistics.size - statistics.in_use
        self.own = max(GRANULE, size // 2 // clients // GRANULE * GRANULE)
        self.left = size - clients * self.own  # of the other half
        if self.left < 0:
            raise ValueError(f"{size} bytes are too little for {clients} clients")
        self.arena = arena
        self.waiting: list[tuple[Share, int, asyncio.Future[int]]] = []  # in the order of arrival

    def share(self) -> "Share":
        """A client's."""
        return Share(self)

    def wake(self) -> None:
        """Something has been given back: let those have it who wait for it and may."""
        still: list[tuple[Share, int, asyncio.Future[int]]] = []
        for waiter in self.waiting:
            share, size, granted = waiter
            if granted.done():  # cancelled
                continue
            if got := share.reserve(size):
                granted.set_result(got)
            else:
                still.append(waiter)
        self.waiting = still


@final
class Share:
    """What one client holds."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._held = 0

    async def take(self, length: int) -> ArenaBuffer:
        """A buffer of *length* bytes, as soon as the client may have that many.

        A client that holds nothing gets a buffer at once, but a shorter one if it can never have that many as
        things are: who wants more takes it piece by piece.
        """
        size = _whole(length)
        granted = self.reserve(size) or await self._wait(size)
        arena, length = self._memory.arena, min(length, granted)
        try:
            try:
                return arena.allocate(length)
            except MemoryError:
                buffer = await arena.acquire(length, at_least=min(length, GRANULE))
        except BaseException:
            self._return(granted)
            raise
        if (excess := granted - _whole(len(buffer))) > 0:  # there is as much, but not in a row
            self._return(excess)
        return buffer

    def give_back(self, buffer: ArenaBuffer) -> None:
        """Nobody uses the buffer any more."""
        size = _whole(len(buffer))
        buffer.release()
        self._return(size)

    def reserve(self, size: int) -> int:
        """How much of it the client may have now: everything, unless it holds nothing, or nothing."""
        own = self._memory.own
        if (held := self._held + size) <= own:
            self._held = held
            return size
        beyond = max(0, self._held - own)  # of the half that is not shared out
        most = own + max(beyond, (self._memory.left + beyond) // 2 // GRANULE * GRANULE)
        if held > most:
            if self._held:
                return 0
            size = most
        self._hold(size)
        return size

    async def _wait(self, size: int) -> int:
        granted: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._memory.waiting.append((self, size, granted))
        try:
            return await granted
        except BaseException:
            if granted.done() and not granted.cancelled():
                self._return(granted.result())
            raise

    def _return(self, size: int) -> None:
        self._hold(-size)
        if self._memory.waiting:
            self._memory.wake()

    def _hold(self, size: int) -> None:
        own = self._memory.own
        before = max(0, self._held - own)
        self._held += size
        if not before and self._held <= own:
            return
        self._memory.left -= max(0, self._held - own) - before


def _whole(length: int) -> int:
    return -(-length // GRANULE) * GRANULE
