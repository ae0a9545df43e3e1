"""Block devices for asyncio: libblkio's drivers as classes whose requests are awaited.

::

    async with aioblk.IoUring("disk.img") as dev:
        data = await dev.read(0, 4096)
        await dev.write(4096, data, fua=True)

This module holds the public names and nothing else. See README.md for a tour and docs/ for the whole story.
What lies below it, from the top down; each wing knows those under it, and none above::

    cli/           programs that people run: `aioblk` on the command line; for what it needs
    testing/       devices in memory, faults, power failures, a recorder; for programs' tests
    metrics.py     what devices count, for Prometheus; by its own name, for what it needs
    addresses/     open() by an address: above all that can be opened
    copying/       what is done with whole devices: copies, comparisons, checksums, maps of holes
    nbd/           NBD, a block device over the network: a server, by its own name, and a client
    export/        the other side: devices served to virtual machines, by its own name
    drivers/       what a user names: a class for each driver of libblkio, with its options
    layers/        what a block device is, and what lies over any: any bytes, zones, parts, mirrors
    services/      what services have beside devices: limits of what is in flight, streams of messages
    _device/       a device's life: connecting, closing, losing, coming back
    _queues/       a queue on an event loop, one in a thread, and all that a device has
    _memory/       memory that devices reach: regions, the bounce pool, arenas
    _libblkio/     libblkio as Python, without asyncio: instances, properties, limits, options, refusals
    _native/       what is compiled: all of libblkio, and the path of a request
    _sync/         what asyncio lacks: fair waiting, steadfast tasks, calls in threads, shields, time
    errors.py      what is raised
"""

import importlib
import sys
from typing import TYPE_CHECKING

from ._former import FORMER, FormerPaths

try:
    from ._native._core import Request, View  # at once: it refuses subinterpreters
except ImportError as _error:
    from ._native._missing import explained

    raise explained(_error) from None

if TYPE_CHECKING:
    from ._device.device import Device
    from ._device.events import DeviceEvent, DeviceLost, DeviceResized, DeviceReturned, DeviceSearching
    from ._device.extents import Extent, ExtentKind
    from ._device.instruments import Instrument, RequestInfo
    from ._device.lock import FileLock
    from ._libblkio.limits import Limits
    from ._libblkio.properties import Properties
    from ._memory.arena import (
        Arena,
        ArenaAttachment,
        ArenaBlock,
        ArenaBuffer,
        ArenaListener,
        ArenaShare,
        ArenaStatistics,
    )
    from ._memory.bounce import BouncePool, BounceStatistics
    from ._memory.mapping import MapsMemory
    from ._memory.regions import MemoryRegion
    from ._native.latency import LatencyBucket, LatencyHistogram
    from ._queues.blocking import BlockingQueue
    from ._queues.queue import Queue
    from ._queues.statistics import OperationStatistics, QueueStatistics
    from ._sync.wait_queue import WaitQueue, WaitQueueStatistics
    from .addresses import (
        Address,
        Openable,
        open,
        parse_address,
        parse_duration,
        parse_properties,
        parse_rate,
        parse_size,
    )
    from .copying.comparison import Comparison, compare
    from .copying.digest import checksum
    from .copying.listing import map_extents
    from .copying.transfer import CopyProgress, CopyResult, copy
    from .drivers import IoUring, NvmeIoUring, VirtioBlkVfioPci, VirtioBlkVhostUser, VirtioBlkVhostVdpa
    from .errors import (
        AlignmentError,
        BlkioError,
        DeviceClosedError,
        DeviceLostError,
        InUseError,
        OptionError,
        PartitionTableError,
        PropertyError,
        RegistrationError,
        StreamBusyError,
        UnsupportedError,
        UsageError,
    )
    from .layers.block_device import BlockDevice, KnowsExtents
    from .layers.byte_view import ByteView
    from .layers.copy_on_write import CopyOnWrite
    from .layers.dirty_bitmap import DirtyBitmap
    from .layers.layer import Layer
    from .layers.mirror import Leg, LegState, Mirror
    from .layers.partitions import Partition, partitions
    from .layers.reader import Reader
    from .layers.signatures import Signature, signatures
    from .layers.slice import Slice
    from .layers.throttle import Rate, Throttle, ThrottleGroup, ThrottleStatistics
    from .layers.tracked import Tracked
    from .layers.tracked_bitmap import TrackedBitmap
    from .layers.writer import Writer
    from .layers.zones import SequentialWriter, Zone, Zones, ZoneState, ZoneType
    from .nbd._client.device import Nbd
    from .services.in_flight import InFlight, InFlightShare
    from .services.socket_stream import DisconnectedError, SocketStream
    from .services.tls_stream import TlsStream

    __version__: str
    """Of this package, installed or not."""

_MODULES = {
    "_device.device": "Device",
    "_device.events": "DeviceEvent DeviceLost DeviceResized DeviceReturned DeviceSearching",
    "_device.extents": "Extent ExtentKind",
    "_device.instruments": "Instrument RequestInfo",
    "_device.lock": "FileLock",
    "_libblkio.limits": "Limits",
    "_libblkio.properties": "Properties",
    "_memory.arena": "Arena ArenaAttachment ArenaBlock ArenaBuffer ArenaListener ArenaShare ArenaStatistics",
    "_memory.bounce": "BouncePool BounceStatistics",
    "_memory.mapping": "MapsMemory",
    "_memory.regions": "MemoryRegion",
    "_native.latency": "LatencyBucket LatencyHistogram",
    "_queues.blocking": "BlockingQueue",
    "_queues.queue": "Queue",
    "_queues.statistics": "OperationStatistics QueueStatistics",
    "_sync.wait_queue": "WaitQueue WaitQueueStatistics",
    "addresses": "Address Openable open parse_address parse_duration parse_properties parse_rate parse_size",
    "copying.comparison": "Comparison compare",
    "copying.digest": "checksum",
    "copying.listing": "map_extents",
    "copying.transfer": "CopyProgress CopyResult copy",
    "drivers": "IoUring NvmeIoUring VirtioBlkVfioPci VirtioBlkVhostUser VirtioBlkVhostVdpa",
    "errors": (
        "AlignmentError BlkioError DeviceClosedError DeviceLostError InUseError OptionError "
        "PartitionTableError PropertyError RegistrationError StreamBusyError UnsupportedError UsageError"
    ),
    "layers.block_device": "BlockDevice KnowsExtents",
    "layers.byte_view": "ByteView",
    "layers.copy_on_write": "CopyOnWrite",
    "layers.dirty_bitmap": "DirtyBitmap",
    "layers.layer": "Layer",
    "layers.mirror": "Leg LegState Mirror",
    "layers.partitions": "Partition partitions",
    "layers.reader": "Reader",
    "layers.signatures": "Signature signatures",
    "layers.slice": "Slice",
    "layers.throttle": "Rate Throttle ThrottleGroup ThrottleStatistics",
    "layers.tracked": "Tracked",
    "layers.tracked_bitmap": "TrackedBitmap",
    "layers.writer": "Writer",
    "layers.zones": "SequentialWriter Zone Zones ZoneState ZoneType",
    "nbd._client.device": "Nbd",
    "services.in_flight": "InFlight InFlightShare",
    "services.socket_stream": "DisconnectedError SocketStream",
    "services.tls_stream": "TlsStream",
}
"""Where the names are, for the interpreter: a module is imported when the first of its names is asked for."""

_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}

sys.meta_path.append(FormerPaths())


def _found(name: str) -> object:
    if name in _MODULE_OF:
        found = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    elif name in FORMER:
        found = importlib.import_module(f"{__name__}.{name}")
    elif name == "__version__":
        found = importlib.import_module("._version", __name__).VERSION
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found  # it is asked for once
    return found


if not TYPE_CHECKING:  # which would take any name then, wrong ones included
    __getattr__ = _found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]  # what completion offers: the modules behind the names are no part of it


__all__ = [
    "Address",
    "AlignmentError",
    "Arena",
    "ArenaAttachment",
    "ArenaBlock",
    "ArenaBuffer",
    "ArenaListener",
    "ArenaShare",
    "ArenaStatistics",
    "BlkioError",
    "BlockDevice",
    "BlockingQueue",
    "BouncePool",
    "BounceStatistics",
    "ByteView",
    "Comparison",
    "CopyOnWrite",
    "CopyProgress",
    "CopyResult",
    "Device",
    "DeviceClosedError",
    "DeviceEvent",
    "DeviceLost",
    "DeviceLostError",
    "DeviceResized",
    "DeviceReturned",
    "DeviceSearching",
    "DirtyBitmap",
    "DisconnectedError",
    "Extent",
    "ExtentKind",
    "FileLock",
    "InFlight",
    "InFlightShare",
    "InUseError",
    "Instrument",
    "IoUring",
    "KnowsExtents",
    "LatencyBucket",
    "LatencyHistogram",
    "Layer",
    "Leg",
    "LegState",
    "Limits",
    "MapsMemory",
    "MemoryRegion",
    "Mirror",
    "Nbd",
    "NvmeIoUring",
    "Openable",
    "OperationStatistics",
    "OptionError",
    "Partition",
    "PartitionTableError",
    "Properties",
    "PropertyError",
    "Queue",
    "QueueStatistics",
    "Rate",
    "Reader",
    "RegistrationError",
    "Request",
    "RequestInfo",
    "SequentialWriter",
    "Signature",
    "Slice",
    "SocketStream",
    "StreamBusyError",
    "Throttle",
    "ThrottleGroup",
    "ThrottleStatistics",
    "TlsStream",
    "Tracked",
    "TrackedBitmap",
    "UnsupportedError",
    "UsageError",
    "View",
    "VirtioBlkVfioPci",
    "VirtioBlkVhostUser",
    "VirtioBlkVhostVdpa",
    "WaitQueue",
    "WaitQueueStatistics",
    "Writer",
    "Zone",
    "ZoneState",
    "ZoneType",
    "Zones",
    "checksum",
    "compare",
    "copy",
    "map_extents",
    "open",
    "parse_address",
    "parse_duration",
    "parse_properties",
    "parse_rate",
    "parse_size",
    "partitions",
    "signatures",
]
