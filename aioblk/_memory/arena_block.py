"""A block of an arena: one file in memory, carved into buffers."""

import errno
import mmap
import os
from typing import final

from .._libblkio.hints import shortage
from .._libblkio.mem_region import memory_file
from .._native._core import Allocator, Memory
from ..errors import BlkioError
from .carver import ArenaBuffer, Carver

__all__ = ["ArenaBlock", "ArenaBuffer"]

MFD_HUGE_SHIFT = 26


@final
class ArenaBlock(Carver):
    """One memfd, mapped as a whole."""

    def __init__(self, size: int, *, granule: int, huge_page: int, locked: bool) -> None:
        flags = 0
        if huge_page:
            flags = os.MFD_HUGETLB | (huge_page.bit_length() - 1) << MFD_HUGE_SHIFT
        self.fd: int = -1
        try:
            self.fd = memory_file("aioblk-arena", size, flags)
            self._pages: mmap.mmap | None = mmap.mmap(self.fd, size)
            memory = Memory.from_buffer(self._pages)
            if locked:
                _lock(memory)
            allocator = Allocator(size, granule)
        except (OSError, OverflowError, ValueError) as error:  # the latter two: no memory is that large
            self._close_file()
            raise BlkioError(
                f"a block of {size} bytes cannot be had{shortage(getattr(error, 'errno', None))}",
                errno=(error.errno if isinstance(error, OSError) else None) or errno.ENOMEM,
                operation="add_block",
            ) from error
        self._unit = huge_page or mmap.PAGESIZE
        super().__init__(memory, allocator)

    def _give_free_pages_back(self) -> int:
        """Punch holes where no buffer is, which may take a while; returns how many bytes."""
        taken: list[tuple[int, int]] = []
        pages = self._pages
        if pages is None:
            return 0
        while length := self._allocator.largest_free:
            offset = self._allocator.take(length)
            assert offset is not None
            taken.append((offset, length))
        given = 0
        try:
            for offset, length in taken:
                start = -(-offset // self._unit) * self._unit
                end = (offset + length) // self._unit * self._unit
                if start < end:
                    pages.madvise(mmap.MADV_REMOVE, start, end - start)
                    given += end - start
        finally:
            for offset, _ in taken:
                self._allocator.give(offset)
        return given

    def _retire(self) -> None:
        super()._retire()
        self._pages = None
        self._close_file()

    def _close_file(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self._close_file()

    def __repr__(self) -> str:
        return f"<ArenaBlock of {self.size} bytes at {self.memory.address:#x}, {self.in_use} in use>"


def _lock(memory: Memory) -> None:
    import ctypes  # hardly anybody locks memory

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlock(ctypes.c_void_p(memory.address), ctypes.c_size_t(len(memory))) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{len(memory)} bytes could not be locked: {os.strerror(number)}")
