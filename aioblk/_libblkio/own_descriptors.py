"""The process's own file descriptors: what libblkio keeps to itself shows there; and how many are left."""

import os

from .._native._blkio import ffi, lib

__all__ = ["count_spare", "find_linked"]

_USUAL = 16  # more than are found as a rule


def find_linked(start: str) -> list[int]:
    """The descriptors of what /proc/self/fd calls something that starts like this, 64 characters at most.

    Raises:
        OSError: the table cannot be read. There may be no descriptor left for that.
    """
    most = _USUAL
    while True:
        numbers = ffi.new("int[]", most)
        count = lib.find_descriptors(start.encode(), numbers, most)
        if count < 0:
            raise OSError(ffi.errno, os.strerror(ffi.errno), "/proc/self/fd")
        if count <= most:
            return [numbers[index] for index in range(count)]
        most = 2 * count


def count_spare(wanted: int) -> tuple[int, int]:
    """How many descriptors could be had just now, of so many; and the errno that stands for those missing."""
    count = lib.count_spare_descriptors(wanted)
    return count, 0 if count == wanted else ffi.errno
