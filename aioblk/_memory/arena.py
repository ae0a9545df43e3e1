"""Arena: memory for buffers that any number of devices reach without copying."""

# An arena and its blocks do with each other what users do not see.
# pyright: reportPrivateUsage=false

import asyncio
import contextlib
import mmap
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Self, cast, final

from .._sync.blocking import run_blocking
from .._sync.fair_queue import Lane
from .._sync.loops import running_loop
from .._sync.scopes import AsyncClosing, shielded_if_cancelled
from .._sync.tasks import SteadfastTasks
from ..errors import UsageError
from .arena_block import ArenaBlock, ArenaBuffer
from .arena_listeners import ArenaAttachment, ArenaListener, Listeners
from .arena_memory import ArenaMemory
from .arena_share import ArenaShare
from .mapping import MapsMemory

__all__ = [
    "Arena",
    "ArenaAttachment",
    "ArenaBlock",
    "ArenaBuffer",
    "ArenaListener",
    "ArenaShare",
    "ArenaStatistics",
]

HUGE_PAGE = 2 << 20


@final
@dataclass(frozen=True, slots=True)
class ArenaStatistics:
    """What :meth:`Arena.statistics` reports; sizes in bytes."""

    blocks: int
    """How many there are."""
    size: int
    """Of all blocks together."""
    in_use: int
    """Of that, what buffers have."""
    buffers: int
    """How many are in use."""
    devices: int
    """How many are attached."""
    promised: int = 0
    """What shares have for themselves. It is in use as well, as one buffer for each share."""


@final
class Arena(AsyncClosing):
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
        kept: float = 0.0,
    ) -> None:
        """Describe an arena; entering it adds a first block of ``size`` bytes, unless 0.

        ``block_size`` is the size in bytes of blocks added without one. Buffers start at multiples of
        ``alignment``, a power of two from 512 bytes to a page. ``huge_pages`` takes pages of 2 MiB or of the
        given size, which the system must have reserved; ``locked`` keeps the memory from being swapped out.

        ``kept``, from 0 to less than 1, is the part of each block that is kept for what :meth:`share`
        promises, and never had by anybody else. Without it, promises are made of what is free.

        Raises:
            ValueError: a size or the alignment is out of range.
        """
        if alignment & (alignment - 1) or not 512 <= alignment <= mmap.PAGESIZE:
            raise ValueError(f"alignment must be a power of two from 512 to {mmap.PAGESIZE}, not {alignment}")
        self._huge_page = HUGE_PAGE if huge_pages is True else int(huge_pages)
        if self._huge_page & (self._huge_page - 1):
            raise ValueError(f"the size of a huge page is a power of two, not {huge_pages}")
        if size < 0:
            raise ValueError(f"size must be positive, or 0 for no block yet, not {size}")
        if block_size <= 0:
            raise ValueError(f"block_size must be positive, not {block_size}")
        if not 0 <= kept < 1:
            raise ValueError(f"kept must be from 0 to less than 1, not {kept}")
        self._first_size = size
        self._block_size = block_size
        self._alignment = alignment
        self._locked = locked
        self._memory = ArenaMemory(alignment=alignment, kept=kept)
        self._listeners = Listeners()
        self._work = SteadfastTasks("arena")
        self._turn = asyncio.Lock()  # of whoever changes blocks or attaches devices
        self._lane = Lane()  # of who has no share

    # --- life -----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        running_loop("arena")
        if self._first_size and not self.blocks:
            try:
                await self.add_block(self._first_size)
            except BaseException:
                await self.aclose()  # the block may come all the same
                raise
        return self

    async def aclose(self) -> None:
        """Detach every device and close every block and buffer; idempotent."""
        with shielded_if_cancelled():
            await self._work.finish(self._close())

    async def _close(self) -> None:
        async with self._turn:
            self._memory.closed = True
            self._memory.queue.serve()  # which refuses them all
            try:
                async with contextlib.AsyncExitStack() as stack:
                    for attachment in self.attachments:
                        stack.push_async_callback(attachment.detach)
            finally:
                self._memory.close()
                self._listeners.clear()

    def __del__(self) -> None:
        memory = getattr(self, "_memory", None)
        if memory is not None and memory.blocks:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            memory.close()

    # --- buffers --------------------------------------------------------------------------------------------

    def allocate(self, length: int) -> ArenaBuffer:
        """A buffer of ``length`` bytes, with whatever content, from the first block that has room.

        It takes what it finds, also when others wait in :meth:`acquire`.

        Raises:
            ValueError: ``length`` is not positive.
            MemoryError: no block has room for it; :meth:`add_block` makes some.
            UsageError: the arena is closed.
        """
        buffer = self._memory.take(length, length)
        if buffer is None:
            if length <= 0:
                raise ValueError(f"length must be positive, not {length}")
            self._memory.refuse_if_closed("allocate a buffer of")
            remedy = "add a block" if self.blocks or not self._first_size else "enter it with `async with`"
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
        running_loop("acquire")
        least = length if at_least is None else at_least
        if at_least is not None and not 0 < at_least <= length:
            raise ValueError(f"at_least must be from 1 to the length, {length}, not {at_least}")
        memory = self._memory
        if not memory.queue.waiting and (buffer := memory.take(length, length)) is not None:
            return buffer
        if length <= 0:
            raise ValueError(f"length must be positive, not {length}")
        memory.refuse_what_never_fits(least)
        return await memory.wait(self._lane, partial(self._attempt, length, least))

    def _attempt(self, length: int, least: int, in_turn: bool) -> tuple[ArenaBuffer, int] | None:
        self._memory.refuse_what_never_fits(least)
        return self._memory.take_of(None, length, least, in_turn)

    # --- shares ---------------------------------------------------------------------------------------------

    def share(self, *, size: int = 0, weight: float = 1.0) -> ArenaShare:
        """A share of the memory, for example of one client, to be closed when that is gone.

        It is promised *size* bytes, rounded up to the alignment, and has them for itself from now on, in one
        piece of a block: of what is ``kept``, if anything is. What it needs beyond is common, where it gets
        *weight* times as much as what has a weight of 1, while both wait; :meth:`acquire` has.

        Raises:
            ValueError: *size* is negative, or the weight is not from a millionth to a million.
            MemoryError: so much is not left in a row, or the arena is being trimmed.
            UsageError: the arena is closed.
        """
        if size < 0:
            raise ValueError(f"size must not be negative, as {size} is")
        lane = Lane(weight)
        self._memory.refuse_if_closed("have a share of")
        return ArenaShare(self._memory, lane, self._memory.promise(size) if size else None)

    # --- blocks ---------------------------------------------------------------------------------------------

    @property
    def blocks(self) -> tuple[ArenaBlock, ...]:
        """The blocks, in the order in which they were added."""
        return tuple(self._memory.blocks)

    async def add_block(self, size: int | None = None) -> ArenaBlock:
        """Add a block of ``size`` bytes, rounded up to whole pages, and register it with every device.

        Raises:
            BlkioError: there is not that much memory, or not that much that may be locked.
            UsageError: the arena is closed.
        """
        wanted = self._block_size if size is None else size
        if wanted <= 0:
            raise ValueError(f"size must be positive, not {wanted}")
        return await self._work.finish(self._add_block(wanted))

    async def _add_block(self, wanted: int) -> ArenaBlock:
        async with self._turn:
            self._memory.refuse_if_closed("add a block to")
            unit = self._huge_page or mmap.PAGESIZE
            whole = -(-wanted // unit) * unit
            block = ArenaBlock(whole, granule=self._alignment, huge_page=self._huge_page, locked=self._locked)
            await self._listeners.tell(lambda listener: listener.block_added(block))
            self._memory.add(block)
            return block

    async def remove_block(self, block: ArenaBlock) -> None:
        """Unregister a block of which no buffer is in use, as soon as no request uses it, and free it.

        Raises:
            UsageError: buffers of the block are in use, or a share has a part of it.
            ValueError: the block is not one of this arena.
        """
        with shielded_if_cancelled():
            await self._work.finish(self._remove_block(block))

    async def _remove_block(self, block: ArenaBlock) -> None:
        async with self._turn:
            if block not in self._memory.blocks:
                raise ValueError(f"{block} does not belong to this arena")
            self._memory.remove(block)
            await self._listeners.tell(lambda listener: listener.block_removed(block))
            block._close()

    async def trim(self) -> int:
        """Give the pages of free memory back to the system; returns how many bytes that are.

        Meanwhile, :meth:`allocate` and :meth:`share` find no room, and :meth:`acquire` waits.

        Raises:
            UsageError: an attached device may have pinned the pages, or they are locked.
        """
        return await self._work.finish(self._trim())

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
            self._memory.is_trimmed = True
            try:
                return await run_blocking(lambda: sum(block._give_free_pages_back() for block in blocks))
            finally:
                self._memory.is_trimmed = False
                self._memory.queue.serve()  # who has come meanwhile has found no room

    # --- devices and other listeners ------------------------------------------------------------------------

    @property
    def attachments(self) -> tuple[ArenaAttachment, ...]:
        """The attached devices, in the order in which they came."""
        return self._listeners.attachments

    async def attach(self, device: MapsMemory) -> ArenaAttachment:
        """Register every block, and every block to come, with an open device.

        Raises:
            RegistrationError: the device could not take a block; it is left as it was.
            DeviceClosedError: the device is closed.
            UsageError: the arena is closed, or the device is attached already.
            TypeError: it cannot be told of memory; its requests take the arena's buffers all the same.
        """
        if not isinstance(cast(object, device), MapsMemory):
            raise TypeError(
                f"an arena is attached to what is a MapsMemory, and {device!r} is not; its requests take the "
                "arena's buffers without that"
            )
        return await self._work.finish(self._attach(device))

    async def _attach(self, device: MapsMemory) -> ArenaAttachment:
        async with self._turn:
            self._memory.refuse_if_closed("attach a device to")
            if any(attachment.device is device for attachment in self.attachments):
                raise UsageError(f"{device!r} is attached already", operation="attach")
            attachment = ArenaAttachment(device, self._listeners, self._work)
            for block in self._memory.blocks:
                await attachment.block_added(block)
                if attachment.error is not None:
                    raise attachment.error
            self._listeners.add(attachment)
            return attachment

    async def detach(self, device: MapsMemory) -> None:
        """Undo :meth:`attach`; nothing happens when the device is not attached."""
        running_loop("detach")
        for attachment in self.attachments:
            if attachment.device is device:
                await attachment.detach()

    def add_listener(self, listener: ArenaListener) -> None:
        """Have *listener* told of blocks from now on. It knows of the present ones by :attr:`blocks`."""
        self._listeners.add(listener)

    def remove_listener(self, listener: ArenaListener) -> None:
        """Undo :meth:`add_listener`; nothing happens when it has been undone."""
        self._listeners.remove(listener)

    # --- what there is --------------------------------------------------------------------------------------

    def statistics(self) -> ArenaStatistics:
        """The state of the arena in this moment."""
        memory = self._memory
        return ArenaStatistics(
            blocks=len(memory.blocks),
            size=sum(block.size for block in memory.blocks),
            in_use=memory.in_use,
            buffers=memory.buffers,
            devices=sum(attachment.attached for attachment in self.attachments),
            promised=memory.promised,
        )

    def __repr__(self) -> str:
        statistics = self.statistics()
        return f"<Arena of {statistics.blocks} blocks, {statistics.size} bytes, {statistics.in_use} in use>"
