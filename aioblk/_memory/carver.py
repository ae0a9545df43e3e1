"""Carves memory into buffers that give themselves back: a block of an arena, or what a share has of one."""

import weakref
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self, final

from .._native._core import Allocator, Memory, View

__all__ = ["ArenaBuffer", "Carver"]


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


class Carver:
    """Memory, and which of it has been handed out. It lasts as long as its buffers."""

    def __init__(self, memory: Memory, allocator: Allocator) -> None:
        self.memory: Memory = memory
        self._allocator = allocator
        self._address = memory.address
        # What was handed out last at each offset, and what gives it back.
        self._buffers: dict[int, weakref.ref[Memory]] = {}
        self._givers: dict[int, Callable[[], None]] = {}
        self._keeper: memoryview | None = memoryview(View(memory))
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

    @property
    def _is_held(self) -> bool:
        """Whether the memory is handed out, or may be."""
        return not self.memory.closed or self._allocator.count > 0

    def _take(self, length: int) -> ArenaBuffer | None:
        """A buffer, or None when there is no room for it, or it hands nothing out any more."""
        keeper = self._keeper  # which another thread may take away meanwhile
        if keeper is None:
            return None
        offset = self._allocator.take(length)
        if offset is None:
            return None
        give = self._givers.get(offset)
        if give is None:
            give = self._givers[offset] = partial(self._give, offset)
        # It is called once, also when nobody but the garbage collector asks for it.
        memory = Memory(self._address + offset, length, owner=keeper, on_release=give)
        self._buffers[offset] = weakref.ref(memory)
        return ArenaBuffer(memory)

    def _give(self, offset: int) -> None:
        self._allocator.give(offset)
        on_room = self.on_room  # which another thread may change meanwhile
        if on_room is not None:
            on_room()

    def _close(self) -> None:
        """Close every buffer; the memory goes when the last of them is unused."""
        for reference in list(self._buffers.values()):
            if (memory := reference()) is not None:
                memory.close()
        self._retire()

    def _retire(self) -> None:
        """Hand nothing out any more; the memory goes when the last buffer has come back."""
        self.memory.close()
        # Nothing is left that refers to itself: no collector is needed for the memory to go.
        self._keeper = self.on_room = None
        self._givers.clear()
