"""A queue of a device, bound to one event loop: its reader, its bounce pool, draining, and loss."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, NoReturn, Protocol, Self, cast, final

from .._libblkio.handle import Blkio
from .._libblkio.limits import Limits
from .._libblkio.properties import Properties
from .._memory.bounce import BouncePool
from .._memory.device_memory import DeviceMemory
from .._native._core import DeviceCore, QueueCore, Submitter
from .._sync import origins
from .._sync.loops import running_loop
from .._sync.scopes import AsyncClosing, shielded_if_cancelled
from .._sync.tasks import start_steadfast_task
from ..errors import BlkioError, DeviceClosedError, OptionError, UsageError
from .discard import BlockDiscard
from .sight import Sight
from .silence import SilenceWatch
from .statistics import QueueStatistics

__all__ = ["Queue", "QueueContext", "QueueStatistics"]

FIRST_BOUNCE_SIZE = 1 << 20  # bytes of a bounce pool that nobody has needed more of
LONGEST_SPIN = 0.001
AUTOMATIC_SPIN = 0.0001


@final
class QueueContext(NamedTuple):
    """What the queues of one device have in common."""

    handle: Blkio
    device: DeviceCore
    memory: DeviceMemory
    bounce_pool_size: int
    discards_by_hook: bool
    """Whether discards go by ioctl; see _discard."""
    on_broken: Callable[[int], object]
    """Called, in the queue's thread, with the errno of a queue that broke down."""
    sight: Sight
    lost_after: float | None
    """Seconds that a request may remain unanswered; None: for ever."""
    on_silence: Callable[[str], object]
    """Called, in the queue's thread, with what has not been answered."""
    on_released: Callable[[Any], object]
    """Called, in the queue's thread, when a queue is free for others."""

    @property
    def read_only(self) -> bool:
        return cast(bool, self.handle.get("read-only"))

    @property
    def depth(self) -> int:
        """Entries of the ring: libblkio is given what fits; the others wait where they can be cancelled."""
        if "num-entries" in Properties(self.handle):
            return 2 * cast(int, self.handle.get("num-entries"))
        return cast(int, self.handle.get("queue-size"))


class HasCapacity(Protocol):
    """The device of a queue, as far as the queue is concerned."""

    @property
    def capacity(self) -> int: ...


@final
class Queue(AsyncClosing, Submitter):
    """One queue of a device, used from the event loop (and thread) that it was bound to.

    ``async with dev.queue(1) as queue:`` binds queue 1 to the running loop, which may be another one, in
    another thread, than the device's. Leaving the block waits for what is in flight and frees the queue for
    others.
    """

    def __init__(self, context: QueueContext, index: int, *, poll: bool = False) -> None:
        """Bind queue *index* of a started device to the running loop; *poll*: of its poll queues."""
        self.index = index
        self.poll = poll
        self.device: HasCapacity | None = None
        """Once the queue was handed out: it keeps the device, which ends with its last reference."""
        self._context = context
        self._loop = running_loop("queue", context.handle.driver)
        self._thread = threading.get_ident()
        self._drained: asyncio.Future[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._taken = False
        address, self._fd = self._take()
        try:
            core = QueueCore(context.device, address, self._fd, self._loop, context.depth)
            if context.discards_by_hook:
                core.on_discard = BlockDiscard(context.handle, core)
            self.bounce_pool: BouncePool = BouncePool(
                core,
                context.handle,
                context.memory,
                first_size=FIRST_BOUNCE_SIZE,
                maximum=context.bounce_pool_size,
            )
            """The memory through which requests go whose own memory the device cannot reach."""
            self._core = core
            self._lost = False
            self._disposed = False
            self._is_debugged = False
            self._watch: SilenceWatch | None = None
            self._apply_sight()
            self._attach()
        except BaseException:
            self._give()
            raise

    def _take(self) -> tuple[int, int]:
        """The address of libblkio's queue, and its completion descriptor: ours until :meth:`_give`."""
        handle = self._context.handle
        address, fd = handle.take_queue(self.index, poll=self.poll)
        self._taken = True
        if not self.poll:
            handle.enable_completion_fd(address)
        return address, fd

    def _give(self) -> None:
        """The compiled part does not know the address any more."""
        if self._taken:
            self._taken = False
            self._context.handle.give_queue(self.index, poll=self.poll)

    def _attach(self) -> None:
        self._attached = True
        self._compiled.on_broken = self._context.on_broken
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._compiled.on_event)
        if self._context.lost_after is not None:
            self._watch = SilenceWatch(
                self._compiled,
                self._context.handle.subject,
                self._loop,
                self._context.lost_after,
                self._context.on_silence,
            )

    def _apply_sight(self) -> None:
        """Have that noted of requests which somebody wants to know now. From any thread."""
        if not self._is_bound_here():
            with contextlib.suppress(RuntimeError):  # that loop is closed: nobody submits there
                self._loop.call_soon_threadsafe(self._apply_sight)
            return
        is_debugged = self._loop.get_debug()
        if is_debugged is not self._is_debugged:
            self._is_debugged = is_debugged
            # So that the loop finds the slow task, and not the queue that has woken it. Afterwards, the core
            # finds out by itself again whether the loop can be nested.
            self._compiled.wakes_by_loop = is_debugged
        self._context.sight.apply_to(self._compiled, origins.here if is_debugged else None)

    # --- life -----------------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Wait until nothing is in flight, cancelled requests included."""
        running_loop("drain", self._context.handle.driver, self._context.handle.filename)
        with shielded_if_cancelled():
            while self._compiled.in_flight:
                if self._drained is None or self._drained.done():
                    self._drained = self._loop.create_future()
                    self._compiled.on_idle = self._on_idle
                await asyncio.shield(self._drained)

    def close(self, reason: Literal["closed", "lost"] = "closed") -> None:
        """Refuse new requests from now on."""
        self._compiled.close(reason)

    async def aclose(self) -> None:
        """Refuse new requests, wait for those in flight and free the queue; idempotent.

        A task that is cancelled here does not wait any longer; closing goes on without it.
        """
        if self._closing is None and running_loop("close queue") is not self._loop:
            handle = self._context.handle
            raise UsageError(
                f"{self!r} belongs to another event loop; close() is for any thread",
                driver=handle.driver,
                operation="close queue",
                filename=handle.filename,
            )
        with shielded_if_cancelled():
            await asyncio.shield(self._start_closing())

    def _close_soon(self) -> None:
        """Have the queue closed on its own loop, from any thread. Nothing happens while that does not run."""
        if self._is_bound_here() and asyncio.get_running_loop() is self._loop:
            _ = self._start_closing()
        else:
            with contextlib.suppress(RuntimeError):  # that loop is closed
                self._loop.call_soon_threadsafe(self._start_closing)

    def _start_closing(self) -> asyncio.Task[None]:
        if self._closing is None:
            self.close("lost" if self._lost else "closed")
            self._closing = start_steadfast_task(self._loop, self._close())
        return self._closing

    async def _close(self) -> None:
        await self.drain()
        try:
            await self.bounce_pool._aclose()  # pyright: ignore[reportPrivateUsage]
        finally:
            self._dispose()
            self._context.on_released(self)

    async def __aenter__(self) -> Self:
        running_loop("enter", self._context.handle.driver, self._context.handle.filename)
        return self

    def _abandon(self, error: BlkioError) -> None:
        """The device is lost: fail what is in flight. From any thread."""
        if not self._is_bound_here():
            with contextlib.suppress(RuntimeError):  # that loop is closed: nobody waits there
                self._loop.call_soon_threadsafe(self._abandon, error)
            return
        self._lost = True
        self.close("lost")
        self._detach()
        try:
            self._compiled.abandon(error)
        finally:
            self._give()
            self.bounce_pool._lose(error)  # pyright: ignore[reportPrivateUsage]

    def _suspend(self) -> None:
        """The device is gone, and may come back: take what it has done, and keep what it has not. As a
        callback of the loop."""
        if self._lost or not self._attached:
            return
        try:
            self._compiled.flush()
        finally:
            if self._attached:  # who was woken may have given the device up
                self._detach()
                self._compiled.suspend()
                self._give()

    def _recall(self) -> None:
        """The device that is gone cannot do anything any more: what it had will be issued again."""
        if self._is_suspended:
            self._compiled.recall()

    def _resume(self) -> None:
        """The device is back after a suspension: go on."""
        if self._is_suspended:
            self._go_on()

    def _reopen(self) -> None:
        """The lost device is back: accept requests again."""
        if self._lost and self._closing is None and not self._disposed:
            self._lost = False
            self._go_on()

    @property
    def _is_suspended(self) -> bool:
        return not (self._lost or self._attached or self._disposed)

    def _go_on(self) -> None:
        address, self._fd = self._take()
        try:
            self._compiled.resume(address, self._fd, self._context.depth)
            self._attach()
        except BaseException:
            self._give()
            raise

    def _give_up(self, error: BlkioError) -> None:
        """The queue's loop does not run any more: close the queue from another one."""
        self.close()
        with contextlib.suppress(RuntimeError):  # those who wait are not woken
            self._compiled.abandon(error)
        self.bounce_pool._lose(error)  # pyright: ignore[reportPrivateUsage]
        self._dispose()
        self._context.on_released(self)

    def _dispose(self) -> None:
        """Let go of the drained queue; the device may be destroyed."""
        self._disposed = True
        self._detach()
        self._compiled.dispose()
        self._give()

    def _detach(self) -> None:
        # libblkio closes the descriptor with the device, and the next device gets its number.
        if self._attached:
            self._attached = False
            if self._fd >= 0 and not self._loop.is_closed():
                self._loop.remove_reader(self._fd)
            if self._watch is not None:
                self._watch.stop()
        self._compiled.on_broken = None

    def _on_idle(self) -> None:
        """What fails here for want of memory, or is interrupted, is called once more."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon(self._end_drain)
        self._compiled.on_idle = None

    def _end_drain(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # --- what it is -----------------------------------------------------------------------------------------

    @property
    def _compiled(self) -> QueueCore:
        """The compiled part."""
        assert self._core is not None
        return self._core

    @property
    def _is_closed(self) -> bool:
        """Whether it is free for others."""
        return self._disposed

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that the queue belongs to."""
        return self._loop

    @property
    def in_flight(self) -> int:
        """Requests that the device has not finished, cancelled ones included."""
        return self._compiled.in_flight

    def _is_bound_here(self) -> bool:
        """Whether the caller runs in the thread that the queue belongs to."""
        return self._thread == threading.get_ident()

    @property
    def limits(self) -> Limits:
        """What the device accepts; fixed while it is open."""
        return self._context.memory.limits

    @property
    def capacity(self) -> int:
        """The device's size in bytes; see :attr:`Device.capacity`."""
        if self.device is None or self._disposed:
            self._refuse_unopened("capacity")
        return self.device.capacity

    @property
    def read_only(self) -> bool:
        """Whether changes are refused, with ``EBADF``."""
        return self._context.read_only

    def statistics(self) -> QueueStatistics:
        """A snapshot of the counters. They stay when the queue is closed."""
        return QueueStatistics.of(self._compiled, self.bounce_pool.times_waited.histogram())

    @property
    def spin(self) -> float:
        """The longest time, in seconds, to wait actively for a completion before the loop sleeps; 0: never.

        It pays where a completion takes less time than waking a sleeping processor, and the device works on
        another processor than the loop; on the same one it only takes the device's time away.

        A queue finds out by itself: it looks again for at most 100 us, for a moment in each turn of the loop
        and not while other callbacks are ready, and leaves that out for longer and longer where it was in
        vain. Then this is what it does now. To set it is to decide: others then wait for as long as it takes.
        None leaves it to the queue again, which begins anew. A poll queue has nothing to wait for but its
        own looking: it does that always, at the end of each turn, and waits in one piece only if this is set.

        Raises:
            OptionError: more than 0.001 seconds, or less than none, or no number.
        """
        compiled = self._compiled
        if compiled.spins_by_itself:
            return AUTOMATIC_SPIN if compiled.spin_penalty == 0 else 0.0
        return compiled.spin_ns / 1e9

    @spin.setter
    def spin(self, seconds: float | None) -> None:
        is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if seconds is not None and not (is_number and 0 <= seconds <= LONGEST_SPIN):
            raise OptionError(
                f"spin must be from 0 to {LONGEST_SPIN} seconds, or None, not {seconds!r}",
                driver=self._context.handle.driver,
                operation="spin",
                filename=self._context.handle.filename,
            )
        self._compiled.spins_by_itself = seconds is None and not self.poll
        self._compiled.spin_ns = round((seconds or 0) * 1e9)

    def __repr__(self) -> str:
        kind = "poll queue" if self.poll else "queue"
        return f"<aioblk.Queue: {kind} {self.index} of {self._context.handle.driver}>"

    def _refuse_unopened(self, operation: str) -> NoReturn:
        handle = self._context.handle
        raise DeviceClosedError(
            f"{self!r} is closed", driver=handle.driver, operation=operation, filename=handle.filename
        )
