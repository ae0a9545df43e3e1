"""Turns: who shares bytes of a device works one after the other, in the order of arrival."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import final

from .._sync.loops import running_loop
from .._sync.scopes import shielded_if_cancelled

__all__ = ["Turn", "Turns"]


@final
class Turn:
    """A range of bytes, which somebody has or waits for."""

    __slots__ = ("begin", "earlier", "end", "later", "start")

    def __init__(self, start: int, end: int, begin: "Callable[[Turn], object]") -> None:
        self.start = start
        self.end = end
        self.begin = begin
        self.earlier = 0
        """How many turns meet this one, came before it, and have not ended."""
        self.later: list[Turn] = []
        """Those that wait for this one."""


@final
class Turns:
    """Of one device. No bytes are in two turns that have begun."""

    def __init__(self) -> None:
        self._turns: set[Turn] = set()  # that have begun, or wait
        self._free: deque[Turn] = deque()  # that are about to begin
        self._is_beginning = False
        self._idle: asyncio.Future[None] | None = None

    def take(self, start: int, end: int, begin: Callable[[Turn], object]) -> None:
        """Call *begin* when the bytes are free, now if they are; it raises nothing. Whoever has begun ends
        the turn, within the call or later."""
        turn = Turn(start, end, begin)
        for other in self._turns:
            if other.start < end and start < other.end:
                turn.earlier += 1
                other.later.append(turn)
        self._turns.add(turn)
        if turn.earlier == 0:
            begin(turn)

    def end(self, turn: Turn) -> None:
        self._turns.remove(turn)
        for later in turn.later:
            later.earlier -= 1
            if later.earlier == 0:
                self._free.append(later)
        if not self._is_beginning:  # else a turn ends as it begins, and the loop below goes on after it
            self._is_beginning = True
            try:
                while self._free:
                    free = self._free.popleft()
                    free.begin(free)
            finally:
                self._is_beginning = False
        if not self._turns and self._idle is not None:
            self._idle.set_result(None)
            self._idle = None

    @contextlib.asynccontextmanager
    async def hold(self, start: int, end: int) -> AsyncGenerator[None]:
        """Wait for the bytes, and have them to oneself within the block."""
        begun: asyncio.Future[Turn] = running_loop("request").create_future()

        def begin(turn: Turn) -> None:
            if begun.done():  # cancelled: whoever came later waited for those before as well
                self.end(turn)
            else:
                begun.set_result(turn)

        self.take(start, end, begin)
        try:
            await begun
            yield
        finally:
            if not begun.cancelled():
                self.end(begun.result())

    def meet(self, start: int, end: int) -> bool:
        """Whether any of the bytes are in a turn."""
        return any(turn.start < end and start < turn.end for turn in self._turns)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """From where to where, of all that have begun or wait."""
        return [(turn.start, turn.end) for turn in self._turns]

    async def finish(self) -> None:
        """Wait until there are none."""
        with shielded_if_cancelled():
            while self._turns:
                if self._idle is None:
                    self._idle = running_loop("request").create_future()
                await asyncio.shield(self._idle)
