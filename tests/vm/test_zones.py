"""Zones, on a zoned namespace whose 16 zones are 4 MiB apart and hold 3 MiB; 8 may be open, 16 active."""

import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import aioblk
from aioblk import Extent, Zones, ZoneState, ZoneType

BLOCK = 4096
MIB = 1 << 20
ZONE = 4 * MIB
CAPACITY = 3 * MIB
COUNT = 16


@pytest.fixture
async def device(zns: Path) -> AsyncIterator[aioblk.Device]:
    """The device, all of its zones empty."""
    async with aioblk.NvmeIoUring(zns) as device:
        await Zones(device).reset_all()
        yield device


@pytest.fixture
def zones(device: aioblk.Device) -> Zones:
    return Zones(device)


async def states(zones: Zones) -> list[ZoneState]:
    return [zone.state async for zone in zones.report()]


async def test_reports_every_zone(zones: Zones) -> None:
    assert (zones.zone_size, zones.count, zones.max_open, zones.max_active) == (ZONE, COUNT, 8, COUNT)
    found = [zone async for zone in zones.report()]
    assert [zone.start for zone in found] == list(range(0, COUNT * ZONE, ZONE))
    for zone in found:
        assert (zone.length, zone.capacity, zone.room) == (ZONE, CAPACITY, CAPACITY)
        assert (zone.type, zone.state) == (ZoneType.SEQUENTIAL_REQUIRED, ZoneState.EMPTY)
        assert zone.write_pointer == zone.start


async def test_reports_some_zones(zones: Zones) -> None:
    assert [zone.start async for zone in zones.report(ZONE + BLOCK, 3 * ZONE)] == [ZONE, 2 * ZONE]
    assert (await zones.zone_at(5 * ZONE - 1)).start == 4 * ZONE
    for nowhere in (-1, COUNT * ZONE):
        with pytest.raises(aioblk.OptionError):
            await zones.zone_at(nowhere)


async def test_a_zone_goes_through_its_states(device: aioblk.Device, zones: Zones) -> None:
    async def state() -> ZoneState:
        return (await zones.zone_at(ZONE)).state

    await zones.open(ZONE)
    assert await state() is ZoneState.EXPLICITLY_OPEN
    await zones.close(ZONE)
    assert await state() is ZoneState.CLOSED
    await device.write(ZONE, b"\x01" * BLOCK)
    assert await state() is ZoneState.IMPLICITLY_OPEN
    await zones.close(await zones.zone_at(ZONE))
    assert await state() is ZoneState.CLOSED
    assert (await zones.zone_at(ZONE)).write_pointer == ZONE + BLOCK
    await zones.finish(ZONE)
    assert await state() is ZoneState.FULL
    await zones.reset(ZONE)
    assert await state() is ZoneState.EMPTY


async def test_all_zones_at_once(device: aioblk.Device, zones: Zones) -> None:
    for start in (0, ZONE, 2 * ZONE):
        await device.write(start, b"\x02" * BLOCK)
    assert (await states(zones)).count(ZoneState.IMPLICITLY_OPEN) == 3
    await zones.close_all()
    assert (await states(zones)).count(ZoneState.CLOSED) == 3
    await zones.open_all()
    assert (await states(zones)).count(ZoneState.EXPLICITLY_OPEN) == 3
    await zones.finish_all()
    assert (await states(zones)).count(ZoneState.FULL) == 3
    await zones.reset_all()
    assert set(await states(zones)) == {ZoneState.EMPTY}


async def test_writes_only_at_the_write_pointer(device: aioblk.Device) -> None:
    await device.write(0, b"\x03" * BLOCK)
    for wrong in (0, 2 * BLOCK):
        with pytest.raises(aioblk.BlkioError) as caught:
            await device.write(wrong, b"\x03" * BLOCK)
        assert caught.value.errno == errno.EIO
    await device.write(BLOCK, b"\x03" * BLOCK)
    assert await device.read(0, 2 * BLOCK) == b"\x03" * 2 * BLOCK


async def test_refuses_places_where_no_zone_starts(zones: Zones) -> None:
    for wrong in (BLOCK, -ZONE, COUNT * ZONE):
        with pytest.raises(aioblk.AlignmentError, match="no zone starts"):
            await zones.reset(wrong)


async def test_refuses_to_open_too_many(zones: Zones) -> None:
    for number in range(8):
        await zones.open(number * ZONE)
    with pytest.raises(aioblk.BlkioError):
        await zones.open(8 * ZONE)
    await zones.close_all()
    await zones.open(8 * ZONE)


async def test_a_writer_goes_from_zone_to_zone(device: aioblk.Device, zones: Zones) -> None:
    writer = zones.writer()
    data = b"".join(bytes([number]) * MIB for number in range(7))
    extents = await writer.append(data)
    assert sum(extent.length for extent in extents) == len(data)
    found = [await device.read(extent.offset, extent.length) for extent in extents]
    assert b"".join(found) == data
    assert (await states(zones))[:3] == [ZoneState.FULL, ZoneState.FULL, ZoneState.IMPLICITLY_OPEN]


async def test_a_writer_survives_what_others_do(zones: Zones) -> None:
    writer = zones.writer()
    assert await writer.append(bytes(BLOCK)) == [Extent(0, BLOCK)]
    await zones.finish(0)  # full behind its back
    assert await writer.append(bytes(BLOCK)) == [Extent(ZONE, BLOCK)]
    await zones.reset(ZONE)
    [extent] = await writer.append(bytes(BLOCK))
    assert (await zones.zone_at(extent.offset)).write_pointer == extent.offset + BLOCK


async def test_a_writer_finds_room_among_the_open_zones(device: aioblk.Device, zones: Zones) -> None:
    for number in range(8):
        await zones.open(number * ZONE)
        await device.write(number * ZONE, bytes(BLOCK))
    extents = await zones.writer().append(bytes(4 * MIB))  # no other zone may be opened
    assert sum(extent.length for extent in extents) == 4 * MIB


async def test_a_writer_ends_where_no_room_is_left(zones: Zones) -> None:
    writer = zones.writer(0, 2 * ZONE)
    await writer.append(bytes(2 * CAPACITY - BLOCK))
    with pytest.raises(aioblk.BlkioError) as caught:
        await writer.append(bytes(2 * BLOCK))
    assert caught.value.errno == errno.ENOSPC
    await zones.reset_all()
    assert await writer.append(bytes(BLOCK))
