"""What is served: a device, its size, its rules, and what the protocol's commands are on it."""

import copy
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, final

from ..._native._core import View
from ...layers.block_device import BlockDevice
from ...layers.byte_view import ByteView
from ...layers.throttle import Throttle, ThrottleGroup
from .. import protocol
from .backend import Backend
from .contexts import Context, contexts_of
from .statistics import ExportCounts

LARGEST_PAYLOAD = 32 << 20  # what clients may send if they are not told anything else
CACHED_AT_ONCE = 256 << 10


@final
@dataclass(frozen=True, slots=True)
class Export:
    """A block device under a name, to be served by a :class:`Server`.

    The device is open, and stays so at least until the export has been removed or the server has ended.
    """

    device: BlockDevice
    """What is served."""
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

    def __init__(self, export: Export, backend: Backend, nowhere: View | memoryview) -> None:
        """Of a device, whose *backend* that is. *nowhere* is memory that the device reaches, for what is read
        only to be in caches: nobody looks at it, so it may be there many times."""
        device = export.device
        # A file may end within a block; its last bytes are served as well.
        block = 1 if device.capacity % device.limits.request_alignment else device.limits.request_alignment
        self.name = export.name
        self.description = export.description
        self.device = device
        self.backend = backend
        self.counts = ExportCounts()
        self._nowhere = nowhere
        # Clients are told the block sizes. Those that have not asked may well send anything else.
        self.bytes: ByteView[BlockDevice] = backend.view
        self.minimum_block = block
        # Clients refuse what is no power of two, as a stripe over three disks is: what divides that is had.
        preferred = device.limits.optimal_io_alignment
        self.preferred_block = max(4096, block, min(preferred & -preferred, LARGEST_PAYLOAD))
        self.largest_payload = LARGEST_PAYLOAD
        self.size = device.capacity
        self.read_only = export.read_only or device.read_only

    def limited(self, group: ThrottleGroup) -> "ServedExport":
        """The same, for one client, whose requests wait until the group lets them begin."""
        limited = copy.copy(self)
        limited.bytes = ByteView(Throttle(self.bytes, group))
        return limited

    @property
    def refusal(self) -> str | None:
        """Why nobody is admitted, if that is so: also to an export that is added when its device is lost."""
        return self.backend.refusal

    @property
    def transmission_flags(self) -> int:
        """What clients may ask for. Connections may be many: a flush covers the writes of them all."""
        flags = protocol.HAS_FLAGS | protocol.SEND_FLUSH | protocol.CAN_MULTI_CONN | protocol.SEND_CACHE
        if self.read_only:
            return flags | protocol.READ_ONLY
        writing = protocol.SEND_FUA | protocol.SEND_TRIM | protocol.SEND_WRITE_ZEROES
        return flags | writing | protocol.SEND_FAST_ZERO

    def contexts(self) -> list[Context]:
        """What clients may ask of ranges, at this time."""
        return contexts_of(self.device)

    def cache(self, offset: int, length: int) -> Coroutine[Any, Any, None]:
        """Read the range, which is short, so that it is in whatever caches lie below."""
        return self.bytes.read_into(offset, self._nowhere[:length])
