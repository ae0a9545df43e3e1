"""What is served: a device, its size, its rules, and what the protocol's commands are on it."""

from contextlib import aclosing
from typing import final

import aioblk

from . import protocol

LARGEST_PAYLOAD = 32 << 20  # what clients may send if they are not told anything else
CACHED_AT_ONCE = 256 << 10
MOST_EXTENTS = 4096  # of one reply


@final
class Export:
    """A device under a name, and memory for the data of all clients. Sizes are in bytes."""

    def __init__(self, device: aioblk.Device, arena: aioblk.Arena, *, name: str, description: str) -> None:
        """Of an open device that is attached to the arena."""
        block = device.limits.request_alignment
        self.name = name
        self.description = description
        self.device = device
        self.arena = arena
        # Clients are told the block sizes. Those that have not asked may well send anything else.
        self.bytes = aioblk.ByteView(device)
        self.minimum_block = block
        self.preferred_block = max(4096, block, device.limits.optimal_io_alignment)
        self.largest_payload = min(LARGEST_PAYLOAD, arena.statistics().size // 2)
        self.size = device.capacity // block * block
        self.read_only = bool(device.properties["read-only"])

    @property
    def transmission_flags(self) -> int:
        """What clients may ask for. Connections may be many: a flush covers the writes of them all."""
        flags = protocol.HAS_FLAGS | protocol.SEND_FLUSH | protocol.CAN_MULTI_CONN | protocol.SEND_CACHE
        if self.read_only:
            return flags | protocol.READ_ONLY
        writing = protocol.SEND_FUA | protocol.SEND_TRIM | protocol.SEND_WRITE_ZEROES
        return flags | writing | protocol.SEND_FAST_ZERO

    async def trim(self, offset: int, length: int, *, fua: bool) -> None:
        """Give whole blocks of the range back to the storage."""
        await self.bytes.discard(offset, length)
        if fua:
            await self.device.flush()

    async def cache(self, offset: int, length: int) -> None:
        """Read the range once, so that it is in whatever caches lie below."""
        while length:
            piece = min(length, CACHED_AT_ONCE)
            with await self.arena.acquire(piece) as buffer:
                await self.bytes.read_into(offset, buffer)
            offset, length = offset + piece, length - piece

    async def extents(self, offset: int, length: int, *, one: bool) -> list[aioblk.Extent]:
        """What is data and what is hole from *offset* on: at least one extent, not always all of them."""
        found: list[aioblk.Extent] = []
        async with aclosing(self.device.extents(offset, length)) as extents:
            async for extent in extents:
                found.append(extent)
                if one or len(found) == MOST_EXTENTS:
                    break
        return found
