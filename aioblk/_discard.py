"""Discard on the io_uring driver.

libblkio's own discard passes fallocate() a flag that current kernels refuse (ENOTSUP, for files and block
devices alike). What works, and really gives the space back:

*   On a regular file, libblkio's write_zeroes without NO_UNMAP punches a hole through the ring. The request
    path does that by itself (DISCARD_BY_ZEROING).
*   On a block device, punching a hole means writing zeroes, which a disk may do slowly and without freeing
    anything. BLKDISCARD is the real thing. It blocks, so it runs in the loop's executor.
"""

import asyncio
import errno
import fcntl
import os
import stat
import struct
from typing import Any, Literal

from ._native._core import QueueCore, Request

__all__ = ["BlockDiscard", "DiscardMethod", "discard", "discard_method"]

BLKDISCARD = 0x1277  # linux/fs.h

DiscardMethod = Literal[0, 1, 2]
NATIVE: DiscardMethod = 0
BY_ZEROING: DiscardMethod = 1
BY_HOOK: DiscardMethod = 2


def discard_method(driver: str, fd: int | None) -> DiscardMethod:
    """How discards reach the storage behind *driver*, whose descriptor is *fd*."""
    if driver != "io_uring" or fd is None:
        return NATIVE
    return BY_HOOK if stat.S_ISBLK(os.fstat(fd).st_mode) else BY_ZEROING


class BlockDiscard:
    """The request path's on_discard hook for a block device."""

    method = BY_HOOK

    def __init__(self, fd: int, core: QueueCore, loop: asyncio.AbstractEventLoop) -> None:
        self._fd = fd  # libblkio's; closing the device waits for requests in flight
        self._core = core
        self._loop = loop

    def __call__(self, request: Request[None], offset: int, length: int) -> None:
        work = self._loop.run_in_executor(None, discard, self._fd, offset, length)
        work.add_done_callback(lambda done: self._finish(request, done))

    def _finish(self, request: Request[Any], done: "asyncio.Future[None]") -> None:
        if done.cancelled():
            self._core.complete(request, errno.ECANCELED, "the loop's executor was shut down")
            return
        error = done.exception()
        if isinstance(error, OSError):
            self._core.complete(request, error.errno or errno.EIO, None)
        elif error is not None:
            self._core.complete(request, errno.EIO, str(error))
        else:
            self._core.complete(request, 0, None)


def discard(fd: int, offset: int, length: int) -> None:
    """Give the range of a block device back, and block until that is done."""
    fcntl.ioctl(fd, BLKDISCARD, struct.pack("QQ", offset, length))
