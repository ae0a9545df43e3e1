"""Discard on the io_uring driver.

libblkio's own discard passes fallocate() a flag that current kernels refuse (ENOTSUP, for files and block
devices alike). What works, and really gives the space back:

*   On a regular file, libblkio's write_zeroes without NO_UNMAP punches a hole through the ring. The request
    path does that by itself (DISCARD_BY_ZEROING).
*   On a block device, punching a hole means writing zeroes, which a disk may do slowly and without freeing
    anything. BLKDISCARD is the real thing. It blocks, so it runs in threads. The loop's default executor is
    the application's: what it does there need not be waited for.
"""

import errno
import fcntl
import os
import stat
import struct
from collections import deque
from functools import partial
from typing import Literal, cast, final

from .._libblkio.handle import Blkio
from .._libblkio.properties import IO_URING
from .._native._core import QueueCore, Request
from .._sync.blocking import BlockingCall
from ..errors import BlkioError

__all__ = ["BlockDiscard", "DiscardMethod", "discard", "discard_method", "growing_file"]

BLKDISCARD = 0x1277  # linux/fs.h
MOST_AT_A_TIME = 4  # of a queue; each has a thread

DiscardMethod = Literal[0, 1, 2]
NATIVE: DiscardMethod = 0
BY_ZEROING: DiscardMethod = 1
BY_HOOK: DiscardMethod = 2


def discard_method(handle: Blkio) -> DiscardMethod:
    """How discards reach the storage behind a started device."""
    if handle.driver != IO_URING:
        return NATIVE
    return BY_HOOK if stat.S_ISBLK(os.fstat(_descriptor(handle)).st_mode) else BY_ZEROING


def growing_file(handle: Blkio) -> int:
    """The descriptor of a started device that is a regular file; -1: it is none."""
    return _descriptor(handle) if discard_method(handle) == BY_ZEROING else -1


def _descriptor(handle: Blkio) -> int:
    """libblkio's own, which another one replaces when a lost device comes back."""
    return cast(int, handle.get("fd"))


@final
class BlockDiscard:
    """The request path's on_discard hook for a block device.

    Few run at a time, in threads of their own; the others wait in the order of their submission.
    """

    method = BY_HOOK

    def __init__(self, handle: Blkio, core: QueueCore) -> None:
        self._handle = handle
        self._core = core
        self._waiting: deque[tuple[Request[None], int, int]] = deque()
        self._running = 0

    def __call__(self, request: Request[None], offset: int, length: int) -> None:
        self._waiting.append((request, offset, length))
        self._start()

    def _start(self) -> None:
        while self._waiting and self._running < MOST_AT_A_TIME:
            request, offset, length = self._waiting.popleft()
            if request.done():  # cancelled, or the device is lost
                self._core.complete(request, errno.ECANCELED, None)
                continue
            try:
                call = _start_discard(self._handle, offset, length)
            except OSError as error:
                message = error.message if isinstance(error, BlkioError) else None
                self._core.complete(request, error.errno or errno.EAGAIN, message)
                continue
            self._running += 1
            call.done.add_done_callback(partial(self._finish, request, call))

    def _finish(self, request: Request[None], call: BlockingCall[None], _done: object) -> None:
        self._running -= 1
        try:
            call.take()
        except OSError as error:
            self._core.complete(request, error.errno or errno.EIO, None)
        else:
            self._core.complete(request, 0, None)
        self._start()


def _start_discard(handle: Blkio, offset: int, length: int) -> BlockingCall[None]:
    own = _duplicate(handle)
    try:
        return BlockingCall(partial(_discard_and_close, own, offset, length))
    except BaseException:
        os.close(own)
        raise


def discard(handle: Blkio, offset: int, length: int) -> None:
    """Give the range of a block device back, and block until that is done."""
    _discard_and_close(_duplicate(handle), offset, length)


def _duplicate(handle: Blkio) -> int:
    """A descriptor of one's own: libblkio's is closed when a device is given up, and its number given to
    another, before the thread that discards has come to it."""
    return fcntl.fcntl(_descriptor(handle), fcntl.F_DUPFD_CLOEXEC, 0)


def _discard_and_close(own: int, offset: int, length: int) -> None:
    try:
        fcntl.ioctl(own, BLKDISCARD, struct.pack("QQ", offset, length))
    finally:
        os.close(own)
