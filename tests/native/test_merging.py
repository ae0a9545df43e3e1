"""What a batch transfers side by side goes to the device as one, and nothing else of it changes."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

import aioblk
from aioblk._libblkio.limits import Limits
from aioblk._native.buffers import BytesLike

from ..conftest import StorageDaemonFactory
from ..support.devices import held, pattern
from ..support.fake_backend import READ, WRITE, FakeBackend

BLOCK = 4096
COUNT = 24
PATIENCE = 30  # seconds
OLD = pattern(COUNT * BLOCK, 1)
NEW = pattern(COUNT * BLOCK, 2)


@pytest.fixture
async def device(disk: FakeBackend) -> AsyncIterator[aioblk.Device]:
    async with aioblk.VirtioBlkVhostUser(disk.socket, num_queues=2) as device:
        yield device


@pytest.fixture
async def region(device: aioblk.Device) -> AsyncIterator[aioblk.MemoryRegion]:
    """Holds NEW; on the disk is OLD."""
    async with device.allocate(COUNT * BLOCK) as region:
        region[:] = OLD
        await device.write(0, region)
        region[:] = NEW
        yield region


def items(region: aioblk.MemoryRegion, *blocks: int) -> "list[tuple[int, aioblk.View]]":
    return [(block * BLOCK, region[block * BLOCK : (block + 1) * BLOCK]) for block in blocks]


def writes(disk: FakeBackend) -> list[tuple[int, int]]:
    """(first block, blocks) of each that was carried out."""
    return [(offset // BLOCK, length // BLOCK) for kind, offset, length in disk.carried_out if kind == WRITE]


def holds_new(disk: FakeBackend, *blocks: int) -> bool:
    expected = bytearray(OLD)
    for block in blocks:
        expected[block * BLOCK : (block + 1) * BLOCK] = NEW[block * BLOCK : (block + 1) * BLOCK]
    return disk.data[: COUNT * BLOCK] == expected


# --- what is merged -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blocks", "made"),
    [
        ([0, 1, 2, 3], [(0, 4)]),
        ([0], [(0, 1)]),
        ([0, 2, 4], [(0, 1), (2, 1), (4, 1)]),
        ([0, 1, 5, 6, 7], [(0, 2), (5, 3)]),
        ([3, 4, 0, 1], [(3, 2), (0, 2)]),
        ([3, 2, 1], [(3, 1), (2, 1), (1, 1)]),
        ([1, 1, 2, 2], [(1, 1), (1, 2), (2, 1)]),
        ([9, 0, 1, 2], [(9, 1), (0, 3)]),
    ],
)
async def test_neighbours_in_the_order_of_the_items_are_one_request(
    device: aioblk.Device,
    disk: FakeBackend,
    region: aioblk.MemoryRegion,
    blocks: list[int],
    made: list[tuple[int, int]],
) -> None:
    disk.carried_out.clear()
    before = device.statistics()
    await device.write_many(items(region, *blocks), fua=True)
    after = device.statistics()
    assert writes(disk) == made
    assert holds_new(disk, *blocks)
    assert after.parts - before.parts == len(made)
    assert after.completed - before.completed == len(blocks)
    assert after.bytes_written - before.bytes_written == len(blocks) * BLOCK


async def test_neighbours_are_read_as_one(
    device: aioblk.Device, disk: FakeBackend, region: aioblk.MemoryRegion
) -> None:
    disk.carried_out.clear()
    region[:] = bytes(COUNT * BLOCK)
    await device.read_into_many(items(region, 1, 2, 3, 7, 8))
    assert disk.carried_out == [(READ, BLOCK, 3 * BLOCK), (READ, 7 * BLOCK, 2 * BLOCK)]
    expected = bytearray(COUNT * BLOCK)
    for first, end in ((1, 4), (7, 9)):
        expected[first * BLOCK : end * BLOCK] = OLD[first * BLOCK : end * BLOCK]
    assert bytes(region) == expected


async def test_bytes_that_are_read_side_by_side(file_device: aioblk.Device) -> None:
    """What lies beyond the end of a file is zeroes, as for a request alone."""
    await file_device.write(0, NEW)
    before = file_device.statistics()
    blocks = await file_device.read_many([(i * BLOCK, BLOCK) for i in range(8)])
    after = file_device.statistics()
    assert blocks == [NEW[i * BLOCK : (i + 1) * BLOCK] for i in range(8)]
    assert (after.parts - before.parts, after.bytes_read - before.bytes_read) == (1, 8 * BLOCK)
    end = file_device.capacity
    assert await file_device.read_many([(end - BLOCK, BLOCK), (end, BLOCK)]) == [bytes(BLOCK)] * 2


async def test_memory_of_the_regions_alone_is_merged(
    device: aioblk.Device, disk: FakeBackend, region: aioblk.MemoryRegion
) -> None:
    """The rest is copied, each item by itself."""
    disk.carried_out.clear()
    batch: list[tuple[int, BytesLike]] = [*items(region, *range(8))]
    for block in (0, 3):
        batch[block] = (block * BLOCK, NEW[block * BLOCK : (block + 1) * BLOCK])
    await device.write_many(batch)
    assert sorted(writes(disk)) == [(0, 1), (1, 2), (3, 1), (4, 4)]
    assert holds_new(disk, *range(8))


async def test_a_merged_request_stays_short(file_device: aioblk.Device) -> None:
    """Beyond 128 KiB there is nothing to gain, and a device can do several at a time."""
    blocks = [(i * BLOCK, pattern(BLOCK, i)) for i in range(72)]
    before = file_device.statistics().parts
    await file_device.write_many(blocks)
    assert file_device.statistics().parts - before == 3  # of 32, 32 and 8 blocks
    assert await file_device.read(0, 72 * BLOCK) == b"".join(data for _, data in blocks)


async def test_what_is_split_is_not_merged(file_device: aioblk.Device) -> None:
    long = pattern(3 << 20)
    before = file_device.statistics().parts
    await file_device.write_many([(0, long), (len(long), pattern(BLOCK))])
    assert file_device.statistics().parts - before > 1
    assert await file_device.read(0, len(long) + BLOCK) == long + pattern(BLOCK)


async def test_items_without_bytes_are_in_nobodys_way(file_device: aioblk.Device) -> None:
    await file_device.write_many([(0, b""), (0, NEW[:BLOCK]), (0, b""), (BLOCK, NEW[BLOCK : 2 * BLOCK])])
    assert file_device.statistics().parts == 1
    assert await file_device.read(0, 2 * BLOCK) == NEW[: 2 * BLOCK]


# --- what becomes of it -------------------------------------------------------------------------------------


async def test_who_has_failed_is_known_as_if_each_had_been_alone(
    device: aioblk.Device, disk: FakeBackend, region: aioblk.MemoryRegion
) -> None:
    bad = {2, 5}
    disk.fails = lambda _, offset, length: any(offset <= block * BLOCK < offset + length for block in bad)
    before = device.statistics()
    results = await device.write_many(items(region, *range(8)), return_exceptions=True)
    after = device.statistics()
    assert {number for number, result in enumerate(results) if result is not None} == bad
    for number in bad:
        failed = results[number]
        assert isinstance(failed, aioblk.BlkioError)
        assert (failed.offset, failed.length) == (number * BLOCK, BLOCK)
    assert (after.failed - before.failed, after.completed - before.completed) == (2, 6)
    disk.fails = lambda *_: False
    assert bytes(await device.read(0, 2 * BLOCK)) == NEW[: 2 * BLOCK]
    assert bytes(await device.read(6 * BLOCK, 2 * BLOCK)) == NEW[6 * BLOCK : 8 * BLOCK]
    disk.fails = lambda _, offset, length: offset <= 7 * BLOCK < offset + length
    with pytest.raises(aioblk.BlkioError) as caught:
        await device.write_many(items(region, *range(8)))
    assert caught.value.offset == 7 * BLOCK


async def test_who_could_not_be_read_is_known(
    device: aioblk.Device, disk: FakeBackend, region: aioblk.MemoryRegion
) -> None:
    disk.fails = lambda _, offset, length: offset <= 3 * BLOCK < offset + length
    results = await device.read_into_many(items(region, *range(8)), return_exceptions=True)
    assert [number for number, result in enumerate(results) if result is not None] == [3]
    assert region[: 3 * BLOCK] == OLD[: 3 * BLOCK]
    assert region[4 * BLOCK : 8 * BLOCK] == OLD[4 * BLOCK : 8 * BLOCK]


async def test_a_whole_that_has_failed_is_no_silence(
    device: aioblk.Device, disk: FakeBackend, region: aioblk.MemoryRegion
) -> None:
    """The watch for silence begins anew with the items."""
    core = device.queue()._compiled
    disk.fails = lambda _kind, _offset, length: length > BLOCK
    whole = disk.gate(WRITE, 0)
    batch = device.write_many(items(region, *range(4)))
    await whole.reached()
    assert [core.grow_older(), core.grow_older()] == [(age, "write", 0, BLOCK) for age in (1, 2)]
    alone = [disk.gate(WRITE, block * BLOCK) for block in range(4)]
    whole.open()
    for gate in alone:
        await gate.reached()
    assert core.grow_older() == (1, "write", 0, BLOCK)
    for gate in alone:
        gate.open()
    await batch


async def test_what_fails_once_as_a_whole_is_done(
    device: aioblk.Device, disk: FakeBackend, region: aioblk.MemoryRegion
) -> None:
    disk.fails = lambda _kind, _offset, length: length > BLOCK
    await device.write_many(items(region, *range(8)))
    assert holds_new(disk, *range(8))


async def test_a_neighbour_of_an_item_that_has_failed_is_made_all_the_same(
    disk: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first item is split, and its first part fails; then, with the second item, its last part does."""
    read = Limits.read
    monkeypatch.setattr(Limits, "read", lambda device: replace(read(device), max_transfer=8 * BLOCK))
    async with (
        aioblk.VirtioBlkVhostUser(disk.socket, num_queues=2) as device,
        device.allocate(1 << 16) as region,
    ):
        region[:] = NEW[: len(region)]
        disk.fails = lambda _, offset, length: offset == 0 or length == 6 * BLOCK
        gate = disk.gate(WRITE, 8 * BLOCK)
        batch = device.write_many(
            [(0, region[: 12 * BLOCK]), (12 * BLOCK, region[12 * BLOCK : 14 * BLOCK])], return_exceptions=True
        )
        await gate.reached()
        while not writes(disk):  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0.001)
        await device.read(32 * BLOCK, BLOCK)  # the failure has been taken, too
        gate.open()
        first, second = await batch
        assert isinstance(first, aioblk.BlkioError)
        assert second is None
        assert writes(disk) == [(0, 8), (8, 6), (12, 2)]
        assert disk.data[12 * BLOCK : 14 * BLOCK] == NEW[12 * BLOCK : 14 * BLOCK]


async def test_nothing_of_one_that_was_cancelled_is_made_again(
    device: aioblk.Device, disk: FakeBackend, region: aioblk.MemoryRegion
) -> None:
    gate = disk.gate(WRITE, 0)
    disk.fails = lambda *_: True
    batch = device.write_many(items(region, *range(8)))
    await gate.reached()
    batch.cancel()
    disk.carried_out.clear()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await batch
    assert writes(disk) == [(0, 8)]
    disk.fails = lambda *_: False
    await device.write_many(items(region, *range(8)))
    assert holds_new(disk, *range(8))


async def test_one_that_is_cancelled_between_the_two_ends(
    device: aioblk.Device, disk: FakeBackend, region: aioblk.MemoryRegion
) -> None:
    """The whole has failed, and its items are being made alone."""
    disk.fails = lambda _kind, _offset, length: length > BLOCK
    batch = asyncio.ensure_future(device.write_many(items(region, *range(8))))
    gate = disk.gate(WRITE, 3 * BLOCK)
    await gate.reached()
    batch.cancel()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await batch
    assert device.statistics().in_flight == 0


async def test_another_backend_gets_what_the_lost_one_had(
    storage_daemon: StorageDaemonFactory, scratch_file: Path
) -> None:
    daemon = storage_daemon(scratch_file, num_queues=2)
    async with (
        aioblk.VirtioBlkVhostUser(daemon.socket, reconnect_for=PATIENCE) as device,
        device.allocate(COUNT * BLOCK) as region,
        asyncio.timeout(PATIENCE),
    ):
        region[:] = NEW
        with held(daemon):
            batch = device.write_many(items(region, *range(COUNT)))
            await asyncio.sleep(0)
            daemon.kill()
            while not device.reconnecting:  # noqa: ASYNC110 (there is no event)
                await asyncio.sleep(0.001)
        before = device.statistics().parts
        daemon.restart()
        await batch
        assert device.statistics().parts - before == 1
        assert await device.read(0, COUNT * BLOCK) == NEW


@pytest.mark.abandons_memory
async def test_a_lost_device_is_told_of_each_item(disk: FakeBackend) -> None:
    async with (
        aioblk.VirtioBlkVhostUser(disk.socket, num_queues=2) as device,
        device.allocate(1 << 16) as region,
    ):
        gate = disk.gate(WRITE, 0)
        batch = device.write_many(items(region, *range(4)), return_exceptions=True)
        await gate.reached()
        disk.hang_up()
        async with asyncio.timeout(PATIENCE):
            results = await batch
        assert [getattr(result, "offset", None) for result in results] == [i * BLOCK for i in range(4)]
        assert all(isinstance(result, aioblk.DeviceLostError) for result in results)


async def test_those_that_wait_for_room_are_cancelled_whole(
    device: aioblk.Device, disk: FakeBackend, region: aioblk.MemoryRegion
) -> None:
    """One after the other fills the queue, so that the last ones are in its backlog."""
    gate = disk.gate(WRITE, 0)
    batches = [device.write_many(items(region, *range(COUNT))) for _ in range(64)]
    await gate.reached()
    for batch in batches[1:]:
        batch.cancel()
    gate.open()
    await batches[0]
    await asyncio.gather(*batches[1:], return_exceptions=True)
    assert device.statistics().in_flight == 0
    assert holds_new(disk, *range(COUNT))
