"""What the user of a simulated history holds of its device: regions, an arena, queues."""

import functools
import gc
import mmap
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, final

import aioblk
from aioblk._native._core import Memory

from .borrowing import Borrowers
from .history import History
from .jobs import Jobs
from .oracle import Wrong
from .slots import SLOT, Slot

__all__ = ["REGION", "Holdings", "Owner"]

REGION = 32 << 10  # bytes


class Owner(Protocol):
    """Who has the device."""

    @property
    def device(self) -> aioblk.Device: ...
    @property
    def is_bound(self) -> bool:
        """Whether the device is attached to the loop, and nobody detaches or closes it."""
        ...

    @property
    def is_free(self) -> bool:
        """Whether it is, and the device is not lost."""
        ...

    @property
    def bounces(self) -> bool: ...
    def may_fail(self, error: aioblk.BlkioError) -> bool: ...


@final
class Holdings:
    """Those of one history."""

    def __init__(
        self, history: History, owner: Owner, jobs: Jobs, borrowers: Borrowers, tell: Callable[[str], None]
    ) -> None:
        self._options = history.options
        self._owner = owner
        self._jobs = jobs
        self._borrowers = borrowers
        self._tell = tell
        self.queues: list[aioblk.Queue] = []
        self.closing: set[aioblk.Queue] = set()
        self.added = 0  # queues, to the device as it was opened
        self._regions: list[tuple[aioblk.MemoryRegion, list[Slot]]] = []
        self._former: list[Slot] = []
        """Of a region that has been left: what was made of it before lasts."""
        self.arena: aioblk.Arena | None = None
        self._memories: list[Memory] = []  # of all regions that there were

    # --- memory ---------------------------------------------------------------------------------------------

    def usable_slots(self) -> list[Slot]:
        registered = [slot for _, slots in self._regions for slot in slots]
        return [slot for slot in (*registered, *self._former) if slot.usable]

    async def do_enter_region(self, dice: tuple[float, ...]) -> None:
        entering = self._jobs.names.count("enter region")
        if not self._owner.is_free or len(self._regions) + entering >= 3:
            return
        self._jobs.start("enter region", functools.partial(self._enter, dice[0]))

    def _new_region(self, dice: float) -> aioblk.MemoryRegion:
        """Memory of the device's, or of the user's, which some devices cannot reach unless it is a file."""
        if dice < 0.7:
            return self._owner.device.allocate(REGION)
        if dice < 0.8:
            return self._owner.device.register(bytearray(REGION))
        with tempfile.TemporaryFile(dir="/dev/shm") as file:
            os.ftruncate(file.fileno(), REGION)
            return self._owner.device.register(mmap.mmap(file.fileno(), REGION))  # its file is found

    async def _enter(self, dice: float) -> None:
        region = self._new_region(dice)
        self._memories.append(region.memory)
        await region.__aenter__()
        self._regions.append((region, [Slot(region[at : at + SLOT]) for at in range(0, REGION, SLOT)]))

    async def do_leave_region(self, dice: tuple[float, ...]) -> None:
        if self._regions and self._owner.is_bound:
            region, slots = self._regions.pop(int(dice[0] * len(self._regions)))
            if dice[1] < 0.5:
                self._former = [Slot(memoryview(slot.view)) for slot in slots if slot.usable]
            self._jobs.start("leave region", region.aclose)

    async def _use_arena(self, arena: aioblk.Arena, dice: tuple[float, ...]) -> None:
        choice = dice[0]
        if not arena.attachments:
            await arena.attach(self._owner.device)
        elif choice < 0.3:
            await arena.detach(self._owner.device)
        elif choice < 0.7 and len(arena.blocks) < 3:
            await arena.add_block(REGION)
        elif arena.blocks:
            await self._remove_block(arena, arena.blocks[0])

    async def _remove_block(self, arena: aioblk.Arena, block: aioblk.ArenaBlock) -> None:
        try:
            await arena.remove_block(block)
        except aioblk.UsageError:  # buffers of it are in use
            pass
        except ValueError:  # removed by a call before, which went on although it was cancelled
            if block in arena.blocks:
                raise

    async def _begin_arena(self) -> None:
        arena = aioblk.Arena(REGION, block_size=REGION, alignment=512)
        await arena.__aenter__()
        if self.arena is None:
            self.arena = self._borrowers.arena = arena
        else:
            await arena.aclose()

    async def do_arena(self, dice: tuple[float, ...]) -> None:
        if self.arena is None:
            await self._begin_arena()
        elif self._owner.is_free and "arena" not in self._jobs.names:
            self._jobs.start("arena", functools.partial(self._use_arena, self.arena, dice))

    # --- queues ---------------------------------------------------------------------------------------------

    async def do_bind_queue(self, dice: tuple[float, ...]) -> None:
        free = self._free_queues()
        if not free or not self._owner.is_free:
            return
        poll, index = free[int(dice[0] * len(free))]
        device = self._owner.device
        try:
            self.queues.append(device.poll_queue(index) if poll else device.queue(index))
        except aioblk.BlkioError as error:
            self._tell(f"bind queue: {error}")
            may_be_gone = isinstance(error, aioblk.UsageError) and (
                self._jobs.were_left or not self._owner.bounces
            )
            if not device.reconnecting and not self._owner.may_fail(error) and not may_be_gone:
                raise
        else:
            queue = self.queues[-1]
            self.set_pace(queue)
            self._tell(f"{queue!r} is bound")

    def set_pace(self, queue: aioblk.Queue) -> None:
        queue.spin = self._options.get("spin")
        queue._compiled.kicks = self._options.get("kicks", False)
        queue._compiled.rounds = self._options.get("rounds", True)

    def _free_queues(self) -> list[tuple[bool, int]]:
        """Whether it polls, and its index. The default queue is nobody's; what was added may be gone."""
        options = self._options
        there = [(False, index) for index in range(1, options["num_queues"] + self.added)]
        there += [(True, index) for index in range(options.get("num_poll_queues", 0))]
        taken = {(queue.poll, queue.index) for queue in (*self.queues, *self.closing)}
        return [each for each in there if each not in taken]

    async def do_add_queue(self, dice: tuple[float, ...]) -> None:
        if self._owner.is_free and not self._owner.bounces and self.added < 2:
            self.added += 1
            self._jobs.start("add queue", self._add_queue)

    async def _add_queue(self) -> None:
        self._tell(f"it is queue {await self._owner.device.add_queue()}")

    async def do_remove_queue(self, dice: tuple[float, ...]) -> None:
        free = [index for poll, index in self._free_queues() if not poll]
        if self._owner.is_free and not self._owner.bounces and free:
            index = free[int(dice[0] * len(free))]
            self._jobs.start("remove queue", functools.partial(self._remove_queue, index))

    async def _remove_queue(self, index: int) -> None:
        with suppress(aioblk.UsageError):  # it is gone, or bound meanwhile
            await self._owner.device.remove_queue(index)

    async def do_close_queue(self, dice: tuple[float, ...]) -> None:
        if self.queues:
            queue = self.queues[int(dice[0] * len(self.queues))]
            self._jobs.start("close queue", functools.partial(self.end_queue, queue))

    async def end_queue(self, queue: aioblk.Queue) -> None:
        if queue not in self.queues:
            return  # somebody closes it, or has closed it, already
        self.closing.add(queue)
        self.queues.remove(queue)
        try:
            await queue.aclose()
        finally:
            self.closing.discard(queue)

    # --- the end of it --------------------------------------------------------------------------------------

    def require_memory_back(self) -> None:
        """All regions have been left, or were never entered: nobody has their memory, not even the device."""
        self._former.clear()
        gc.collect()
        if kept := [memory for memory in self._memories if not memory.released]:
            raise Wrong(f"memory of regions is kept that nobody has: {kept}")

    async def leave_all(self) -> None:
        """Queues and regions."""
        for queue in list(self.queues):
            await self._jobs.do_now("close queue", functools.partial(self.end_queue, queue))
        while self._regions:
            region, _ = self._regions.pop()
            await self._jobs.do_now("leave region", region.aclose)
