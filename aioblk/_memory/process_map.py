"""What the kernel has mapped into this process, and of which files: proc_pid_maps(5).

Since Linux 6.11 the kernel answers for one address (PROCMAP_QUERY of linux/fs.h); before, it writes down all
mappings of the process, of which even a small one has some hundreds.
"""

import errno
import fcntl
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

__all__ = ["Mapping", "mappings_between"]


class Mapping(NamedTuple):
    """Adjacent pages of one file, or of none."""

    start: int
    end: int
    shared: bool
    offset: int
    """In the file, in bytes."""
    device: tuple[int, int]
    inode: int
    """0 where there is no file."""


_PROCMAP_QUERY = 0xC0686611
_COVERING_OR_NEXT = 0x10
_SHARED = 0x08
# struct procmap_query: its size, what is asked (flags, address), start, end, flags, page size, offset, inode;
# major, minor, and what has to do with names, which we do not want.
_QUERY = struct.Struct("=9Q4I2Q")


def mappings_between(low: int, high: int) -> list[Mapping]:
    """All that have a byte from *low* on and before *high*, in order."""
    with open("/proc/self/maps", "rb") as maps:
        try:
            return list(_asked(maps, low, high))
        except OSError as error:
            if error.errno not in _UNKNOWN:
                raise
        return list(_read(maps, low, high))


_UNKNOWN = {errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EACCES}
"""How older kernels, and sandboxes, refuse the query."""


def _asked(maps: BinaryIO, low: int, high: int) -> Iterator[Mapping]:
    query = bytearray(_QUERY.size)
    while low < high:
        _QUERY.pack_into(query, 0, _QUERY.size, _COVERING_OR_NEXT, low, *(0,) * 12)
        try:
            fcntl.ioctl(maps, _PROCMAP_QUERY, query)
        except FileNotFoundError:  # there is none from there on
            return
        _, _, _, start, end, flags, _, offset, inode, major, minor, *_ = _QUERY.unpack(query)
        if start >= high:
            return
        yield Mapping(start, end, bool(flags & _SHARED), offset, (major, minor), inode)
        low = end


def _read(maps: BinaryIO, low: int, high: int) -> Iterator[Mapping]:
    """Of lines, which are sorted: ``start-end perms offset major:minor inode path``."""
    for line in maps:
        span, rest = line.split(b" ", 1)
        start, end = (int(bound, 16) for bound in span.split(b"-"))
        if end <= low:
            continue
        if start >= high:
            return
        permissions, offset, device, inode, *_path = rest.split(maxsplit=4)
        major, minor = device.split(b":")
        yield Mapping(
            start=start,
            end=end,
            shared=permissions[3:4] == b"s",
            offset=int(offset, 16),
            device=(int(major, 16), int(minor, 16)),
            inode=int(inode),
        )
