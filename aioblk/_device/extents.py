"""Extents: stretches of a device, and where its holes are."""

import enum
import errno
import fcntl
import os
import stat
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import NamedTuple

from .._libblkio.subject import Subject, complete
from .._sync.blocking import BlockingCall
from .._sync.loops import running_loop
from ..errors import BlkioError, request_error

__all__ = ["Extent", "ExtentKind", "find_extents"]

AT_ONCE = 1024  # extents found by one thread


class ExtentKind(enum.StrEnum):
    """What an extent holds."""

    DATA = "data"
    """Something, as far as can be told. It may read as zeroes all the same."""
    HOLE = "hole"
    """Nothing: it reads as zeroes. Space may be reserved for it."""


class Extent(NamedTuple):
    """A stretch of a device, in bytes, and what it holds."""

    offset: int
    """Of its first byte."""
    length: int
    """How many bytes it has."""
    kind: ExtentKind = ExtentKind.DATA
    """What it holds."""

    @property
    def end(self) -> int:
        """The offset behind its last byte."""
        return self.offset + self.length


async def find_extents(
    subject: Subject, file: Callable[[], int | None], offset: int, end: int
) -> AsyncGenerator[Extent]:
    """The extents between two offsets, in order and without gaps.

    *file* gives the descriptor of what is to be looked at, and is asked again before each look. Regular files
    can tell where their holes are; all else is data from *offset* to *end*.
    """
    running_loop("extents", subject.driver, subject.filename)
    while offset < end:
        fd = file()
        if fd is None:
            yield Extent(offset, end - offset)
            return
        try:
            extents = await _start_looking(fd, offset, end).outcome()
        except BlkioError as error:
            complete(
                error,
                driver=subject.driver,
                operation="extents",
                offset=offset,
                length=end - offset,
                filename=subject.filename,
            )
            raise
        except OSError as error:
            raise request_error(
                subject.driver,
                "extents",
                error.errno or errno.EIO,
                offset=offset,
                length=end - offset,
                filename=subject.filename,
            ) from None
        for extent in extents:
            yield extent
            offset = extent.end


def _start_looking(fd: int, offset: int, end: int) -> BlockingCall[list[Extent]]:
    """With a descriptor of its own, which the thread closes, whatever becomes of device and caller."""
    own = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
    try:
        return BlockingCall(partial(_look, own, offset, end))
    except BaseException:
        os.close(own)
        raise


def _look(fd: int, offset: int, end: int) -> list[Extent]:
    """Some extents from *offset* on, at least one, none of them empty. Closes *fd*."""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return [Extent(offset, end - offset)]
        own = _open_anew(fd)
    finally:
        os.close(fd)
    if own is None:
        return [Extent(offset, end - offset)]
    extents: list[Extent] = []
    try:
        while offset < end and len(extents) < AT_ONCE:
            extents.append(_extent_at(own, offset, end))
            offset = extents[-1].end
        return extents
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOTSUP):  # a filesystem that does not know the question
            return [*extents, Extent(offset, end - offset)]
        raise
    finally:
        os.close(own)


def _open_anew(fd: int) -> int | None:
    """Another description of the file: looking for holes moves the position, and that of *fd* is its owner's.

    None where there is no way to one: without /proc, or without permission to what *fd* was given for.
    """
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP):
            return None
        raise


def _extent_at(file: int, offset: int, end: int) -> Extent:
    data = _seek(file, offset, os.SEEK_DATA, end)
    if data > offset:
        return Extent(offset, data - offset, ExtentKind.HOLE)
    hole = _seek(file, offset, os.SEEK_HOLE, end)
    if hole == offset:  # discarded since the first look: data is never wrong, and as little of it as can be
        block = os.fstat(file).st_blksize
        hole = min(offset - offset % block + block, end)
    return Extent(offset, hole - offset)


def _seek(file: int, offset: int, whence: int, end: int) -> int:
    try:
        return min(os.lseek(file, offset, whence), end)
    except OSError as error:
        if error.errno == errno.ENXIO:  # no data, or no file, from there on
            return end
        raise
