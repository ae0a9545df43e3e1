"""Coming back after a loss: another backend in place of the one that is gone.

The device keeps its identity: its handle takes over the new instance of libblkio, in which everything is
mapped again that was mapped in the old one. Limits, queues, bounce pools, regions and arenas stay as they
are, so the new device must accept whatever the old one did.

With ``reconnect_for``, requests in flight outlive the loss. They are made again, which is right only if the
old backend cannot execute them any more, late, over what has been written since: hence nothing is made again
before its process has ended. That it has closed the connection is not enough.
"""

import asyncio
import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, final

from ._blocking import start_blocking
from ._connection import Connection, connect
from ._handle import Blkio, MemRegion
from ._peer import Peer
from ._tasks import start_steadfast_task
from .errors import BlkioError, DeviceLostError
from .limits import Limits

if TYPE_CHECKING:
    from ._bound_queues import BoundQueues
    from .drivers._options import DriverOptions
    from .memory import DeviceMemory

__all__ = ["IncompatibleError", "Recovery", "open_again", "release_old"]

T = TypeVar("T")

_FIRST_PAUSE = 0.01  # seconds between attempts; it doubles
_LONGEST_PAUSE = 0.5


class IncompatibleError(DeviceLostError):
    """What answers now is not the device that was lost."""


# --- one attempt --------------------------------------------------------------------------------------------


async def open_again(
    options: "DriverOptions",
    handle: Blkio,
    regions: Callable[[], Iterable[MemRegion]],
    limits: Limits,
    capacity: int,
    within: Callable[[asyncio.Future[Any]], Any],
    require_wanted: Callable[[], None],
) -> Connection:
    """Connect, map *regions*, and let *handle* take over. What is returned has the handle's old instance.

    *within* awaits a future for as long as there is time; *require_wanted* raises if nobody waits any more.

    Raises:
        IncompatibleError: the new device accepts less than the old one.
        BlkioError: it cannot be reached or used (yet).
    """
    connection: Connection = await within(
        start_blocking(functools.partial(connect, options), undo=Connection.close)
    )
    try:
        require_wanted()
        prepare = functools.partial(_prepare, connection, limits, capacity, list(regions()))
        await within(start_blocking(prepare))
        require_wanted()
    except BaseException:
        if connection.peer is not None:
            connection.peer.hang_up()  # a thread may be waiting for its answer
        start_blocking(connection.close)
        raise
    handle.exchange(connection.handle)
    return connection


def _prepare(connection: Connection, limits: Limits, capacity: int, regions: list[MemRegion]) -> None:
    """In a worker thread."""
    handle = connection.handle
    problem = incompatibility(limits, Limits.read(handle))
    if connection.capacity < capacity:
        problem = f"the device has {connection.capacity} bytes now, and had {capacity}"
    if problem is not None:
        raise IncompatibleError(f"another device answers: {problem}", driver=handle.driver)
    if limits.needs_mem_regions:
        for region in regions:
            handle.map_mem_region(region)


def release_old(handle: Blkio) -> None:
    """Destroy the handle's instance and leave it with one that is connected to nothing. Blocks."""
    old = Blkio(handle.driver)
    handle.exchange(old)
    old.destroy()


def incompatibility(old: Limits, new: Limits) -> str | None:
    """What the new device accepts less of than the old one, if anything."""
    for name in ("request_alignment", "buf_alignment", "mem_region_alignment", "discard_alignment"):
        before, now = max(getattr(old, name), 1), max(getattr(new, name), 1)
        if before % now:
            return f"{_dashed(name)} is {now} now, and was {before}"
    if old.discard_alignment_offset != new.discard_alignment_offset:
        return "discard-alignment-offset has changed"
    for name in (
        "max_transfer",
        "max_segments",
        "max_segment_len",
        "max_discard_len",
        "max_write_zeroes_len",
        "max_mem_regions",
    ):
        before, now = getattr(old, name), getattr(new, name)
        if 0 < now < (before or now + 1):
            return f"{_dashed(name)} is {now} now, and was {before or 'unlimited'}"
    for name in ("needs_mem_regions", "needs_mem_region_fd", "flush_needed"):
        if getattr(new, name) and not getattr(old, name):
            return f"{_dashed(name)} is true now"
    if old.can_grow and not new.can_grow:
        return "can-grow is false now"
    return None


def _dashed(name: str) -> str:
    return name.replace("_", "-")


# --- attempts until there is no more time -------------------------------------------------------------------


@final
class Recovery:
    """From the moment that a backend has hung up until another one has its place, or time is up."""

    def __init__(
        self,
        options: "DriverOptions",
        handle: Blkio,
        limits: Limits,
        capacity: int,
        memory: "DeviceMemory",
        queues: "BoundQueues",
        peer: Peer,
        seconds: float,
    ) -> None:
        self._options = options
        self._handle = handle
        self._limits = limits
        self._capacity = capacity
        self._memory = memory
        self._queues = queues
        self._peer = peer
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.time() + seconds
        self._stopped = self._loop.create_future()

    def stop(self) -> None:
        """Do not try any longer."""
        if not self._stopped.done():
            self._stopped.set_result(None)

    async def run(self) -> Connection:
        """The new connection, which has the old instance of libblkio, when everything goes on with it.

        Raises DeviceLostError when there is no more time, or no more sense in trying.
        """
        problem = "its queues were not told in time"
        try:
            await self._within(start_steadfast_task(self._loop, self._queues.suspend()))
            problem = f"its process, {self._peer.pid}, has not ended"
            await self._death()
            problem = "its queues were not told in time"
            await self._within(start_steadfast_task(self._loop, self._queues.recall()))
            problem = "a call to it has not returned"
            await self._within(start_steadfast_task(self._loop, self._memory.until_idle()))
            pause = _FIRST_PAUSE
            while True:
                try:
                    return await open_again(
                        self._options,
                        self._handle,
                        self._regions,
                        self._limits,
                        self._capacity,
                        self._within,
                        self._require_wanted,
                    )
                except IncompatibleError:
                    raise
                except BlkioError as error:
                    problem = str(error)
                await self._pause(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        except TimeoutError:
            text = (
                f"the backend has closed the connection, and within {self._seconds:g} seconds"
                f" (reconnect_for) no other took its place: {problem}"
            )
            raise DeviceLostError(text, driver=self._options.driver) from None

    def _regions(self) -> list[MemRegion]:
        wanted = self._memory.wanted_regions() | self._queues.bounce_regions()
        return [region for region in self._handle.mapped_regions if region in wanted]

    async def _death(self) -> None:
        if self._peer.process is None:
            raise TimeoutError
        died: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(self._peer.process, _settle, died)
        try:
            await self._within(died)
        finally:
            self._loop.remove_reader(self._peer.process)

    async def _pause(self, seconds: float) -> None:
        await asyncio.wait([self._stopped], timeout=seconds)
        self._require_wanted()
        if self._loop.time() >= self._end:
            raise TimeoutError

    def _require_wanted(self) -> None:
        if self._stopped.done():
            raise TimeoutError

    async def _within(self, future: asyncio.Future[T]) -> T:
        left = max(self._end - self._loop.time(), 0)
        await asyncio.wait([future, self._stopped], timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if not future.done():
            future.cancel()
            raise TimeoutError
        return future.result()


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
