"""Requests through the bare binding, one at a time: proof of the layers below asyncio."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from aioblk._libblkio.handle import Blkio
from aioblk._native._blkio import ffi, lib

if TYPE_CHECKING:
    from aioblk._native._blkio import Pointer

TIME_LIMIT = 10  # seconds until a request counts as lost


def queue_of(device: Blkio, index: int = 0, *, poll: bool = False) -> "Pointer":
    """The ``struct blkioq *``, for a test that sees to it by itself that the device outlives its use."""
    address, _completion_fd = device.take_queue(index, poll=poll)
    device.give_queue(index, poll=poll)
    return ffi.cast("struct blkioq *", address)


class BlockingQueue:
    """A queue of a started device. The methods return what the completion does: 0 or a negative errno."""

    def __init__(self, device: Blkio, index: int = 0, *, poll: bool = False) -> None:
        self._queue = queue_of(device, index, poll=poll)

    def read(self, offset: int, address: int, length: int) -> int:
        buffer = ffi.cast("void *", address)
        return self._complete(lambda: lib.blkioq_read(self._queue, offset, buffer, length, ffi.NULL, 0))

    def write(self, offset: int, address: int, length: int, flags: int = 0) -> int:
        buffer = ffi.cast("void *", address)
        return self._complete(lambda: lib.blkioq_write(self._queue, offset, buffer, length, ffi.NULL, flags))

    def readv(self, offset: int, segments: list[tuple[int, int]]) -> int:
        vector = _vector(segments)
        count = len(segments)
        return self._complete(lambda: lib.blkioq_readv(self._queue, offset, vector, count, ffi.NULL, 0))

    def writev(self, offset: int, segments: list[tuple[int, int]], flags: int = 0) -> int:
        vector = _vector(segments)
        count = len(segments)
        return self._complete(lambda: lib.blkioq_writev(self._queue, offset, vector, count, ffi.NULL, flags))

    def write_zeroes(self, offset: int, length: int, flags: int = 0) -> int:
        return self._complete(lambda: lib.blkioq_write_zeroes(self._queue, offset, length, ffi.NULL, flags))

    def discard(self, offset: int, length: int, flags: int = 0) -> int:
        return self._complete(lambda: lib.blkioq_discard(self._queue, offset, length, ffi.NULL, flags))

    def flush(self, flags: int = 0) -> int:
        return self._complete(lambda: lib.blkioq_flush(self._queue, ffi.NULL, flags))

    def _complete(self, submit: Callable[[], None]) -> int:
        submit()
        completions = ffi.new("struct blkio_completion[]", 1)
        time_limit = ffi.new("struct timespec *", {"tv_sec": TIME_LIMIT})
        count = lib.blkioq_do_io(self._queue, completions, 1, 1, time_limit)
        if count != 1:
            raise TimeoutError(f"no completion within {TIME_LIMIT} s; blkioq_do_io returned {count}")
        return completions[0].ret


def _vector(segments: list[tuple[int, int]]) -> "Pointer":
    return ffi.new(
        "struct iovec[]", [{"iov_base": ffi.cast("void *", at), "iov_len": length} for at, length in segments]
    )
