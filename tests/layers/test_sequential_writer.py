"""SequentialWriter by way of a device that has no zones itself; tests/vm has real ones."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import cast

import pytest
from ram_device import BLOCK, RamDevice
from typing_extensions import Buffer

import aioblk
from aioblk import SequentialWriter, Zone, Zones, ZoneState, ZoneType

ZONE = 64 * BLOCK
CAPACITY = 48 * BLOCK
COUNT = 4


class ZonedMemory(RamDevice):
    """Is written at the zones' write pointers only."""

    driver = "memory"

    def __init__(self) -> None:
        super().__init__(COUNT * ZONE)
        self.pointers = [number * ZONE for number in range(COUNT)]

    def writev(self, offset: int, buffers: Sequence[Buffer], *, fua: bool = False) -> Awaitable[None]:
        length = sum(memoryview(buffer).nbytes for buffer in buffers)
        assert offset == self.pointers[offset // ZONE]
        assert offset % ZONE + length <= CAPACITY
        self.pointers[offset // ZONE] += length
        return super().writev(offset, buffers, fua=fua)


class ZonesOfMemory:
    def __init__(self, device: ZonedMemory) -> None:
        self.device = device

    async def report(self, start: int = 0, stop: int | None = None) -> AsyncIterator[Zone]:
        for number, pointer in enumerate(self.device.pointers):
            begin = number * ZONE
            used = pointer - begin
            state = ZoneState.EMPTY if not used else ZoneState.FULL if used == CAPACITY else ZoneState.CLOSED
            yield Zone(begin, ZONE, CAPACITY, pointer, ZoneType.SEQUENTIAL_REQUIRED, state, False)


async def test_it_appends_by_way_of_any_block_device() -> None:
    device = ZonedMemory()
    writer = SequentialWriter(cast(Zones, ZonesOfMemory(device)), device)
    data = [bytes([number]) * (number * BLOCK) for number in range(1, 12)]
    written = await asyncio.gather(*map(writer.append, data))
    for extents, content in zip(written, data, strict=True):
        pieces = [await device.read(extent.offset, extent.length) for extent in extents]
        assert b"".join(pieces) == content
    with pytest.raises(aioblk.AlignmentError):
        await writer.append(b"no block")
    with pytest.raises(aioblk.BlkioError, match="no zone has room left"):
        await writer.append(bytes(COUNT * CAPACITY))
