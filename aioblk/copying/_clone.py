"""Files that share what they have, until one of them is changed: what some file systems can, at once."""

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

from .._sync.blocking import BlockingCall

__all__ = ["clone_file", "forget_pages"]

T = TypeVar("T")

FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)

CANNOT = {
    *(errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.EPERM, errno.EBADF, errno.ENOSYS),
    *(errno.ETXTBSY, errno.EACCES),
}


async def clone_file(source: int, destination: int) -> bool:
    """Have the file *destination* share all that *source* has. False: the file system cannot; nothing was
    done."""
    if not (stat.S_ISREG(os.fstat(source).st_mode) and stat.S_ISREG(os.fstat(destination).st_mode)):
        return False
    return await _in_thread(_clone, source, destination)


def _clone(source: int, destination: int) -> bool:
    try:
        fcntl.ioctl(destination, FICLONE, source)
    except OSError as error:
        if error.errno in CANNOT:
            return False
        raise
    return True


async def forget_pages(file: int, offset: int = 0, length: int = 0) -> None:
    """Have the page cache forget what is on stable storage, up to the end for a length of 0: reading it again
    means that then, and the memory is there for something else."""
    with suppress(OSError):
        await _in_thread(partial(_forget, offset, length), file)


def _forget(offset: int, length: int, file: int) -> None:
    os.posix_fadvise(file, offset, length, os.POSIX_FADV_DONTNEED)


async def _in_thread(function: Callable[..., T], *files: int) -> T:
    """With descriptors of its own, which it closes, whatever becomes of who waits for it."""
    own: list[int] = []

    def call() -> T:
        try:
            return function(*own)
        finally:
            for file in own:
                os.close(file)

    try:
        for file in files:
            own.append(fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 0))  # noqa: PERF401 - one may fail
        call_begun = BlockingCall(call)
    except BaseException:
        for file in own:
            os.close(file)
        raise
    return await call_begun.outcome()
