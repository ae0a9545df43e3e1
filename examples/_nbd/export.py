"""What is served: a device, its size, its rules."""

import asyncio
import errno
import os
import stat
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, final

import aioblk

from . import protocol
from .memory import Payload, PayloadMemory

__all__ = ["Export", "Extent", "Work", "open_export"]

LARGEST_PAYLOAD = 32 << 20  # what clients may send if they are not told anything else


class Work(Protocol):
    """What aioblk's requests and asyncio's tasks have in common."""

    def done(self) -> bool: ...
    def cancelled(self) -> bool: ...
    def result(self) -> Any: ...
    def exception(self) -> BaseException | None: ...
    def add_done_callback(self, fn: Any, /) -> object: ...


@final
@dataclass(frozen=True, slots=True)
class Extent:
    """A stretch of the export that is all data, or all hole; bytes."""

    length: int
    is_data: bool


@final
class Export:
    """A device under a name. Sizes are in bytes."""

    def __init__(
        self, device: aioblk.Device, memory: PayloadMemory, file: int | None, *, name: str, description: str
    ) -> None:
        """Of an open device; *file* is a descriptor that tells where the holes are, for a regular file."""
        limits = device.limits
        self.name = name
        self.description = description
        self.device = device
        self.memory = memory
        self.minimum_block = limits.request_alignment
        self.preferred_block = max(4096, limits.request_alignment, limits.optimal_io_alignment)
        self.largest_payload = min(LARGEST_PAYLOAD, memory.size // 2)
        self.size = device.capacity // self.minimum_block * self.minimum_block
        self.read_only = bool(device.properties["read-only"])
        self._file = file
        self._bytes = _ByteChanges(device)

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

    # --- requests -------------------------------------------------------------------------------------------

    # Clients are told the block size of the device; those that have not asked may well send anything else.

    def read(self, offset: int, payload: Payload) -> Work:
        """Fill the payload from *offset* on."""
        parts = payload.parts
        if (offset | payload.length) % self.minimum_block:
            return asyncio.ensure_future(self._bytes.read(offset, parts))
        return (
            self.device.read_into(offset, parts[0]) if len(parts) == 1 else self.device.readv(offset, parts)
        )

    def write(self, offset: int, payload: Payload, *, fua: bool) -> Work:
        """Write the payload at *offset*."""
        if self._bytes.under_way or (offset | payload.length) % self.minimum_block:
            return asyncio.ensure_future(self._bytes.write(offset, payload.parts, fua=fua))
        return self._bytes.wait_for(self.device.writev(offset, payload.parts, fua=fua))

    def write_zeroes(self, offset: int, length: int, *, fua: bool, no_hole: bool, fast: bool) -> Work:
        if self._bytes.under_way or (offset | length) % self.minimum_block:
            if fast:
                raise aioblk.UnsupportedError("this may take as long as writing does")
            return asyncio.ensure_future(self._bytes.write_zeroes(offset, length, fua=fua, no_hole=no_hole))
        return self._bytes.wait_for(
            self.device.write_zeroes(offset, length, fua=fua, no_unmap=no_hole, no_fallback=fast)
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
        if self._file is None:
            return [Extent(length, is_data=True)]
        return await asyncio.to_thread(_file_extents, self._file, offset, length, most)


@final
class _ByteChanges:
    """Reads and writes of anything but whole blocks, by way of a ByteView.

    Changing a part of a block means reading it, and writing all of it back. A change of the whole block in
    between would be undone. So a change of bytes waits for the direct ones that were begun before it, and
    while there are any, all changes go through the ByteView, which knows what must not overlap.
    """

    def __init__(self, device: aioblk.Device) -> None:
        self._view = aioblk.ByteView(device)
        self._has_blocks = device.limits.request_alignment > 1
        self._direct = 0
        self._none_direct = asyncio.Event()
        self._none_direct.set()
        self.under_way = 0
        """Changes of bytes that have begun and not ended."""

    def wait_for(self, change: aioblk.Request[None]) -> aioblk.Request[None]:
        """Have all later changes of bytes wait for this direct one, which is returned."""
        if self._has_blocks:
            self._direct += 1
            self._none_direct.clear()
            change.add_done_callback(self._end_direct)
        return change

    def _end_direct(self, _change: object) -> None:
        self._direct -= 1
        if self._direct == 0:
            self._none_direct.set()

    async def read(self, offset: int, parts: list[memoryview]) -> None:
        for part in parts:
            await self._view.read_into(offset, part)
            offset += len(part)

    async def write(self, offset: int, parts: list[memoryview], *, fua: bool) -> None:
        async with self:
            for part in parts:
                await self._view.write(offset, part, fua=fua)
                offset += len(part)

    async def write_zeroes(self, offset: int, length: int, *, fua: bool, no_hole: bool) -> None:
        async with self:
            await self._view.write_zeroes(offset, length, fua=fua, no_unmap=no_hole)

    async def __aenter__(self) -> None:
        self.under_way += 1
        try:
            await self._none_direct.wait()
        except BaseException:
            self.under_way -= 1
            raise

    async def __aexit__(self, *_: object) -> None:
        self.under_way -= 1


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
        file = _open_file(device)
        try:
            yield Export(device, PayloadMemory(region), file, name=name, description=description)
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
