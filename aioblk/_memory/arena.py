"""Arena: memory for buffers that any number of devices reach without copying."""

# An arena, its blocks and its attachments do with each other what users do not see.
# pyright: reportPrivateUsage=false

import asyncio
import contextlib
import ctypes
import errno
import mmap
import os
import warnings
import weakref
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar, final

from .._native._core import Allocator, Memory, View
from .._sync.blocking import run_blocking
from .._sync.loops import running_loop
from .._sync.scopes import shielded, shielded_if_cancelled
from .._sync.tasks import start_steadfast_task
from .._sync.wait_queue import WaitQueue
from ..errors import BlkioError, UsageError
from .regions import DeviceMemory, MemoryRegion

__all__ = ["Arena", "ArenaAttachment", "ArenaBlock", "ArenaBuffer", "ArenaListener", "ArenaStatistics"]

T = TypeVar("T")

HUGE_PAGE = 2 << 20
MFD_HUGE_SHIFT = 26


@final
@dataclass(frozen=True, slots=True)
class ArenaStatistics:
    """What :meth:`Arena.statistics` reports; sizes in bytes."""

    blocks: int
    size: int
    in_use: int
    buffers: int
    devices: int


class HasMemory(Protocol):
    """A device, as far as an arena is concerned."""

    @property
    def _device_memory(self) -> DeviceMemory: ...
    @property
    def closed(self) -> bool: ...


class ArenaListener(Protocol):
    """Told of every block. May remove itself, or others, while it is being called. What it raises is reported
    to the event loop's exception handler, and stops nothing."""

    async def block_added(self, block: "ArenaBlock", /) -> None:
        """The block exists; no buffer of it has been handed out yet."""

    async def block_removed(self, block: "ArenaBlock", /) -> None:
        """No buffer of the block is in use; it goes when everybody has been told."""


@final
class ArenaBuffer(View):
    """A buffer from an arena, and a context manager that gives it back.

    Giving it back makes it and its slices raise ``ValueError``. Its memory is handed out again as soon as no
    request in flight and nothing made of it (a memoryview, an array) uses it. A buffer that is forgotten
    gives itself back.
    """

    __slots__ = ()

    def release(self) -> None:
        """Give the buffer back; idempotent."""
        self.memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@final
class ArenaBlock:
    """One memfd, mapped as a whole."""

    def __init__(self, size: int, *, granule: int, huge_page: int, locked: bool) -> None:
        flags = os.MFD_CLOEXEC
        if huge_page:
            flags |= os.MFD_HUGETLB | (huge_page.bit_length() - 1) << MFD_HUGE_SHIFT
        self.fd: int = -1
        try:
            self.fd = os.memfd_create("aioblk-arena", flags)
            os.ftruncate(self.fd, size)
            self._pages: mmap.mmap | None = mmap.mmap(self.fd, size)
            self.memory: Memory = Memory.from_buffer(self._pages)
            if locked:
                _lock(self.memory)
            self._allocator = Allocator(size, granule)
        except (OSError, OverflowError, ValueError) as error:  # the latter two: no memory is that large
            self._close_file()
            raise BlkioError(
                f"a block of {size} bytes cannot be had: {error.args[-1]}",
                errno=(error.errno if isinstance(error, OSError) else None) or errno.ENOMEM,
                operation="add_block",
            ) from error
        self._unit = huge_page or mmap.PAGESIZE
        self._address = self.memory.address
        # What was handed out last at each offset, and what gives it back.
        self._buffers: dict[int, weakref.ref[Memory]] = {}
        self._givers: dict[int, Callable[[], None]] = {}
        self._keeper: memoryview | None = memoryview(
            View(self.memory)
        )  # the block lasts as long as its buffers
        self.on_room: Callable[[], object] | None = None
        """Called when a buffer has come back, in whatever thread that was."""

    @property
    def size(self) -> int:
        """In bytes."""
        return self._allocator.size

    @property
    def in_use(self) -> int:
        """Bytes handed out."""
        return self._allocator.in_use

    @property
    def _longest_room(self) -> int:
        """Of the longest buffer that could be handed out now."""
        return self._allocator.largest_free

    @property
    def buffers(self) -> int:
        """Buffers handed out, and not yet free again."""
        return self._allocator.count

    def _take(self, length: int) -> ArenaBuffer | None:
        """A buffer, or None when the block has no room for it."""
        offset = self._allocator.take(length)
        if offset is None:
            return None
        give = self._givers.get(offset)
        if give is None:
            give = self._givers[offset] = partial(self._give, offset)
        # It is called once, also when nobody but the garbage collector asks for it.
        memory = Memory(self._address + offset, length, owner=self._keeper, on_release=give)
        self._buffers[offset] = weakref.ref(memory)
        return ArenaBuffer(memory)

    def _give(self, offset: int) -> None:
        self._allocator.give(offset)
        on_room = self.on_room  # which another thread may change meanwhile
        if on_room is not None:
            on_room()

    def _give_free_pages_back(self) -> int:
        """Punch holes where no buffer is, which may take a while; returns how many bytes."""
        taken: list[tuple[int, int]] = []
        pages = self._pages
        if pages is None:
            return 0
        while length := self._allocator.largest_free:
            offset = self._allocator.take(length)
            assert offset is not None
            taken.append((offset, length))
        given = 0
        try:
            for offset, length in taken:
                start = -(-offset // self._unit) * self._unit
                end = (offset + length) // self._unit * self._unit
                if start < end:
                    pages.madvise(mmap.MADV_REMOVE, start, end - start)
                    given += end - start
        finally:
            for offset, _ in taken:
                self._allocator.give(offset)
        return given

    def _close(self) -> None:
        """Close every buffer; the memory goes when the last of them is unused."""
        for reference in list(self._buffers.values()):
            if (memory := reference()) is not None:
                memory.close()
        if not self.memory.closed:
            self.memory.close()
            # Nothing is left that refers to itself: no collector is needed for the memory to go.
            self._keeper = self._pages = self.on_room = None
            self._givers.clear()
            self._buffers.clear()
        self._close_file()

    def _close_file(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self._close_file()

    def __repr__(self) -> str:
        return f"<ArenaBlock of {self.size} bytes at {self.memory.address:#x}, {self.in_use} in use>"


@final
class ArenaAttachment:
    """A device's registrations of an arena's blocks: all of them or, after a failure, none."""

    def __init__(self, arena: "Arena", device: HasMemory) -> None:
        self._arena = arena
        self._device = device
        self._memory = device._device_memory
        self._regions: dict[ArenaBlock, MemoryRegion] = {}
        self._attached = True
        self._error: BlkioError | None = None

    @property
    def device(self) -> HasMemory:
        return self._device

    @property
    def attached(self) -> bool:
        """Whether the device has every block. Requests on buffers of the arena are correct either way."""
        return self._attached and not self._device.closed

    @property
    def error(self) -> BlkioError | None:
        """Why the device was detached, if not by :meth:`detach`."""
        return self._error

    @property
    def _may_pin(self) -> bool:
        """Whether the device may have pinned pages of the arena."""
        limits = self._memory.limits
        return self.attached and limits.needs_mem_regions and limits.may_pin_mem_regions

    async def detach(self) -> None:
        """Unregister every block, each as soon as no request uses it; idempotent."""
        self._attached = False
        self._arena.remove_listener(self)
        with shielded_if_cancelled():
            await self._arena._finish(self._close_regions())

    async def _close_regions(self) -> None:
        problem: BlkioError | None = None
        while self._regions:
            _block, region = self._regions.popitem()
            try:
                await region.aclose()
            except BlkioError as error:  # the device unmaps it at the latest when it is closed
                problem = problem or error
        if problem is not None:
            raise problem

    async def block_added(self, block: ArenaBlock, /) -> None:
        """Register the block; a failure detaches the device, so that it has all blocks or none."""
        region = self._memory.register(View(block.memory), fd=block.fd, required=True)
        try:
            await region.__aenter__()
        except BlkioError as error:
            self._error = error
            with contextlib.suppress(BlkioError):  # what cannot be unmapped now goes with the device
                await self.detach()
            return
        if self._attached:
            self._regions[block] = region
        else:  # detached meanwhile
            await region.aclose()

    async def block_removed(self, block: ArenaBlock, /) -> None:
        region = self._regions.pop(block, None)
        if region is not None:
            await region.aclose()


@final
class Arena:
    """Blocks of shared memory that are registered with every attached device, and carved into aligned
    buffers::

        async with aioblk.Arena(16 << 20) as arena:
            await arena.attach(source)
            await arena.attach(destination)
            with arena.allocate(1 << 20) as buffer:
                await source.read_into(0, buffer)
                await destination.write(0, buffer)

    Blocks are added and removed while devices are attached, and devices come and go while there are blocks;
    every device has all blocks or, when it could not take one, none: it is detached then, its requests
    bounce, and the other devices do not notice. A device that needs no memory regions is not told of any.

    What is begun is finished: a task that is cancelled while it adds or removes a block, or attaches or
    detaches a device, does not wait any longer, and it happens all the same.

    Belongs to one event loop. Buffers can be handed out and given back in any thread.
    """

    def __init__(
        self,
        size: int = 0,
        *,
        block_size: int = 16 << 20,
        alignment: int = mmap.PAGESIZE,
        huge_pages: bool | int = False,
        locked: bool = False,
    ) -> None:
        """Describe an arena; entering it adds a first block of ``size`` bytes, unless 0.

        ``block_size`` is the size in bytes of blocks added without one. Buffers start at multiples of
        ``alignment``, a power of two from 512 bytes to a page. ``huge_pages`` takes pages of 2 MiB or of the
        given size, which the system must have reserved; ``locked`` keeps the memory from being swapped out.

        Raises:
            ValueError: a size or the alignment is out of range.
        """
        if alignment & (alignment - 1) or not 512 <= alignment <= mmap.PAGESIZE:
            raise ValueError(f"alignment must be a power of two from 512 to {mmap.PAGESIZE}, not {alignment}")
        self._huge_page = HUGE_PAGE if huge_pages is True else int(huge_pages)
        if self._huge_page & (self._huge_page - 1):
            raise ValueError(f"the size of a huge page is a power of two, not {huge_pages}")
        if size < 0 or block_size <= 0:
            raise ValueError(f"sizes must be positive, not {min(size, block_size)}")
        self._first_size = size
        self._block_size = block_size
        self._alignment = alignment
        self._locked = locked
        self._blocks: list[ArenaBlock] = []
        self._listeners: list[ArenaListener] = []
        self._work: set[asyncio.Future[Any]] = set()
        self._turn = asyncio.Lock()  # of whoever changes blocks or attaches devices
        self._closed = False
        # Who waits for room, on this loop.
        self._queue = WaitQueue()
        self._waiting = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    # --- life -----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._first_size and not self._blocks:
            try:
                await self.add_block(self._first_size)
            except BaseException:
                await self.aclose()  # the block may come all the same
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with shielded():
            await self.aclose()

    async def aclose(self) -> None:
        """Detach every device and close every block and buffer; idempotent."""
        with shielded_if_cancelled():
            await self._finish(self._close())

    async def _close(self) -> None:
        async with self._turn:
            self._closed = True
            self._queue.notify_all()
            try:
                async with contextlib.AsyncExitStack() as stack:
                    for attachment in self.attachments:
                        stack.push_async_callback(attachment.detach)
            finally:
                for block in self._blocks:
                    block._close()
                self._blocks.clear()
                self._listeners.clear()

    def __del__(self) -> None:
        blocks = getattr(self, "_blocks", None)
        if blocks:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            for block in blocks:
                block._close()

    # --- buffers --------------------------------------------------------------------------------------------

    def allocate(self, length: int) -> ArenaBuffer:
        """A buffer of ``length`` bytes, with whatever content, from the first block that has room.

        It takes what it finds, also when others wait in :meth:`acquire`.

        Raises:
            ValueError: ``length`` is not positive.
            MemoryError: no block has room for it; :meth:`add_block` makes some.
            UsageError: the arena is closed.
        """
        buffer = self._take(length, length)
        if buffer is None:
            self._refuse_if_closed("allocate a buffer of")
            remedy = "add a block" if self._blocks or not self._first_size else "enter it with `async with`"
            raise MemoryError(f"no block of the arena has {length} bytes in a row; {remedy}")
        return buffer

    async def acquire(self, length: int, *, at_least: int | None = None) -> ArenaBuffer:
        """A buffer of ``length`` bytes, as soon as there is room for it and nobody waits who came before::

            with await arena.acquire(1 << 20) as buffer:
                ...

        With *at_least*, it may be shorter, down to that: as long as the longest room there is. Who can do
        with pieces asks for ``at_least`` a page, and is not held up by memory that is free but not in a row.

        So a service that takes all its memory here bounds what it uses. The order is that of arrival: a large
        buffer gets its turn, since nobody takes away what it waits for. Whoever is cancelled leaves the
        queue, and holds nothing up. Does not suspend where there is room.

        Raises:
            ValueError: ``length`` is not positive, or less than ``at_least``.
            MemoryError: no block is that large, and waiting would be in vain.
            UsageError: the arena is closed, or is being closed meanwhile.
        """
        least = length if at_least is None else at_least
        if at_least is not None and not 0 < at_least <= length:
            raise ValueError(f"at_least must be from 1 to the length, {length}, not {at_least}")
        if not self._waiting:
            for block in self._blocks:
                if (buffer := block._take(length)) is not None:
                    return buffer
        self._loop = running_loop("acquire")
        self._waiting += 1
        if self._waiting == 1:  # and look again: a buffer may come back in another thread at any time
            self._tell_of_room(self._on_room)
        try:
            found, front = self._take(length, least) if self._waiting == 1 else None, False
            while found is None:
                self._refuse_what_never_fits(least)
                await self._queue.wait(front)
                found, front = self._take(length, least), True
            return found
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._tell_of_room(None)
            self._queue.notify_head()

    def _take(self, length: int, least: int) -> ArenaBuffer | None:
        """A buffer of *length* bytes or, where nothing is that long, the longest there is if *least* fits."""
        for block in self._blocks:
            buffer = block._take(length)
            if buffer is not None:
                return buffer
        if length <= 0:
            raise ValueError(f"length must be positive, not {length}")
        if least < length:
            longest = max(self._blocks, key=lambda block: block._longest_room, default=None)
            if longest is not None and least <= (room := longest._longest_room):
                return longest._take(min(room, length))  # None: another thread took it meanwhile
        return None

    def _refuse_what_never_fits(self, length: int) -> None:
        self._refuse_if_closed("acquire a buffer of")
        largest = max((block.size for block in self._blocks), default=0)
        if length > largest:
            raise MemoryError(
                f"no block of the arena is as large as {length} bytes; the largest has {largest}"
            )

    def _tell_of_room(self, call: Callable[[], object] | None) -> None:
        for block in self._blocks:
            block.on_room = call

    def _on_room(self) -> None:
        """In any thread: have whoever waits first try again, on the loop."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.notify_head)

    # --- blocks ---------------------------------------------------------------------------------------------

    @property
    def blocks(self) -> tuple[ArenaBlock, ...]:
        return tuple(self._blocks)

    async def add_block(self, size: int | None = None) -> ArenaBlock:
        """Add a block of ``size`` bytes, rounded up to whole pages, and register it with every device.

        Raises:
            BlkioError: there is not that much memory, or not that much that may be locked.
            UsageError: the arena is closed.
        """
        wanted = self._block_size if size is None else size
        if wanted <= 0:
            raise ValueError(f"size must be positive, not {wanted}")
        return await self._finish(self._add_block(wanted))

    async def _add_block(self, wanted: int) -> ArenaBlock:
        async with self._turn:
            self._refuse_if_closed("add a block to")
            unit = self._huge_page or mmap.PAGESIZE
            whole = -(-wanted // unit) * unit
            block = ArenaBlock(whole, granule=self._alignment, huge_page=self._huge_page, locked=self._locked)
            await self._tell(lambda listener: listener.block_added(block))
            self._blocks.append(block)
            if self._waiting:
                block.on_room = self._on_room
                self._queue.notify_head()
            return block

    async def remove_block(self, block: ArenaBlock) -> None:
        """Unregister a block of which no buffer is in use, as soon as no request uses it, and free it.

        Raises:
            UsageError: buffers of the block are in use.
            ValueError: the block is not one of this arena.
        """
        with shielded_if_cancelled():
            await self._finish(self._remove_block(block))

    async def _remove_block(self, block: ArenaBlock) -> None:
        async with self._turn:
            if block not in self._blocks:
                raise ValueError(f"{block} does not belong to this arena")
            if block.buffers:
                raise UsageError(f"{block.buffers} buffers of the block are in use", operation="remove_block")
            self._blocks.remove(block)
            self._queue.notify_head()
            await self._tell(lambda listener: listener.block_removed(block))
            block._close()

    async def trim(self) -> int:
        """Give the pages of free memory back to the system; returns how many bytes that are.

        Meanwhile, :meth:`allocate` finds no room.

        Raises:
            UsageError: an attached device may have pinned the pages, or they are locked.
        """
        return await self._finish(self._trim())

    async def _trim(self) -> int:
        async with self._turn:
            if self._locked:
                raise UsageError("the arena's memory is locked", operation="trim")
            for attachment in self.attachments:
                if attachment._may_pin:
                    raise UsageError(
                        f"{attachment.device!r} may pin pages of the arena, and would go on using those "
                        "that were given back; detach it first",
                        operation="trim",
                    )
            blocks = self.blocks
            return await run_blocking(lambda: sum(block._give_free_pages_back() for block in blocks))

    # --- devices and other listeners ------------------------------------------------------------------------

    @property
    def attachments(self) -> tuple[ArenaAttachment, ...]:
        """The attached devices, in the order in which they came."""
        return tuple(
            listener
            for listener in self._listeners
            if isinstance(listener, ArenaAttachment) and listener.attached
        )

    async def attach(self, device: HasMemory) -> ArenaAttachment:
        """Register every block, and every block to come, with an open device.

        Raises:
            RegistrationError: the device could not take a block; it is left as it was.
            DeviceClosedError: the device is closed.
            UsageError: the arena is closed, or the device is attached already.
        """
        return await self._finish(self._attach(device))

    async def _attach(self, device: HasMemory) -> ArenaAttachment:
        async with self._turn:
            self._refuse_if_closed("attach a device to")
            if any(attachment.device is device for attachment in self.attachments):
                raise UsageError(f"{device!r} is attached already", operation="attach")
            attachment = ArenaAttachment(self, device)
            for block in self._blocks:
                await attachment.block_added(block)
                if attachment.error is not None:
                    raise attachment.error
            self._listeners.append(attachment)
            return attachment

    async def detach(self, device: HasMemory) -> None:
        """Undo :meth:`attach`; nothing happens when the device is not attached."""
        for attachment in self.attachments:
            if attachment.device is device:
                await attachment.detach()

    def add_listener(self, listener: ArenaListener) -> None:
        """Have *listener* told of blocks from now on. It knows of the present ones by :attr:`blocks`."""
        self._listeners.append(listener)

    def remove_listener(self, listener: ArenaListener) -> None:
        """Undo :meth:`add_listener`; nothing happens when it has been undone."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    async def _tell(self, call: Callable[[ArenaListener], Any]) -> None:
        """Call every listener that is still one when its turn comes."""
        for listener in tuple(self._listeners):
            if listener not in self._listeners:
                continue
            if isinstance(listener, ArenaAttachment) and listener.device.closed:
                self._listeners.remove(listener)
                continue
            try:
                await call(listener)
            except Exception as error:
                message = f"{listener!r} failed to follow an arena"
                asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})

    async def _finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Await work that goes on when the caller is cancelled."""
        try:
            loop = running_loop("arena")
        except UsageError:
            work.close()
            raise
        task = start_steadfast_task(loop, work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return await asyncio.shield(task)

    # --- what there is --------------------------------------------------------------------------------------

    def statistics(self) -> ArenaStatistics:
        """The state of the arena in this moment."""
        return ArenaStatistics(
            blocks=len(self._blocks),
            size=sum(block.size for block in self._blocks),
            in_use=sum(block.in_use for block in self._blocks),
            buffers=sum(block.buffers for block in self._blocks),
            devices=sum(attachment.attached for attachment in self.attachments),
        )

    def __repr__(self) -> str:
        statistics = self.statistics()
        return f"<Arena of {statistics.blocks} blocks, {statistics.size} bytes, {statistics.in_use} in use>"

    def _refuse_if_closed(self, what: str) -> None:
        if self._closed:
            raise UsageError(f"cannot {what} a closed arena", operation="arena")


def _lock(memory: Memory) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlock(ctypes.c_void_p(memory.address), ctypes.c_size_t(len(memory))) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{len(memory)} bytes could not be locked: {os.strerror(number)}")
