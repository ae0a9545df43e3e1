"""MemoryDevice: a block device that is memory, with whatever limits a test wants."""

import errno
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from typing_extensions import Buffer

from .._device.extents import Extent, ExtentKind
from .._libblkio.limits import Limits
from .._memory.regions import MemoryRegion
from .._native._core import Memory
from .._native.buffers import flat
from .._queues.statistics import QueueStatistics
from ..errors import BlkioError, OptionError
from ..layers._begun import Begun
from ..layers._counts import Counts, Operation
from ..layers._standalone import Standalone
from ._done import Done
from ._media import Media
from ._reach import Reach

__all__ = ["MemoryDevice"]

T = TypeVar("T")

LARGEST = 1 << 60  # bytes that one grows to


class MemoryDevice(Standalone):
    """``capacity`` bytes of memory as a block device, for tests::

        async with MemoryDevice(1 << 30, limits=aioblk.Limits(request_alignment=4096)) as dev:
            await dev.write(0, bytes(4096))

    It keeps the contract of :class:`BlockDevice` to the letter, with the limits that it is given: what is
    misaligned is refused, with ``limits.can_grow`` writing past the end makes it longer, and with
    ``limits.needs_mem_regions`` memory has to be registered to be reached: all else counts as bounced in
    :meth:`statistics`. Its size takes no memory; what is written does. It tells where it has holes.

    A request is executed by its call, and its outcome comes in the next turn of the loop. Buffers are
    exported until then, as to a real device. How it behaves when it fails, is slow or goes away:
    :class:`Faulty`.
    """

    def __init__(
        self, capacity: int, *, limits: Limits | None = None, read_only: bool = False, content: bytes = b""
    ) -> None:
        """Zeroes, or *content* and zeroes behind it. Without *limits* any bytes are taken from any memory.

        Raises:
            OptionError: ``capacity`` is negative, or less than *content* has.
        """
        if capacity < len(content):
            raise OptionError(
                f"capacity is {capacity}; it must not be less than 0, nor than the content's {len(content)}",
                driver="memory",
                operation="open",
            )
        super().__init__("memory", Limits() if limits is None else limits, capacity)
        self._read_only = read_only
        self._media = Media()
        self._media.write(0, content)
        self._reach = Reach("memory", self._limits, lambda: self._closed)
        self._counts = Counts()
        self._bounced_bytes = 0

    # --- life -----------------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        await self._counts.finish()

    # --- what it is -----------------------------------------------------------------------------------------

    @property
    def read_only(self) -> bool:
        return self._read_only

    def statistics(self) -> QueueStatistics:
        return replace(self._counts.snapshot(), bounced_bytes=self._bounced_bytes)

    def _extents(self, offset: int, length: int) -> AsyncGenerator[Extent]:
        """Holes are what was never written, or was zeroed, in units of 4096 bytes."""
        return self._extents_of(list(self._media.runs(offset, length)))

    async def _extents_of(self, runs: list[tuple[int, int, bool]]) -> AsyncGenerator[Extent]:
        for offset, length, is_hole in runs:
            yield Extent(offset, length, ExtentKind.HOLE if is_hole else ExtentKind.DATA)

    def content(self) -> bytes:
        """All of it, as it is now: whatever was asked for has been executed."""
        return self._media.read(0, self._capacity)

    # --- memory ---------------------------------------------------------------------------------------------

    def register(
        self, buffer: Buffer, *, fd: int | None = None, fd_offset: int = 0, required: bool = False
    ) -> MemoryRegion:
        """As of a device: the rules of the limits are kept. Files under the memory are not asked for."""
        self._refuse_if_closed("register")
        return self._reach.register(buffer, required)

    def allocate(self, length: int) -> MemoryRegion:
        self._refuse_if_closed("allocate")
        return self._reach.allocate(length)

    # --- requests -------------------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> Awaitable[bytes]:
        offset, length = self._asked.to_read(offset, length)
        if error := self._refusal("read", offset, length):
            return self._request("read", error)
        self._bounced_bytes += length if self._limits.needs_mem_regions else 0
        return self._request("read", self._media.read(offset, length), length)

    def readv(self, offset: int, buffers: Sequence[Buffer]) -> Awaitable[None]:
        offset, length = self._asked.to_fill(offset, buffers := tuple(buffers))
        if error := self._refusal("read", offset, length):
            return self._request("read", error)
        views = self._views(buffers)
        data = self._media.read(offset, length)
        done = 0
        for view in views:
            view[:] = data[done : done + len(view)]
            done += len(view)
        return self._request("read", None, length, views)

    def writev(self, offset: int, buffers: Sequence[Buffer], *, fua: bool = False) -> Awaitable[None]:
        offset, length = self._asked.to_write(offset, buffers := tuple(buffers))
        if error := self._refusal("write", offset, length):
            return self._request("write", error)
        views = self._views(buffers)
        return self._put("write", offset, length, b"".join(views), fua, views)

    def write_zeroes(
        self,
        offset: int,
        length: int,
        *,
        fua: bool = False,
        no_unmap: bool = False,
        no_fallback: bool = False,
    ) -> Awaitable[None]:
        offset, length = self._asked.to_change("write_zeroes", offset, length)
        if error := self._refusal("write_zeroes", offset, length):
            return self._request("write_zeroes", error)
        return self._put("write_zeroes", offset, length, None, fua)

    def discard(self, offset: int, length: int) -> Awaitable[None]:
        """Of what is discarded, all reads as zeroes."""
        offset, length = self._asked.to_discard(offset, length)
        if error := self._refusal("discard", offset, length):
            return self._request("discard", error)
        length = max(min(length, self._capacity - offset), 0)
        return self._put("discard", offset, length, None, False)

    def flush(self) -> Awaitable[None]:
        self._asked.to_flush()
        self._refuse_if_closed("flush")
        return self._request("flush", None, on_done=self._start_flush())

    # --- how they are executed ------------------------------------------------------------------------------

    def _put(
        self,
        operation: Operation,
        offset: int,
        length: int,
        data: bytes | None,
        fua: bool,
        keep: object = None,
    ) -> Awaitable[None]:
        if length:  # nothing makes no file longer
            self._capacity = max(self._capacity, offset + length)
        return self._request(operation, None, length, keep, self._store(offset, length, data, fua))

    def _store(
        self, offset: int, length: int, data: bytes | None, fua: bool
    ) -> Callable[[bool], object] | None:
        """Have it, or zeroes for None; gives what is to be done when the request is, which is told whether it
        was cancelled by then: False."""
        if data is None:
            self._media.zero(offset, length)
        else:
            self._media.write(offset, data)
        return None

    def _start_flush(self) -> Callable[[bool], object] | None:
        """Gives what is to be done when it is done."""
        return None

    def _request(
        self,
        operation: Operation,
        outcome: T | BaseException,
        length: int = 0,
        keep: object = None,
        on_done: Callable[[bool], object] | None = None,
    ) -> Awaitable[T]:
        request = Done(outcome, keep, on_done)
        self._counts.add(request, operation, length)
        return Begun(request)

    def _views(self, buffers: Sequence[Buffer]) -> list[memoryview]:
        """The buffers as bytes; those that the device would not reach count as bounced."""
        views = [flat(buffer) for buffer in buffers]
        if self._limits.needs_mem_regions:
            self._bounced_bytes += sum(len(view) for view in views if not self._reaches(view))
        return views

    def _reaches(self, view: memoryview) -> bool:
        memory = Memory.from_buffer(view)
        address, length = memory.address, len(memory)
        memory.close()
        return self._reach.has(address, length)

    def _refusal(self, operation: str, offset: int, length: int) -> BlkioError | None:
        """What is wrong with a request that was asked for in the right way."""
        if not self._limits.can_grow:
            return super()._refusal(operation, offset, length)
        self._refuse_if_closed(operation)
        if operation != "read" and offset + length > LARGEST:
            message = f"the device grows to {LARGEST} bytes at most"
            return BlkioError(
                message, errno=errno.EFBIG, driver="memory", operation=operation, offset=offset, length=length
            )
        return None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._capacity} bytes>"
