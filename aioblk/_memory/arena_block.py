"""A block of an arena: one file in memory, carved into buffers."""

import ctypes
import errno
import mmap
import os
import weakref
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self, final

from .._libblkio.hints import shortage
from .._native._core import Allocator, Memory, View
from ..errors import BlkioError

__all__ = ["ArenaBlock", "ArenaBuffer"]

MFD_HUGE_SHIFT = 26


@final
class ArenaBuffer(View):
    """A buffer from an arena, and a context manager that gives it back.

    Giving it back makes it and its slices raise ``ValueError``. Its memory is handed out again as soon as no
    request in flight and nothing made of it (a memoryview, an array) uses it. A buffer that is forgotten
    gives itself back.
    """

    __slots__ = ()

    def release(self) -> None:
        """Give the buffer back; idempotent."""
        self.memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@final
class ArenaBlock:
    """One memfd, mapped as a whole."""

    def __init__(self, size: int, *, granule: int, huge_page: int, locked: bool) -> None:
        flags = os.MFD_CLOEXEC
        if huge_page:
            flags |= os.MFD_HUGETLB | (huge_page.bit_length() - 1) << MFD_HUGE_SHIFT
        self.fd: int = -1
        try:
            self.fd = os.memfd_create("aioblk-arena", flags)
            os.ftruncate(self.fd, size)
            self._pages: mmap.mmap | None = mmap.mmap(self.fd, size)
            self.memory: Memory = Memory.from_buffer(self._pages)
            if locked:
                _lock(self.memory)
            self._allocator = Allocator(size, granule)
        except (OSError, OverflowError, ValueError) as error:  # the latter two: no memory is that large
            self._close_file()
            raise BlkioError(
                f"a block of {size} bytes cannot be had{shortage(getattr(error, 'errno', None))}",
                errno=(error.errno if isinstance(error, OSError) else None) or errno.ENOMEM,
                operation="add_block",
            ) from error
        self._unit = huge_page or mmap.PAGESIZE
        self._address = self.memory.address
        # What was handed out last at each offset, and what gives it back.
        self._buffers: dict[int, weakref.ref[Memory]] = {}
        self._givers: dict[int, Callable[[], None]] = {}
        self._keeper: memoryview | None = memoryview(
            View(self.memory)
        )  # the block lasts as long as its buffers
        self.on_room: Callable[[], object] | None = None
        """Called when a buffer has come back, in whatever thread that was."""

    @property
    def size(self) -> int:
        """In bytes."""
        return self._allocator.size

    @property
    def in_use(self) -> int:
        """Bytes handed out."""
        return self._allocator.in_use

    @property
    def _longest_room(self) -> int:
        """Of the longest buffer that could be handed out now."""
        return self._allocator.largest_free

    @property
    def buffers(self) -> int:
        """Buffers handed out, and not yet free again."""
        return self._allocator.count

    def _take(self, length: int) -> ArenaBuffer | None:
        """A buffer, or None when the block has no room for it."""
        offset = self._allocator.take(length)
        if offset is None:
            return None
        give = self._givers.get(offset)
        if give is None:
            give = self._givers[offset] = partial(self._give, offset)
        # It is called once, also when nobody but the garbage collector asks for it.
        memory = Memory(self._address + offset, length, owner=self._keeper, on_release=give)
        self._buffers[offset] = weakref.ref(memory)
        return ArenaBuffer(memory)

    def _give(self, offset: int) -> None:
        self._allocator.give(offset)
        on_room = self.on_room  # which another thread may change meanwhile
        if on_room is not None:
            on_room()

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

    def _close(self) -> None:
        """Close every buffer; the memory goes when the last of them is unused."""
        for reference in list(self._buffers.values()):
            if (memory := reference()) is not None:
                memory.close()
        if not self.memory.closed:
            self.memory.close()
            # Nothing is left that refers to itself: no collector is needed for the memory to go.
            self._keeper = self._pages = self.on_room = None
            self._givers.clear()
            self._buffers.clear()
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
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlock(ctypes.c_void_p(memory.address), ctypes.c_size_t(len(memory))) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{len(memory)} bytes could not be locked: {os.strerror(number)}")
