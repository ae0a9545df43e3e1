"""A load that knows what every block must hold: what was acknowledged last, or a write that failed."""

import asyncio
import random
from collections import defaultdict
from types import TracebackType
from typing import Self

import aioblk

BLOCK = 4096
WORKERS = 8
BLOCKS_EACH = 16
SIZE = WORKERS * BLOCKS_EACH * BLOCK
"""At the beginning of the device."""
FLUSH_EVERY = 8  # writes of a worker
PATIENCE = 60.0  # seconds without any progress where there should be some


def content(block: int, generation: int) -> bytes:
    """What a block holds after so many writes; zeroes before the first."""
    if not generation:
        return bytes(BLOCK)
    return (f"{block:016x}{generation:016x}".encode()) * (BLOCK // 32)


class Load:
    """Workers that write blocks of their own and read them back, for as long as the ``async with`` is."""

    def __init__(self, device: aioblk.BlockDevice) -> None:
        self.device = device
        self.done = 0
        """Operations that have succeeded."""
        self.errors: list[aioblk.BlkioError] = []
        self._possible: dict[int, set[int]] = defaultdict(lambda: {0})
        self._generations = 0
        self._ending = False
        self._moved = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self.device.write_zeroes(0, SIZE)
        self._tasks = [asyncio.create_task(self._work(number)) for number in range(WORKERS)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending = True
        if error is not None:
            for task in self._tasks:
                task.cancel()
        await asyncio.wait(self._tasks)
        if error is None:
            for task in self._tasks:
                task.result()

    async def goes_on(self, operations: int = 200) -> None:
        """Return when so many more have succeeded."""
        aim = self.done + operations
        while self.done < aim:
            if all(task.done() for task in self._tasks):
                for task in self._tasks:
                    task.result()
                raise AssertionError(f"the load has ended: {self.errors[-1:]}")
            async with asyncio.timeout(PATIENCE):
                await self._moved.wait()
            self._moved.clear()

    async def has_failed(self, operations: int = 1) -> None:
        """Return when at least so many have failed."""
        while len(self.errors) < operations:
            async with asyncio.timeout(PATIENCE):
                await self._moved.wait()
            self._moved.clear()

    def check(self, begin: bytes) -> None:
        """Of the first SIZE bytes, wherever they were read."""
        for block in range(SIZE // BLOCK):
            found = begin[block * BLOCK : (block + 1) * BLOCK]
            assert found in [content(block, each) for each in self._possible[block]], (
                f"block {block} begins with {found[:32]!r}, not with one of {self._possible[block]}"
            )

    async def _work(self, number: int) -> None:
        chance = random.Random(number)
        writes = 0
        while not self._ending:
            block = number * BLOCKS_EACH + chance.randrange(BLOCKS_EACH)
            other = number * BLOCKS_EACH + chance.randrange(BLOCKS_EACH)
            try:
                await self._write(block)
                writes += 1
                found = await self.device.read(other * BLOCK, BLOCK)
                if writes % FLUSH_EVERY == 0:
                    await self.device.flush()
            except aioblk.BlkioError as error:
                self.errors.append(error)
                self._moved.set()
                if isinstance(error, aioblk.DeviceLostError):
                    return
                continue
            assert found in [content(other, each) for each in self._possible[other]], (
                f"block {other} begins with {found[:32]!r}, not with one of {self._possible[other]}"
            )
            self.done += 1
            self._moved.set()

    async def _write(self, block: int) -> None:
        self._generations += 1
        generation = self._generations
        self._possible[block] = self._possible[block] | {generation}
        await self.device.write(block * BLOCK, content(block, generation))
        self._possible[block] = {generation}
