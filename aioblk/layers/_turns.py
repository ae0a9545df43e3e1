"""Turns: who shares bytes of a device works one after the other, in the order of arrival."""

import asyncio
import contextlib
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any, final

from .._sync.loops import running_loop
from .._sync.scopes import shielded_if_cancelled

__all__ = ["Turn", "Turns"]

ENDED = 64  # pieces of turns that have ended, before they are looked for


@final
class Turn:
    """A range of bytes, which somebody has or waits for."""

    __slots__ = ("begin", "earlier", "later")

    def __init__(self, begin: "Callable[[Turn], object]") -> None:
        self.begin: Callable[[Turn], object] | None = begin
        """None: it has ended. It would keep the memory of its caller."""
        self.earlier = 0
        """How many turns it waits for."""
        self.later: list[Turn] = []
        """Those that wait for this one."""


@final
class Turns:
    """Of one device. No bytes are in two turns that have begun.

    A turn waits for those that came last before it, where its bytes are: these wait for all before them. So
    it is enough to know of each byte which turn came last, and many that wait cost no more than a few.
    """

    def __init__(self) -> None:
        # Pieces of the device, in order, that no others overlap, and the turns that came last for them. A
        # piece of a turn that has ended is as good as none.
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._last: list[Turn] = []
        self._count = 0  # of turns that have begun, or wait
        self._free: deque[Turn] = deque()  # that are about to begin
        self._is_beginning = False
        self._idle: asyncio.Future[None] | None = None

    def take(self, start: int, end: int, begin: Callable[[Turn], object]) -> None:
        """Call *begin* when the bytes are free, now if they are; it raises nothing. Whoever has begun ends
        the turn, within the call or later."""
        turn = Turn(begin)
        if start < end:
            self._put(start, end, turn)
        self._count += 1
        if turn.earlier == 0:
            self._let_begin(turn)

    def _let_begin(self, turn: Turn) -> None:
        assert turn.begin is not None
        try:
            turn.begin(turn)
        except BaseException:  # there was no memory for as much as the call
            if turn.begin is not None:
                self.end(turn)
            raise

    def _put(self, start: int, end: int, turn: Turn) -> None:
        """Have the turn come last for the bytes, and wait for those that did before, and have not ended. As a
        whole or, where there is no memory, not at all."""
        first, after = self._meeting(start, end)
        before = [other for other in dict.fromkeys(self._last[first:after]) if other.begin is not None]
        pieces = [(start, end, turn)]
        if first < after:
            if self._starts[first] < start:
                pieces.insert(0, (self._starts[first], start, self._last[first]))
            if self._ends[after - 1] > end:
                pieces.append((end, self._ends[after - 1], self._last[after - 1]))
        changes: list[tuple[list[Any], list[Any], list[Any]]] = [
            (self._starts, self._starts[first:after], [piece[0] for piece in pieces]),
            (self._ends, self._ends[first:after], [piece[1] for piece in pieces]),
            (self._last, self._last[first:after], [piece[2] for piece in pieces]),
        ]
        made = 0
        try:
            for other in before:
                other.later.append(turn)
                turn.earlier += 1
            for column, _, new in changes:
                column[first:after] = new
                made += 1
        except BaseException:
            for column, old, new in changes[:made]:
                column[first : first + len(new)] = old
            for other in before[: turn.earlier]:
                other.later.pop()
            raise

    def _meeting(self, start: int, end: int) -> tuple[int, int]:
        """The first of the pieces that have any of the bytes, and the one after the last."""
        return bisect_right(self._ends, start), bisect_left(self._starts, end)

    def end(self, turn: Turn) -> None:
        assert turn.begin is not None, "it has ended"
        turn.begin = None
        later, turn.later = turn.later, []
        self._count -= 1
        if len(self._starts) > 4 * self._count + ENDED:  # those that have not ended have half of that
            self._forget_ended()
        for other in later:
            other.earlier -= 1
            if other.earlier == 0:
                self._free.append(other)
        if not self._is_beginning:  # else a turn ends as it begins, and the loop below goes on after it
            self._is_beginning = True
            try:
                while self._free:
                    self._let_begin(self._free.popleft())
            finally:
                self._is_beginning = False
        if not self._count and self._idle is not None:
            self._idle.set_result(None)
            self._idle = None

    def _forget_ended(self) -> None:
        kept = [number for number, turn in enumerate(self._last) if turn.begin is not None]
        self._starts = [self._starts[number] for number in kept]
        self._ends = [self._ends[number] for number in kept]
        self._last = [self._last[number] for number in kept]

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
        first, after = self._meeting(start, end)
        return start < end and any(turn.begin is not None for turn in self._last[first:after])

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """From where to where there are any that have begun or wait."""
        pieces = zip(self._starts, self._ends, self._last, strict=True)
        return [(start, end) for start, end, turn in pieces if turn.begin is not None]

    async def finish(self) -> None:
        """Wait until there are none."""
        with shielded_if_cancelled():
            while self._count:
                if self._idle is None:
                    self._idle = running_loop("request").create_future()
                await asyncio.shield(self._idle)
