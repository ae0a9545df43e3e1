"""What can be served: block devices, and whatever reads and writes by coroutines."""

from abc import abstractmethod
from collections.abc import Awaitable
from typing import Any, final

from typing_extensions import Buffer, Protocol, runtime_checkable

from .._libblkio.limits import Limits
from .._native._core import View
from ..layers.block_device import BlockDevice

__all__ = ["Disk", "Served", "serve"]

NO_LIMITS = Limits(request_alignment=512)
ZEROES = bytes(256 << 10)


@runtime_checkable
class Disk(Protocol):
    """What a program of its own can have served without being a :class:`BlockDevice`: a capacity and two
    coroutines, of which a disk that is read only needs one::

        class Zeroes:
            capacity = 1 << 30

            async def read(self, offset: int, length: int) -> bytes:
                return bytes(length)

    Offsets and lengths are in bytes, whole sectors of 512, and within the capacity. Many calls may be under
    way, in any order. What a call raises is an error of its request: the guest is told that it has failed.

    It may also have ``write(offset, data)``, where *data* is the guest's memory and may change until the call
    is over, and without which the disk is read-only; ``flush()``, without which what is written is taken to
    be durable; ``discard(offset, length)``, without which that is nothing; and ``write_zeroes(offset,
    length)``, without which zeroes are written.
    """

    @property
    @abstractmethod
    def capacity(self) -> int:
        """Its size in bytes."""
        ...

    @abstractmethod
    def read(self, offset: int, length: int) -> Awaitable[Buffer]:
        """What is there."""
        ...


class Served(Protocol):
    """What an export asks of what it serves."""

    @property
    def limits(self) -> Limits: ...
    @property
    def capacity(self) -> int: ...
    @property
    def read_only(self) -> bool: ...
    def readv(self, offset: int, buffers: "tuple[View, ...]") -> Awaitable[Any]: ...
    def writev(self, offset: int, buffers: "tuple[View, ...]", *, fua: bool) -> Awaitable[Any]: ...
    def write_zeroes(self, offset: int, length: int, *, fua: bool, no_unmap: bool) -> Awaitable[Any]: ...
    def discard(self, offset: int, length: int) -> Awaitable[Any]: ...
    def flush(self) -> Awaitable[Any]: ...


def serve(disk: BlockDevice | Disk) -> Served:
    """TypeError: it is neither."""
    if isinstance(disk, BlockDevice):
        return disk
    if isinstance(disk, Disk):  # pyright: ignore[reportUnnecessaryIsInstance]
        return _OwnDisk(disk)
    raise TypeError(
        f"a BlockDevice is needed, or what has a capacity and read(), not {type(disk).__name__}: {disk!r}"
    )


@final
class _OwnDisk:
    """A :class:`Disk`, asked as block devices are."""

    limits = NO_LIMITS

    def __init__(self, disk: Disk) -> None:
        self._disk: Any = disk
        self.read_only = not hasattr(disk, "write")

    @property
    def capacity(self) -> int:
        capacity: int = self._disk.capacity
        return capacity

    async def readv(self, offset: int, buffers: tuple[View, ...]) -> None:
        length = sum(map(len, buffers))
        with memoryview(await self._disk.read(offset, length)).cast("B") as data:
            if len(data) != length:
                raise ValueError(f"{length} bytes were to be read from {offset}, and {len(data)} came")
            at = 0
            for buffer in buffers:
                buffer[:] = data[at : at + len(buffer)]
                at += len(buffer)

    async def writev(self, offset: int, buffers: tuple[View, ...], *, fua: bool) -> None:
        for buffer in buffers:
            with memoryview(buffer) as data:
                await self._disk.write(offset, data)
            offset += len(buffer)
        if fua:
            await self.flush()

    async def write_zeroes(self, offset: int, length: int, *, fua: bool, no_unmap: bool) -> None:
        if hasattr(self._disk, "write_zeroes"):
            await self._disk.write_zeroes(offset, length)
        else:
            for at in range(0, length, len(ZEROES)):
                with memoryview(ZEROES)[: length - at] as zeroes:
                    await self._disk.write(offset + at, zeroes)
        if fua:
            await self.flush()

    async def discard(self, offset: int, length: int) -> None:
        if hasattr(self._disk, "discard"):
            await self._disk.discard(offset, length)

    async def flush(self) -> None:
        if hasattr(self._disk, "flush"):
            await self._disk.flush()
