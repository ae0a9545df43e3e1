"""Arena: memory for buffers that any number of devices reach without copying."""

# An arena and its blocks do with each other what users do not see.
# pyright: reportPrivateUsage=false

import asyncio
import contextlib
import mmap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self, cast, final
from weakref import WeakSet

from .._native._core import Allocator
from .._sync.blocking import run_blocking
from .._sync.fair_queue import FairQueue, Lane
from .._sync.loops import running_loop
from .._sync.scopes import AsyncClosing, shielded_if_cancelled
from .._sync.tasks import SteadfastTasks
from ..errors import UsageError
from .arena_block import ArenaBlock, ArenaBuffer
from .arena_listeners import ArenaAttachment, ArenaListener, Listeners
from .carver import Carver
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
    size: int
    in_use: int
    buffers: int
    devices: int
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
        if size < 0:
            raise ValueError(f"size must be positive, or 0 for no block yet, not {size}")
        if block_size <= 0:
            raise ValueError(f"block_size must be positive, not {block_size}")
        self._first_size = size
        self._block_size = block_size
        self._alignment = alignment
        self._locked = locked
        self._blocks: list[ArenaBlock] = []
        self._listeners = Listeners()
        self._work = SteadfastTasks("arena")
        self._turn = asyncio.Lock()  # of whoever changes blocks or attaches devices
        self._closed = False
        self._trimming = False
        # Who waits for room, on this loop.
        self._queue = FairQueue()
        self._lane = Lane()
        self._waiting = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._promised: WeakSet[Carver] = WeakSet()  # to shares, as long as it is in use

    # --- life -----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        running_loop("arena")
        if self._first_size and not self._blocks:
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
            self._closed = True
            self._queue.serve()  # which refuses them all
            try:
                async with contextlib.AsyncExitStack() as stack:
                    for attachment in self.attachments:
                        stack.push_async_callback(attachment.detach)
            finally:
                for carver in [*self._promised, *self._blocks]:
                    carver._close()
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
        buffer = _take(self._blocks, length, length)
        if buffer is None:
            if length <= 0:
                raise ValueError(f"length must be positive, not {length}")
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
        running_loop("acquire")
        least = length if at_least is None else at_least
        if at_least is not None and not 0 < at_least <= length:
            raise ValueError(f"at_least must be from 1 to the length, {length}, not {at_least}")
        if not self._queue.waiting:
            for block in self._blocks:
                if (buffer := block._take(length)) is not None:
                    return buffer
        if length <= 0:
            raise ValueError(f"length must be positive, not {length}")
        self._refuse_what_never_fits(least)
        return await self._wait(self._lane, partial(self._attempt, length, least))

    def _attempt(self, length: int, least: int, in_turn: bool) -> tuple[ArenaBuffer, int] | None:
        self._refuse_what_never_fits(least)
        buffer = _take(self._blocks, length, least) if in_turn else None
        return None if buffer is None else (buffer, self._rounded(len(buffer)))

    def _rounded(self, length: int) -> int:
        """What a buffer takes."""
        return -(-length // self._alignment) * self._alignment

    async def _wait(
        self,
        lane: Lane,
        attempt: Callable[[bool], tuple[ArenaBuffer, int] | None],
        own: Carver | None = None,
    ) -> ArenaBuffer:
        """Wait in a lane, of which *own* is no part of what is common."""
        if not self._queue.waiting:  # or else it is refused, if it is another loop than theirs
            self._loop = running_loop("acquire")
        self._waiting += 1
        # From now on: a buffer may come back in another thread at any time, also before the first attempt.
        if self._waiting == 1:
            self._tell_of_room(self._on_room)
        if own is not None:
            own.on_room = partial(self._on_room, lane)
        try:
            buffer = await self._queue.wait(lane, attempt, ArenaBuffer.release)
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._tell_of_room(None)
            if own is not None and not lane.turns:
                own.on_room = None
        if self._closed:  # since it was granted
            buffer.release()
            self._refuse_if_closed("acquire a buffer of")
        return buffer

    def _refuse_what_never_fits(self, length: int, own: int = 0) -> None:
        self._refuse_if_closed("acquire a buffer of")
        largest = max((block.size for block in self._blocks), default=0)
        if length > max(largest, own):
            raise MemoryError(
                f"no block of the arena is as large as {length} bytes; the largest has {largest}"
            )

    def _tell_of_room(self, call: Callable[[], object] | None) -> None:
        for block in self._blocks:
            block.on_room = call

    def _on_room(self, lane: Lane | None = None) -> None:
        """In any thread: have whoever waits first try again, on the loop, and who waits for a share's own."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.serve, lane)

    # --- shares ---------------------------------------------------------------------------------------------

    def share(self, *, size: int = 0, weight: float = 1.0) -> "ArenaShare":
        """A share of the memory, for example of one client, to be closed when that is gone.

        It is promised *size* bytes, rounded up to the alignment, and has them for itself from now on, in one
        piece of a block. What it needs beyond is common, where it gets *weight* times as much as what has a
        weight of 1, while both wait; :meth:`acquire` has.

        Raises:
            ValueError: *size* is negative, or the weight is not from a millionth to a million.
            MemoryError: no block has that much in a row, or the arena is being trimmed.
            UsageError: the arena is closed.
        """
        if size < 0:
            raise ValueError(f"size must not be negative, as {size} is")
        lane = Lane(weight)
        self._refuse_if_closed("have a share of")
        if not size:
            return ArenaShare(self, lane, None)
        if self._trimming:
            raise MemoryError("the arena is being trimmed, and has no room meanwhile; await trim() first")
        whole = self._rounded(size)
        buffer = _take(self._blocks, whole, whole)
        if buffer is None:
            longest = max((block._longest_room for block in self._blocks), default=0)
            raise MemoryError(
                f"a share cannot be promised {whole} bytes: the longest room in a row has {longest}, and"
                f" {self.statistics().promised} are promised to others; make shares before buffers are in"
                " use, promise less, or add a block"
            )
        carver = Carver(buffer.memory, Allocator(whole, self._alignment))
        self._promised.add(carver)
        return ArenaShare(self, lane, carver)

    def _promises_in(self, block: ArenaBlock) -> int:
        """How many shares have theirs in a block."""
        first = block.memory.address
        return sum(
            first <= carver.memory.address < first + block.size
            for carver in self._promised
            if carver._is_held
        )

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
        return await self._work.finish(self._add_block(wanted))

    async def _add_block(self, wanted: int) -> ArenaBlock:
        async with self._turn:
            self._refuse_if_closed("add a block to")
            unit = self._huge_page or mmap.PAGESIZE
            whole = -(-wanted // unit) * unit
            block = ArenaBlock(whole, granule=self._alignment, huge_page=self._huge_page, locked=self._locked)
            await self._listeners.tell(lambda listener: listener.block_added(block))
            self._blocks.append(block)
            if self._waiting:
                block.on_room = self._on_room
                self._queue.serve()
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
            if block not in self._blocks:
                raise ValueError(f"{block} does not belong to this arena")
            if block.buffers:
                text = f"{block.buffers} buffers of the block are in use"
                if promises := self._promises_in(block):
                    text += f", {promises} of them by shares: close those, and give their buffers back"
                raise UsageError(text, operation="remove_block")
            self._blocks.remove(block)
            self._queue.serve()
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
            self._trimming = True
            try:
                return await run_blocking(lambda: sum(block._give_free_pages_back() for block in blocks))
            finally:
                self._trimming = False
                self._queue.serve()  # who has come meanwhile has found no room

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
            self._refuse_if_closed("attach a device to")
            if any(attachment.device is device for attachment in self.attachments):
                raise UsageError(f"{device!r} is attached already", operation="attach")
            attachment = ArenaAttachment(device, self._listeners, self._work)
            for block in self._blocks:
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
        return ArenaStatistics(
            blocks=len(self._blocks),
            size=sum(block.size for block in self._blocks),
            in_use=sum(block.in_use for block in self._blocks),
            buffers=sum(block.buffers for block in self._blocks),
            devices=sum(attachment.attached for attachment in self.attachments),
            promised=sum(carver.size for carver in self._promised if carver._is_held),
        )

    def __repr__(self) -> str:
        statistics = self.statistics()
        return f"<Arena of {statistics.blocks} blocks, {statistics.size} bytes, {statistics.in_use} in use>"

    def _refuse_if_closed(self, what: str) -> None:
        if self._closed:
            raise UsageError(f"cannot {what} a closed arena", operation="arena")


def _take(carvers: Sequence[Carver], length: int, least: int) -> ArenaBuffer | None:
    """A buffer of *length* bytes or, where nothing is that long, the longest there is if *least* fits."""
    for carver in carvers:
        if (buffer := carver._take(length)) is not None:
            return buffer
    if least < length:
        longest = max(carvers, key=lambda carver: carver._longest_room, default=None)
        if longest is not None and least <= (room := longest._longest_room):
            return longest._take(min(room, length))  # None: another thread took it meanwhile
    return None


@final
class ArenaShare:
    """A share of an :class:`Arena`, for one of those who use it; a context manager that closes it.

    Buffers come from what it was promised as long as there is room, whatever others have or wait for, and
    beyond that from what is common, when it is the share's turn. Its own tasks never overtake each other.

    Belongs to the arena's event loop. Buffers can be given back in any thread.
    """

    __slots__ = ("__weakref__", "_arena", "_closed", "_lane", "_own")

    def __init__(self, arena: Arena, lane: Lane, own: Carver | None) -> None:
        self._arena = arena
        self._lane = lane
        self._own = own
        self._closed = False

    @property
    def size(self) -> int:
        """Bytes that it was promised."""
        return 0 if self._own is None else self._own.size

    @property
    def in_use(self) -> int:
        """Bytes of those that are handed out."""
        return 0 if self._own is None else self._own.in_use

    @property
    def weight(self) -> float:
        """Beside a share of weight 1, while both wait."""
        return self._lane.weight

    async def acquire(self, length: int, *, at_least: int | None = None) -> ArenaBuffer:
        """A buffer of ``length`` bytes, as soon as there is room for it in what the share was promised, or in
        what is common and it is the share's turn.

        With *at_least*, it may be shorter, down to that, where there is no room of that length. Whoever is
        cancelled leaves the queue, and holds nothing up. Does not suspend where there is room.

        Raises:
            ValueError: ``length`` is not positive, or less than ``at_least``.
            MemoryError: neither the share nor a block is that large, and waiting would be in vain.
            UsageError: the share or the arena is closed, or is being closed meanwhile.
        """
        if length <= 0:
            raise ValueError(f"length must be positive, not {length}")
        running_loop("acquire")
        least = length if at_least is None else at_least
        if not 0 < least <= length:
            raise ValueError(f"at_least must be from 1 to the length, {length}, not {at_least}")
        queue = self._arena._queue
        if not self._lane.turns and (granted := self._attempt(length, least, not queue.waiting)) is not None:
            return granted[0]
        return await self._arena._wait(self._lane, partial(self._attempt, length, least), self._own)

    def _attempt(self, length: int, least: int, in_turn: bool) -> tuple[ArenaBuffer, int] | None:
        if self._closed:
            raise UsageError("cannot acquire a buffer of a closed share", operation="acquire")
        self._arena._refuse_what_never_fits(least, self.size)
        carvers: list[Carver] = [] if self._own is None else [self._own]
        if in_turn:
            carvers += self._arena._blocks
        buffer = _take(carvers, length, least)
        if buffer is None:
            return None
        own = self._own is not None and 0 <= buffer.address - self._own.memory.address < self._own.size
        return buffer, 0 if own else self._arena._rounded(len(buffer))

    def close(self) -> None:
        """Hand out no more, and refuse those who wait; idempotent, in the arena's loop.

        Buffers that are in use stay so. What the share was promised is the arena's again when none of those
        that were carved from it is.
        """
        if not self._closed:
            self._closed = True
            self._arena._queue.serve(self._lane)
            if self._own is not None:
                self._own._retire()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            if self._own is not None:
                self._own._retire()

    def __repr__(self) -> str:
        state = " closed" if self._closed else ""
        return f"<ArenaShare{state} of {self.size} bytes, {self.in_use} in use>"
