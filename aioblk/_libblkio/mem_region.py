"""Memory regions, as libblkio describes them, and the memory that they are of."""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import TYPE_CHECKING, NamedTuple

from .._native._blkio import ffi, lib

if TYPE_CHECKING:  # cffi's own types; they have no names at run time
    from .._native._blkio import MemRegionStruct, Pointer

__all__ = ["MemRegion", "address_of", "allocate", "free", "memory_file", "to_struct"]

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_MAP_FAILED = 2 ** (8 * ffi.sizeof("void *")) - 1


class MemRegion(NamedTuple):
    """A memory region as libblkio describes it; unmapping and freeing need the very same values again."""

    address: int
    length: int  # bytes
    iova: int = 0  # reserved
    fd_offset: int = 0  # where in the file *fd* the region begins, bytes
    fd: int = -1  # -1: memory without a file
    flags: int = 0  # reserved

    def __str__(self) -> str:
        return f"region {self.address:#x} to {self.end:#x}"

    @property
    def end(self) -> int:
        return self.address + self.length


def address_of(pointer: Pointer) -> int:
    """As a number."""
    return int(ffi.cast("uintptr_t", pointer))


def to_struct(region: MemRegion) -> MemRegionStruct:
    """For a call of libblkio."""
    description = ffi.new("struct blkio_mem_region *")
    description.addr = ffi.cast("void *", region.address)
    description.len = region.length
    description.iova = region.iova
    description.fd_offset = region.fd_offset
    description.fd = region.fd
    description.flags = region.flags
    return description


def memory_file(name: str, length: int, flags: int = 0) -> int:
    """A file in memory, which the devices want that are other processes: a descriptor.

    Its length is sealed. A backend has the file once it is lent, and whoever touched pages that it had cut
    off would be ended by SIGBUS.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
    try:
        os.ftruncate(fd, length)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def allocate(length: int) -> MemRegion:
    """New, zeroed memory with a file descriptor."""
    fd = memory_file("aioblk", length)
    try:
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        address = address_of(lib.mmap(ffi.NULL, length, protection, mmap.MAP_SHARED, fd, 0))
        if address == _MAP_FAILED:
            raise OSError(ffi.errno, os.strerror(ffi.errno))
    except BaseException:
        os.close(fd)
        raise
    return MemRegion(address, length, fd=fd)


def free(region: MemRegion) -> None:
    """Undo allocate()."""
    lib.munmap(ffi.cast("void *", region.address), region.length)
    os.close(region.fd)
