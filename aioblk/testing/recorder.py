"""Recorder: a device that remembers what it was asked, and when."""

from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import TypeVar, final

import typing_extensions
from typing_extensions import Buffer

from .._native.buffers import flat, length_of
from .._sync.loops import running_loop
from ..layers._begun import Begun, Followed, future_of
from ..layers._piecewise import Piecewise
from ..layers.block_device import BlockDevice
from .faulty import Operation
from .memory_device import MemoryDevice

__all__ = ["Record", "Recorder"]

T = TypeVar("T")
D_co = typing_extensions.TypeVar("D_co", bound=BlockDevice, default=MemoryDevice, covariant=True)


@final
@dataclass(slots=True, kw_only=True)
class Record:
    """A request that a :class:`Recorder` was asked for."""

    operation: Operation
    """The method that was called, or whose work it is: vectors and batches are reads and writes."""
    offset: int = 0
    """In bytes."""
    length: int = 0
    """In bytes."""
    fua: bool = False
    """It was to be durable when done."""
    no_unmap: bool = False
    """Zeroes were to keep their blocks."""
    no_fallback: bool = False
    """Zeroes were not to be written out."""
    data: bytes | None = field(default=None, repr=False)
    """What a write was to write."""
    began: float = field(default=0.0, compare=False)
    """When, in seconds of the loop's clock since the recorder was made."""
    ended: float | None = field(default=None, compare=False)
    """None: it is in flight."""
    error: BaseException | None = field(default=None, compare=False)
    """What it failed with."""

    @property
    def is_change(self) -> bool:
        """Whether it changes what the device has."""
        return self.operation not in ("read", "flush")


@final
class Recorder(Piecewise[D_co]):
    """A device whose requests are remembered, in the order of their calls::

        recorder = Recorder(MemoryDevice(1 << 20))
        await use(recorder)
        assert [record.operation for record in recorder.records] == ["write", "flush"]
        await recorder.replay(MemoryDevice(1 << 20), recorder.records[:1])

    What is refused by the call is not remembered. The items of a batch are requests of their own.
    """

    def __init__(self, device: D_co) -> None:
        super().__init__(device)
        self.records: list[Record] = []
        """All of them; yours to clear."""
        self._since = running_loop("record").time()

    @property
    def changes(self) -> list[Record]:
        """Those that may have changed the device."""
        return [record for record in self.records if record.is_change]

    @staticmethod
    async def replay(device: BlockDevice, records: Iterable[Record]) -> None:
        """Ask another device for the same, one after the other, but for what has only been read.

        Raises what the device does.
        """
        for record in records:
            match record.operation:
                case "write":
                    assert record.data is not None
                    await device.write(record.offset, record.data, fua=record.fua)
                case "write_zeroes":
                    await device.write_zeroes(
                        record.offset,
                        record.length,
                        fua=record.fua,
                        no_unmap=record.no_unmap,
                        no_fallback=record.no_fallback,
                    )
                case "discard":
                    await device.discard(record.offset, record.length)
                case "flush":
                    await device.flush()
                case "read":
                    pass

    # --- requests -------------------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> Awaitable[bytes]:
        offset = index(offset)
        request = self._below.read(offset, length)
        return self._recorded(request, Record(operation="read", offset=offset, length=length))

    def readv(self, offset: int, buffers: Sequence[Buffer]) -> Awaitable[None]:
        offset = index(offset)
        buffers = tuple(buffers)
        request = self._below.readv(offset, buffers)
        return self._recorded(request, Record(operation="read", offset=offset, length=length_of(buffers)))

    def writev(self, offset: int, buffers: Sequence[Buffer], *, fua: bool = False) -> Awaitable[None]:
        offset = index(offset)
        buffers = tuple(buffers)
        data = b"".join(flat(buffer) for buffer in buffers)
        request = self._below.writev(offset, buffers, fua=fua)
        return self._recorded(
            request, Record(operation="write", offset=offset, length=len(data), fua=fua, data=data)
        )

    def write_zeroes(
        self,
        offset: int,
        length: int,
        *,
        fua: bool = False,
        no_unmap: bool = False,
        no_fallback: bool = False,
    ) -> Awaitable[None]:
        offset = index(offset)
        request = self._below.write_zeroes(
            offset, length, fua=fua, no_unmap=no_unmap, no_fallback=no_fallback
        )
        record = Record(
            operation="write_zeroes",
            offset=offset,
            length=length,
            fua=fua,
            no_unmap=no_unmap,
            no_fallback=no_fallback,
        )
        return self._recorded(request, record)

    def discard(self, offset: int, length: int) -> Awaitable[None]:
        offset = index(offset)
        request = self._below.discard(offset, length)
        return self._recorded(request, Record(operation="discard", offset=offset, length=length))

    def flush(self) -> Awaitable[None]:
        return self._recorded(self._below.flush(), Record(operation="flush"))

    def _recorded(self, request: Awaitable[T], record: Record) -> Awaitable[T]:
        record.began = self._now()
        self.records.append(record)

        def ended(error: BaseException | None) -> None:
            record.ended = self._now()
            record.error = error

        recorded = Begun(Followed(future_of(request), ended))
        return self._change(recorded) if record.is_change else recorded

    def _now(self) -> float:
        return running_loop("record").time() - self._since
