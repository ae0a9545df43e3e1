"""A share of an arena, for one of those who use it."""

# It does with an arena's memory what users do not see.
# pyright: reportPrivateUsage=false

import warnings
from functools import partial
from typing import Self, final

from .._sync.fair_queue import Lane
from .._sync.loops import running_loop
from ..errors import UsageError
from .arena_block import ArenaBuffer
from .arena_memory import ArenaMemory
from .carver import Carver

__all__ = ["ArenaShare"]


@final
class ArenaShare:
    """A share of an :class:`Arena`, for one of those who use it; a context manager that closes it.

    Buffers come from what it was promised as long as there is room, whatever others have or wait for, and
    beyond that from what is common, when it is the share's turn. Its own tasks never overtake each other.

    Belongs to the arena's event loop. Buffers can be given back in any thread.
    """

    __slots__ = ("__weakref__", "_closed", "_lane", "_memory", "_own")

    def __init__(self, memory: ArenaMemory, lane: Lane, own: Carver | None) -> None:
        self._memory = memory
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
        running_loop("acquire")
        if length <= 0:
            raise ValueError(f"length must be positive, not {length}")
        least = length if at_least is None else at_least
        if not 0 < least <= length:
            raise ValueError(f"at_least must be from 1 to the length, {length}, not {at_least}")
        memory = self._memory
        if not self._lane.turns:
            granted = self._attempt(length, least, not memory.queue.waiting)
            if granted is not None:
                return granted[0]
        return await memory.wait(self._lane, partial(self._attempt, length, least), self._own)

    def acquire_nowait(self, length: int) -> ArenaBuffer | None:
        """A buffer of ``length`` bytes if :meth:`acquire` would give it at once.

        Raises:
            ValueError: ``length`` is not positive.
            MemoryError: neither the share nor a block is that large.
            UsageError: the share or the arena is closed.
        """
        if length <= 0:
            raise ValueError(f"length must be positive, not {length}")
        if self._lane.turns:
            return None
        own, memory = self._own, self._memory
        is_closed = self._closed or memory.closed
        if own is not None and not is_closed and (buffer := own._take(length)) is not None:
            return buffer
        granted = self._attempt(length, length, not memory.queue.waiting)
        return None if granted is None else granted[0]

    def _attempt(self, length: int, least: int, in_turn: bool) -> tuple[ArenaBuffer, int] | None:
        if self._closed:
            raise UsageError("cannot acquire a buffer of a closed share", operation="acquire")
        self._memory.refuse_if_closed("acquire a buffer of")
        granted = self._memory.take_of(self._own, length, least, in_turn)
        if granted is None:
            self._memory.refuse_what_never_fits(least, self.size)
        return granted

    def close(self) -> None:
        """Hand out no more, and refuse those who wait; idempotent, in the arena's loop.

        Buffers that are in use stay so. What the share was promised is the arena's again when none of those
        that were carved from it is.
        """
        if not self._closed:
            self._closed = True
            self._memory.queue.serve(self._lane)
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
