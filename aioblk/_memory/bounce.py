"""The bounce pool: device memory for requests whose own memory the device cannot reach.

The compiled core carves one mapped region into buffers, copies, and gives the buffers back; a request that
fits costs no Python at all. This module decides what happens when one does not fit: who waits, in which
order, and how large the region is.
"""

import asyncio
import errno
import logging
import math
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, final

from .._libblkio.handle import Blkio
from .._libblkio.mem_region import MemRegion
from .._native._core import QueueCore, Request
from .._native.latency import LatencyRecorder
from .._sync.clock import now
from .._sync.loops import running_loop
from .._sync.tasks import start_steadfast_task
from ..errors import BlkioError, DeviceLostError
from .device_memory import DeviceMemory

__all__ = ["BouncePool", "BounceStatistics"]

log: logging.Logger = logging.getLogger("aioblk.memory")

SMALLEST_BUFFER = 512
SLACK = 128 << 10
IDLE_SECONDS = 10.0
SAY_AGAIN = 60.0  # seconds; a pool that is too small is so all the time


@final
@dataclass(frozen=True, slots=True)
class BounceStatistics:
    """What :meth:`BouncePool.statistics` reports. Sizes are in bytes; counts are since the device was
    opened."""

    size: int
    """The pool's region; 0 before the first request that needs it."""
    maximum: int
    """What the region may grow to."""
    in_use: int
    """Of the region, what requests have now."""
    high_water: int
    """The most that was in use at a time."""
    waiting: int
    """Requests that wait for memory now."""
    waits: int
    """Requests that had to wait, a batch being one."""
    seconds_waited: float
    """How long those of them waited, together, that have got memory."""
    requeues: int
    """How often the request at the head was tried, did not fit, and kept its place."""
    grows: int
    """How often the region was replaced by a larger one."""
    shrinks: int
    """How often by a smaller one."""


@final
class _Waiter(NamedTuple):
    request: Request[Any]
    need: int
    since: float


@final
class BouncePool:
    """Who gets bounce memory next, and how much there is of it.

    **Fair.** Requests wait in the order of their submission. As soon as one waits, every newcomer joins the
    back without trying. When memory comes back, the one at the head is tried: if it fits, so may the next,
    which is tried in turn; if not, it stays where it is. Nobody overtakes, and a large request gets its turn
    since nobody takes away what it waits for. A request that was cancelled or has failed while waiting is
    passed over.

    **One region**, empty at first. It is replaced, never resized, so only while nothing in it is in use:

    *   When it proves too small and may still grow, nobody is served until it has run empty. It then grows to
        what the waiting requests want together, at least to twice its size, at most to the maximum. Each step
        doubles, so the pauses are few.
    *   When it has served nobody for ten seconds, it shrinks back to its first size.

    A request larger than the maximum has been split by the core into parts that fit. When the region cannot
    be had, the request at the head fails with the reason; the next one tries again.

    Belongs to one queue and its event loop.
    """

    def __init__(
        self,
        core: QueueCore,
        handle: Blkio,
        memory: DeviceMemory,
        *,
        maximum: int,
        first_size: int,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        """For a queue of a started device; the region never exceeds ``maximum`` bytes, whole pages."""
        self._core = core
        self._handle = handle
        self._memory = memory
        self._granule = max(memory.limits.buf_alignment, SMALLEST_BUFFER)
        self._maximum = memory.round_up(maximum)
        self._first_size = min(memory.round_up(first_size), self._maximum)
        self._idle_seconds = idle_seconds
        self._loop = running_loop("queue")
        self._waiters: deque[_Waiter] = deque()
        self._region: MemRegion | None = None
        self._made: list[MemRegion] = []  # and not given back, be the call that made it interrupted
        self._attempts = 0  # to replace the region: nobody waits any more for any but the last
        self._resizing: asyncio.Task[None] | None = None
        self._emptying = False
        self._closing = False
        self._idle_check: asyncio.TimerHandle | None = None
        self._takes_seen = 0
        self._high_water = 0
        self.times_waited: LatencyRecorder = LatencyRecorder()
        """By those that have got memory."""
        self._waits = 0
        self._requeues = 0
        self._grows = 0
        self._shrinks = 0
        self._said_full = -math.inf
        core.on_bounce = self._enqueue
        core.on_room = self._serve

    def statistics(self) -> BounceStatistics:
        """The state of the pool in this moment."""
        return BounceStatistics(
            size=self._core.bounce_size,
            maximum=self._maximum,
            in_use=self._core.bounce_in_use,
            high_water=max(self._high_water, self._core.bounce_peak),
            waiting=sum(not waiter.request.done() for waiter in self._waiters),
            waits=self._waits,
            seconds_waited=self.times_waited.histogram().sum,
            requeues=self._requeues,
            grows=self._grows,
            shrinks=self._shrinks,
        )

    def _lose(self, error: BaseException) -> None:
        """The device is lost: fail every waiting request, and abandon the memory that the device uses.

        A device with mapped regions holds the memory by itself, and nobody else ever sees it: unmapping ours
        with the device is harmless. Where there are none, the device uses our addresses, which are then never
        given back.
        """
        while self._waiters:
            self._refuse_head(error)
        if self._core.bounce_in_use and self._region is not None:
            self._high_water = max(self._high_water, self._core.bounce_peak)
            self._core.abandon_bounce()
            if not self._memory.limits.needs_mem_regions:
                self._handle.abandon_mem_region(self._region)
                log.info(
                    "%d bytes of bounce memory are never released: %s, which is lost, may write to them",
                    self._region.length,
                    self._handle.subject,
                )
            self._region = None

    async def _aclose(self) -> None:
        """Give the memory back; idempotent. The queue has been drained, or the device is lost."""
        self._closing = True
        if self._idle_check is not None:
            self._idle_check.cancel()
            self._idle_check = None
        while self._resizing is not None:
            await asyncio.wait([self._resizing])
            await asyncio.sleep(0)  # an interrupted one ends a turn later
        if self._region is not None:
            await asyncio.wait([self._start_resizing(0)])
        self._region = None
        self._attempts += 1
        while self._made:  # for want of a thread, or interrupted
            self._handle.give_back_later(self._made.pop())
        self._core.on_bounce = self._core.on_room = None

    # --- waiting --------------------------------------------------------------------------------------------

    def _enqueue(self, request: Request[Any], need: int) -> None:
        """The core's hook: the request, just submitted, found no memory or others waiting."""
        self._waiters.append(_Waiter(request, need, now()))
        self._core.waiting = len(self._waiters)
        self._waits += 1
        if len(self._waiters) == 1 or self._waiters[0].request.done():
            self._serve()

    def _serve(self) -> None:
        """Admit from the head for as long as requests fit. Also the core's hook: memory has come back."""
        if self._core.admitting:  # who admits goes on afterwards
            return
        while self._waiters and self._resizing is None and self._admit_head():
            pass

    def _admit_head(self) -> bool:
        head = self._waiters[0]
        passed_over = head.request.done()
        if passed_over or not self._emptying:
            if self._core.admit(head.request):  # which may run any code, and with it _lose()
                if self._waiters and self._waiters[0] is head:
                    if not passed_over:
                        self.times_waited.add(now() - head.since)
                    self._remove_head()
                return True
            self._requeues += 1
            self._say_that_it_is_full()
        if self._core.bounce_size < self._maximum:
            self._emptying = True
            if not self._core.bounce_in_use:
                _ = self._start_resizing(self._size_wanted())
        return False

    def _say_that_it_is_full(self) -> None:
        if self._core.bounce_size >= self._maximum and self._loop.time() >= self._said_full + SAY_AGAIN:
            self._said_full = self._loop.time()
            log.info(
                "%s: requests wait for bounce memory, all %d bytes of which are in use; register memory, or"
                " open the device with a larger bounce_pool_size",
                self._handle.subject,
                self._maximum,
            )

    def _remove_head(self) -> None:
        self._waiters.popleft()
        self._core.waiting = len(self._waiters)

    def _refuse_head(self, error: BaseException) -> None:
        request = self._waiters[0].request
        self._remove_head()
        if isinstance(error, BlkioError) and not isinstance(error, DeviceLostError):
            # It is about memory, and one for all: what it is to the request, each of its items says itself.
            why = f": {error.message}" if error.message else ""
            self._core.fail(request, error.errno or errno.EIO, f"there is no bounce memory to be had{why}")
        else:
            self._core.refuse(request, error)

    # --- growing and shrinking ------------------------------------------------------------------------------

    def _size_wanted(self) -> int:
        """For all who wait, with some slack for the next; at least a doubling, at most the cap."""
        wanted = sum(waiter.need for waiter in self._waiters) + SLACK
        wanted = max(wanted, 2 * self._core.bounce_size, self._first_size)
        return min(self._memory.round_up(wanted), self._maximum)

    def _start_resizing(self, size: int) -> asyncio.Task[None]:
        """Replace the region, in which nothing is in use; from this moment on newcomers wait."""
        self._high_water = max(self._high_water, self._core.bounce_peak)
        before = self._core.bounce_size
        self._core.detach_bounce()
        self._resizing = start_steadfast_task(self._loop, self._resize(before, size))
        self._resizing.add_done_callback(self._end_interrupted)
        return self._resizing

    def _end_interrupted(self, resizing: asyncio.Task[None]) -> None:
        """Where KeyboardInterrupt or SystemExit has ended it, another begins for who waits."""
        if resizing.cancelled() or resizing.exception() is None:
            return
        if self._resizing is resizing:
            self._resizing, self._emptying = None, False
        self._serve()

    async def _resize(self, before: int, size: int) -> None:
        self._region = None
        self._attempts += 1
        replace = partial(self._replace_region, self._attempts, size)
        try:
            self._region = await self._memory.calls.make("allocate", replace)
            if self._region is not None:
                self._core.attach_bounce(self._region.address, self._region.length, self._granule)
        except Exception as error:  # whatever it is, nobody may be left waiting
            self._resizing, self._emptying = None, False
            if self._waiters:
                self._refuse_head(error)
        else:
            self._resizing, self._emptying = None, False
            self._count_resize(before, size)
            self._watch_for_idleness()
        self._serve()

    def _replace_region(self, attempt: int, size: int) -> MemRegion | None:
        """In a worker thread. After an error there is neither the old region nor a new one.

        It is called again when the device has come back in the meantime, or when who waited was interrupted.
        """
        if attempt != self._attempts:
            return None  # its thread comes late, and what there is now is another's
        while self._made:
            self._handle.give_back_mem_region(self._made[-1])
            self._made.pop()
        if size == 0:
            return None
        new = self._handle.alloc_mem_region(size)
        self._made.append(new)
        if self._memory.limits.needs_mem_regions:
            try:
                self._handle.map_mem_region(new)
            except BaseException:
                self._handle.give_back_mem_region(self._made.pop())
                raise
        return new

    def _count_resize(self, before: int, after: int) -> None:
        if after > before:
            self._grows += 1
        elif after > 0:
            self._shrinks += 1

    def _watch_for_idleness(self) -> None:
        if self._core.bounce_size > self._first_size and self._idle_check is None and not self._closing:
            self._takes_seen = self._core.bounce_takes
            self._idle_check = self._loop.call_later(self._idle_seconds, self._check_idleness)

    def _check_idleness(self) -> None:
        self._idle_check = None
        idle = self._core.bounce_takes == self._takes_seen and not self._core.bounce_in_use
        if idle and not self._waiters and self._resizing is None:
            _ = self._start_resizing(self._first_size)
        else:
            self._watch_for_idleness()
