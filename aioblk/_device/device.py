"""Device: the life of a block device, from connecting to closing, and its request methods.

The driver classes add nothing but their options. The request methods themselves are compiled: see Submitter.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import functools
import logging
import operator
import os
import threading
import warnings
import weakref
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import NoReturn, ParamSpec, Self, cast, final

from .._libblkio.descriptor import LARGEST_FILE, size_of
from .._libblkio.handle import Blkio
from .._libblkio.limits import Limits
from .._libblkio.options import DriverOptions
from .._libblkio.properties import (
    IO_URING,
    RINGS,
    VHOST_USER,
    VHOST_VDPA,
    VIRTIO,
    Properties,
    PropertyValue,
    State,
)
from .._libblkio.refusals import Refusals
from .._memory.bounce import BouncePool
from .._memory.regions import DeviceMemory, MemoryRegion
from .._native._core import DeviceCore, Submitter
from .._native.buffers import BytesLike
from .._queues.blocking import BlockingQueue
from .._queues.bound import BoundQueues
from .._queues.discard import BlockDiscard, discard_method, growing_file
from .._queues.queue import Queue, QueueContext, QueueStatistics
from .._sync.blocking import BlockingCall, call_elsewhere, run_blocking
from .._sync.loops import running_loop
from .._sync.scopes import shielded, shielded_if_cancelled
from .._sync.tasks import start_steadfast_task
from ..errors import (
    BlkioError,
    DeviceClosedError,
    DeviceLostError,
    OptionError,
    UnsupportedError,
    UsageError,
    request_error,
)
from .connection import Connection, add_queue, connect_first, remove_created
from .extents import Extent, find_extents
from .peer import Peer
from .recovery import Recovery, Wanted, connect_again, release_old

__all__ = ["LARGEST_PART", "Device"]

P = ParamSpec("P")

# Cached reads are copied inside the submitting call, with the loop standing still; larger requests are
# divided.
LARGEST_PART = 1 << 20

# How long closing a lost device waits for libblkio to let go of it; that may go on in a thread of its own.
LOST_PATIENCE = 1.0  # seconds

CONNECT_NOTICE = 1.0  # seconds that opening may take without a word

log: logging.Logger = logging.getLogger("aioblk")


class _State(enum.StrEnum):
    NEW = "not open"
    OPENING = "being opened"
    OPEN = "open"
    DETACHING = "being detached from its loop"
    DETACHED = "detached from its loop"
    CLOSING = "being closed"
    CLOSED = "closed"


class Device(Submitter):
    """A block device on the running event loop.

    Open it with ``async with``, or with :meth:`open` and :meth:`aclose`. Request methods submit when they
    are called and return an awaitable :class:`aioblk.Request`; offsets and lengths are bytes. What is wrong
    with the arguments is raised by the call, what goes wrong with the I/O by the ``await``.

    A device belongs to the loop and the thread that opened it. Any other use raises :class:`UsageError`.
    """

    # The interpreter may have taken the module's names away when it asks a device to end.
    _UNCLOSED = frozenset({_State.OPEN, _State.DETACHING, _State.DETACHED, _State.CLOSING})

    def __init__(self, options: DriverOptions) -> None:
        self._state = _State.NEW
        self._options = options
        self._name = options.name
        self._handle: Blkio | None = None
        self._limits: Limits | None = None
        self._capacity = 0  # when it was last asked for
        self._queue_count = 0  # when the device was lost, those included that had been added
        self._memory: DeviceMemory | None = None
        self._context: QueueContext | None = None
        self._queue: Queue | None = None  # the default one, whose requests are the device's own
        self._queues = BoundQueues(options.driver, self._name)
        self._peer: Peer | None = None  # a vhost-user backend
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._detaching: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._destroyed = False  # the handle, or a thread is at it
        self._refusals: Refusals | None = None
        self._lost: DeviceLostError | None = None
        self._in_use_when_lost = False
        self._recovery: Recovery | None = None  # while a backend that died is being replaced
        self._recovered: asyncio.Task[None] | None = None
        self._returning = False  # in reconnect()
        self._attempts = 0  # to reconnect
        self._reconnections = 0
        self._lost_while_destroying: asyncio.Future[None] | None = None
        self._pid = os.getpid()

    # --- life -----------------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Connect and start the device. Blocking work is done in a thread of its own.

        Raises:
            BlkioError: libblkio or the system refused; ``errno``, ``message`` and ``filename`` say why.
            UsageError: the device has been opened before.

        If the task is cancelled, a connection that is made later all the same is given back at once.
        """
        if self._state is not _State.NEW:
            raise self._misuse("open", f"a device can be opened once; this one is {self._state}")
        self._loop, self._thread = self._running_loop("open"), threading.get_ident()
        self._state = _State.OPENING
        try:
            connection = await self._connect()
            self._handle, self._peer = connection.handle, connection.peer
            self._limits, self._capacity = connection.limits, connection.capacity
            self._require_visible_backend()
            self._set_up(connection.handle, connection.limits)
            self._state = _State.OPEN
            self._bind_default()
            self._watch_peer()
        except BaseException:
            if self._handle is None:
                self._state = _State.CLOSED  # there is nothing to give back, nor to wait for
                raise
            self._begin_closing()
            self._closing = start_steadfast_task(self._loop, self._close())
            with shielded(), contextlib.suppress(BlkioError):  # what came first counts; aclose() tries again
                await asyncio.shield(self._closing)
            remove_created(self._options)
            raise
        return self

    async def _connect(self) -> Connection:
        """In time. Who waits for a backend that serves another client is told so."""
        limit, notice = self._options.connect_timeout, None
        if self._options.driver == VHOST_USER:
            notice = self._loop_here().call_later(
                CONNECT_NOTICE,
                log.warning,
                "%r has not been opened for %g s: a backend serves one client at a time, and this one may be"
                " busy with another; waiting (connect_timeout limits that)",
                self._name,
                CONNECT_NOTICE,
            )
        timeout = asyncio.timeout(limit)
        try:
            async with timeout:
                return await run_blocking(
                    functools.partial(connect_first, self._options), undo=self._undo_connecting
                )
        except TimeoutError:
            if not timeout.expired():
                raise
            raise BlkioError(
                f"it was not opened within {limit:g} seconds (connect_timeout); a backend serves one client"
                " at a time, and this one may be busy with another",
                errno=errno.ETIMEDOUT,
                driver=self._options.driver,
                operation="connect",
                filename=self._name,
            ) from None
        finally:
            if notice is not None:
                notice.cancel()

    def _undo_connecting(self, connection: Connection) -> None:
        connection.close()
        remove_created(self._options)

    def _set_up(self, handle: Blkio, limits: Limits) -> None:
        driver = self._options.driver
        method = discard_method(handle)
        end = weakref.WeakMethod(self._end)  # the core must not keep the device

        def capacity() -> int | None:
            ask = end()
            return None if ask is None else ask()

        self._refusals = Refusals(driver, limits, self._name, capacity)
        handle.filename = self._name
        core = DeviceCore(
            make_error=self._refusals.failed,
            make_refusal=self._refusals,
            needs_regions=limits.needs_mem_regions,
            read_only=cast(bool, handle.get("read-only")),
            virtqueues=driver in VIRTIO,
            request_alignment=limits.request_alignment,
            buf_alignment=limits.buf_alignment,
            max_segments=limits.max_segments,
            max_segment_len=limits.max_segment_len,
            max_transfer=min(limits.max_transfer or LARGEST_PART, LARGEST_PART),
            max_discard_len=limits.max_discard_len,
            max_write_zeroes_len=limits.max_write_zeroes_len,
            discard_alignment=limits.discard_alignment,
            discard_alignment_offset=limits.discard_alignment_offset,
            discard_method=method,
            bounce_cap=self._options.bounce_pool_size,
        )
        core.file_fd = growing_file(handle)
        if driver == VHOST_VDPA:
            # The kernel tells the device's other side of a change by taking all memory away and giving it
            # back. Requests that are being served meanwhile fail with EIO.
            handle.on_map_turn = core.map_turn
        self._memory = DeviceMemory(handle, core, limits, reserved=_queue_count(handle))
        self._memory.call_limit = self._options.lost_after
        self._memory.on_silence = _weakly(self._on_silence)
        self._memory.is_coming_back = _weakly_asked(self._is_coming_back)
        self._context = QueueContext(
            handle=handle,
            device=core,
            memory=self._memory,
            bounce_pool_size=self._options.bounce_pool_size,
            discards_by_hook=method == BlockDiscard.method,
            on_broken=_weakly(self._on_broken),
            lost_after=self._options.lost_after,
            on_silence=_weakly(self._on_silence),
            on_released=self._queues.forget,
        )

    async def detach(self) -> None:
        """Let go of the loop, once nothing is in flight: the device can then be attached to another one.

        Registered memory stays registered. Regions must not be entered or left in between. A task that is
        cancelled here does not wait any longer; detaching goes on without it, and may be awaited again.

        Raises:
            UsageError: other queues than the default one are bound, or this is another loop.
            DeviceLostError: the device is lost.
            DeviceClosedError: the device is closed.
        """
        if self._state is not _State.DETACHING:
            self._require_present("detach")
            if self._running_loop("detach") is not self._loop:
                raise self._misuse("detach", "the device belongs to another event loop")
            self._require_only_default_queue("detach")
            self._state = _State.DETACHING
            self._core = None
            self._detaching = start_steadfast_task(self._loop_here(), self._detach())
        assert self._detaching is not None
        with shielded_if_cancelled():
            await asyncio.shield(self._detaching)

    async def _detach(self) -> None:
        assert self._queue is not None
        assert self._memory is not None
        try:
            await self._queue.aclose()
            while self._recovered is not None and not self._recovered.done():
                await asyncio.shield(self._recovered)
            await self._memory.detach_loop()
        finally:
            self._stop_watching_peer()
            self._state = _State.DETACHED

    async def attach(self) -> Self:
        """Bind a detached device to the running loop, in whatever thread.

        One that was lost meanwhile is lost still, to be reconnected or closed.
        """
        if self._state in (_State.OPEN, _State.DETACHING):
            raise self._misuse("attach", f"the device is {self._state}; await its detach() there first")
        if self._state is not _State.DETACHED:
            self._refuse_unopened("attach")
        self._settle_here()
        self._state = _State.OPEN
        try:
            if self._lost is None:
                self._bind_default()
        except BaseException:
            self._stop_watching_peer()
            self._state = _State.DETACHED
            raise
        return self

    def _settle_here(self) -> None:
        assert self._memory is not None
        self._loop, self._thread = self._running_loop("attach"), threading.get_ident()
        self._memory.attach_loop()
        self._watch_peer()

    def _bind_default(self) -> None:
        handle = self._require_handle("open")
        assert self._context is not None
        self._queue = self._queues.find_or_bind(self._context, 0, poll=handle.queue_count == 0)
        self._queues.default = self._queue
        self._core = self._queue._compiled  # pyright: ignore[reportPrivateUsage]

    async def aclose(self) -> None:
        """Refuse new requests, wait for those in flight, give everything back. Idempotent.

        Queues that are still bound are closed as well, each in its own loop or thread. One whose loop does
        not run any more, or whose thread does not wait for its requests, is given up: what it has in flight
        fails, and the memory of that is never released.

        Where requests are in flight while the device is being reconnected (``reconnect_for``), closing waits
        until they are through, or the device is lost. Of a lost device nothing is waited for, except, for a
        second at most, that libblkio lets go of it.

        A task that is cancelled here does not wait any longer; closing goes on without it.
        """
        if self._state is _State.NEW:
            self._state = _State.CLOSED
        if self._state is _State.OPENING:
            raise self._misuse("close", "the device is being opened; cancel that instead")
        if self._state is _State.CLOSED:
            return
        loop = self._running_loop("close")
        if self._state is _State.DETACHING and self._loop is loop and self._detaching is not None:
            await asyncio.wait([self._detaching])
        if self._state is _State.DETACHED:
            self._settle_here()
        if self._loop is not loop:
            raise self._misuse("close", "the device belongs to another event loop")
        if self._closing is None or self._closing.done():  # it has failed, and is tried again
            self._begin_closing()
            self._queues.refuse()
            if self._queue is not None and self._lost is None:
                self._queue.close()
            self._end_vain_recovery()
            self._closing = start_steadfast_task(loop, self._close())
        with shielded_if_cancelled():
            await asyncio.shield(self._closing)

    def _begin_closing(self) -> None:
        self._state = _State.CLOSING
        if self._refusals is not None:
            self._refusals.closed = True

    def _end_vain_recovery(self) -> None:
        if self._recovery is not None and not self._is_worth_recovering():
            self._lose("the device was closed while it was without a backend")

    def _is_worth_recovering(self) -> bool:
        return self._state not in (_State.CLOSING, _State.CLOSED) or self._queues.in_flight > 0

    async def _close(self) -> None:
        try:
            await self._tear_down()
        finally:
            if self._handle is None or self._destroyed:
                self._state = _State.CLOSED

    async def _tear_down(self) -> None:
        """Drain and give back whatever there is. One failing step does not stop the others."""
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._forget_peer)
            if self._handle is not None:
                stack.push_async_callback(self._destroy, self._handle)
            stack.callback(self._stop_watching_peer)
            if self._memory is not None:
                stack.push_async_callback(self._memory.aclose)
            if self._queue is not None:
                stack.push_async_callback(self._queue.aclose)
            stack.push_async_callback(self._queues.close_others, self._queue)
            stack.push_async_callback(self._end_binding)

    async def _end_binding(self) -> None:
        """A thread may be waiting for the backend, to map the memory of its blocking queue."""
        limit, timer = self._options.lost_after, None
        if limit is not None:
            silence = f"a call to the device has not returned for {limit:g} seconds (lost_after)"
            timer = self._loop_here().call_later(limit, self._lose, silence)
        try:
            await self._queues.until_none_is_binding()
        finally:
            if timer is not None:
                timer.cancel()

    async def _destroy(self, handle: Blkio) -> None:
        """Disconnect. That takes as long as the device takes to answer: who does not answer is left to it.

        Without a thread, a backend at the other end of a socket is not asked for an answer, and rings need
        none. Other devices might keep the loop waiting: closing them fails, and can be tried again.
        """
        if self._destroyed:
            return
        self._end_vain_recovery()
        destroy = functools.partial(handle.destroy, in_use=self._in_use_when_lost)
        try:
            call = BlockingCall(destroy)
        except BlkioError:
            if self._peer is not None:
                self._peer.hang_up()
            elif self._options.driver not in RINGS:
                raise
            destroy()
            self._end_of_instance()
            return
        self._destroyed = True
        call.done.add_done_callback(lambda _: self._end_of_instance())
        if self._lost is None:
            self._lost_while_destroying = self._loop_here().create_future()
            await asyncio.wait(
                [call.done, self._lost_while_destroying],
                timeout=self._options.lost_after,
                return_when=asyncio.FIRST_COMPLETED,
            )
        await asyncio.wait([call.done], timeout=LOST_PATIENCE)
        if call.done.done():
            call.take()

    def _end_of_instance(self) -> None:
        self._destroyed = True
        if self._memory is not None:
            self._memory.forget()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with shielded():
            await self.aclose()

    def __del__(self) -> None:
        if getattr(self, "_state", None) not in self._UNCLOSED:
            return
        handle = self._handle
        if handle is None or os.getpid() != self._pid:
            return
        warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
        # With nothing in flight, everything can be given back from here; otherwise memory that the device
        # still uses would go: a leak is the lesser evil. So it is when the interpreter ends while a thread
        # talks to the backend: there would be two who wait for one answer.
        memory_busy = self._memory is not None and self._memory.busy
        if self._queues.are_idle_here and not memory_busy:
            self._forget_peer()  # or its answer would be waited for
            self._queues.dispose()
            handle.destroy(in_use=self._in_use_when_lost)

    def __repr__(self) -> str:
        where = self._options.before_connect.get("path", self._options.before_connect.get("fd"))
        state = "lost" if self._lost else "being reconnected" if self.reconnecting else self._state
        return f"<aioblk.{type(self).__name__} {where!r} {state}>"

    # --- loss -----------------------------------------------------------------------------------------------

    @property
    def lost(self) -> DeviceLostError | None:
        """Why the device is lost; None: it is not."""
        return self._lost

    def abandon(self, reason: str = "the device was given up") -> None:
        """Declare the device lost, because it does not answer and nothing else will tell.

        Everything in flight, on every queue, fails with :class:`DeviceLostError` whose ``__cause__`` says
        *reason*; new requests are refused; :meth:`aclose` does not wait for the device any more, also when it
        does so already. Memory that the device may still write to is never released; docs/loss.md says what
        that is for each driver. Does nothing when the device is lost or closed.

        Raises:
            UsageError: the device is not open, or the caller is not in the thread of its loop.
        """
        if self._lost is not None or self._state is _State.CLOSED:
            return
        if self._state not in (_State.OPEN, _State.DETACHING, _State.CLOSING):
            raise self._misuse("abandon", f"the device is {self._state}")
        if self._thread != threading.get_ident():
            raise self._misuse(
                "abandon", "the device belongs to another thread; call_soon_threadsafe() helps"
            )
        self._lose(reason)

    def _on_peer_event(self) -> None:
        if self._peer is not None and self._peer.has_hung_up():
            self._on_hang_up(self._peer)

    def _on_broken(self, errno: int) -> None:
        self._call_in_own_thread(self._break_down, f"the queue broke down: {os.strerror(errno)}")

    def _break_down(self, why: str) -> None:
        self._on_peer_event()  # which may be the reason
        if self._recovery is None:
            self._lose(why)

    def _on_silence(self, silence: str) -> None:
        self._call_in_own_thread(self._lose, silence)

    def _call_in_own_thread(self, function: Callable[[str], None], why: str) -> None:
        if self._thread == threading.get_ident():
            function(why)
        else:
            with contextlib.suppress(RuntimeError):  # the device's loop is closed
                self._loop_here().call_soon_threadsafe(function, why)

    def _lose(self, why: str) -> None:
        if self._lost is None and self._queue is not None:
            self._lost = DeviceLostError(why, driver=self._options.driver, filename=self._name)
            if self._refusals is not None:
                self._refusals.lost = why
            if self._recovery is not None:
                self._recovery.stop()
            self._in_use_when_lost = any(queue.in_flight for queue in self._queues)
            self._queues.note_loss(self._lost)
            self._forget_peer()
            self._queues.abandon(self._lost)
            if self._memory is not None:
                self._memory.lose(self._lost)
            if self._lost_while_destroying is not None and not self._lost_while_destroying.done():
                self._lost_while_destroying.set_result(None)

    # --- coming back ----------------------------------------------------------------------------------------

    @property
    def reconnecting(self) -> bool:
        """Whether another backend is being looked for in place of one that died; see ``reconnect_for``."""
        return self._recovery is not None and self._lost is None

    @property
    def reconnections(self) -> int:
        """How often the device came back: by itself, or by :meth:`reconnect`."""
        return self._reconnections

    async def reconnect(self) -> None:
        """Open a lost device again, in place. Everything stays: queues, regions, arenas, pools.

        Nothing is in flight on a lost device: what was has failed, and is the caller's to repeat. The caller
        also sees to it that the old backend executes nothing any more; one that is only silent may, once it
        goes on, write over what has been written since. A region that requests of the lost device use for
        good is not mapped again: requests on it bounce.

        One attempt, as long as that takes; a device that cannot be reached, and a task that is cancelled,
        leave it lost, to be tried again.

        Raises:
            UsageError: the device is not lost, was opened by ``fd``, is used in another loop, or has blocking
                queues bound.
            DeviceLostError: what answers now has less capacity, or accepts less.
            BlkioError: it cannot be opened.
        """
        handle = self._require_handle("reconnect")
        if self._lost is None:
            raise self._misuse("reconnect", "the device is not lost; abandon() gives it up")
        if self._running_loop("reconnect") is not self._loop:
            raise self._misuse("reconnect", "the device belongs to another event loop")
        if "fd" in self._options.before_connect:
            raise self._misuse("reconnect", "a device that was opened by fd has no name to be found by again")
        if self._queues.blocking:
            raise self._misuse("reconnect", f"still bound: {self._queues.blocking}; close these queues first")
        if self._returning:
            raise self._misuse("reconnect", "the device is being reconnected already")
        assert self._memory is not None
        assert self._limits is not None
        self._returning = True
        try:
            await self._reconnect(handle, self._memory, self._limits)
        finally:
            self._returning = False

    async def _reconnect(self, handle: Blkio, memory: DeviceMemory, limits: Limits) -> None:
        """As far as a connection, waiting can be given up at any moment; from there on it is finished."""
        await self._queues.until_abandoned()
        await memory.detach_loop()
        self._queue_count = handle.queue_count or self._queue_count  # none, if this is not the first attempt
        self._attempts += 1
        attempt = self._attempts

        def release() -> None:
            if attempt == self._attempts:  # otherwise given up, and another one has been made meanwhile
                release_old(handle)

        await run_blocking(functools.partial(memory.after_calls, release))
        memory.end_limbo()
        self._require_still_open(handle)
        regions = {*memory.withdraw_regions(), *self._queues.bounce_regions()}
        wanted = Wanted(limits, self._capacity, self._queue_count, tuple(sorted(regions)))
        again = connect_again(self._options, wanted, handle.loans)
        try:
            connection = await run_blocking(again.make, undo=again.undo)
        except BlkioError:
            again.end()
            self._require_still_open(handle)
            raise
        finally:
            memory.end_withdrawal()
        if self._state is not _State.OPEN:
            call_elsewhere(functools.partial(again.undo, connection))
            self._require_still_open(handle)
        handle.exchange(connection.handle)
        call_elsewhere(connection.handle.destroy)
        handle.free_all_but(self._queues.bounce_regions())
        # From here to the task there is no other turn: the device is lost, or back as a whole.
        self._lost, self._in_use_when_lost = None, False
        if self._context is not None:
            self._context.device.forget_given_up()
        if self._refusals is not None:
            self._refusals.lost = None
        memory.come_back()
        again.end()
        self._go_on(connection)
        reopening = self._queues.reopen()
        if self._queue is not None and self._queue._is_closed:  # pyright: ignore[reportPrivateUsage]
            # It was detached when it was lost.
            self._bind_default()
        self._recovered = start_steadfast_task(self._loop_here(), reopening)
        await asyncio.shield(self._recovered)

    def _require_still_open(self, handle: Blkio) -> None:
        if self._state is not _State.OPEN:
            call_elsewhere(functools.partial(handle.destroy, in_use=True))  # once more, if closing was faster
            raise DeviceClosedError(
                "the device has been closed", driver=self._options.driver, filename=self._name
            )

    def _require_visible_backend(self) -> None:
        if self._options.reconnect_for is not None and (self._peer is None or self._peer.process is None):
            raise UnsupportedError(
                "the backend's process cannot be seen from here (is it in a container?); unless it is seen to"
                " end, nothing can be made again: reconnect_for is not possible",
                driver=self._options.driver,
                operation="connect",
                filename=self._name,
            )

    def _on_hang_up(self, peer: Peer) -> None:
        why, seconds = "the backend has closed the connection", self._options.reconnect_for
        if seconds is not None and self._queues.blocking:
            why, seconds = f"{why}; reconnecting is impossible with blocking queues", None
        if seconds is None or self._memory is None or self._handle is None or self._limits is None:
            self._lose(why)
            return
        self._stop_watching_peer()
        self._peer = None
        peer.hang_up()  # a thread may be waiting for an answer
        self._memory.hold_calls()
        self._queues.note_death()
        self._recovery = Recovery(
            self._options,
            self._handle,
            self._limits,
            self._capacity,
            self._memory,
            self._queues,
            peer,
            seconds,
            self._is_worth_recovering,
        )
        self._recovered = start_steadfast_task(
            self._loop_here(), self._recover(self._recovery, peer, self._recovered)
        )

    async def _recover(self, recovery: Recovery, peer: Peer, former: asyncio.Task[None] | None) -> None:
        assert self._memory is not None
        if former is not None:  # queues of other loops may be about to go on with the backend that is gone
            await asyncio.wait([former])
        try:
            connection = await recovery.run()
        except BaseException as error:  # whatever it is, nobody may be left waiting
            self._recovery = None
            self._lose(getattr(error, "message", None) or repr(error))
            if not isinstance(error, Exception):
                raise
            return
        finally:
            peer.close()
        assert self._handle is not None
        self._queues.exclusively(functools.partial(self._handle.exchange, connection.handle))
        call_elsewhere(connection.handle.destroy)
        recovery.end_loan()
        self._memory.release_calls()
        self._recovery = None  # what happens from here on happens to the new one
        self._go_on(connection)
        await self._queues.resume()

    def _go_on(self, connection: Connection) -> None:
        self._peer, self._capacity = connection.peer, connection.capacity
        if self._handle is not None and self._context is not None:
            self._context.device.file_fd = growing_file(self._handle)
        self._reconnections += 1
        self._watch_peer()

    def _is_coming_back(self) -> bool:
        """Asked, in any thread, when a call to the backend has failed."""
        if self._options.reconnect_for is None or self._lost is not None or self._memory is None:
            return False
        peer = self._peer
        if self._recovery is None and (peer is None or not peer.has_hung_up()):
            return False
        self._memory.hold_calls()
        with contextlib.suppress(RuntimeError):  # the device's loop is closed
            self._loop_here().call_soon_threadsafe(self._on_suspicion)
        return True

    def _on_suspicion(self) -> None:
        self._on_peer_event()
        if self._recovery is None and self._memory is not None:
            self._memory.release_calls()

    def _watch_peer(self) -> None:
        if self._peer is not None:
            self._loop_here().add_reader(self._peer.fileno(), _weakly(self._on_peer_event))

    def _forget_peer(self) -> None:
        """End the connection, which a forked child may have a copy of that keeps the backend busy."""
        self._stop_watching_peer()
        peer, self._peer = self._peer, None
        if peer is not None:
            peer.hang_up()
            peer.close()

    def _stop_watching_peer(self) -> None:
        if self._peer is not None and self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._peer.fileno())

    # --- what the device is ---------------------------------------------------------------------------------

    @property
    def driver(self) -> str:
        """The name of libblkio's driver."""
        return self._options.driver

    @property
    def capacity(self) -> int:
        """The size in bytes.

        On io_uring it is the present one: files grow. The other drivers would have to ask somebody, so they
        tell what it was when the device was opened or :meth:`refresh_capacity` was last awaited.
        """
        handle = self._require_handle("capacity")
        if self._options.driver == IO_URING:
            return self._size_of_file(handle)
        return self._capacity

    def _size_of_file(self, handle: Blkio) -> int:
        try:
            return size_of(cast(int, handle.get("fd")))
        except OSError as error:
            raise request_error(self._options.driver, "capacity", error.errno or errno.EIO) from None

    def _end(self) -> int | None:
        """Where requests fail for being beyond it; None: nowhere."""
        return None if self._limits is None or self._limits.can_grow else self._capacity

    async def refresh_capacity(self) -> int:
        """Ask the device for its size in bytes, which :attr:`capacity` tells from then on.

        Raises:
            DeviceLostError: the device is gone.
            BlkioError: it does not answer.
        """
        handle = self._require_handle("refresh_capacity")
        if self._lost is None:
            if self._options.driver == IO_URING:
                return self.capacity
            try:
                ask = functools.partial(handle.get, "capacity")
                self._capacity = cast(int, await self._device_memory.call(ask))
            except BlkioError:
                self._on_peer_event()  # which may have had no turn of the loop to be noticed
                if self._lost is None:
                    raise
        if self._lost is not None:
            raise DeviceLostError(
                self._lost.message,
                driver=self._options.driver,
                operation="refresh_capacity",
                filename=self._name,
            )
        return self._capacity

    async def truncate(self, size: int) -> None:
        """Make a regular file *size* bytes long: what is beyond is gone, what is added reads as zeroes.

        Requests in flight are not waited for, but for those that were cancelled; what ends beyond the new end
        may make the file grow again. The call is made in a thread, so no filesystem stops the loop; if the
        task is cancelled, it is made all the same. :attr:`capacity` tells the size.

        Raises:
            UnsupportedError: the device is no regular file.
            OptionError: *size* is negative, or larger than files can be.
            BlkioError: it is open for reading only, or the filesystem refuses (``EFBIG``, ``EPERM``).
        """
        handle = self._require_present("truncate")
        if self._running_loop("truncate") is not self._loop:
            raise self._misuse("truncate", "the device belongs to another event loop")
        if growing_file(handle) < 0:
            raise UnsupportedError(
                "only a regular file on the io_uring driver can be made longer or shorter",
                driver=self._options.driver,
                operation="truncate",
                filename=self._name,
            )
        size = operator.index(size)
        if not 0 <= size <= LARGEST_FILE:
            raise OptionError(
                f"size must be from 0 to {LARGEST_FILE}, not {size}",
                driver=self._options.driver,
                operation="truncate",
                filename=self._name,
            )
        if handle.get("read-only"):
            raise Refusals(self._options.driver, self.limits, self._name)("read-only", "truncate", None, None)
        await self._until_landed()  # what was given up may make the file grow again
        await self._device_memory.call(functools.partial(handle.truncate, size))

    def extents(self, offset: int = 0, length: int | None = None) -> AsyncGenerator[Extent]:
        """What there is from ``offset`` on, up to the end or for ``length`` bytes, in order, without gaps::

            async for extent in dev.extents():
                if extent.kind is aioblk.ExtentKind.DATA:
                    data = await dev.read(extent.offset, extent.length)

        Regular files on io_uring tell their holes. All other devices cannot: they are one extent of data.
        What is written meanwhile may be missed. Looking is done in threads, so no filesystem stops the loop.

        Raises at the call:
            OptionError: the range is not one of the device.
        """
        self._require_handle("extents")
        end = self.capacity if length is None else offset + length
        if not 0 <= offset <= end <= self.capacity:
            raise OptionError(
                f"the range is not within the device's {self.capacity} bytes",
                driver=self._options.driver,
                operation="extents",
                filename=self._name,
                offset=offset,
                length=length,
            )
        return find_extents(self._options.driver, self._file, offset, end)

    def _file(self) -> int | None:
        """The descriptor of what is behind the device, where that may be a file."""
        handle = self._require_handle("extents")
        return cast(int, handle.get("fd")) if self._options.driver == IO_URING else None

    @property
    def read_only(self) -> bool:
        """Whether changes are refused, with ``EBADF``."""
        return cast(bool, self._require_handle("read_only").get("read-only"))

    @property
    def limits(self) -> Limits:
        """What the device accepts; fixed while it is open."""
        self._require_handle("limits")
        assert self._limits is not None
        return self._limits

    @property
    def properties(self) -> Properties:
        """Every libblkio property of the driver, by its name: ``dev.properties["queue-size"]``.

        ``capacity`` among them is :attr:`capacity`. Nothing is asked of the device: looking never waits.
        """
        return Properties(_OpenDevice(self, self._require_handle("properties")))

    def statistics(self) -> QueueStatistics:
        """A snapshot of the counters of all queues that are bound now."""
        self._require_handle("statistics")
        return self._queues.statistics()

    @property
    def closed(self) -> bool:
        """Whether the device is closed, or being closed."""
        return self._state in (_State.CLOSING, _State.CLOSED)

    # --- memory ---------------------------------------------------------------------------------------------

    @property
    def _device_memory(self) -> DeviceMemory:
        """Of an open device. An Arena attaches itself here."""
        return self._memory_for("memory")

    def _memory_for(self, operation: str) -> DeviceMemory:
        self._require_handle(operation)
        assert self._memory is not None
        return self._memory

    def register(
        self, buffer: BytesLike, *, fd: int | None = None, fd_offset: int = 0, required: bool = False
    ) -> MemoryRegion:
        """Register existing memory: ``async with dev.register(buffer) as region``. See MemoryRegion."""
        region = self._memory_for("register").register(buffer, fd=fd, fd_offset=fd_offset, required=required)
        region.device = self
        return region

    def allocate(self, length: int) -> MemoryRegion:
        """New, zeroed memory for zero-copy requests: ``async with dev.allocate(n) as region``."""
        region = self._memory_for("allocate").allocate(length)
        region.device = self
        return region

    @property
    def bounce_pool(self) -> BouncePool:
        """The default queue's memory for requests whose own memory the device cannot reach."""
        self._require_handle("bounce_pool")
        assert self._queue is not None
        return self._queue.bounce_pool

    # --- queues ---------------------------------------------------------------------------------------------

    def queue(self, index: int | None = None) -> Queue:
        """Queue *index*, bound to the running loop until it is closed: ``async with dev.queue(1) as queue``.

        Threads with loops of their own thus share a device without locks. Without *index* it is the default
        queue, which serves the device's own request methods and belongs to the device's loop: queue 0, or
        poll queue 0 of a device that was opened with ``num_queues=0``.

        Raises:
            UsageError: there is no such queue, or it is bound to another loop.
        """
        if index is None:
            self._require_handle("queue")
            assert self._queue is not None
            return self._find_or_bind(0, poll=self._queue.poll)
        return self._find_or_bind(index, poll=False)

    def poll_queue(self, index: int = 0) -> Queue:
        """Poll queue *index*, bound to the running loop, which never sleeps while it has requests in flight.

        io_uring's poll queues take reads and writes only, and need ``direct=True`` and a device that can be
        polled.
        """
        return self._find_or_bind(index, poll=True)

    def blocking_queue(self, index: int = 0, *, poll: bool = False) -> BlockingQueue:
        """A queue for the calling thread, which has no event loop: ``with dev.blocking_queue(1) as queue``.

        Raises:
            UsageError: there is no such queue, or it is bound already.
        """
        self._require_handle("queue")
        assert self._context is not None
        queue = self._queues.bind_blocking(self._context, index, poll=poll)
        queue.device = self
        return queue

    async def add_queue(self) -> int:
        """Add a queue to the started device and return its index.

        Raises:
            UnsupportedError: the driver cannot; its property ``can-add-queues`` says so.
        """
        handle = self._require_present("add_queue")
        return await self._device_memory.call(functools.partial(add_queue, handle), undo=handle.remove_queue)

    async def remove_queue(self, index: int) -> None:
        """Remove a queue that is not bound. The default queue stays. Other queues keep their indices."""
        handle = self._require_present("remove_queue")
        if self._queue is not None and (self._queue.poll, self._queue.index) == (False, index):
            raise self._misuse("remove_queue", f"{self._queue!r} is the default queue, which stays")
        await self._device_memory.call(functools.partial(handle.remove_queue, index))

    def _find_or_bind(self, index: int, *, poll: bool) -> Queue:
        self._require_handle("queue")
        assert self._context is not None
        queue = self._queues.find_or_bind(self._context, index, poll=poll)
        queue.device = self
        return queue

    def _require_only_default_queue(self, operation: str) -> None:
        others = [queue for queue in self._queues if queue is not self._queue]
        if others:
            raise self._misuse(operation, f"still bound: {others}; close these queues first")

    # --- refusals -------------------------------------------------------------------------------------------

    def _running_loop(self, operation: str) -> asyncio.AbstractEventLoop:
        return running_loop(operation, self._options.driver, self._name)

    def _loop_here(self) -> asyncio.AbstractEventLoop:
        assert self._loop is not None
        return self._loop

    def _require_handle(self, operation: str) -> Blkio:
        if self._handle is None or self._state is not _State.OPEN:
            self._refuse_unopened(operation)
        return self._handle

    def _require_present(self, operation: str) -> Blkio:
        """The handle of an open device that is not lost."""
        handle = self._require_handle(operation)
        if self._lost is not None:
            raise DeviceLostError(
                self._lost.message,
                driver=self._options.driver,
                operation=operation,
                filename=self._name,
            ) from self._lost
        return handle

    def _refuse_unopened(self, operation: str) -> NoReturn:
        if self._state in (_State.CLOSED, _State.CLOSING):
            raise DeviceClosedError(
                "the device is closed",
                driver=self._options.driver,
                operation=operation,
                filename=self._name,
            )
        if self._state is _State.OPEN and self._lost is not None:
            self._require_present(operation)
        detached = self._state in (_State.DETACHING, _State.DETACHED)
        remedy = "await device.attach()" if detached else "async with device"
        raise self._misuse(operation, f"the device is {self._state}; use `{remedy}` first")

    def _misuse(self, operation: str, message: str) -> UsageError:
        return UsageError(message, driver=self._options.driver, operation=operation, filename=self._name)


def _weakly(method: Callable[P, object]) -> Callable[P, None]:
    """Calls *method* for as long as its object exists: the loop must not keep an unclosed device alive."""
    reference = weakref.WeakMethod(method)

    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        bound = reference()
        if bound is not None:
            bound(*args, **kwargs)

    return call


def _weakly_asked(method: Callable[[], bool]) -> Callable[[], bool]:
    reference = weakref.WeakMethod(method)

    def ask() -> bool:
        bound = reference()
        return bound is not None and bound()

    return ask


@final
class _OpenDevice:
    """Where the properties of an open device come from."""

    def __init__(self, device: Device, handle: Blkio) -> None:
        self._device = device
        self._handle = handle

    @property
    def driver(self) -> str:
        return self._handle.driver

    @property
    def state(self) -> State:
        return self._handle.state

    def get(self, name: str) -> PropertyValue:
        if name == "capacity" and self.state is State.STARTED:
            return self._device.capacity
        return self._handle.get(name)


def _queue_count(handle: Blkio) -> int:
    """The queues that may have a bounce pool of their own, and with it a memory region."""
    return cast(int, handle.get("num-queues")) + cast(int, handle.get("num-poll-queues"))
