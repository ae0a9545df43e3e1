"""Extents: stretches of a device, and where its holes are."""

import enum
import errno
import fcntl
import os
import stat
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import NamedTuple

from ._blocking import run_blocking

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
    length: int
    kind: ExtentKind = ExtentKind.DATA

    @property
    def end(self) -> int:
        """The offset behind its last byte."""
        return self.offset + self.length


async def find_extents(file: Callable[[], int | None], offset: int, end: int) -> AsyncGenerator[Extent]:
    """The extents between two offsets, in order and without gaps.

    *file* gives the descriptor of what is to be looked at, and is asked again before each look. Regular files
    can tell where their holes are; all else is data from *offset* to *end*.
    """
    while offset < end:
        fd = file()
        if fd is None:
            yield Extent(offset, end - offset)
            return
        # The thread's own, which it closes, whatever becomes of the device and of who waits.
        look = partial(_look, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0), offset, end)
        for extent in await run_blocking(look):
            yield extent
            offset = extent.end


def _look(fd: int, offset: int, end: int) -> list[Extent]:
    """Some extents from *offset* on, at least one. Closes *fd*."""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return [Extent(offset, end - offset)]
        extents: list[Extent] = []
        while offset < end and len(extents) < AT_ONCE:
            data = _seek(fd, offset, os.SEEK_DATA, end)
            if data > offset:
                extent = Extent(offset, data - offset, ExtentKind.HOLE)
            else:
                extent = Extent(offset, _seek(fd, offset, os.SEEK_HOLE, end) - offset)
            extents.append(extent)
            offset = extent.end
        return extents
    finally:
        os.close(fd)


# This moves the descriptor's position, as libblkio does whenever it looks up the capacity.
def _seek(file: int, offset: int, whence: int, end: int) -> int:
    try:
        return min(os.lseek(file, offset, whence), end)
    except OSError as error:
        if error.errno == errno.ENXIO:  # no data, or no file, from there on
            return end
        raise
