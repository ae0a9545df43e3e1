"""ByteView: reading and writing any bytes of a device that knows only blocks."""

import asyncio
from typing import TypeVar, final

from typing_extensions import Buffer

from ._native._core import Request
from .device import Device
from .errors import OptionError

__all__ = ["ByteView"]

T = TypeVar("T")


@final
class ByteView:
    """A device as an array of bytes: offsets and lengths need no alignment.

    Requests on whole blocks are passed on as they are. Where a read begins or ends within a block, the rest
    of the block is read along. Where a write does, the block is read first and written back with the new
    bytes in it. Only these edges are copied, through the bounce pool where the device needs that.

    Writes that share a block are made one after the other, in the order in which they were begun, so that
    none undoes what the other one wrote; all others run concurrently. That holds among the writes of one
    ByteView: nobody else should write to the blocks meanwhile. Reads are not ordered with writes, no more
    than those of the device are.

    A cancelled write whose blocks are already on their way to the device waits for it. One that has not come
    that far leaves the device as it was.

    Belongs to the event loop of its device, which it neither opens nor closes.
    """

    def __init__(self, device: Device) -> None:
        """Of an open device."""
        self._device = device
        self._block = device.limits.request_alignment
        self._writers: list[_Writer] = []  # in the order of their arrival

    @property
    def device(self) -> Device:
        return self._device

    async def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``.

        Raises:
            OptionError: ``offset`` or ``length`` is negative.
            BlkioError: as by the device.
        """
        span = self._span("read", offset, length)
        if length == 0:
            return b""
        data = await self._device.read(span.start, span.length)
        return data[span.head : span.head + length] if span.length != length else data

    async def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill the writable ``buffer`` from ``offset`` on; errors as by :meth:`read`."""
        length = memoryview(buffer).nbytes
        span = self._span("read", offset, length)
        if length == 0:
            return
        if span.length == length:
            await self._device.read_into(offset, buffer)
        else:
            await self._device.readv(
                span.start, _without_empty(bytearray(span.head), buffer, bytearray(span.tail))
            )

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write the bytes of ``data`` at ``offset``; with ``fua`` they are on stable storage when it returns.

        ``data`` must not change before it returns. A write that ends beyond the end of a file that can grow
        fills its last block up with zeros.

        Raises:
            OptionError: ``offset`` is negative.
            BlkioError: as by the device, whose blocks at the edges keep their other bytes in any case.
        """
        length = memoryview(data).nbytes
        span = self._span("write", offset, length)
        if length == 0:
            return
        async with _Writer(self._writers, span.start, span.end):
            if span.length == length:
                await _finish(self._device.write(offset, data, fua=fua))
            else:
                before, after = await self._edges(span)
                await _finish(self._device.writev(span.start, _without_empty(before, data, after), fua=fua))

    async def write_zeroes(
        self, offset: int, length: int, *, fua: bool = False, no_unmap: bool = False
    ) -> None:
        """Zero ``length`` bytes from ``offset``; whole blocks as the device's ``write_zeroes`` does it.

        Raises as :meth:`write`.
        """
        span = self._span("write_zeroes", offset, length)
        first = -(-offset // self._block) * self._block
        last = (offset + length) // self._block * self._block
        if first >= last:
            await self.write(offset, bytes(length), fua=fua)
            return
        async with _Writer(self._writers, span.start, span.end):
            before, after = await self._edges(span)
            work: list[Request[None]] = []
            if offset < first:
                work.append(self._device.write(span.start, before + bytes(first - offset), fua=fua))
            work.append(self._device.write_zeroes(first, last - first, fua=fua, no_unmap=no_unmap))
            if last < offset + length:
                work.append(self._device.write(last, bytes(offset + length - last) + after, fua=fua))
            outcomes = await asyncio.gather(*map(_finish, work), return_exceptions=True)
            for outcome in outcomes:
                if outcome is not None:
                    raise outcome

    async def flush(self) -> None:
        """Make everything written before durable."""
        await self._device.flush()

    async def _edges(self, span: "_Span") -> tuple[bytes, bytes]:
        """What is in the first block before the span's bytes, and in its last block after them."""
        starts = [span.start] if span.head else []
        if span.tail and span.end - self._block not in starts:
            starts.append(span.end - self._block)
        read = await self._device.read_many([(start, self._block) for start in starts]) if starts else []
        blocks = dict(zip(starts, read, strict=True))
        before = blocks[span.start][: span.head] if span.head else b""
        after = blocks[span.end - self._block][self._block - span.tail :] if span.tail else b""
        return before, after

    def _span(self, operation: str, offset: int, length: int) -> "_Span":
        if offset < 0 or length < 0:
            raise OptionError(
                "offset and length must not be negative",
                driver=self._device.driver,
                operation=operation,
                offset=offset,
                length=length,
            )
        return _Span(offset, length, self._block)


@final
class _Span:
    """The whole blocks around a range of bytes."""

    __slots__ = ("end", "head", "start", "tail")

    def __init__(self, offset: int, length: int, block: int) -> None:
        self.head = offset % block
        self.tail = -(offset + length) % block
        self.start = offset - self.head
        self.end = offset + length + self.tail

    @property
    def length(self) -> int:
        return self.end - self.start


@final
class _Writer:
    """A write's turn: after all earlier ones that share a block with it."""

    def __init__(self, writers: "list[_Writer]", start: int, end: int) -> None:
        self._writers = writers
        self._start = start
        self._end = end
        self._through = asyncio.Event()

    async def __aenter__(self) -> None:
        earlier = [
            writer for writer in self._writers if writer._start < self._end and self._start < writer._end
        ]
        self._writers.append(self)
        try:
            for writer in earlier:
                await writer._through.wait()
        except BaseException:
            self._leave()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._leave()

    def _leave(self) -> None:
        self._writers.remove(self)
        self._through.set()


def _without_empty(*buffers: Buffer) -> list[Buffer]:
    return [buffer for buffer in buffers if memoryview(buffer).nbytes]


async def _finish(request: Request[T]) -> T:
    """Await a request whose blocks must not be written again before the device is through with it."""
    cancelled: asyncio.CancelledError | None = None
    while not request.done():
        try:
            await asyncio.shield(request)
        except asyncio.CancelledError as error:
            cancelled = error
        except OSError:
            break
    if cancelled is not None:
        request.exception()
        raise cancelled
    return request.result()
