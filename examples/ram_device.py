"""A block device of your own, in memory, and bytes instead of blocks over it."""

import asyncio
import errno
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from typing_extensions import Buffer

import aioblk

T = TypeVar("T")
BLOCK = 512


class RamDevice(aioblk.BlockDevice):
    """So many bytes of memory. Every request is over when its method returns."""

    def __init__(self, size: int, *, read_only: bool = False) -> None:
        self._bytes = bytearray(size)
        self._read_only = read_only
        self._submitted = 0
        self._closed = False

    @property
    def limits(self) -> aioblk.Limits:
        return aioblk.Limits(request_alignment=BLOCK)

    @property
    def capacity(self) -> int:
        return len(self._bytes)

    @property
    def read_only(self) -> bool:
        return self._read_only

    def statistics(self) -> aioblk.QueueStatistics:
        return aioblk.QueueStatistics(submitted=self._submitted)

    async def aclose(self) -> None:
        self._closed = True

    def read(self, offset: int, length: int) -> Awaitable[bytes]:
        return self._do("read", offset, length, lambda place: bytes(self._bytes[place]))

    def readv(self, offset: int, buffers: Sequence[Buffer]) -> Awaitable[None]:
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        if any(view.readonly for view in views):
            raise BufferError("the buffer is read-only")

        def fill(place: slice) -> None:
            data = self._bytes[place]
            for view in views:
                view[:], data = data[: len(view)], data[len(view) :]

        return self._do("read", offset, sum(map(len, views)), fill)

    def writev(self, offset: int, buffers: Sequence[Buffer], *, fua: bool = False) -> Awaitable[None]:
        data = b"".join(map(memoryview, buffers))
        return self._put("write", offset, len(data), lambda: data)

    def write_zeroes(
        self,
        offset: int,
        length: int,
        *,
        fua: bool = False,
        no_unmap: bool = False,
        no_fallback: bool = False,
    ) -> Awaitable[None]:
        return self._put("write_zeroes", offset, length, lambda: bytes(length))

    def discard(self, offset: int, length: int) -> Awaitable[None]:
        return self.write_zeroes(offset, length)

    def flush(self) -> Awaitable[None]:
        return self._do("flush", 0, 0, lambda _: None)

    def _put(self, operation: str, offset: int, length: int, data: Callable[[], bytes]) -> Awaitable[None]:
        if self._read_only:
            raise aioblk.BlkioError(errno=errno.EBADF, operation=operation)

        def put(place: slice) -> None:
            self._bytes[place] = data()

        return self._do(operation, offset, length, put)

    def _do(self, operation: str, offset: int, length: int, work: Callable[[slice], T]) -> Awaitable[T]:
        """Refuse what is wrong; do the rest now, and give a future of what came of it."""
        if self._closed:
            raise aioblk.DeviceClosedError("the device is closed", operation=operation)
        if offset < 0 or length < 0:
            raise aioblk.OptionError("offset and length must not be negative", operation=operation)
        if (offset | length) % BLOCK:
            raise aioblk.AlignmentError(f"multiples of {BLOCK} bytes only", operation=operation)
        self._submitted += 1
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        if offset + length > self.capacity:
            outcome.set_exception(aioblk.BlkioError("beyond the end", operation=operation, offset=offset))
        else:
            outcome.set_result(work(slice(offset, offset + length)))
        return outcome


async def main() -> None:
    view = aioblk.ByteView(RamDevice(1 << 20))
    await view.write(1000, b"anything, anywhere")
    print(await view.read(1010, 8))


if __name__ == "__main__":
    asyncio.run(main())
