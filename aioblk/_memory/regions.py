"""Memory that a device reaches without copying: regions, and the book-keeping of what is mapped.

A driver that needs memory regions transfers only from and to memory it was told of beforehand. Telling it is
slow, and the number of regions is limited; transferring is then as fast as can be. Memory that is not
registered is copied through the bounce pool instead, so registration is never needed for a correct result.
"""

import asyncio
import contextlib
import errno
import mmap
import os
import threading
import warnings
from bisect import bisect_left, insort
from collections.abc import Callable, Coroutine
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, final

from .._libblkio.handle import Blkio, MemRegion
from .._libblkio.limits import Limits
from .._native._core import DeviceCore, Memory, View
from .._native.buffers import BytesLike
from .._sync.blocking import BlockingCall
from .._sync.loops import running_loop
from .._sync.scopes import shielded, shielded_if_cancelled
from .._sync.tasks import start_steadfast_task
from ..errors import (
    BlkioError,
    DeviceClosedError,
    DeviceLostError,
    RegistrationError,
    UsageError,
    request_error,
)
from .backing import Backing, BackingError, find_backing, verify_backing

__all__ = ["DeviceMemory", "MemoryRegion"]

T = TypeVar("T")


@final
class MemoryRegion(View):
    """A range of memory that a device was told of: ``async with dev.register(buffer) as region``.

    The region is a buffer of bytes, as are its slices: ``region[a:b]`` takes part in requests without being
    copied, and ``memoryview``, ``numpy.frombuffer`` and ``struct`` accept both. So does any other view of the
    same memory.

    Leaving the ``async with`` block waits until no request uses the region and unmaps it. From then on the
    region and its slices raise ``ValueError``. What was made of them before (a memoryview, an array) stays
    valid, and keeps the memory, for as long as it exists. A task that is cancelled while it leaves does not
    wait; unmapping goes on without it.

    Belongs to the event loop of its device.
    """

    __slots__ = (
        "_entered",
        "_fd",
        "_fd_offset",
        "_length",
        "_mapped",
        "_memory_of_device",
        "_reason",
        "_required",
        "device",
    )

    # What a View refers to is settled by __new__ and never changes.
    def __new__(
        cls,
        device: "DeviceMemory",
        memory: Memory,
        length: int,
        *,
        fd: int | None = None,
        fd_offset: int = 0,
        required: bool = False,
    ) -> Self:
        return super().__new__(cls, memory, 0, length)

    def __init__(
        self,
        device: "DeviceMemory",
        memory: Memory,
        length: int,
        *,
        fd: int | None = None,
        fd_offset: int = 0,
        required: bool = False,
    ) -> None:
        self._memory_of_device = device
        self.device: object = None
        """Kept until the region is closed: the device would otherwise end with its last reference."""
        self._length = length
        self._fd = fd
        self._fd_offset = fd_offset
        self._required = required
        self._entered = False
        self._mapped: _Mapped | None = None
        self._reason: str | None = None

    @property
    def mapped(self) -> bool:
        """Whether the region is mapped into the device. Never so where the device needs no regions."""
        return self._mapped is not None and not self._mapped.abandoned and not self.memory.closed

    @property
    def zero_copy(self) -> bool:
        """Whether aligned requests on the region avoid the bounce pool."""
        return self.mapped or not self._memory_of_device.limits.needs_mem_regions

    @property
    def reason(self) -> str | None:
        """Why the region is not mapped, if mapping it was tried in vain."""
        return self._reason

    async def __aenter__(self) -> Self:
        """Map the region.

        Where that fails, requests on the region bounce, and :attr:`reason` says why; with ``required=True``
        it raises.

        Raises:
            RegistrationError: ``required`` and misaligned, overlapping another region, without a file where
                the device needs one, more regions than the device can take, or refused by the device.
            DeviceClosedError: the device is closed.
            UsageError: the region has been entered before, or the device belongs to another loop.
        """
        self._memory_of_device.refuse_other_loops()
        if self._entered:
            raise self._memory_of_device.misuse("a region can be entered once")
        self._entered = True
        try:
            self._mapped = await self._memory_of_device.attach(self.memory, self._fd, self._fd_offset)
        except BaseException as error:
            if not isinstance(error, RegistrationError) or self._required:
                await self.aclose()
                raise
            self._reason = error.message or error.strerror
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with shielded():
            await self.aclose()

    async def aclose(self) -> None:
        """Unmap the region as soon as no request uses it, as leaving the block does; idempotent."""
        with shielded_if_cancelled():
            await self._memory_of_device.detach(self.memory, self._mapped)
        self.device = None

    def __del__(self) -> None:
        if not hasattr(self, "_entered") or self.memory.closed:
            return
        if self._entered:
            what = f"unclosed {self!r}: it stays registered until its device is closed"
        else:
            what = f"{self!r} was never entered, so nothing was registered; use `async with`"
        warnings.warn(what, ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        state = "closed" if self.memory.closed else "mapped" if self.mapped else "not mapped"
        return f"<MemoryRegion of {self._length} bytes at {self.memory.address:#x}, {state}>"


class _Mapped:
    """A range that is mapped once for all who registered it or a part of it."""

    def __init__(self, memory: Memory, backing: Backing | None) -> None:
        self.pin: memoryview = memoryview(
            View(memory)
        )  # the memory lasts until it is unmapped, whoever closes it before
        self.region: MemRegion = MemRegion(
            memory.address,
            len(memory),
            fd=-1 if backing is None else backing.fd,
            fd_offset=0 if backing is None else backing.offset,
        )
        self._file_is_open = backing is not None
        self.holders = 1
        self.known_to_core = False  # which means: mapped
        self.abandoned = False  # a lost device may still write there
        self.mapping: asyncio.Task[None] | None = None
        self.unmapping: asyncio.Task[None] | None = None
        self.idle: asyncio.Event = asyncio.Event()

    @property
    def start(self) -> int:
        return self.region.address

    @property
    def end(self) -> int:
        return self.region.address + self.region.length

    @property
    def is_leaving(self) -> bool:
        """Whether it is to be unmapped, or being so."""
        return self.holders == 0 and not self.abandoned

    def let_go(self) -> None:
        self.close_file()
        self.pin.release()

    def close_file(self) -> None:
        if self._file_is_open:
            self._file_is_open = False
            os.close(self.region.fd)


@final
class DeviceMemory:
    """The regions of one device: who registered what, and what is mapped therefore.

    A range that lies within a mapped one is not mapped again but counted; the last one to leave unmaps it.
    Calls that may block (a vhost-user backend has to answer, VFIO pins pages) are made in a worker thread,
    one at a time.
    """

    def __init__(self, handle: Blkio, core: DeviceCore, limits: Limits, *, reserved: int = 0) -> None:
        """Of a started device. ``reserved`` regions are kept free for bounce pools."""
        self.limits = limits
        self._handle = handle
        self._core = core
        self._most = max(limits.max_mem_regions - reserved, 0)
        self._loop = asyncio.get_running_loop()
        self._turn = threading.Lock()
        self._memories: set[Memory] = set()  # of the regions in use
        self._ranges: list[_Mapped] = []  # sorted by start, disjoint
        self._in_limbo: list[_Mapped] = []  # threads may still be telling a lost device of these
        self._tasks: set[asyncio.Task[None]] = set()
        self._calls: set[BlockingCall[Any]] = set()  # of any loop, until their threads are back
        self._losses = 0  # a call that was to be made before one of them is not made any more
        self._held = False
        self._held_calls: set[asyncio.Future[None]] = set()  # of any loop
        self._holding = threading.Lock()
        self._closed = False
        self._lost: DeviceLostError | None = None
        self._withdrawal: asyncio.Future[None] | None = (
            None  # while a lost device is being told of regions again
        )
        self.call_limit: float | None = None
        """Seconds that a call of the handle may take before :attr:`on_silence` is told."""
        self.on_silence: Callable[[str], object] = lambda _: None
        self.is_coming_back: Callable[[], bool] = lambda: False
        """Asked when a call has failed: whether the device is being reconnected, so that it should be tried
        again."""
        core.on_region_idle = self._on_region_idle

    # --- what the device offers -----------------------------------------------------------------------------

    def register(
        self, buffer: BytesLike, *, fd: int | None = None, fd_offset: int = 0, required: bool = False
    ) -> MemoryRegion:
        """A region of existing memory, to be entered with ``async with``.

        From now on the buffer can be neither resized nor closed. Where the device needs a file descriptor, it
        is found for every shared mapping of a file that is open for reading and writing (SharedMemory, mmap,
        numpy.memmap, a memfd); ``fd`` and ``fd_offset`` (in bytes) name it explicitly. It is duplicated.
        A read-only buffer makes a region to be written to the device from.

        Raises:
            TypeError: not a buffer.
            BufferError: not contiguous (numpy says ValueError).
            ValueError: empty.
        """
        memory = Memory.from_buffer(buffer)
        if len(memory) == 0:
            memory.close()
            raise ValueError("an empty buffer cannot be registered")
        return MemoryRegion(self, memory, len(memory), fd=fd, fd_offset=fd_offset, required=required)

    def allocate(self, length: int, *, required: bool = True) -> MemoryRegion:
        """A region of ``length`` new zero bytes that suit the device, to be entered with ``async with``.

        Unless ``required``, it does not matter if the memory cannot be mapped.

        Raises:
            ValueError: ``length`` is not positive.
            BlkioError: there is not that much memory, or no descriptor for it.
        """
        # libblkio would unmap memory of its own when the device is closed, under the views that still exist.
        if length <= 0:
            raise ValueError(f"length must be positive, not {length}")
        whole = self.round_up(length)
        try:
            fd = os.memfd_create("aioblk", os.MFD_CLOEXEC)
            try:
                os.ftruncate(fd, whole)
                pages = mmap.mmap(fd, whole)
            finally:
                os.close(fd)
        except OSError as error:
            raise request_error(
                self._handle.driver,
                "allocate",
                error.errno or errno.ENOMEM,
                f"{whole} bytes of memory with a file behind it cannot be had",
            ) from error
        return MemoryRegion(self, Memory.from_buffer(pages), length, required=required)

    @property
    def busy(self) -> bool:
        """Whether a worker thread is using the handle."""
        return self._turn.locked()

    def round_up(self, length: int) -> int:
        """The next length that a region may have and that is whole pages, in bytes."""
        unit = max(self.limits.mem_region_alignment, mmap.PAGESIZE)
        return -(-length // unit) * unit

    async def aclose(self) -> None:
        """Unmap everything and close every region; idempotent. The device has been drained or is lost."""
        self._closed = True
        self.end_withdrawal()
        for memory in self._memories:
            memory.close()
        self._memories.clear()
        for mapped in list(self._ranges):
            mapped.idle.set()  # or never will be
            self._start_unmapping(mapped)
        while self._tasks:
            await asyncio.wait(self._tasks)
        self._core.on_region_idle = None

    def forget(self) -> None:
        """The instance is destroyed. What could not be unmapped before went with it."""
        for mapped in self._ranges:
            if not mapped.abandoned:
                self._let_go(mapped)
        self._ranges.clear()
        self.end_limbo()

    def end_limbo(self) -> None:
        """The lost instance is destroyed, and no thread is in a call to it."""
        while self._in_limbo:
            self._let_go(self._in_limbo.pop())

    def _let_go(self, mapped: _Mapped) -> None:
        self._handle.loans.once_given_back(mapped.region, mapped.let_go)

    def lose(self, error: DeviceLostError) -> None:
        """The device is lost. What it may still write to will be abandoned, and nobody waits for it."""
        self._lost = error
        self.release_calls()
        for mapped in self._ranges:
            mapped.idle.set()
        self._losses += 1
        for call in list(self._calls):
            with contextlib.suppress(RuntimeError):  # its loop is closed
                call.done.get_loop().call_soon_threadsafe(
                    call.abort, DeviceLostError(error.message, driver=error.driver)
                )

    async def detach_loop(self) -> None:
        """Finish what is being mapped and unmapped; the present loop is not needed any more."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def attach_loop(self) -> None:
        """Go on with the running loop."""
        self._loop = asyncio.get_running_loop()

    # --- regions --------------------------------------------------------------------------------------------

    async def attach(self, memory: Memory, fd: int | None, fd_offset: int) -> _Mapped | None:
        """Have the memory mapped; None where the device needs no regions. RegistrationError: it is not."""
        self.refuse_other_loops()
        self._refuse_if_closed()
        self._memories.add(memory)
        if self._lost is not None:
            raise self._refusal("the device is lost", len(memory))
        if not self.limits.needs_mem_regions:
            return None
        mapped = await self._find_or_map(memory, fd, fd_offset)
        assert mapped.mapping is not None
        try:
            await asyncio.shield(mapped.mapping)
        except asyncio.CancelledError:
            self._leave(mapped)
            raise
        return mapped

    async def detach(self, memory: Memory, mapped: _Mapped | None) -> None:
        """Undo attach, once. Unless others hold the range too, unmap it as soon as no request uses it."""
        self.refuse_other_loops()
        memory.close()
        if memory in self._memories:
            self._memories.remove(memory)
            if mapped is not None:
                mapped.holders -= 1
        if mapped is not None and mapped.holders == 0:
            await self._unmapped(mapped)

    async def _unmapped(self, mapped: _Mapped) -> None:
        """Unmap what nobody holds any more, or wait until that is done. BlkioError: it has failed."""
        self._start_unmapping(mapped)
        if mapped.unmapping is not None and self._withdrawal is None:
            await asyncio.shield(mapped.unmapping)

    def _leave(self, mapped: _Mapped) -> None:
        mapped.holders -= 1
        if mapped.holders == 0:
            self._start_unmapping(mapped)

    async def _find_or_map(self, memory: Memory, fd: int | None, fd_offset: int) -> _Mapped:
        start, end = memory.address, memory.address + len(memory)
        while leaving := [mapped for mapped in self._overlapping(start, end) if mapped.is_leaving]:
            for mapped in leaving:
                await self._unmapped(mapped)
            self._refuse_if_closed()
        overlapping = self._overlapping(start, end)
        if overlapping:
            first = overlapping[0]
            if first.abandoned:
                raise self._refusal("a device that was lost may still write to the range", len(memory))
            if first.start <= start and end <= first.end:
                first.holders += 1
                return first
            raise self._refusal(f"the range overlaps another region, at {first.start:#x}", len(memory))
        self._check(memory)
        mapped = _Mapped(memory, self._backing(memory, fd, fd_offset))
        insort(self._ranges, mapped, key=_start)
        mapped.mapping = self._task(self._map(mapped))
        return mapped

    def refuse_other_loops(self) -> None:
        """UsageError where the running loop is not the device's. Nothing has changed then."""
        if running_loop("register", self._handle.driver) is not self._loop:
            raise self.misuse("the device belongs to another event loop")

    def misuse(self, message: str) -> UsageError:
        """The error of a call that must not be made now, or here."""
        return UsageError(
            message, driver=self._handle.driver, operation="register", filename=self._handle.filename
        )

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise DeviceClosedError(
                "the device is closed",
                driver=self._handle.driver,
                operation="register",
                filename=self._handle.filename,
            )

    def _check(self, memory: Memory) -> None:
        alignment = self.limits.mem_region_alignment
        if memory.address % alignment or len(memory) % alignment:
            raise self._refusal(f"address and length must be multiples of {alignment}", len(memory))
        if len(self._ranges) >= self._most:
            raise self._refusal(f"the device cannot take more than {self._most} regions", len(memory))

    def _backing(self, memory: Memory, fd: int | None, fd_offset: int) -> Backing | None:
        if fd is None and not self.limits.needs_mem_region_fd:
            return None
        try:
            if fd is None:
                return find_backing(memory.address, len(memory))
            return verify_backing(memory.address, len(memory), fd, fd_offset)
        except BackingError as error:
            raise self._refusal(str(error), len(memory)) from None
        except OSError as error:
            what = "the file behind the memory cannot be found" if fd is None else f"fd {fd} cannot be used"
            raise self._refusal(f"{what}: {error.strerror}", len(memory), error.errno) from None

    def _overlapping(self, start: int, end: int) -> list[_Mapped]:
        first = bisect_left(self._ranges, start, key=_end_inclusive)
        last = bisect_left(self._ranges, end, key=_start)
        return self._ranges[first:last]

    def _refusal(self, message: str, length: int, number: int | None = None) -> RegistrationError:
        return RegistrationError(
            message,
            errno=number,
            driver=self._handle.driver,
            operation="register",
            length=length,
            filename=self._handle.filename,
        )

    # --- the device's side ----------------------------------------------------------------------------------

    async def _map(self, mapped: _Mapped) -> None:
        try:
            await self.call(partial(self._handle.map_mem_region, mapped.region))
        except Exception as error:
            self._ranges.remove(mapped)
            if isinstance(error, DeviceLostError):
                self._in_limbo.append(mapped)
            else:
                self._let_go(mapped)
            if isinstance(error, RegistrationError):
                raise
            message = error.message if isinstance(error, BlkioError) else None
            number = error.errno if isinstance(error, OSError) else None
            raise self._refusal(message or str(error), mapped.region.length, number) from error
        self._core.add_region(mapped.start, mapped.region.length)
        mapped.known_to_core = True

    def _start_unmapping(self, mapped: _Mapped) -> None:
        """From this moment on no new request uses the region."""
        if mapped.unmapping is None and mapped in self._ranges:
            if mapped.known_to_core:
                self._core.retire_region(mapped.start)
            mapped.unmapping = self._task(self._unmap(mapped))

    async def _unmap(self, mapped: _Mapped) -> None:
        assert mapped.mapping is not None
        await asyncio.wait([mapped.mapping])
        if not mapped.known_to_core:
            return  # mapping it has failed
        if self._withdrawal is not None:  # whether the device is lost still, or has the region again
            await asyncio.wait([self._withdrawal])
        while self._core.retire_region(mapped.start) and not (self._lost or mapped.abandoned):
            mapped.idle.clear()  # another thread may tell late of a region that was here before
            await mapped.idle.wait()
        if self._core.retire_region(mapped.start):
            mapped.abandoned = True
            _abandoned.append(mapped)  # in use for good: a lost device may still write there
            self._handle.loans.once_given_back(mapped.region, mapped.close_file)
            return
        if not self._lost:  # otherwise there is nobody to be told
            try:
                await self.call(partial(self._handle.unmap_mem_region, mapped.region))
            except BlkioError:
                if not self._lost:
                    mapped.unmapping = None  # it is tried again by whoever comes to it next
                    raise
        self._core.remove_region(mapped.start)
        self._ranges.remove(mapped)
        self._let_go(mapped)

    def _on_region_idle(self, address: int) -> None:
        """The last request on a retired region is over; told by whatever thread runs that request's queue."""
        self._loop.call_soon_threadsafe(self._mark_idle, address)

    def _mark_idle(self, address: int) -> None:
        for mapped in self._overlapping(address, address + 1):
            mapped.idle.set()

    async def call(self, function: Callable[[], T], *, undo: Callable[[T], object] | None = None) -> T:
        """Call a function that uses the handle in a worker thread, after whoever does so now.

        *undo* is called there, too, with a result that comes when the caller has been cancelled.

        Raises DeviceLostError as soon as the device is lost: the thread may then go on by itself.
        """

        def take_turn() -> T:
            with self._turn:
                if losses != self._losses:  # the handle may have another instance of libblkio by now
                    raise DeviceLostError("the device was lost meanwhile", driver=self._handle.driver)
                return function()

        def take_undoing_turn(result: T) -> None:
            with self._turn, contextlib.suppress(BlkioError):  # lost or closed meanwhile: it went with that
                if undo is not None and losses == self._losses:
                    undo(result)

        while True:
            await self._until_released()
            if self._lost is not None:
                raise DeviceLostError(self._lost.message, driver=self._handle.driver) from self._lost
            losses = self._losses
            try:
                return await self._watched(BlockingCall(take_turn, undo=take_undoing_turn))
            except BlkioError as error:
                if isinstance(error, DeviceLostError) or not self.is_coming_back():
                    raise

    async def _watched(self, call: BlockingCall[T]) -> T:
        for other in list(self._calls):
            if other.returned:
                self._calls.discard(other)
        self._calls.add(call)
        timer = None
        if self.call_limit is not None:
            told = f"a call to the device has not returned for {self.call_limit:g} seconds (lost_after)"
            timer = call.done.get_loop().call_later(self.call_limit, self.on_silence, told)
        try:
            return await call.outcome()
        finally:
            if call.returned:
                self._calls.discard(call)
            if timer is not None:
                timer.cancel()

    def after_calls(self, function: Callable[[], T]) -> T:
        """Call it in this thread, after whoever calls the handle now."""
        with self._turn:
            return function()

    # --- while the device is being reconnected --------------------------------------------------------------

    def hold_calls(self) -> None:
        """Let calls wait from now on, those that fail now included. From any thread."""
        with self._holding:
            self._held = True

    def release_calls(self) -> None:
        """Let them go on."""
        with self._holding:
            self._held = False
            waiting, self._held_calls = self._held_calls, set()
        for call in waiting:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                call.get_loop().call_soon_threadsafe(_settle, call)

    async def _until_released(self) -> None:
        while True:
            with self._holding:
                if not self._held:
                    return
                released = asyncio.get_running_loop().create_future()
                self._held_calls.add(released)
            await released

    async def until_idle(self) -> None:
        """Wait until no call is being made, not even one that was given up: those to come are held."""
        while any(not call.returned for call in list(self._calls)):  # noqa: ASYNC110 (of several loops)
            await asyncio.sleep(_MOMENT)

    def wanted_regions(self) -> set[MemRegion]:
        """What is mapped, or being mapped or unmapped, and not abandoned."""
        return {mapped.region for mapped in self._ranges if not mapped.abandoned}

    def withdraw_regions(self) -> list[MemRegion]:
        """Of a lost device: what is to be mapped again. Nothing is in flight.

        A region that an abandoned request uses is not: the lost device may still write there. Requests on it
        will bounce. One that is left before :meth:`end_withdrawal` is unmapped then, if it was mapped again.
        """
        self._withdrawal = self._loop.create_future()
        regions: list[MemRegion] = []
        for mapped in self._ranges:
            if mapped.known_to_core and mapped.unmapping is None:
                mapped.abandoned = mapped.abandoned or self._core.retire_region(mapped.start) > 0
                if not mapped.abandoned:
                    regions.append(mapped.region)
        return regions

    def end_withdrawal(self) -> None:
        """The device is not being told of regions any more, whether it comes back or not; idempotent."""
        withdrawal, self._withdrawal = self._withdrawal, None
        if withdrawal is not None:
            withdrawal.set_result(None)

    def come_back(self) -> None:
        """The lost device is back, and what :meth:`withdraw_regions` gave is mapped again."""
        self._lost = None
        for mapped in self._ranges:
            mapped.idle.clear()
            if mapped.known_to_core and mapped.unmapping is None and not mapped.abandoned:
                self._core.remove_region(mapped.start)
                self._core.add_region(mapped.start, mapped.region.length)

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that goes on when the caller of ours is cancelled, and that closing waits for."""
        task = start_steadfast_task(self._loop, work)
        self._tasks.add(task)
        task.add_done_callback(self._end_task)
        return task

    def _end_task(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        task.exception()  # who waits is told of it; where nobody does, it is tried again at closing


_abandoned: list[_Mapped] = []
_MOMENT = 0.005  # seconds


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _start(mapped: _Mapped) -> int:
    return mapped.start


def _end_inclusive(mapped: _Mapped) -> int:
    return mapped.end - 1
