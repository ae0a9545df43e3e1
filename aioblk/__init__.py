"""Block devices for asyncio: libblkio's drivers as classes whose requests are awaited.

::

    async with aioblk.IoUring("disk.img") as dev:
        data = await dev.read(0, 4096)
        await dev.write(4096, data, fua=True)

This module holds the public names and nothing else. See README.md for a tour and docs/ for the whole story.
"""

from typing import TYPE_CHECKING

from ._native._core import Request, View  # before all others: it refuses subinterpreters

# isort: split
from ._device.device import Device
from ._device.extents import Extent, ExtentKind
from ._libblkio.limits import Limits
from ._libblkio.properties import Properties
from ._memory.arena import Arena, ArenaAttachment, ArenaBlock, ArenaBuffer, ArenaListener, ArenaStatistics
from ._memory.bounce import BouncePool, BounceStatistics
from ._memory.regions import MemoryRegion
from ._queues.blocking import BlockingQueue
from ._queues.queue import Queue, QueueStatistics
from ._sync.wait_queue import WaitQueue, WaitQueueStatistics
from .addresses import open, parse_properties, parse_size
from .drivers import IoUring, NvmeIoUring, VirtioBlkVfioPci, VirtioBlkVhostUser, VirtioBlkVhostVdpa
from .errors import (
    AlignmentError,
    BlkioError,
    DeviceClosedError,
    DeviceLostError,
    OptionError,
    PropertyError,
    RegistrationError,
    StreamBusyError,
    UnsupportedError,
    UsageError,
)
from .layers.byte_view import ByteView
from .layers.zones import SequentialWriter, Zone, Zones, ZoneState, ZoneType
from .services.in_flight import InFlight
from .services.socket_stream import DisconnectedError, SocketStream

if TYPE_CHECKING:
    __version__: str
    """Of the installed package."""


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version  # only when it is asked for: it takes longer than all else here

    return version("aioblk")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]  # what completion offers: the modules behind the names are no part of it


__all__ = [
    "AlignmentError",
    "Arena",
    "ArenaAttachment",
    "ArenaBlock",
    "ArenaBuffer",
    "ArenaListener",
    "ArenaStatistics",
    "BlkioError",
    "BlockingQueue",
    "BouncePool",
    "BounceStatistics",
    "ByteView",
    "Device",
    "DeviceClosedError",
    "DeviceLostError",
    "DisconnectedError",
    "Extent",
    "ExtentKind",
    "InFlight",
    "IoUring",
    "Limits",
    "MemoryRegion",
    "NvmeIoUring",
    "OptionError",
    "Properties",
    "PropertyError",
    "Queue",
    "QueueStatistics",
    "RegistrationError",
    "Request",
    "SequentialWriter",
    "SocketStream",
    "StreamBusyError",
    "UnsupportedError",
    "UsageError",
    "View",
    "VirtioBlkVfioPci",
    "VirtioBlkVhostUser",
    "VirtioBlkVhostVdpa",
    "WaitQueue",
    "WaitQueueStatistics",
    "Zone",
    "ZoneState",
    "ZoneType",
    "Zones",
    "open",
    "parse_properties",
    "parse_size",
]
