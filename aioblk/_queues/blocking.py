"""A queue for threads without an event loop: submit as elsewhere, and block until it is done.

It suits a thread that has nothing else to do and wants the lowest latency, on a poll queue above all: there
libblkio, or the kernel, watches the device actively while the thread waits.
"""

import contextlib
import errno
import mmap
import os
import threading
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar, final

from .._native._core import QueueCore, Request, Submitter
from .._sync.clock import now
from ..errors import BlkioError, DeviceClosedError, DeviceLostError, UsageError
from .discard import discard
from .queue import QueueContext
from .silence import TICKS, describe_silence
from .statistics import QueueStatistics

__all__ = ["BlockingQueue"]

T = TypeVar("T")

_BOUNCE_BYTES = 2 << 20  # two of the largest parts
_BOUNCE_GRANULE = 4096
_SLICE = 0.25  # seconds; how often a thread that waits looks whether the device has been lost


@final
class BlockingQueue(Submitter):
    """One queue of a device, used from the thread that bound it, without an event loop.

    ::

        with dev.blocking_queue(0, poll=True) as queue:      # in a thread of its own
            data = queue.wait(queue.read(0, 4096))
            queue.wait(queue.write_many(pairs), timeout=1.0)

    Request methods submit as everywhere, many at a time if you like; :meth:`wait` gives the result. Requests
    of a blocking queue cannot be awaited.
    """

    def __init__(self, context: QueueContext, index: int, *, poll: bool) -> None:
        self.index = index
        self.poll = poll
        self._context = context
        self._thread = threading.get_ident()
        self.device: object = None
        """Once the queue was handed out: it keeps the device, which ends with its last reference."""
        with contextlib.ExitStack() as undo:
            handle = context.handle
            address, _fd = handle.take_queue(index, poll=poll)
            undo.callback(handle.give_queue, index, poll=poll)
            core = QueueCore(context.device, address, -1, None, context.depth)
            core.on_bounce = self._make_room
            core.on_broken = self._on_broken
            if context.discards_by_hook:
                core.on_discard = self._discard
            self._region = handle.alloc_mem_region(-(-_BOUNCE_BYTES // mmap.PAGESIZE) * mmap.PAGESIZE)
            undo.callback(handle.give_back_mem_region, self._region)
            self._mapped = bool(handle.get("needs-mem-regions"))
            if self._mapped:
                handle.map_mem_region(self._region)
            core.attach_bounce(self._region.address, self._region.length, _BOUNCE_GRANULE)
            undo.pop_all()
        self._core = core
        self._ended = QueueStatistics.none()  # what was counted, once there is no core
        self._has_sight = False
        self._apply_sight()
        self._turn = threading.RLock()  # of the thread while it waits for the device, or of who gives it up
        self._lost: BlkioError | None = None
        self._slice = _SLICE if context.lost_after is None else min(_SLICE, context.lost_after / TICKS)
        self._next_tick = 0.0
        self._is_waiting: bool = False
        """Whether the thread is waiting for the device now."""

    def wait(self, request: Request[T], timeout: float | None = None) -> T:
        """The outcome of a request of this queue, as soon as it is known. Signals are handled meanwhile.

        Raises:
            BlkioError: the request has failed; DeviceLostError, within a quarter of a second, when the device
                is lost.
            TimeoutError: it was not done within *timeout* seconds. It goes on; wait again, or cancel it.
        """
        if not self._wait(request, -1 if timeout is None else max(timeout, 0)):
            raise TimeoutError(f"{request!r} was not done within {timeout} seconds")
        return request.result()

    def close(self) -> None:
        """Refuse new requests, wait for those in flight and free the queue; idempotent."""
        if self._core is None:
            return
        if not self._is_bound_here():
            handle = self._context.handle
            raise UsageError(
                f"{self!r} belongs to another thread",
                driver=handle.driver,
                operation="close queue",
                filename=handle.filename,
            )
        self._refuse()
        while self.in_flight:
            self._wait(None, -1)
        if not self._let_go():
            return
        try:
            if self._lost is None:
                self._context.handle.give_back_mem_region(self._region)
        finally:
            self._context.on_released(self)

    def _refuse(self) -> None:
        """Refuse new requests, from any thread."""
        if self._core is not None and self._lost is None:
            self._core.close("closed")

    def _give_up(self, error: BlkioError) -> bool:
        """Close the queue from another thread, when its own does not use it any more. False: it does."""
        if not self._let_go(error):
            return False
        self._context.on_released(self)
        return True

    def _let_go(self, error: BlkioError | None = None) -> bool:
        """What is in flight, if anything, fails with *error*.

        False: another thread has been faster, or the queue's own has just begun to wait for the device.
        """
        if not self._turn.acquire(blocking=error is None):
            return False
        try:
            if self._core is None:
                return False
            self._ended = QueueStatistics.of(self._core)
            core, self._core = self._core, None
            self._end(core, error)
        finally:
            self._turn.release()
        return True

    def _apply_sight(self) -> None:
        """Have that noted of requests which somebody wants to know now: from any thread, the queue's own does
        when it waits next."""
        self._has_sight = self._is_bound_here()
        if self._has_sight and self._core is not None:
            self._context.sight.apply_to(self._core)

    def _end(self, core: QueueCore, error: BlkioError | None) -> None:
        if error is not None:
            self._lost = error
            core.adopt()
            core.abandon(error)
        if core.bounce_in_use:  # by abandoned requests
            core.abandon_bounce()
            if not self._mapped:
                self._context.handle.abandon_mem_region(self._region)  # see BouncePool._lose()
        else:
            core.detach_bounce()
        self._ended = QueueStatistics.of(core)
        core.dispose()
        self._context.handle.give_queue(self.index, poll=self.poll)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _dispose(self) -> None:
        """Let go of a queue that was never used."""
        self.close()

    def _abandon(self, error: BlkioError) -> None:
        """The device is lost, as any thread may tell. The queue's own fails what is in flight."""
        if self._core is not None and self._lost is None:
            self._lost = error
            self._core.close("lost")
            if not self._has_thread:
                self._core.adopt()
            self._core.abandon(error)  # from another thread: as soon as the queue's own waits

    # --- waiting --------------------------------------------------------------------------------------------

    def _wait(self, request: Request[Any] | None, seconds: float) -> bool:
        """Until the request is done, or anything has completed, or there is nothing to wait for; False: not
        within *seconds*, < 0 for ever."""
        with self._turn:
            before, self._is_waiting = self._is_waiting, True
            try:
                return self._wait_in_turn(request, seconds)
            finally:
                self._is_waiting = before

    def _wait_in_turn(self, request: Request[Any] | None, seconds: float) -> bool:
        end = now() + seconds if seconds >= 0 else float("inf")
        if not self._has_sight:
            self._apply_sight()
        while self._lost is None:
            left = end - now()
            if self._compiled.wait(request, max(min(self._slice, left), 0)):
                return True
            if left <= self._slice:
                return False
            if request is None and not self.in_flight:  # what was held has ended without the device
                return True
            if self._context.lost_after is not None:
                self._tick(self._context.lost_after)
        if self.in_flight:
            self._compiled.abandon(self._lost)
        return request is None or request.done()

    def _tick(self, lost_after: float) -> None:
        time = now()
        if time < self._next_tick:
            return
        self._next_tick = time + lost_after / TICKS
        silence = describe_silence(self._compiled, self._context.handle.subject, lost_after)
        if silence is not None:
            self._abandon(DeviceLostError(silence, driver=self._context.handle.driver))
            self._context.on_silence(silence)

    def _make_room(self, request: Request[Any], _need: int) -> None:
        while not self._compiled.admit(request):
            self._wait(None, 2 * self._slice)  # what was to complete may have, in a signal's handler

    def _on_broken(self, number: int) -> None:
        why = f"the queue broke down: {os.strerror(number)}"
        self._abandon(DeviceLostError(why, driver=self._context.handle.driver))
        self._context.on_broken(number)

    def _discard(self, request: Request[Any], offset: int, length: int) -> None:
        try:
            discard(self._context.handle, offset, length)
        except OSError as error:
            self._compiled.complete(request, error.errno or errno.EIO, None)
        else:
            self._compiled.complete(request, 0, None)

    @property
    def _compiled(self) -> QueueCore:
        """The compiled part."""
        if self._core is None:
            self._refuse_unopened("queue")
        return self._core

    @property
    def in_flight(self) -> int:
        """Requests that the device has not finished, cancelled ones included."""
        return 0 if self._core is None else self._core.in_flight

    @property
    def _has_thread(self) -> bool:
        """Whether the queue's thread still lives."""
        return any(thread.ident == self._thread for thread in threading.enumerate())

    def _is_bound_here(self) -> bool:
        """Whether the caller runs in the thread that the queue belongs to."""
        return self._thread == threading.get_ident()

    def statistics(self) -> QueueStatistics:
        """A snapshot of the counters. They stay when the queue is closed."""
        core = self._core
        return self._ended if core is None else QueueStatistics.of(core)

    def __repr__(self) -> str:
        kind = "poll queue" if self.poll else "queue"
        return f"<aioblk.BlockingQueue: {kind} {self.index} of {self._context.handle.driver}>"

    def _refuse_unopened(self, operation: str) -> NoReturn:
        handle = self._context.handle
        raise DeviceClosedError(
            f"{self!r} is closed", driver=handle.driver, operation=operation, filename=handle.filename
        )
