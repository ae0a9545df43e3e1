"""Discard gives space back: the file behind the device shrinks on disk, on every kind of storage."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import aioblk
from aioblk._queues.discard import MOST_AT_A_TIME

from ..conftest import StorageDaemonFactory
from ..support.devices import BLOCK, Target, pattern

MIB = 1 << 20
SIZE = 8 * MIB
PATIENCE = 30  # seconds; more than enough


@pytest.fixture
async def block_device(loop_device: Path) -> AsyncIterator[aioblk.Device]:
    async with aioblk.IoUring(loop_device, direct=True) as device:
        yield device


def blocks_of(file: Path) -> int:
    """Bytes that the file takes on disk."""
    status = os.stat(file)
    return status.st_blocks * 512


async def fill(device: aioblk.Device) -> None:
    for offset in range(0, SIZE, MIB):
        await device.write(offset, pattern(MIB, offset + 1))
    await device.flush()


# --- files and vhost-user -----------------------------------------------------------------------------------


async def test_discard_releases_the_space_of_a_range(target: Target) -> None:
    async with target.device() as device:
        await fill(device)
        before = blocks_of(target.file)
        await device.discard(2 * MIB, 3 * MIB)
        assert before - blocks_of(target.file) == 3 * MIB
        assert await device.read(MIB, MIB) == pattern(MIB, MIB + 1)
        assert await device.read(5 * MIB, MIB) == pattern(MIB, 5 * MIB + 1)
        assert device.capacity == SIZE


async def test_discarding_everything_releases_everything(target: Target) -> None:
    async with target.device() as device:
        await fill(device)
        await device.discard(0, SIZE)
        assert blocks_of(target.file) < MIB


@pytest.mark.parametrize("driver", ["io_uring", "virtio-blk-vhost-user"])
async def test_discards_longer_than_the_device_takes_are_split(
    driver: str, scratch_file: Path, storage_daemon: StorageDaemonFactory
) -> None:
    with scratch_file.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, 64 * MIB)
    path = scratch_file if driver == "io_uring" else storage_daemon(scratch_file).socket
    async with Target(driver, path, scratch_file).device() as device:
        await device.discard(0, 64 * MIB)
        assert blocks_of(scratch_file) < MIB
        longest = device.limits.max_discard_len or 64 * MIB
        assert device.statistics().parts == 64 * MIB // longest


async def test_a_discarded_range_can_be_written_again(target: Target) -> None:
    async with target.device() as device:
        await device.discard(0, MIB)
        await device.write(0, pattern(MIB))
        assert await device.read(0, MIB) == pattern(MIB)


async def test_many_discards_at_once(target: Target) -> None:
    async with target.device() as device:
        await fill(device)
        await asyncio.gather(*(device.discard(offset, 64 << 10) for offset in range(0, SIZE, 128 << 10)))
        assert blocks_of(target.file) <= SIZE // 2 + MIB


async def test_write_zeroes_releases_space_unless_told_not_to(target: Target) -> None:
    async with target.device() as device:
        await fill(device)
        before = blocks_of(target.file)
        await device.write_zeroes(0, MIB, no_unmap=True)
        assert blocks_of(target.file) == before
        await device.write_zeroes(0, MIB)
        assert before - blocks_of(target.file) == MIB
        assert await device.read(0, MIB) == bytes(MIB)


# --- a block device -----------------------------------------------------------------------------------------


async def test_discard_reaches_the_file_behind_a_block_device(
    block_device: aioblk.Device, scratch_file: Path
) -> None:
    await fill(block_device)
    before = blocks_of(scratch_file)
    await block_device.discard(2 * MIB, 3 * MIB)
    assert before - blocks_of(scratch_file) == 3 * MIB
    assert await block_device.read(MIB, MIB) == pattern(MIB, MIB + 1)


async def test_a_block_devices_discard_does_not_block_the_loop(block_device: aioblk.Device) -> None:
    request = block_device.discard(0, SIZE)
    assert not request.done()
    await asyncio.sleep(0)
    await request
    assert block_device.statistics().in_flight == 0


async def test_a_block_devices_discard_can_be_cancelled(block_device: aioblk.Device) -> None:
    request = block_device.discard(0, SIZE)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    await block_device.aclose()


async def test_closing_waits_for_a_block_devices_discards(
    block_device: aioblk.Device, scratch_file: Path
) -> None:
    await fill(block_device)
    requests = [block_device.discard(offset, MIB) for offset in range(0, SIZE, MIB)]
    await block_device.aclose()
    assert all(request.done() and request.exception() is None for request in requests)
    assert blocks_of(scratch_file) < MIB


async def test_a_block_devices_discard_tells_what_is_wrong(block_device: aioblk.Device) -> None:
    with pytest.raises(aioblk.AlignmentError):
        block_device.discard(1, 512)
    with pytest.raises(aioblk.BlkioError) as caught:
        await block_device.discard(SIZE, MIB)
    assert (caught.value.operation, caught.value.offset, caught.value.length) == ("discard", SIZE, MIB)
    await block_device.discard(0, MIB)


# --- the threads that block devices need --------------------------------------------------------------------


async def test_discards_do_not_wait_for_the_loops_executor(block_device: aioblk.Device) -> None:
    """It is the application's, and all its threads may be at work."""
    loop, free = asyncio.get_running_loop(), threading.Event()
    with ThreadPoolExecutor(1) as executor:
        loop.set_default_executor(executor)
        busy = loop.run_in_executor(None, free.wait)
        try:
            async with asyncio.timeout(PATIENCE):
                await block_device.discard(0, MIB)
            assert not busy.done()
        finally:
            free.set()
            await busy


async def test_discards_outlive_the_loops_executor(block_device: aioblk.Device) -> None:
    await asyncio.get_running_loop().shutdown_default_executor()
    await block_device.discard(0, MIB)


async def test_more_discards_than_threads(block_device: aioblk.Device) -> None:
    """A hundred at once, every other one cancelled: what is cancelled before its turn is not done at all."""
    await fill(block_device)
    before = threading.active_count()  # with those that wait for another call
    requests = [block_device.discard(number * BLOCK, BLOCK) for number in range(100)]
    kept, dropped = requests[::2], requests[1::2]
    for request in dropped:
        request.cancel()
    assert await asyncio.gather(*kept) == 50 * [None]
    assert threading.active_count() <= before + MOST_AT_A_TIME
    last = 99 * BLOCK
    assert await block_device.read(last, BLOCK) == pattern(MIB)[last : last + BLOCK]


async def test_a_device_that_is_given_up_waits_for_no_discard(block_device: aioblk.Device) -> None:
    requests = [block_device.discard(number * BLOCK, BLOCK) for number in range(100)]
    block_device.abandon()
    outcomes = await asyncio.gather(*requests, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {aioblk.DeviceLostError}
