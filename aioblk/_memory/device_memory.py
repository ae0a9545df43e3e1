"""The memory of a device: who registered what, and what is mapped therefore."""

import asyncio
import errno
import logging
import mmap
import os
from functools import partial
from typing import final

from .._libblkio.handle import Blkio
from .._libblkio.hints import shortage
from .._libblkio.limits import Limits
from .._libblkio.mem_region import MemRegion, memory_file
from .._native._core import DeviceCore, Memory
from .._native.buffers import BytesLike
from .._sync.loops import running_loop
from .._sync.tasks import SteadfastTasks
from ..errors import (
    BlkioError,
    DeviceClosedError,
    DeviceLostError,
    RegistrationError,
    UsageError,
    request_error,
)
from .backing import Backing, BackingError, find_backing, verify_backing
from .handle_calls import HandleCalls
from .mapped import Mapped, MappedRanges
from .regions import MemoryRegion

__all__ = ["DeviceMemory"]

log: logging.Logger = logging.getLogger("aioblk.memory")


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
        self.calls: HandleCalls = HandleCalls(handle)
        self._handle = handle
        self._core = core
        self._most = max(limits.max_mem_regions - reserved, 0)
        self._loop = running_loop("attach")
        self._memories: dict[Memory, None] = {}  # of the regions in use, in order
        self._ranges = MappedRanges()
        self._in_limbo: list[Mapped] = []  # threads may still be telling a lost device of these
        self._tasks = SteadfastTasks("register")
        self._closed = False
        self._withdrawal: asyncio.Future[None] | None = (
            None  # while a lost device is being told of regions again
        )
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
            fd = memory_file("aioblk", whole)
            try:
                pages = mmap.mmap(fd, whole)
            finally:
                os.close(fd)
        except OSError as error:
            raise request_error(
                self._handle.driver,
                "allocate",
                error.errno or errno.ENOMEM,
                f"{whole} bytes of memory with a file behind it cannot be had{shortage(error.errno)}",
            ) from error
        return MemoryRegion(self, Memory.from_buffer(pages), length, required=required)

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
        for mapped in self._ranges:
            mapped.idle.set()  # or never will be
            self._start_unmapping(mapped)
        await self._tasks.until_done()
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

    def _let_go(self, mapped: Mapped) -> None:
        self._handle.loans.once_given_back(mapped.region, mapped.let_go)

    def lose(self, error: DeviceLostError) -> None:
        """The device is lost. What it may still write to will be abandoned, and nobody waits for it."""
        self.calls.lose(error)
        for mapped in self._ranges:
            mapped.idle.set()

    async def detach_loop(self) -> None:
        """Finish what is being mapped and unmapped; the present loop is not needed any more."""
        await self._tasks.until_done()

    def attach_loop(self) -> None:
        """Go on with the running loop."""
        self._loop = running_loop("attach")

    # --- regions --------------------------------------------------------------------------------------------

    async def attach(self, memory: Memory, fd: int | None, fd_offset: int) -> Mapped | None:
        """Have the memory mapped; None where the device needs no regions.

        RegistrationError: the device does not reach it.
        """
        self.refuse_other_loops()
        self._refuse_if_closed()
        self._memories[memory] = None
        if self.calls.lost is not None:
            raise self._refusal("the device is lost", len(memory))
        if not self.limits.needs_mem_regions:
            self._check_alignment(memory)
            return None
        mapped = await self._find_or_map(memory, fd, fd_offset)
        assert mapped.mapping is not None
        try:
            await asyncio.shield(mapped.mapping)
        except asyncio.CancelledError:
            self._leave(mapped)
            raise
        return mapped

    async def detach(self, memory: Memory, mapped: Mapped | None) -> None:
        """Undo attach, once. Unless others hold the range too, unmap it as soon as no request uses it."""
        self.refuse_other_loops()
        memory.close()
        if memory in self._memories:
            del self._memories[memory]
            if mapped is not None:
                mapped.holders -= 1
        if mapped is not None and mapped.holders == 0:
            await self._unmapped(mapped)

    async def _unmapped(self, mapped: Mapped) -> None:
        """Unmap what nobody holds any more, or wait until that is done. BlkioError: it has failed."""
        self._start_unmapping(mapped)
        if mapped.unmapping is not None and self._withdrawal is None:
            await asyncio.shield(mapped.unmapping)

    def _leave(self, mapped: Mapped) -> None:
        mapped.holders -= 1
        if mapped.holders == 0:
            self._start_unmapping(mapped)

    async def _find_or_map(self, memory: Memory, fd: int | None, fd_offset: int) -> Mapped:
        start, end = memory.address, memory.address + len(memory)
        while leaving := [mapped for mapped in self._ranges.overlapping(start, end) if mapped.is_leaving]:
            for mapped in leaving:
                await self._unmapped(mapped)
            self._refuse_if_closed()
        overlapping = self._ranges.overlapping(start, end)
        if overlapping:
            first = overlapping[0]
            if first.abandoned:
                raise self._refusal("a device that was lost may still write to the range", len(memory))
            if first.start <= start and end <= first.end:
                first.holders += 1
                return first
            raise self._refusal(f"the range overlaps another region, at {first.start:#x}", len(memory))
        self._check(memory)
        mapped = Mapped(memory, self._backing(memory, fd, fd_offset))
        self._ranges.add(mapped)
        mapped.mapping = self._tasks.start(self._loop, self._map(mapped))
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
        self._check_alignment(memory)
        if len(self._ranges) >= self._most:
            raise self._refusal(f"the device cannot take more than {self._most} regions", len(memory))

    def _check_alignment(self, memory: Memory) -> None:
        alignment = self.limits.mem_region_alignment
        if memory.address % alignment or len(memory) % alignment:
            raise self._refusal(f"address and length must be multiples of {alignment}", len(memory))

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

    async def _map(self, mapped: Mapped) -> None:
        try:
            await self.calls.make("register", partial(self._handle.map_mem_region, mapped.region))
        except Exception as error:
            self._ranges.remove(mapped)
            mapped.mapping = None  # the error keeps this frame, and would be kept by it
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

    def _start_unmapping(self, mapped: Mapped) -> None:
        """From this moment on no new request uses the region."""
        if mapped.unmapping is None and mapped in self._ranges:
            if mapped.known_to_core:
                self._core.retire_region(mapped.start)
            mapped.unmapping = self._tasks.start(self._loop, self._unmap(mapped))

    async def _unmap(self, mapped: Mapped) -> None:
        if mapped.mapping is not None:
            await asyncio.wait([mapped.mapping])
        if not mapped.known_to_core:
            return  # mapping it has failed
        if self._withdrawal is not None:  # whether the device is lost still, or has the region again
            await asyncio.wait([self._withdrawal])
        while self._core.retire_region(mapped.start) and not (self.calls.lost or mapped.abandoned):
            mapped.idle.clear()  # another thread may tell late of a region that was here before
            await mapped.idle.wait()
        if self._core.retire_region(mapped.start):
            mapped.abandoned = True
            _abandoned.append(mapped)  # in use for good: a lost device may still write there
            log.info(
                "%d registered bytes are never released: %s, which is lost, may write to them",
                mapped.region.length,
                self._handle.subject,
            )
            self._handle.loans.once_given_back(mapped.region, mapped.close_file)
            return
        if not (self.calls.lost or mapped.is_withdrawn):  # otherwise there is nobody to be told
            try:
                await self.calls.make("unregister", partial(self._handle.unmap_mem_region, mapped.region))
            except BlkioError:
                if not self.calls.lost:
                    mapped.unmapping = None  # it is tried again by whoever comes to it next
                    raise
        self._core.remove_region(mapped.start)
        self._ranges.remove(mapped)
        self._let_go(mapped)

    def _on_region_idle(self, address: int) -> None:
        """The last request on a retired region is over; told by whatever thread runs that request's queue."""
        self._loop.call_soon_threadsafe(self._mark_idle, address)

    def _mark_idle(self, address: int) -> None:
        for mapped in self._ranges.overlapping(address, address + 1):
            mapped.idle.set()

    # --- while the device is being reconnected --------------------------------------------------------------

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
            mapped.is_withdrawn = mapped.unmapping is not None
            if mapped.known_to_core:
                mapped.abandoned = mapped.abandoned or self._core.retire_region(mapped.start) > 0
                if not (mapped.abandoned or mapped.is_withdrawn):
                    regions.append(mapped.region)
        return regions

    def end_withdrawal(self) -> None:
        """The device is not being told of regions any more, whether it comes back or not; idempotent."""
        withdrawal, self._withdrawal = self._withdrawal, None
        if withdrawal is not None:
            withdrawal.set_result(None)

    def come_back(self) -> None:
        """The lost device is back, and what :meth:`withdraw_regions` gave is mapped again."""
        self.calls.lost = None
        for mapped in self._ranges:
            mapped.idle.clear()
            if mapped.known_to_core and mapped.unmapping is None and not mapped.abandoned:
                self._core.remove_region(mapped.start)
                self._core.add_region(mapped.start, mapped.region.length)


_abandoned: list[Mapped] = []
