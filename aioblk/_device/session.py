"""A session: what exists while a device is open, from the connection to the end of libblkio's instance.

It is made whole, by opening, and dropped by closing. Whether the device is present or lost is no part of it:
see loss.py.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import operator
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Protocol, cast, final

from .._libblkio.descriptor import LARGEST_FILE, size_of
from .._libblkio.handle import Blkio
from .._libblkio.options import DriverOptions
from .._libblkio.properties import IO_URING, VHOST_VDPA, VIRTIO, PropertyValue, State
from .._libblkio.refusals import Refusals
from .._libblkio.subject import Subject
from .._memory.device_memory import DeviceMemory
from .._native._core import DeviceCore
from .._queues.blocking import BlockingQueue
from .._queues.bound import BoundQueues
from .._queues.discard import BlockDiscard, discard_method, growing_file
from .._queues.queue import HasCapacity, Queue, QueueContext
from .._queues.sight import Sight
from .._sync.loops import running_loop
from .._sync.tasks import start_steadfast_task
from ..errors import request_error
from .connection import Connection, add_queue
from .events import DeviceResized, Events
from .extents import Extent, find_extents
from .instruments import Instruments
from .lock import hand_over

__all__ = ["LARGEST_PART", "Alarm", "Session", "SessionProperties"]

# Cached reads are copied inside the submitting call, with the loop standing still; larger requests are
# divided.
LARGEST_PART = 1 << 20


class Watcher(Protocol):
    """Who decides whether the device is lost."""

    def on_broken(self, errno: int) -> None:
        """A queue has broken down, with this errno. In the queue's thread."""

    def on_silence(self, silence: str) -> None:
        """What has not been answered in time. In the thread of whoever waited."""

    def on_no_answer(self, why: str) -> None:
        """What has been answered with something else. In the thread of whoever waited."""

    def is_coming_back(self) -> bool:
        """Whether a call that has failed should be made again, since the device is being reconnected."""
        ...


@final
class Alarm:
    """What those who use the device tell of it when it fails them. The watcher is not kept by it."""

    def __init__(self) -> None:
        self._watcher: Callable[[], Watcher | None] = lambda: None

    def is_heard_by(self, watcher: Watcher) -> None:
        """From now on."""
        self._watcher = weakref.ref(watcher)

    def broken(self, number: int) -> None:
        watcher = self._watcher()
        if watcher is not None:
            watcher.on_broken(number)

    def silent(self, silence: str) -> None:
        watcher = self._watcher()
        if watcher is not None:
            watcher.on_silence(silence)

    def no_answer(self, why: str) -> None:
        watcher = self._watcher()
        if watcher is not None:
            watcher.on_no_answer(why)

    def is_coming_back(self) -> bool:
        watcher = self._watcher()
        return watcher is not None and watcher.is_coming_back()


@final
class Session:
    """A started device on the running event loop, with its default queue bound there."""

    def __init__(
        self,
        options: DriverOptions,
        subject: Subject,
        connection: Connection,
        queues: BoundQueues,
        alarm: Alarm,
        device: weakref.ref[object],
    ) -> None:
        """*queues*: none is bound yet. What fails here leaves bound what was: the caller's to dispose of."""
        handle, limits = connection.handle, connection.limits
        handle.filename = subject.filename
        self._device = device
        self.options = options
        self.subject = subject
        self.handle = handle
        self.limits = limits
        self.lock = connection.lock
        self.capacity = connection.capacity
        """In bytes, when it was last asked for."""
        self.sight = Sight()
        self.instruments = Instruments(subject)
        self.events = Events(subject, self.instruments)
        self.refusals = Refusals(options.driver, limits, subject.filename, _asked_weakly(self._end))
        self.core = self._make_core()
        self.memory = self._make_memory(alarm)
        self.queues = queues
        self.context = self._make_context(alarm)
        self.loop = asyncio.get_running_loop()
        self.thread = threading.get_ident()
        self.queue: Queue = queues.find_or_bind(self.context, 0, poll=handle.queue_count == 0)
        """The default one, whose requests are the device's own. Closed while the device is detached."""
        queues.default = self.queue

    def _make_core(self) -> DeviceCore:
        handle, limits = self.handle, self.limits
        core = DeviceCore(
            make_error=self.refusals.failed,
            make_refusal=self.refusals,
            needs_regions=limits.needs_mem_regions,
            read_only=cast(bool, handle.get("read-only")),
            virtqueues=self.options.driver in VIRTIO,
            request_alignment=limits.request_alignment,
            buf_alignment=limits.buf_alignment,
            max_segments=limits.max_segments,
            max_segment_len=limits.max_segment_len,
            max_transfer=min(limits.max_transfer or LARGEST_PART, LARGEST_PART),
            max_discard_len=limits.max_discard_len,
            max_write_zeroes_len=limits.max_write_zeroes_len,
            discard_alignment=limits.discard_alignment,
            discard_alignment_offset=limits.discard_alignment_offset,
            discard_method=discard_method(handle),
            bounce_cap=self.options.bounce_pool_size,
        )
        core.file_fd = growing_file(handle)
        if self.options.driver == VHOST_VDPA:
            # The kernel tells the device's other side of a change by taking all memory away and giving it
            # back. Requests that are being served meanwhile fail with EIO.
            handle.on_map_turn = core.map_turn
        return core

    def _make_memory(self, alarm: Alarm) -> DeviceMemory:
        # Queues may have a bounce pool of their own, and with it a memory region.
        pools = cast(int, self.handle.get("num-queues")) + cast(int, self.handle.get("num-poll-queues"))
        memory = DeviceMemory(self.handle, self.core, self.limits, reserved=pools)
        memory.calls.limit = self.options.lost_after
        memory.calls.on_silence = alarm.silent
        memory.calls.on_no_answer = alarm.no_answer
        memory.calls.is_coming_back = alarm.is_coming_back
        return memory

    def _make_context(self, alarm: Alarm) -> QueueContext:
        return QueueContext(
            handle=self.handle,
            device=self.core,
            memory=self.memory,
            bounce_pool_size=self.options.bounce_pool_size,
            discards_by_hook=discard_method(self.handle) == BlockDiscard.method,
            sight=self.sight,
            on_broken=alarm.broken,
            lost_after=self.options.lost_after,
            on_silence=alarm.silent,
            on_released=self.queues.forget,
        )

    def destroy(self, *, in_use: bool) -> None:
        """The end of libblkio's instance, and of the lock. *in_use* as of the handle. Blocks."""
        if in_use:
            hand_over(self.lock, self.handle)
        try:
            self.handle.destroy(in_use=in_use)
        finally:
            if self.lock is not None:
                self.lock.release()

    # --- what is seen of it ---------------------------------------------------------------------------------

    def measure(self, measuring: bool) -> None:
        """Whether it is noted from now on how long requests take."""
        self.sight.measuring = measuring
        self.queues.apply_sight()

    def apply_instruments(self) -> None:
        """There are other instruments than before."""
        told = self.instruments if self.instruments.want_requests else None
        self.sight.on_begun = told and told.begun
        self.sight.on_finished = told and told.finished
        self.queues.apply_sight()

    # --- from loop to loop ----------------------------------------------------------------------------------

    def settle_here(self) -> None:
        """The running loop is the device's from now on. UsageError: there is none."""
        self.loop = running_loop("attach", self.subject.driver, self.subject.filename)
        self.thread = threading.get_ident()
        self.memory.attach_loop()

    def require_own_loop(self, operation: str) -> None:
        """UsageError: another loop is running here, or none."""
        if running_loop(operation, self.subject.driver, self.subject.filename) is not self.loop:
            raise self.subject.misuse(operation, "the device belongs to another event loop")

    def bind_default(self) -> None:
        """Bind the default queue once more, to the running loop; the one before is closed."""
        self.queue = self.queues.find_or_bind(self.context, self.queue.index, poll=self.queue.poll)
        self.queues.default = self.queue

    @property
    def is_closing(self) -> bool:
        """Whether the device is closed, or being so."""
        return self.refusals.closed

    def begin_closing(self) -> None:
        """From now on what is refused is refused for that."""
        self.refusals.closed = True

    def start_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Finish *work* on the device's loop, whoever is cancelled. It keeps the device, which would be given
        back with its last reference, in the middle of it."""
        return start_steadfast_task(self.loop, _keeping(self._device(), work))

    # --- queues ---------------------------------------------------------------------------------------------

    def lend(self, device: HasCapacity, index: int | None, *, poll: bool = False) -> Queue:
        """A queue for the running loop, which keeps *device*; without *index* the default one."""
        if index is None:
            index, poll = self.queue.index, self.queue.poll
        queue = self.queues.find_or_bind(self.context, index, poll=poll)
        queue.device = device
        return queue

    def lend_blocking(self, device: object, index: int, *, poll: bool) -> BlockingQueue:
        """A queue for the calling thread, which keeps *device*."""
        queue = self.queues.bind_blocking(self.context, index, poll=poll)
        queue.device = device
        return queue

    async def add_queue(self) -> int:
        """Of those that are not for polling; its index."""
        make = functools.partial(add_queue, self.handle)
        return await self.memory.calls.make("add_queue", make, undo=self.handle.remove_queue)

    async def remove_queue(self, index: int) -> None:
        """One that is not bound, nor the default one."""
        if (self.queue.poll, self.queue.index) == (False, index):
            raise self.subject.misuse("remove_queue", f"{self.queue!r} is the default queue, which stays")
        await self.memory.calls.make("remove_queue", functools.partial(self.handle.remove_queue, index))

    # --- what is behind the device --------------------------------------------------------------------------

    def go_on_with(self, connection: Connection) -> None:
        """The handle has taken over another instance of libblkio."""
        self._have_capacity(connection.capacity)
        self.core.file_fd = growing_file(self.handle)

    def present_capacity(self) -> int:
        """In bytes: of a file that of now, of others what they said when they were last asked."""
        if self.options.driver != IO_URING:
            return self.capacity
        try:
            return size_of(cast(int, self.handle.get("fd")))
        except OSError as error:
            raise request_error(self.options.driver, "capacity", error.errno or errno.EIO) from None

    async def ask_capacity(self) -> int:
        """Ask the device, which may take as long as it pleases."""
        if self.options.driver == IO_URING:
            self._have_capacity(self.present_capacity())
        else:
            ask = functools.partial(self.handle.get, "capacity")
            self._have_capacity(cast(int, await self.memory.calls.make("refresh_capacity", ask)))
        return self.capacity

    def _have_capacity(self, capacity: int) -> None:
        before, self.capacity = self.capacity, capacity
        if capacity != before:
            self.events.tell(DeviceResized(before, capacity))

    def _end(self) -> int | None:
        """Where requests fail for being beyond it; None: nowhere."""
        return None if self.limits.can_grow else self.capacity

    @property
    def read_only(self) -> bool:
        """Whether the device was opened, or is, for reading only."""
        return cast(bool, self.handle.get("read-only"))

    def length_of_file(self, size: int) -> int:
        """What a file is to be cut or extended to, in bytes, if it may be."""
        if growing_file(self.handle) < 0:
            raise self.subject.unsupported(
                "truncate", "only a regular file on the io_uring driver can be made longer or shorter"
            )
        size = operator.index(size)
        if not 0 <= size <= LARGEST_FILE:
            raise self.subject.invalid("truncate", f"size must be from 0 to {LARGEST_FILE}, not {size}")
        if self.read_only:
            raise self.refusals("read-only", "truncate", None, None)
        return size

    async def truncate(self, size: int) -> None:
        """Cut or extend the file."""
        await self.memory.calls.make("truncate", functools.partial(self.handle.truncate, size))

    def extents(
        self, offset: int, length: int | None, file: Callable[[], int | None]
    ) -> AsyncGenerator[Extent]:
        """Of the range, up to the end without *length*; *file* as in find_extents()."""
        capacity = self.present_capacity()
        end = capacity if length is None else offset + length
        if not 0 <= offset <= end <= capacity:
            text = f"the range is not within the device's {capacity} bytes"
            raise self.subject.invalid("extents", text, offset, length)
        return find_extents(self.subject, file, offset, end)

    def file(self) -> int | None:
        """The descriptor of what is behind the device, where that may be a file."""
        return cast(int, self.handle.get("fd")) if self.options.driver == IO_URING else None


@final
class SessionProperties:
    """Where the properties of an open device come from."""

    def __init__(self, handle: Blkio, capacity: Callable[[], int]) -> None:
        """*capacity* as the device tells it: nothing is asked of libblkio that may wait."""
        self._handle = handle
        self._capacity = capacity

    @property
    def driver(self) -> str:
        return self._handle.driver

    @property
    def state(self) -> State:
        return self._handle.state

    def get(self, name: str) -> PropertyValue:
        if name == "capacity" and self.state is State.STARTED:
            return self._capacity()
        return self._handle.get(name)


async def _keeping(_device: object, work: Coroutine[Any, Any, None]) -> None:
    await work


def _asked_weakly(method: Callable[[], int | None]) -> Callable[[], int | None]:
    """Calls *method* for as long as its object exists: the compiled part must not keep the session."""
    reference = weakref.WeakMethod(method)

    def ask() -> int | None:
        bound = reference()
        return None if bound is None else bound()

    return ask
