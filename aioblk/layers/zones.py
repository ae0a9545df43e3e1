"""Zoned storage: what the zones are, moving them from state to state, and writing through them in order.

Zones are for host-managed devices, which NVMe drives with zoned namespaces (ZNS) are: a zone is written from
its start, at its write pointer, and reset as a whole before it is written again. libblkio offers them on its
nvme-io_uring driver.
"""

import asyncio
import enum
import errno
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import cast, final

from .._device.device import Device
from .._device.extents import Extent
from .._device.session import LARGEST_PART
from .._native.buffers import BytesLike, as_memoryview
from .._sync.loops import running_loop
from ..errors import AlignmentError, BlkioError, OptionError, PropertyError, UnsupportedError
from .block_device import BlockDevice

__all__ = ["SequentialWriter", "Zone", "ZoneState", "ZoneType", "Zones"]

# struct blkio_zone: start, len, capacity, write_pointer, zone_type, zone_state, reset, reserved
_ZONE = struct.Struct("=QQQQBBB29x")
_ZONES_PER_REPORT = 1024


class ZoneType(enum.IntEnum):
    """How a zone may be written."""

    CONVENTIONAL = 0x1
    """Anywhere; there is no write pointer."""
    SEQUENTIAL_REQUIRED = 0x2
    """At the write pointer only."""
    SEQUENTIAL_PREFERRED = 0x3
    """Anywhere, best at the write pointer."""


class ZoneState(enum.IntEnum):
    """Where a zone is in its life. Open and closed zones are *active*; the device limits their number."""

    EMPTY = 0x1
    """Nothing is written in it."""
    IMPLICITLY_OPEN = 0x2
    """Opened by a write."""
    EXPLICITLY_OPEN = 0x3
    """Opened by request; the device keeps it open."""
    CLOSED = 0x4
    """Partly written, and not open."""
    READ_ONLY = 0xD
    """It can be read, and never written again."""
    FULL = 0xE
    """No room is left until it is reset."""
    OFFLINE = 0xF
    """It can neither be read nor written."""

    @property
    def is_open(self) -> bool:
        """Whether it is open, however it was opened."""
        return self in (ZoneState.IMPLICITLY_OPEN, ZoneState.EXPLICITLY_OPEN)

    @property
    def is_active(self) -> bool:
        """Whether it counts among the active ones."""
        return self.is_open or self is ZoneState.CLOSED


@final
@dataclass(frozen=True, slots=True)
class Zone:
    """A zone at the time of the report. Positions are bytes from the device's start, lengths bytes."""

    start: int
    """The position of its first byte."""
    length: int
    """The distance to the next zone; of these bytes, ``capacity`` can be used."""
    capacity: int
    """How many of its bytes can be used."""
    write_pointer: int
    """Where the next write goes; meaningless in a conventional or full zone."""
    type: ZoneType
    """How it is to be written."""
    state: ZoneState
    """Where it is in its life."""
    reset_recommended: bool
    """The device asks for it to be reset."""

    @property
    def room(self) -> int:
        """How many bytes can still be written."""
        if self.state is ZoneState.EMPTY:
            return self.capacity
        return self.start + self.capacity - self.write_pointer if self.state.is_active else 0


@final
class Zones:
    """The zones of an open device.

    Zone commands take the zone, or its first byte's offset. They fail with BlkioError where the device
    refuses the transition. Same loop, thread and cancellation rules as the device's requests.
    """

    def __init__(self, device: Device) -> None:
        """Raises UnsupportedError if the device has no zones."""
        self._device = device
        try:
            zoned = cast(int, device.properties["zoned"])
        except PropertyError:
            zoned = 0
        if not zoned:
            raise UnsupportedError(
                "the device has no zones; zoned namespaces of NVMe drives do",
                driver=device.driver,
                operation="zones",
            )

    # --- what they are --------------------------------------------------------------------------------------

    @property
    def device(self) -> Device:
        """The one whose zones they are."""
        return self._device

    @property
    def zone_size(self) -> int:
        """The distance from one zone to the next, in bytes."""
        return self._number("zone-size")

    @property
    def count(self) -> int:
        """How many zones there are."""
        return self._number("nr-zones")

    @property
    def max_open(self) -> int:
        """The most zones open at a time; 0: no limit."""
        return self._number("max-open-zones")

    @property
    def max_active(self) -> int:
        """The most zones active (open or closed) at a time; 0: no limit."""
        return self._number("max-active-zones")

    def _number(self, name: str) -> int:
        return cast(int, self._device.properties[name])

    # --- reports --------------------------------------------------------------------------------------------

    async def report(self, start: int = 0, stop: int | None = None) -> AsyncIterator[Zone]:
        """The zones from the one that holds byte *start* to the one before byte *stop*, a thousand at a time.

        Raises:
            OptionError: *start* is not on the device.
        """
        end = min(self._device.capacity if stop is None else stop, self.zone_size * self.count)
        offset = start - start % self.zone_size
        if not 0 <= start < self.zone_size * self.count:
            raise OptionError(f"there is no zone at offset {start}", driver=self._device.driver, offset=start)
        while offset < end:
            wanted = min(_ZONES_PER_REPORT, -(-(end - offset) // self.zone_size))
            answer = await self._device._report_zones(offset, wanted)
            if not answer:
                return
            for fields in _ZONE.iter_unpack(answer):
                yield _zone(fields)
            offset += len(answer) // _ZONE.size * self.zone_size

    async def zone_at(self, offset: int) -> Zone:
        """The zone that holds byte *offset*."""
        async for zone in self.report(offset, offset + 1):
            return zone
        raise OptionError(f"there is no zone at offset {offset}", driver=self._device.driver, offset=offset)

    # --- commands -------------------------------------------------------------------------------------------

    async def open(self, zone: Zone | int) -> None:
        """Open a zone explicitly: it stays open until it is closed, finished or reset."""
        await self._manage("open_zone", zone)

    async def close(self, zone: Zone | int) -> None:
        """Close an open zone; it stays active. A later write opens it again."""
        await self._manage("close_zone", zone)

    async def finish(self, zone: Zone | int) -> None:
        """Make a zone full, whatever is in it; nothing can be written before it is reset."""
        await self._manage("finish_zone", zone)

    async def reset(self, zone: Zone | int) -> None:
        """Make a zone empty; its data are lost."""
        await self._manage("reset_zone", zone)

    async def open_all(self) -> None:
        """Open every closed zone."""
        await self._device._manage_zone("open_all_zones")

    async def close_all(self) -> None:
        """Close every open zone."""
        await self._device._manage_zone("close_all_zones")

    async def finish_all(self) -> None:
        """Make every active zone full."""
        await self._device._manage_zone("finish_all_zones")

    async def reset_all(self) -> None:
        """Make every zone empty; all data are lost."""
        await self._device._manage_zone("reset_all_zones")

    async def _manage(self, command: str, zone: Zone | int) -> None:
        start = zone.start if isinstance(zone, Zone) else zone
        if start % self.zone_size or not 0 <= start < self.zone_size * self.count:
            raise AlignmentError(
                f"no zone starts at offset {start}; zones start at multiples of {self.zone_size}",
                driver=self._device.driver,
                operation=command,
                offset=start,
            )
        await self._device._manage_zone(command, start)

    # --- writing --------------------------------------------------------------------------------------------

    def writer(self, start: int = 0, stop: int | None = None) -> "SequentialWriter":
        """Appends data to the zones between two offsets; see SequentialWriter."""
        return SequentialWriter(self, self._device, start, stop)


def _zone(fields: tuple[int, ...]) -> Zone:
    start, length, capacity, pointer, kind, state, reset = fields
    return Zone(start, length, capacity, pointer, ZoneType(kind), ZoneState(state), bool(reset))


@final
class SequentialWriter:
    """Appends to zones, one after the other, and says where the data went.

    It goes on in a zone that is active already before it takes an empty one, and holds one zone at a time, so
    that it needs no more than one of the zones that may be open or active. A zone that somebody else has
    filled, finished or reset in the meantime is found out by the failing write, and left for the next. It
    never resets a zone. Several tasks may append; their data are not mixed.
    """

    def __init__(self, zones: Zones, device: BlockDevice, start: int = 0, stop: int | None = None) -> None:
        """Appends between two offsets, writing by way of *device*: that of the zones, or a layer over it."""
        self._zones = zones
        self._device = device
        self._start = start
        self._stop = stop
        self._turn = asyncio.Lock()
        self._zone: Zone | None = None
        self._pointer = 0

    async def append(self, data: BytesLike, *, fua: bool = False) -> list[Extent]:
        """Write *data*, whole blocks of ``request_alignment`` bytes, wherever there is room.

        Returns the extents in order; together they are as long as the data. A task that is cancelled has
        written some part of its data or none.

        Raises:
            AlignmentError: the data are not whole blocks.
            BlkioError: ENOSPC: no zone has room left. What had been written stays written, but where is lost.
        """
        running_loop("append", self._zones.device.driver)
        left = as_memoryview(data).cast("B")
        block = self._device.limits.request_alignment
        if len(left) % block:
            raise AlignmentError(
                f"{len(left)} bytes are not a multiple of {block}, the device's request-alignment",
                driver=self._zones.device.driver,
                operation="append",
                length=len(left),
            )
        extents: list[Extent] = []
        async with self._turn:
            while len(left):
                extent = await self._write_some(left, fua=fua)
                extents.append(extent)
                left = left[extent.length :]
        return extents

    async def _write_some(self, data: memoryview, *, fua: bool) -> Extent:
        """The longest head of *data* that one zone has room for."""
        failed: BlkioError | None = None
        passed: set[int] = set()
        try:
            while True:
                zone = await self._current_zone(passed, failed)
                # One part: a request that is divided may arrive out of order, off the write pointer.
                longest = min(self._device.limits.max_transfer or LARGEST_PART, LARGEST_PART)
                length = min(len(data), zone.start + zone.capacity - self._pointer, longest)
                extent = Extent(self._pointer, length)
                try:
                    await self._device.write(extent.offset, data[:length], fua=fua)
                except BlkioError as error:
                    # The zone is not what it was, or one more could not be opened: look again, and elsewhere.
                    failed = error
                    passed.add(zone.start)
                    self._zone = None
                    continue
                except BaseException:
                    self._zone = None  # cancelled: how far the zone was written must be asked
                    raise
                self._pointer += length
                return extent
        finally:
            failed = None  # which would otherwise keep this frame, and the frame it and the data

    async def _current_zone(self, passed: set[int], failed: BlkioError | None) -> Zone:
        zone = self._zone
        if zone is not None and self._pointer < zone.start + zone.capacity:
            return zone
        candidates = [
            zone
            async for zone in self._zones.report(self._start, self._stop)
            if zone.room and zone.start not in passed and zone.type is not ZoneType.CONVENTIONAL
        ]
        if not candidates:
            if failed is not None:
                raise failed
            raise BlkioError(
                "no zone has room left; reset some",
                errno=errno.ENOSPC,
                driver=self._zones.device.driver,
                operation="append",
            )
        self._zone = zone = min(candidates, key=lambda zone: (not zone.state.is_active, zone.start))
        self._pointer = zone.start if zone.state is ZoneState.EMPTY else zone.write_pointer
        return zone
