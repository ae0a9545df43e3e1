"""Which file is behind a range of memory: some devices reach memory only through its file descriptor.

The kernel's own list of mappings answers that for every kind of buffer alike: mmap, SharedMemory,
numpy.memmap, a memfd of one's own, and any slice of them.
"""

import fcntl
import os
from itertools import pairwise
from typing import NamedTuple

from .process_map import Mapping, mappings_between

__all__ = ["Backing", "BackingError", "find_backing", "verify_backing"]


class Backing(NamedTuple):
    """A file that holds the contents of a range of memory."""

    fd: int
    """A descriptor that the receiver owns, open for reading and writing."""
    offset: int
    """Where in the file the range begins, in bytes."""


class BackingError(Exception):
    """The range has no file that a device could use; the text says why."""


def find_backing(address: int, length: int) -> Backing:
    """The file behind ``length`` bytes at ``address``, with a new descriptor for it.

    Raises:
        BackingError: the memory is anonymous or private, spans several files, or no open descriptor leads to
            its file.
    """
    mappings = _mappings_of(address, length)
    first = mappings[0]
    _check_one_shared_file(mappings)
    fd = _reopen(first)
    if fd is None:
        fd = _duplicate_descriptor(first)  # a look at every descriptor: a server has thousands
    if fd is None:
        raise BackingError(
            "no descriptor of the file behind the memory is open for reading and writing; pass fd="
        )
    return Backing(fd, first.offset + address - first.start)


def verify_backing(address: int, length: int, fd: int, offset: int) -> Backing:
    """The same for a descriptor that somebody claims to be behind the memory; it is duplicated.

    Raises:
        BackingError: the memory is not a shared mapping of that file at that offset, or the file ends too
            early. OSError: ``fd`` is not an open descriptor.
    """
    status = os.fstat(fd)
    mappings = _mappings_of(address, length)
    first = mappings[0]
    _check_one_shared_file(mappings)
    if (status.st_ino, _device(status)) != (first.inode, first.device):
        raise BackingError("the memory is a mapping of another file than fd")
    if first.offset + address - first.start != offset:
        raise BackingError(
            f"the memory is at offset {first.offset + address - first.start} of fd, not at {offset}"
        )
    if status.st_size < offset + length:
        raise BackingError(f"the file ends at {status.st_size}, before the memory that is mapped from it")
    if not _is_read_write(fd):
        raise BackingError("fd is not open for reading and writing")
    return Backing(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0), offset)


def _check_one_shared_file(mappings: list[Mapping]) -> None:
    first = mappings[0]
    if first.inode == 0:
        raise BackingError("the memory is anonymous: no file is behind it")
    for mapping in mappings:
        if not mapping.shared:
            raise BackingError("the memory is a private mapping: the file does not see what is written to it")
        follows = mapping.offset - first.offset == mapping.start - first.start
        if (mapping.device, mapping.inode) != (first.device, first.inode) or not follows:
            raise BackingError("the memory spans several files, or several places of one")


def _mappings_of(address: int, length: int) -> list[Mapping]:
    """The adjacent mappings that hold the range, in order."""
    end = address + length
    found = mappings_between(address, end)
    gapless = all(before.end == after.start for before, after in pairwise(found))
    if not found or found[0].start > address or found[-1].end < end or not gapless:
        raise BackingError("the memory is not mapped as a whole")
    return found


def _duplicate_descriptor(mapping: Mapping) -> int | None:
    """A copy of one of our descriptors for the file: mmap and SharedMemory keep one each."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            status = os.fstat(fd)
            if (status.st_ino, _device(status)) == (mapping.inode, mapping.device) and _is_read_write(fd):
                return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
        except OSError:
            continue  # closed meanwhile; the listing's own descriptor is, for one
    return None


def _reopen(mapping: Mapping) -> int | None:
    """The file opened through the mapping itself, which the kernel grants to privileged processes only."""
    try:
        return os.open(f"/proc/self/map_files/{mapping.start:x}-{mapping.end:x}", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None


def _device(status: os.stat_result) -> tuple[int, int]:
    return os.major(status.st_dev), os.minor(status.st_dev)


def _is_read_write(fd: int) -> bool:
    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
