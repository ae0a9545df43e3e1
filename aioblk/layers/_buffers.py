"""Buffers of one size that are used again and again, where the device reaches them, if it can be told."""

from collections import deque
from contextlib import AsyncExitStack
from typing import Self, final

from .._memory.mapping import MapsMemory
from .._native._core import View
from .block_device import BlockDevice

__all__ = ["Buffers"]


@final
class Buffers:
    """So many, of which some are free."""

    def __init__(self, free: list["View | memoryview"], resources: AsyncExitStack) -> None:
        self._free = deque(free)
        self._resources = resources

    @classmethod
    async def of(cls, device: BlockDevice, count: int, size: int) -> Self:
        async with AsyncExitStack() as resources:
            memory: View | memoryview
            if isinstance(device, MapsMemory):
                memory = await resources.enter_async_context(device.allocate(count * size))
            else:
                memory = memoryview(bytearray(count * size))
            buffers = [memory[number * size : (number + 1) * size] for number in range(count)]
            return cls(buffers, resources.pop_all())
        raise AssertionError("no exception is suppressed")

    def take(self) -> "View | memoryview | None":
        return self._free.popleft() if self._free else None

    def give(self, buffer: "View | memoryview") -> None:
        self._free.append(buffer)

    async def aclose(self) -> None:
        """No request uses them any more."""
        self._free.clear()
        await self._resources.aclose()
