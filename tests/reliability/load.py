"""A load that verifies what it was told: each client writes a place of its own, and reads it back."""

import asyncio
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

import aioblk

BLOCK = 4096
STAMP = struct.Struct("<QQ")


def stamped(slot: int, number: int) -> bytes:
    """A block that says whose it is, and which one."""
    return STAMP.pack(slot, number) * (BLOCK // STAMP.size)


def stamp_of(slot: int, data: bytes) -> int:
    """The number of a block of that slot; 0 where nothing was written."""
    if data == bytes(BLOCK):
        return 0
    owner, number = STAMP.unpack_from(data)
    assert owner == slot, f"slot {slot} has a block of slot {owner}"
    assert data == stamped(slot, number), f"slot {slot} has parts of several blocks"
    return int(number)


class Load:
    """Clients that go on until the block ends; the first that reads what it has not written raises there."""

    def __init__(self, device: aioblk.BlockDevice, *, clients: int = 32, flush_every: int = 8) -> None:
        self._device, self._clients, self._flush_every = device, clients, flush_every
        self.acknowledged = [0] * clients
        """The number of the last block of each slot whose write was answered."""
        self.submitted = [0] * clients
        self._go_on = True
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def writes(self) -> int:
        return sum(self.acknowledged)

    async def _client(self, slot: int) -> None:
        offset = slot * BLOCK
        while self._go_on:
            number = self.submitted[slot] = self.submitted[slot] + 1
            await self._device.write(offset, stamped(slot, number))
            self.acknowledged[slot] = number
            if number % self._flush_every == 0:
                await self._device.flush()
            data = await self._device.read(offset, BLOCK)
            assert stamp_of(slot, data) == number, f"slot {slot}: read other than {number}, which was written"
            await asyncio.sleep(0)

    async def run(self) -> None:
        """Until it is cancelled, or fails."""
        await asyncio.gather(*(self._client(slot) for slot in range(self._clients)))

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._client(slot)) for slot in range(self._clients)]
        return self

    def still_right(self) -> None:
        """Raise what a client has met."""
        for task in self._tasks:
            if task.done():
                task.result()

    async def progress(self, writes: int = 1) -> None:
        """Until so many more writes have been answered."""
        until = self.writes + writes
        while self.writes < until:
            self.still_right()
            await asyncio.sleep(0.005)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._go_on = False
        if error is not None:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
            return
        await asyncio.gather(*self._tasks)

    def verify(self, file: Path) -> None:
        """Every write that was answered is in the file, or a later one of the same client, and each whole."""
        with file.open("rb") as opened:
            for slot, (told, most) in enumerate(zip(self.acknowledged, self.submitted, strict=True)):
                found = stamp_of(slot, opened.read(BLOCK))
                assert told <= found <= most, f"slot {slot}: has {found}, was told {told}"
