"""The memory of an arena: its blocks, what of them is promised, and who waits for the rest."""

# What carves an arena's memory, and who waits for it, do with each other what users do not see.
# pyright: reportPrivateUsage=false

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias, final
from weakref import WeakSet

from .._native._core import Allocator
from .._sync.fair_queue import FairQueue, Lane
from .._sync.loops import running_loop
from ..errors import UsageError
from .arena_block import ArenaBlock, ArenaBuffer
from .carver import Carver

__all__ = ["ArenaMemory", "Attempt"]

Attempt: TypeAlias = Callable[[bool], "tuple[ArenaBuffer, int] | None"]
"""Takes a buffer, and says what it costs in bytes: see FairQueue. False: what is the lane's own."""


@final
class ArenaMemory:
    """Belongs to one event loop. Buffers can be taken, and come back, in any thread."""

    def __init__(self, *, alignment: int, kept: float) -> None:
        """*kept*: the part of each block that is for promises, and nothing else."""
        self.blocks: list[ArenaBlock] = []
        self.queue: FairQueue = FairQueue()
        self.closed: bool = False
        self.is_trimmed: bool = False
        """Whether all that is free is held while its pages are given back."""
        self._alignment = alignment
        self._part_kept = kept
        self._kept: dict[ArenaBlock, Carver] = {}
        self._promised: WeakSet[Carver] = WeakSet()  # as long as anything of it is in use
        self._waiting = 0
        self._loop: asyncio.AbstractEventLoop | None = None  # of who waits

    # --- blocks ---------------------------------------------------------------------------------------------

    def add(self, block: ArenaBlock) -> None:
        kept = int(block.size * self._part_kept) // self._alignment * self._alignment
        if kept:
            piece = block._take(kept)
            assert piece is not None
            self._kept[block] = Carver(piece.memory, Allocator(kept, self._alignment))
        self.blocks.append(block)
        if self._waiting:
            block.on_room = self._on_room
            self.queue.serve()

    def remove(self, block: ArenaBlock) -> None:
        """UsageError: something of it is in use, or promised."""
        kept = self._kept.get(block)
        used = block.buffers if kept is None else block.buffers - 1 + kept.buffers
        if used:
            text = f"{used} buffers of the block are in use"
            if promises := self._promises_in(block):
                text += f", {promises} of them by shares: close those, and give their buffers back"
            raise UsageError(text, operation="remove_block")
        if kept is not None:
            del self._kept[block]
            kept._retire()
        self.blocks.remove(block)
        self.queue.serve()  # which refuses what fits no more

    def close(self) -> None:
        """Every buffer; who waits is refused before."""
        for carver in [*self._promised, *self._kept.values(), *self.blocks]:
            carver._close()
        self._kept.clear()
        self.blocks.clear()

    @property
    def in_use(self) -> int:
        """Bytes of buffers, and of promises."""
        idle = sum(kept.size - kept.in_use for kept in self._kept.values())
        return sum(block.in_use for block in self.blocks) - idle

    @property
    def buffers(self) -> int:
        """A promise counts as one."""
        pieces = sum(kept.buffers - 1 for kept in self._kept.values())
        return sum(block.buffers for block in self.blocks) + pieces

    # --- promises -------------------------------------------------------------------------------------------

    @property
    def promised(self) -> int:
        """Bytes that are promised, or in use of what was."""
        return sum(carver.size for carver in self._promised if carver._is_held)

    def promise(self, size: int) -> Carver:
        """Memory for one alone, in one piece, until it is retired and nothing of it is in use.

        Raises:
            MemoryError: there is not so much in a row, or the arena is being trimmed.
        """
        if self.is_trimmed:
            raise MemoryError("the arena is being trimmed, and has no room meanwhile; await trim() first")
        whole = self.rounded(size)
        sources: Sequence[Carver] = list(self._kept.values()) if self._part_kept else self.blocks
        piece = _take(sources, whole, whole)
        if piece is None:
            self._refuse_without_blocks()
            longest = max((source._longest_room for source in sources), default=0)
            kept = sum(source.size for source in sources)
            what, remedy = (
                (f"{kept} bytes that are kept for shares", "have more kept by Arena(kept=...)")
                if self._part_kept
                else (f"{kept} bytes", "make shares before buffers are in use")
            )
            raise MemoryError(
                f"a share cannot be promised {whole} bytes: of the arena's {what}, {self.promised} are"
                f" promised to others, and {longest} left in a row; promise less, {remedy}, or add a block"
            )
        carver = Carver(piece.memory, Allocator(whole, self._alignment))
        self._promised.add(carver)
        return carver

    def _promises_in(self, block: ArenaBlock) -> int:
        """How many have theirs in a block."""
        first = block.memory.address
        return sum(
            first <= carver.memory.address < first + block.size
            for carver in self._promised
            if carver._is_held
        )

    # --- buffers --------------------------------------------------------------------------------------------

    def rounded(self, length: int) -> int:
        """What a buffer of so many bytes takes."""
        return -(-length // self._alignment) * self._alignment

    def take(self, length: int, least: int) -> ArenaBuffer | None:
        """Of what is common, whoever waits; see :func:`_take`."""
        return _take(self.blocks, length, least)

    def take_of(
        self, own: Carver | None, length: int, least: int, in_turn: bool
    ) -> tuple[ArenaBuffer, int] | None:
        """Of what is one's *own* or, in turn, common; and what it costs."""
        carvers: list[Carver] = [] if own is None else [own]
        if in_turn:
            carvers += self.blocks
        buffer = _take(carvers, length, least)
        if buffer is None:
            return None
        is_own = own is not None and 0 <= buffer.address - own.memory.address < own.size
        return buffer, 0 if is_own else self.rounded(len(buffer))

    async def wait(self, lane: Lane, attempt: Attempt, own: Carver | None = None) -> ArenaBuffer:
        """Wait in a lane, of which *own* is no part of what is common."""
        if not self.queue.waiting:  # or else it is refused, if it is another loop than theirs
            self._loop = running_loop("acquire")
        self._waiting += 1
        # From now on: a buffer may come back in another thread at any time, also before the first attempt.
        if self._waiting == 1:
            self._tell_of_room(self._on_room)
        if own is not None:
            own.on_room = partial(self._on_room, lane)
        try:
            buffer = await self.queue.wait(lane, attempt, ArenaBuffer.release)
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._tell_of_room(None)
            if own is not None and not lane.turns:
                own.on_room = None
        if self.closed:  # since it was granted
            buffer.release()
            self.refuse_if_closed("acquire a buffer of")
        return buffer

    def refuse_what_never_fits(self, length: int, own: int = 0) -> None:
        """MemoryError, UsageError: a buffer of so many bytes, or of *own*, cannot be had at any time."""
        self.refuse_if_closed("acquire a buffer of")
        largest = max((block.size - self._kept_of(block) for block in self.blocks), default=0)
        if length > max(largest, own):
            self._refuse_without_blocks()
            kept = ", beside what is kept for shares" if self._part_kept else ""
            raise MemoryError(
                f"no block of the arena is as large as {length} bytes; the largest has {largest}{kept};"
                " ask for less, or add a larger one"
            )

    def _refuse_without_blocks(self) -> None:
        if not self.blocks:
            raise MemoryError("the arena has no block; enter it with `async with`, or add one")

    def _kept_of(self, block: ArenaBlock) -> int:
        kept = self._kept.get(block)
        return 0 if kept is None else kept.size

    def refuse_if_closed(self, what: str) -> None:
        """UsageError: it is."""
        if self.closed:
            raise UsageError(f"cannot {what} a closed arena", operation="arena")

    def _tell_of_room(self, call: Callable[[], object] | None) -> None:
        for block in self.blocks:
            block.on_room = call

    def _on_room(self, lane: Lane | None = None) -> None:
        """In any thread: have whoever waits first try again, on the loop, and who waits for a share's own."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.queue.serve, lane)


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
