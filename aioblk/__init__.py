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
from ._blocking_queue import BlockingQueue
from ._open import open, parse_properties, parse_size
from ._properties import Properties
from ._queue import Queue, QueueStatistics
from ._wait_queue import WaitQueue, WaitQueueStatistics
from .arena import Arena, ArenaAttachment, ArenaBlock, ArenaBuffer, ArenaListener, ArenaStatistics
from .bounce import BouncePool, BounceStatistics
from .byte_view import ByteView
from .device import Device
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
from .extents import Extent, ExtentKind
from .in_flight import InFlight
from .limits import Limits
from .memory import MemoryRegion
from .socket_stream import DisconnectedError, SocketStream
from .zones import SequentialWriter, Zone, Zones, ZoneState, ZoneType

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
