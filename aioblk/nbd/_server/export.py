"""What is served: a device, its size, its rules, and what the protocol's commands are on it."""

from collections.abc import Coroutine, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, final

from ..._device.extents import Extent
from ..._native._core import View
from ...layers.block_device import BlockDevice, KnowsExtents
from ...layers.byte_view import ByteView
from .. import protocol

LARGEST_PAYLOAD = 32 << 20  # what clients may send if they are not told anything else
STEP = 32 << 20  # what is zeroed or trimmed at once: a command may ask for 4 GiB, and its client go away
MOST_CACHED = 32 << 20  # for a command
CACHED_AT_ONCE = 256 << 10
MOST_EXTENTS = 1024  # of one reply


@final
@dataclass(frozen=True, slots=True)
class Export:
    """A block device under a name, to be served by a :class:`Server`.

    The device is open, and stays so at least until the export has been removed or the server has ended.
    """

    device: BlockDevice
    name: str = ""
    """At most 4096 bytes of UTF-8. Clients that name none get the one that is called ``""``."""
    description: str = ""
    """For people; at most 4096 bytes of UTF-8."""
    read_only: bool = False
    """Refuse all changes, whatever the device would take. What the device does not take is refused anyway."""
    default: bool = False
    """Also for clients that name none."""


@final
class ServedExport:
    """An export as it is served. Sizes are in bytes."""

    def __init__(self, export: Export, nowhere: View | memoryview) -> None:
        """*nowhere* is memory that the device reaches, for what is read only to be in caches: nobody looks at
        it, so it may be there many times."""
        device = export.device
        # A file may end within a block; its last bytes are served as well.
        block = 1 if device.capacity % device.limits.request_alignment else device.limits.request_alignment
        self.name = export.name
        self.description = export.description
        self.device = device
        self._nowhere = nowhere
        # Clients are told the block sizes. Those that have not asked may well send anything else.
        self.bytes = ByteView(device)
        self.minimum_block = block
        self.preferred_block = max(4096, block, device.limits.optimal_io_alignment)
        self.largest_payload = LARGEST_PAYLOAD
        self.size = device.capacity
        self.read_only = export.read_only or device.read_only

    @property
    def transmission_flags(self) -> int:
        """What clients may ask for. Connections may be many: a flush covers the writes of them all."""
        flags = protocol.HAS_FLAGS | protocol.SEND_FLUSH | protocol.CAN_MULTI_CONN | protocol.SEND_CACHE
        if self.read_only:
            return flags | protocol.READ_ONLY
        writing = protocol.SEND_FUA | protocol.SEND_TRIM | protocol.SEND_WRITE_ZEROES
        return flags | writing | protocol.SEND_FAST_ZERO

    def write_zeroes(
        self, offset: int, length: int, *, fua: bool, no_unmap: bool, no_fallback: bool
    ) -> Coroutine[Any, Any, None]:
        """Zero the range: at once, or step by step if it is long."""
        if length <= STEP:
            return self.bytes.write_zeroes(
                offset, length, fua=fua, no_unmap=no_unmap, no_fallback=no_fallback
            )
        return self._zero(offset, length, fua=fua, no_unmap=no_unmap, no_fallback=no_fallback)

    async def _zero(self, offset: int, length: int, *, fua: bool, no_unmap: bool, no_fallback: bool) -> None:
        for start, size in _steps(offset, length):
            await self.bytes.write_zeroes(start, size, fua=fua, no_unmap=no_unmap, no_fallback=no_fallback)

    async def trim(self, offset: int, length: int, *, fua: bool) -> None:
        """Give whole blocks of the range back to the storage."""
        for start, size in _steps(offset, length):
            await self.bytes.discard(start, size)
        if fua:
            await self.device.flush()

    async def cache(self, offset: int, length: int) -> None:
        """Read the range once, so that it is in whatever caches lie below. It is advice: there is a limit."""
        end = offset + min(length, MOST_CACHED)
        while offset < end:
            piece = min(end - offset, CACHED_AT_ONCE)
            await self.bytes.read_into(offset, self._nowhere[:piece])
            offset += piece

    async def extents(self, offset: int, length: int, *, one: bool) -> list[Extent]:
        """What is data and what is hole from *offset* on: at least one extent, not always all of them."""
        if not isinstance(self.device, KnowsExtents):
            return [Extent(offset, length)]
        found: list[Extent] = []
        async with aclosing(self.device.extents(offset, length)) as extents:
            async for extent in extents:
                found.append(extent)
                if one or len(found) == MOST_EXTENTS:
                    break
        return found


def _steps(offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Offsets and lengths, so that all but the last step end at a multiple of a step's length."""
    end = offset + length
    while offset < end:
        size = min(end, (offset // STEP + 1) * STEP) - offset
        yield offset, size
        offset += size
