"""The device memory that data travels through, between sockets and device, without being copied."""

from dataclasses import dataclass
from typing import final

import aioblk

__all__ = ["Payload", "PayloadMemory"]


@final
@dataclass(frozen=True, slots=True)
class Payload:
    """Memory for the data of one command."""

    buffers: list[memoryview]
    parts: list[memoryview]
    """The buffers, the last one cut to length."""
    length: int
    """Of the parts together, in bytes."""


@final
class PayloadMemory:
    """A region of the device, cut into buffers of one size, shared fairly by all clients.

    A large command takes several buffers, which need not be neighbours: devices and sockets both scatter and
    gather. So memory cannot fragment, and the order of waiting is the only question left; WaitQueue has the
    answer.
    """

    BUFFER = 256 << 10

    def __init__(self, region: aioblk.MemoryRegion) -> None:
        memory = memoryview(region)
        # The last one given back is the next one taken: its pages are still in the processor's caches.
        self._free = [
            memory[end - self.BUFFER : end] for end in range(self.BUFFER, len(memory) + 1, self.BUFFER)
        ]
        self._queue = aioblk.WaitQueue()
        self.size = len(self._free) * self.BUFFER

    async def take(self, length: int) -> Payload:
        """Memory for *length* bytes, 1 to :attr:`size`. Waits behind everybody who came earlier."""
        count = -(-length // self.BUFFER)
        if not self._queue and count <= len(self._free):
            return self._cut(count, length)
        try:
            await self._queue.wait()
            while count > len(self._free):
                await self._queue.wait(front=True)
            return self._cut(count, length)
        finally:
            self._queue.notify_head()

    def give_back(self, payload: Payload) -> None:
        """Nobody uses the payload any more."""
        self._free += payload.buffers
        if self._queue:
            self._queue.notify_head()

    def _cut(self, count: int, length: int) -> Payload:
        buffers = self._free[-count:]
        del self._free[-count:]
        rest = length - (count - 1) * self.BUFFER
        return Payload(buffers, [*buffers[:-1], buffers[-1][:rest]], length)
