"""Memory for requests that all of several devices reach without copying."""

import mmap
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager, suppress

from .._memory.mapping import MapsMemory
from .._native._core import Memory, View
from .._sync.scopes import shielded
from ..errors import RegistrationError
from ..layers.block_device import BlockDevice

__all__ = ["shared_buffers"]

HUGE_PAGE = 2 << 20


@asynccontextmanager
async def shared_buffers(devices: Iterable[BlockDevice], count: int, size: int) -> AsyncGenerator[list[View]]:
    """So many buffers of so many bytes. A device that cannot take them has its requests bounced.

    When it is left, it waits for requests that still use them.
    """
    told = {
        id(each): each for each in devices if isinstance(each, MapsMemory) and each.limits.needs_mem_regions
    }
    if not told:
        memory = _large_pages(count * _in_pages(size))
        try:
            yield [View(memory, number * _in_pages(size), size) for number in range(count)]
        finally:
            memory.close()
        return
    from .._memory.arena import Arena  # files need none

    async with Arena(count * _in_pages(size)) as arena:
        try:
            for device in told.values():
                with suppress(RegistrationError):
                    await arena.attach(device)
            yield [arena.allocate(size) for _ in range(count)]
        finally:
            with shielded():
                await arena.aclose()  # if it is cancelled, leaving the arena waits for what is left of that


def _large_pages(length: int) -> Memory:
    """Memory of this process, in as few pieces as the system has it. A disk is handed a request as a list of
    pieces: a queue that has room for 256 of them, as virtio-blk's, has one request of 1 MiB at a time if
    each is a small page."""
    pages = mmap.mmap(-1, -(-length // HUGE_PAGE) * HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    return Memory.from_buffer(pages)


def _in_pages(size: int) -> int:
    return -(-size // 4096) * 4096
