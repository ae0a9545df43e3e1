"""The memory that a client lends: mapped, and made known to the device, so that nothing need be copied."""

import contextlib
import logging
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

from ..._memory.mapping import MapsMemory
from ..._native._core import GuestMemory, Memory, View
from ...errors import BlkioError, UsageError
from . import protocol
from .descriptors import cannot_shrink, is_file

log = logging.getLogger("aioblk.export")


class RefusedError(Exception):
    """What the client asks for cannot be. It is told so if it asks, and sent away otherwise."""


@final
@dataclass(eq=False)
class _Range:
    guest: int
    user: int
    length: int
    memory: Memory
    known: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)


@final
class LentMemory:
    """All that one client lends."""

    def __init__(
        self, device: object, *, only_sealed: bool, on_change: Callable[[GuestMemory], None] | None = None
    ) -> None:
        """The *device* may be one that takes memory. *on_change* is called before any is given back."""
        self._device = device
        self.on_change = on_change
        self._only_sealed = only_sealed
        self._ranges: list[_Range] = []
        self.table = GuestMemory([])

    async def add(self, descriptor: int, guest: int, length: int, user: int, offset: int) -> None:
        """Memory in a file. The descriptor is needed for no longer than this.

        Raises:
            RefusedError: it cannot be mapped, overlaps other memory, or there is too much of it.
        """
        if len(self._ranges) >= protocol.MOST_REGIONS:
            raise RefusedError(f"at most {protocol.MOST_REGIONS} ranges of memory can be lent")
        memory = self._map(descriptor, length, offset)
        added = _Range(guest, user, length, memory)
        self._ranges.append(added)
        try:
            self._look_up()
        except (ValueError, OverflowError) as error:
            self._ranges.remove(added)
            memory.close()
            raise RefusedError(f"{length} bytes at {guest:#x} cannot be lent: {error}") from None
        device = self._device
        if isinstance(device, MapsMemory) and device.limits.needs_mem_regions:
            # Where it cannot be told, requests on the memory are copied.
            with contextlib.suppress(BlkioError, UsageError):
                await added.known.enter_async_context(
                    device.register(View(memory), fd=descriptor, fd_offset=offset)
                )

    def _map(self, descriptor: int, length: int, offset: int) -> Memory:
        skew = offset % mmap.ALLOCATIONGRANULARITY
        try:
            if not is_file(descriptor):
                raise RefusedError("memory can be lent from files only")
            if not cannot_shrink(descriptor):
                if self._only_sealed:
                    raise RefusedError("the memory that is lent can be taken away: it is in no sealed file")
                log.debug("memory is lent that its owner could take away")
            if not 0 < length <= os.fstat(descriptor).st_size - offset:
                raise RefusedError(f"there are not {length} bytes from {offset} on in the file")
            mapped = mmap.mmap(descriptor, length + skew, offset=offset - skew)
        except (OSError, ValueError, OverflowError) as error:
            raise RefusedError(f"{length} bytes of memory cannot be mapped: {error}") from None
        # The memory is unmapped when the last of these is gone.
        return Memory.from_buffer(memoryview(mapped)[skew:])

    def _look_up(self) -> None:
        self.table = GuestMemory((each.memory, each.guest, each.user) for each in self._ranges)
        if self.on_change is not None:
            self.on_change(self.table)

    async def remove(self, guest: int, length: int, user: int) -> None:
        """Unmap it when no request uses it any more.

        Raises:
            RefusedError: it was not lent.
        """
        for each in self._ranges:
            if (each.guest, each.length, each.user) == (guest, length, user):
                self._ranges.remove(each)
                self._look_up()
                await self._give_back(each)
                return
        raise RefusedError(f"{length} bytes at {guest:#x} were not lent")

    async def clear(self) -> None:
        ranges, self._ranges = self._ranges, []
        self._look_up()
        for each in ranges:
            await self._give_back(each)

    async def _give_back(self, former: _Range) -> None:
        with contextlib.suppress(BlkioError):
            await former.known.aclose()
        former.memory.close()
