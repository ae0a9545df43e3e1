"""What is mapped into a device, or about to be: ranges that do not overlap, each with who holds it."""

import asyncio
import os
from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import final

from .._libblkio.mem_region import MemRegion
from .._native._core import Memory, View
from .backing import Backing

__all__ = ["Mapped", "MappedRanges"]


@final
class Mapped:
    """A range that is mapped once for all who registered it or a part of it."""

    def __init__(self, memory: Memory, backing: Backing | None) -> None:
        self.pin: memoryview = memoryview(
            View(memory)
        )  # the memory lasts until it is unmapped, whoever closes it before
        self.region: MemRegion = MemRegion(
            memory.address,
            len(memory),
            fd=-1 if backing is None else backing.fd,
            fd_offset=0 if backing is None else backing.offset,
        )
        self._file_is_open = backing is not None
        self.holders = 1
        self.known_to_core = False  # which means: mapped
        self.abandoned = False  # a lost device may still write there
        self.is_withdrawn = False  # leaving when a lost device was told of the others again
        self.mapping: asyncio.Task[None] | None = None
        self.unmapping: asyncio.Task[None] | None = None
        self.idle: asyncio.Event = asyncio.Event()

    @property
    def start(self) -> int:
        return self.region.address

    @property
    def end(self) -> int:
        return self.region.address + self.region.length

    @property
    def is_leaving(self) -> bool:
        """Whether it is to be unmapped, or being so."""
        return self.holders == 0 and not self.abandoned

    def let_go(self) -> None:
        self.close_file()
        self.pin.release()

    def close_file(self) -> None:
        if self._file_is_open:
            self._file_is_open = False
            os.close(self.region.fd)


@final
class MappedRanges:
    """Those of one device, sorted by their start."""

    def __init__(self) -> None:
        self._ranges: list[Mapped] = []

    def __len__(self) -> int:
        return len(self._ranges)

    def __iter__(self) -> Iterator[Mapped]:
        """Those of this moment."""
        return iter(tuple(self._ranges))

    def __contains__(self, mapped: Mapped) -> bool:
        return mapped in self._ranges

    def add(self, mapped: Mapped) -> None:
        """It overlaps none."""
        insort(self._ranges, mapped, key=_start)

    def remove(self, mapped: Mapped) -> None:
        self._ranges.remove(mapped)

    def clear(self) -> None:
        self._ranges.clear()

    def overlapping(self, start: int, end: int) -> list[Mapped]:
        first = bisect_left(self._ranges, start, key=_end_inclusive)
        last = bisect_left(self._ranges, end, key=_start)
        return self._ranges[first:last]


def _start(mapped: Mapped) -> int:
    return mapped.start


def _end_inclusive(mapped: Mapped) -> int:
    return mapped.end - 1
