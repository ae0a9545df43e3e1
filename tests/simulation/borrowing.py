"""Who waits for memory of an arena: they keep a buffer for a while, or are cancelled before they have one."""

import asyncio
import gc
from contextlib import suppress
from typing import final

import aioblk

from .operations import Operations
from .oracle import Wrong

__all__ = ["Borrowers"]

LARGEST = 32 << 10
SMALLEST = 512
MOST_WAITING = 8
LONG = 1000.0  # seconds


@final
class Borrowers:
    """Those of one history."""

    def __init__(self, operations: Operations) -> None:
        self.arena: aioblk.Arena | None = None
        self._operations = operations
        self._waiting: dict[asyncio.Task[None], int] = {}
        """In the order of their arrival, and how many bytes each waits for."""
        self._line: dict[asyncio.Task[None], None] = {}
        """Those of them who have had their first step, and have no buffer yet."""
        self._kept: list[aioblk.ArenaBuffer] = []

    async def do_acquire(self, dice: tuple[float, ...]) -> None:
        if self.arena is None or len(self._waiting) == MOST_WAITING:
            return
        length = LARGEST >> int(dice[0] ** 2 * 5)
        least = length if dice[1] < 0.7 else length // 4
        borrower = asyncio.get_running_loop().create_task(self._acquire(self.arena, length, least))
        self._waiting[borrower] = length
        borrower.add_done_callback(self._end)

    def _arrive(self) -> None:
        """The running task is the last of those who wait: it has its first step only now."""
        borrower = _running()
        self._waiting[borrower] = self._waiting.pop(borrower)
        self._line[borrower] = None

    async def _acquire(self, arena: aioblk.Arena, length: int, least: int) -> None:
        self._arrive()
        try:
            self._kept.append(await arena.acquire(length, at_least=least))
            self._require_his_turn()
        except MemoryError:
            pass  # no block is as large any more
        finally:
            self._line.pop(_running())

    def _require_his_turn(self) -> None:
        """The running task has its buffer: nobody waits who came before."""
        first = next(
            each for each in self._line if each is _running() or not (each.cancelling() or _is_granted(each))
        )
        if first is not _running():
            raise Wrong("somebody has memory of the arena, for which another has waited for longer")

    def _end(self, borrower: "asyncio.Task[None]") -> None:
        del self._waiting[borrower]
        if not borrower.cancelled() and (error := borrower.exception()) is not None:
            self._operations.wrong = self._operations.wrong or error

    async def do_give(self, dice: tuple[float, ...]) -> None:
        """A buffer comes back, and soon somebody gives up who waits, or has just been woken."""
        if self._kept:
            self._kept.pop(int(dice[0] * len(self._kept))).release()
        for _ in range(int(dice[1] * 6)):
            await asyncio.sleep(0)
        if self._waiting and dice[2] < 0.5:
            borrowers = list(self._waiting)
            borrowers[int(dice[3] ** 2 * len(borrowers))].cancel()
        if dice[4] < 0.7:
            await self._require_no_room()

    async def _require_no_room(self) -> None:
        """Who has waited for longest has not been forgotten: there is no room for him, or he takes it."""
        found = []
        for _ in range(3):
            await asyncio.sleep(0.01)
            found.append(self._finds_room())
        if found[0] is not None and found == [found[0]] * 3:
            raise Wrong("there is room in the arena, and who waits for it is not told")

    def _finds_room(self) -> "asyncio.Task[None] | None":
        """Who has waited for longest, if there is room for him. Nothing is taken to see that: what came back
        would have him told."""
        first = next(iter(self._waiting), None)
        if first is None or self.arena is None:
            return None
        longest = max((block._longest_room for block in self.arena.blocks), default=0)
        return first if longest >= self._waiting[first] else None

    async def finish(self) -> None:
        """Everybody has his buffer once all others have given theirs back. No request has any, but for those
        that a lost device had."""
        while self._waiting:
            while self._kept:
                self._kept.pop().release()
            _ = gc.collect()
            done, _ = await asyncio.wait(
                list(self._waiting), timeout=LONG, return_when=asyncio.FIRST_COMPLETED
            )
            if not done and self._operations.memory_may_be_kept:
                for borrower in self._waiting:
                    borrower.cancel()
            elif not done:
                raise Wrong(f"{len(self._waiting)} wait for ever for a buffer of the arena, which is free")
        while self._kept:
            self._kept.pop().release()

    async def close_arena(self) -> None:
        """While somebody waits for memory of it, who is refused then. Nobody else has any."""
        arena = self.arena
        if arena is None:
            return
        for length in (LARGEST >> shift for shift in range(7)):
            with suppress(MemoryError):
                while True:
                    self._kept.append(arena.allocate(length))
        used = [memoryview(buffer) for buffer in self._kept]  # none comes back when they are closed
        waiting = asyncio.get_running_loop().create_task(arena.acquire(SMALLEST))
        await asyncio.sleep(0.01)
        await arena.aclose()
        await asyncio.wait([waiting], timeout=LONG)
        used.clear()
        self._kept.clear()
        if not waiting.done():
            raise Wrong("the arena is closed, and who waits for its memory is not told")
        error = waiting.exception()  # None: a block was still being added, before its turn to be closed came
        if not isinstance(error, aioblk.UsageError | MemoryError | None):
            raise Wrong(f"the arena is closed, and who waited for its memory met {error!r}")


def _running() -> "asyncio.Task[None]":
    task = asyncio.current_task()
    assert task is not None
    return task


def _is_granted(task: "asyncio.Task[None]") -> bool:
    """Whether what it waits for is there, and it has only not run since."""
    waits_for: asyncio.Future[object] | None = task._fut_waiter  # type: ignore[attr-defined]
    return waits_for is not None and waits_for.done()
