"""Writing once more what a device has somewhere: a change that changes nothing."""

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from .._native._blkio import ffi, lib
from ..errors import request_error
from .handle import Blkio
from .mem_region import MemRegion

if TYPE_CHECKING:
    from .._native._blkio import Pointer

__all__ = ["rewrite"]

_SLICE = 20_000_000  # nanoseconds between two looks whether to go on waiting
_PASSING = (errno.ETIME, errno.EINTR, errno.EAGAIN, errno.EBUSY)


def rewrite(handle: Blkio, offset: int, length: int, go_on: Callable[[], None]) -> None:
    """Read *length* bytes at *offset* and write them there. Blocks.

    Nobody uses the queues of the started instance yet, nor changes these bytes meanwhile. *go_on* is called
    now and then while the device has not answered, and raises when it is not to be waited for any more: then
    the instance is good for nothing but being destroyed.

    Raises:
        BlkioError: the device has failed.
    """
    alignment = cast(int, handle.get("mem-region-alignment"))
    memory = handle.alloc_mem_region(-(-length // alignment) * alignment)
    handle.map_mem_region(memory)
    poll = handle.queue_count == 0
    address, _ = handle.take_queue(0, poll=poll)
    try:
        _rewrite(handle, ffi.cast("struct blkioq *", address), offset, length, memory, go_on)
    finally:
        handle.give_queue(0, poll=poll)
    handle.give_back_mem_region(memory)


def _rewrite(
    handle: Blkio, queue: "Pointer", offset: int, length: int, memory: MemRegion, go_on: Callable[[], None]
) -> None:
    buffer = ffi.cast("void *", memory.address)
    for operation, submit in (("read", lib.blkioq_read), ("write", lib.blkioq_write)):
        submit(queue, offset, buffer, length, ffi.NULL, 0)
        number = -_complete(queue, go_on)
        if number:
            filename = handle.filename
            raise request_error(handle.driver, operation, number, None, offset, length, filename=filename)


def _complete(queue: "Pointer", go_on: Callable[[], None]) -> int:
    """What the only request in flight comes to: 0, or a negative errno."""
    completions = ffi.new("struct blkio_completion[]", 1)
    while True:
        time = ffi.new("struct timespec *", {"tv_nsec": _SLICE})
        count = lib.blkioq_do_io(queue, completions, 1, 1, time)
        if count > 0:
            return min(completions[0].ret, 0)
        if count < 0 and -count not in _PASSING:
            return count
        go_on()
