"""Coming back after a loss: another backend in place of the one that is gone.

The device keeps its identity: its handle takes over the new instance of libblkio, in which everything is
mapped again that was mapped in the old one. Limits, queues, bounce pools, regions and arenas stay as they
are, so the new device must accept whatever the old one did.

With ``reconnect_for``, requests in flight outlive the loss. They are made again, which is right only if the
old backend cannot execute them any more, late, over what has been written since: hence nothing is made again
before its process has ended. That it has closed the connection is not enough.

What the old backend had acknowledged is in the kernel's cache, and nobody makes it again. A flush is to cover
it all the same, but QEMU's passes none on before its own process has written something. So a place that was
changed since the last flush is written once more, with what is there, before anything else is done.
"""

import asyncio
import errno
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, final

from .._libblkio.handle import Blkio
from .._libblkio.limits import Limits
from .._libblkio.loans import Loans
from .._libblkio.mem_region import MemRegion
from .._libblkio.options import DriverOptions
from .._libblkio.rewriting import rewrite
from .._sync.blocking import BlockingCall
from .._sync.clock import now
from .._sync.tasks import start_steadfast_task
from ..errors import BlkioError, DeviceLostError, request_error
from .connection import Connection, add_queue, connect
from .lock import FileLock
from .peer import Peer
from .session import Session

__all__ = ["Again", "IncompatibleError", "Recovery", "Wanted", "connect_again", "release_old"]

T = TypeVar("T")

_FIRST_PAUSE = 0.01  # seconds between attempts; it doubles
_LONGEST_PAUSE = 0.5
_LOOK_AGAIN = 0.1  # seconds; how often to see whether somebody still waits for the other backend


class IncompatibleError(DeviceLostError):
    """What answers now is not the device that was lost."""


# --- one attempt --------------------------------------------------------------------------------------------


class Wanted(NamedTuple):
    """What the device that is opened again must have, for everything to go on with it."""

    limits: Limits
    capacity: int
    queues: int
    """Queues, those included that were added."""
    regions: tuple[MemRegion, ...]
    """What is to be mapped, in the order in which it was."""
    lock: FileLock | None
    """Of the file that it is to be."""
    unflushed: int | None = None
    """Where there is what the next flush has to cover, although this connection will not have written it."""
    seconds: float = 0.0
    """For which the device may take to answer then."""


@final
class Again(NamedTuple):
    """One attempt, for a worker thread. What is to be mapped is lent to it: nobody needs to wait for the
    thread in order to be rid of a region."""

    make: Callable[[], Connection]
    undo: Callable[[Connection], None]
    end: Callable[[], None]
    """Of the loan, once the connection has been taken, or there is none; idempotent."""


def connect_again(options: DriverOptions, wanted: Wanted, loans: Loans) -> Again:
    """The attempt to come back with what is wanted. Until it ends, the regions are lent."""
    end = loans.lend(wanted.regions)

    def make() -> Connection:
        try:
            return _connect_again(options, wanted)
        except BaseException:
            end()
            raise

    def undo(connection: Connection) -> None:
        try:
            connection.close()
        finally:
            end()

    return Again(make, undo, end)


def _connect_again(options: DriverOptions, wanted: Wanted) -> Connection:
    """Connect, and prepare the new instance for taking the old one's place. Blocks.

    Raises:
        IncompatibleError: the new device accepts less than the old one.
        DeviceLostError: it was given something, does not answer, and may do it at any time.
        BlkioError: it cannot be reached or used (yet).
    """
    connection = connect(options, wanted.lock)
    try:
        problem = incompatibility(wanted.limits, connection.limits)
        if connection.capacity < wanted.capacity:
            problem = f"the device has {connection.capacity} bytes now, and had {wanted.capacity}"
        if problem is not None:
            raise IncompatibleError(
                f"another device answers: {problem}",
                driver=options.driver,
                operation="reconnect",
                filename=options.name,
            )
        if wanted.unflushed is not None:
            _have_flushes_cover(connection, wanted.unflushed, wanted.seconds)
        while connection.handle.queue_count < wanted.queues:
            add_queue(connection.handle)
        if wanted.limits.needs_mem_regions:
            for region in wanted.regions:
                connection.handle.map_mem_region(region)
    except BaseException:
        connection.close()
        raise
    return connection


def _have_flushes_cover(connection: Connection, place: int, seconds: float) -> None:
    """Flushes of the new connection are passed on, since it has written something itself.

    DeviceLostError: it may still write, late, over what comes after, so nothing may come after.
    """
    handle, peer, end = connection.handle, connection.peer, now() + seconds

    def go_on() -> None:
        if peer is not None and peer.has_hung_up():
            if peer.has_ended(end):
                text = "its process has ended, too"
                raise request_error(handle.driver, "reconnect", errno.ENODEV, text, filename=handle.filename)
            text = f"it has closed the connection, and its process, {peer.pid}, has not ended"
            raise DeviceLostError(text, driver=handle.driver, operation="reconnect", filename=handle.filename)
        if now() >= end:
            text = f"another backend is there, and has not answered for {seconds:g} seconds"
            raise DeviceLostError(text, driver=handle.driver, operation="reconnect", filename=handle.filename)

    block = max(connection.limits.request_alignment, 1)
    rewrite(handle, place // block * block, block, go_on)


def release_old(handle: Blkio) -> None:
    """Destroy the handle's instance and leave it with one that is connected to nothing. Blocks."""
    old = Blkio(handle.driver)
    handle.exchange(old)
    old.destroy(in_use=True)


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

    def __init__(self, session: Session, peer: Peer, seconds: float, is_worth_it: Callable[[], bool]) -> None:
        self._session = session
        self._peer = peer
        self._seconds = seconds
        self._is_worth_it = is_worth_it
        self._loan: Callable[[], None] = lambda: None
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.time() + seconds
        self._stopped: asyncio.Future[None] = self._loop.create_future()

    def stop(self) -> None:
        """Do not try any longer."""
        if not self._stopped.done():
            self._stopped.set_result(None)

    def end_loan(self) -> None:
        """The connection that run() has returned has its place: what was mapped is its owners' again."""
        self._loan()

    async def run(self) -> Connection:
        """A connection that can take the old one's place: the caller's, who owns it in the same turn.

        Raises DeviceLostError when there is no more time, or no more sense in trying.
        """
        problem = "its queues were not told in time"
        try:
            await self._within(start_steadfast_task(self._loop, self._session.queues.suspend()))
            problem = f"its process, {self._peer.pid}, has not ended"
            await self._death()
            problem = "its queues were not told in time"
            await self._within(start_steadfast_task(self._loop, self._session.queues.recall()))
            problem = "a call to it has not returned"
            await self._within(start_steadfast_task(self._loop, self._session.memory.calls.until_idle()))
            pause = _FIRST_PAUSE
            while True:
                try:
                    return await self._connect_again()
                except DeviceLostError:  # for good
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
            raise DeviceLostError(text, driver=self._session.options.driver) from None

    async def _connect_again(self) -> Connection:
        session, handle = self._session, self._session.handle
        regions = session.memory.wanted_regions() | session.queues.bounce_regions()
        wanted = Wanted(
            session.limits,
            session.capacity,
            handle.queue_count,
            tuple(region for region in handle.mapped_regions if region in regions),
            session.lock,
            session.core.unflushed,
            min(self._end - self._loop.time(), session.options.lost_after or math.inf),
        )
        # Until it is taken, the connection is the call's, which closes it if time is up.
        again = connect_again(session.options, wanted, handle.loans)
        try:
            call = BlockingCall(again.make, undo=again.undo)
        except BlkioError:
            again.end()
            raise
        try:
            await self._within(call.done)
            self._require_wanted()
        except BaseException:
            call.drop()
            del call  # which has the error that keeps this frame
            raise
        self._loan = again.end
        return call.take()

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
        await asyncio.wait([self._stopped], timeout=min(seconds, _LOOK_AGAIN))
        self._require_wanted()
        if self._loop.time() >= self._end:
            raise TimeoutError

    def _require_wanted(self) -> None:
        if self._stopped.done():
            raise TimeoutError
        if not self._is_worth_it():
            text = "the device was closed while it was without a backend"
            raise DeviceLostError(text, driver=self._session.options.driver)

    async def _within(self, future: asyncio.Future[T]) -> T:
        either: list[asyncio.Future[Any]] = [future, self._stopped]
        try:
            while not future.done():
                left = self._end - self._loop.time()
                await asyncio.wait(
                    either,
                    timeout=max(min(left, _LOOK_AGAIN), 0),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not future.done():
                    try:
                        self._require_wanted()
                        if left <= 0:
                            raise TimeoutError
                    except BaseException:
                        future.cancel()
                        raise
            return future.result()
        finally:
            del future, either  # which have the error that keeps this frame


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
