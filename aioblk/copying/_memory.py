"""Memory for requests that all of several devices reach without copying."""

from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager, suppress

from .._memory.arena import Arena
from .._memory.mapping import MapsMemory
from .._native._core import View
from .._sync.scopes import shielded
from ..errors import RegistrationError
from ..layers.block_device import BlockDevice

__all__ = ["shared_buffers"]


@asynccontextmanager
async def shared_buffers(devices: Iterable[BlockDevice], count: int, size: int) -> AsyncGenerator[list[View]]:
    """So many buffers of so many bytes. A device that cannot take them has its requests bounced.

    When it is left, it waits for requests that still use them.
    """
    async with Arena(count * _in_pages(size)) as arena:
        try:
            for device in {id(device): device for device in devices}.values():
                if isinstance(device, MapsMemory):
                    with suppress(RegistrationError):
                        await arena.attach(device)
            yield [arena.allocate(size) for _ in range(count)]
        finally:
            with shielded():
                await arena.aclose()  # if it is cancelled, leaving the arena waits for what is left of that


def _in_pages(size: int) -> int:
    return -(-size // 4096) * 4096
