"""What is served: a device, its size, its rules."""

import asyncio
import errno
import os
import stat
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import final

import aioblk

from . import protocol
from .memory import PayloadMemory

__all__ = ["Export", "Extent", "open_export"]

LARGEST_PAYLOAD = 32 << 20  # what clients may send if they are not told anything else


@final
@dataclass(frozen=True, slots=True)
class Extent:
    """A stretch of the export that is all data, or all hole; bytes."""

    length: int
    is_data: bool


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A device under a name. Sizes are in bytes."""

    name: str
    description: str
    device: aioblk.Device
    memory: PayloadMemory
    size: int
    read_only: bool
    minimum_block: int
    """Offsets and lengths of commands are multiples of it."""
    preferred_block: int
    largest_payload: int
    """The most data of one command."""
    file: int | None
    """A descriptor that tells where the holes are, for a regular file."""

    @property
    def transmission_flags(self) -> int:
        """What clients may ask for. Connections may be many: a flush covers the writes of them all."""
        flags = protocol.HAS_FLAGS | protocol.SEND_FLUSH | protocol.CAN_MULTI_CONN | protocol.SEND_CACHE
        if self.read_only:
            return flags | protocol.READ_ONLY
        return (
            flags
            | protocol.SEND_FUA
            | protocol.SEND_TRIM
            | protocol.SEND_WRITE_ZEROES
            | protocol.SEND_FAST_ZERO
        )

    async def trim(self, offset: int, length: int, *, fua: bool) -> None:
        """Discard what whole blocks there are in the range: trimming is advice."""
        limits = self.device.limits
        unit = max(limits.discard_alignment, limits.request_alignment)
        start = offset + -(offset - limits.discard_alignment_offset) % unit
        end = offset + length
        end -= (end - limits.discard_alignment_offset) % unit
        if start < end:
            await self.device.discard(start, end - start)
        if fua:
            await self.device.flush()

    async def cache(self, offset: int, length: int) -> None:
        """Read the range once, so that it is in whatever caches lie below."""
        while length:
            piece = min(length, PayloadMemory.BUFFER)
            payload = await self.memory.take(piece)
            try:
                await self.device.read_into(offset, payload.parts[0])
            finally:
                self.memory.give_back(payload)
            offset, length = offset + piece, length - piece

    async def extents(self, offset: int, length: int, most: int) -> list[Extent]:
        """The stretches from *offset* on, as far as they are known: at least one, not always all of them."""
        if self.file is None:
            return [Extent(length, is_data=True)]
        return await asyncio.to_thread(_file_extents, self.file, offset, length, most)


def _file_extents(file: int, offset: int, length: int, most: int) -> list[Extent]:
    extents: list[Extent] = []
    end = offset + length
    while offset < end and len(extents) < most:
        data = _seek(file, offset, os.SEEK_DATA, end)
        if data > offset:
            extents.append(Extent(data - offset, is_data=False))
        elif (hole := _seek(file, offset, os.SEEK_HOLE, end)) > offset:
            extents.append(Extent(hole - offset, is_data=True))
            data = hole
        offset = data
    return extents


def _seek(file: int, offset: int, whence: int, end: int) -> int:
    try:
        return min(os.lseek(file, offset, whence), end)
    except OSError as error:
        if error.errno == errno.ENXIO:  # no data, or no file, from there on
            return end
        raise


@asynccontextmanager
async def open_export(
    device: aioblk.Device, *, name: str = "", description: str = "", memory_size: int = 64 << 20
) -> AsyncGenerator[Export]:
    """Open the device and serve all of it; *memory_size* bytes carry the data of all clients together."""
    async with device, device.allocate(memory_size) as region:
        memory = PayloadMemory(region)
        limits = device.limits
        file = _open_file(device)
        try:
            yield Export(
                name=name,
                description=description,
                device=device,
                memory=memory,
                size=device.capacity // limits.request_alignment * limits.request_alignment,
                read_only=bool(device.properties["read-only"]),
                minimum_block=limits.request_alignment,
                preferred_block=max(4096, limits.request_alignment, limits.optimal_io_alignment),
                largest_payload=min(LARGEST_PAYLOAD, memory.size // 2),
                file=file,
            )
        finally:
            if file is not None:
                os.close(file)


def _open_file(device: aioblk.Device) -> int | None:
    if device.driver != "io_uring":
        return None
    file = os.open(str(device.properties["path"]), os.O_RDONLY | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(file).st_mode):
        return file
    os.close(file)
    return None
