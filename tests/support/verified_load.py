"""A load that knows what every block must hold: what was acknowledged last, or what was on its way then."""

import asyncio
import itertools
import random
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

import aioblk

__all__ = ["BLOCK", "SIZE", "VerifiedLoad", "stamp_of", "stamped"]

BLOCK = 4096
BLOCKS = 128
SIZE = BLOCKS * BLOCK
"""At the beginning of the device, which the load has for itself."""
FLUSH_EVERY = 8  # writes of a worker
PATIENCE = 60.0  # seconds without any progress where there should be some
STAMP = struct.Struct("<QQ")


def stamped(block: int, number: int) -> bytes:
    """What a block holds after so many writes; zeroes before the first."""
    return STAMP.pack(block, number) * (BLOCK // STAMP.size) if number else bytes(BLOCK)


def stamp_of(block: int, found: bytes) -> int:
    """After how many writes the block holds that."""
    if found == bytes(BLOCK):
        return 0
    owner, number = STAMP.unpack_from(found)
    assert (owner, found) == (block, stamped(block, number)), f"block {block} has parts of others"
    return int(number)


class VerifiedLoad:
    """Workers that write blocks of their own and read them back, for as long as the ``async with`` is.

    What one of them meets, a request that fails or a block that holds anything else, is raised by whoever
    waits for progress, and at the end.
    """

    def __init__(self, device: aioblk.BlockDevice, *, workers: int = 32, zeroes_first: bool = False) -> None:
        """*zeroes_first*: the device does not begin with zeroes, or is to be given its blocks before."""
        self._device = device
        self._workers = workers
        self._zeroes_first = zeroes_first
        self.writes = 0
        """That were answered, and a block read and found right after each."""
        self._acknowledged = [0] * BLOCKS
        self._submitted = [0] * BLOCKS
        self._ending = False
        self._moved = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []
        """Its workers."""

    async def __aenter__(self) -> Self:
        if self._zeroes_first:
            await self._device.write_zeroes(0, SIZE)
        self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending = True
        if error is not None:
            for task in self.tasks:
                task.cancel()
        ends = await asyncio.gather(*self.tasks, return_exceptions=True)
        if error is None:
            for end in ends:
                if end is not None:
                    raise end

    async def run(self) -> None:
        """Until it is cancelled, or meets something; in place of the ``async with``."""
        self._start()
        try:
            await asyncio.gather(*self.tasks)
        finally:
            for task in self.tasks:
                task.cancel()

    def _start(self) -> None:
        for worker in range(self._workers):
            task = asyncio.create_task(self._work(worker))
            task.add_done_callback(lambda _: self._moved.set())
            self.tasks.append(task)

    async def progress(self, writes: int = 1) -> None:
        """Return when so many more have been made."""
        aim = self.writes + writes
        while self.writes < aim:
            for task in self.tasks:
                if task.done():
                    task.result()
            self._moved.clear()
            async with asyncio.timeout(PATIENCE):
                await self._moved.wait()

    def check(self, begin: bytes) -> None:
        """Of the first SIZE bytes, wherever they were read."""
        for block in range(BLOCKS):
            self._check_block(block, begin[block * BLOCK : (block + 1) * BLOCK])

    def check_file(self, file: Path) -> None:
        """The same, of a file that begins with them."""
        with file.open("rb") as opened:
            self.check(opened.read(SIZE))

    def _check_block(self, block: int, found: bytes) -> None:
        least, most = self._acknowledged[block], self._submitted[block]
        assert any(found == stamped(block, number) for number in range(least, most + 1)), (
            f"block {block} begins with {found[: STAMP.size]!r}, and was written {least} to {most} times"
        )

    async def _work(self, worker: int) -> None:
        own = range(worker, BLOCKS, self._workers)
        chance = random.Random(worker)
        for count in itertools.count(1):
            if self._ending:
                return
            await self._write(chance.choice(own))
            if count % FLUSH_EVERY == 0:
                await self._device.flush()
            other = chance.choice(own)
            self._check_block(other, await self._device.read(other * BLOCK, BLOCK))
            self.writes += 1
            self._moved.set()
            await asyncio.sleep(0)  # whoever waits for it has a turn, however fast the device is

    async def _write(self, block: int) -> None:
        number = self._submitted[block] = self._submitted[block] + 1
        await self._device.write(block * BLOCK, stamped(block, number))
        self._acknowledged[block] = number
