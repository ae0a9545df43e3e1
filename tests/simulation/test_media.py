"""What the media keep, and what a power failure may leave of it."""

import asyncio
from typing import Any

import aioblk

from .devices import BLOCK, device_on, new_disk, pattern, until_held
from .library import Disk, Driver, Simulator

OLD, NEW, NEWER = pattern(1), pattern(2), pattern(3)


async def test_what_is_written_is_read_and_outlives_the_device(disk: Disk, simulator: Simulator) -> None:
    async with device_on(disk) as dev:
        await dev.write(BLOCK, OLD + NEW)
        await dev.write_zeroes(2 * BLOCK, BLOCK)
    async with device_on(disk) as dev:
        assert await dev.read(0, 4 * BLOCK) == bytes(BLOCK) + OLD + bytes(2 * BLOCK)
    assert disk.content(BLOCK, BLOCK) == OLD


async def test_a_completed_write_may_be_lost_until_it_is_flushed(disk: Disk, simulator: Simulator) -> None:
    async with device_on(disk) as dev:
        await dev.write(0, OLD)
        assert disk.outcomes(0) == {bytes(BLOCK), OLD}
        await dev.flush()
        assert disk.outcomes(0) == {OLD}
        await dev.write(0, NEW)
        await dev.write(0, NEWER)
        assert disk.outcomes(0) == {OLD, NEW, NEWER}
        await dev.flush()
        assert disk.outcomes(0) == {NEWER}


async def test_fua_covers_its_own_write_and_no_other(disk: Disk, simulator: Simulator) -> None:
    async with device_on(disk) as dev:
        await dev.write(0, OLD)
        await dev.write(BLOCK, OLD, fua=True)
        assert disk.outcomes(0) == {bytes(BLOCK), OLD}
        assert disk.outcomes(1) == {OLD}
        await dev.write(0, NEW, fua=True)
        assert disk.outcomes(0) == {NEW}, "what was there before cannot come back"
        await dev.write_zeroes(BLOCK, BLOCK)
        assert disk.outcomes(1) == {OLD, bytes(BLOCK)}
        await dev.write_zeroes(BLOCK, BLOCK, fua=True)
        assert disk.outcomes(1) == {bytes(BLOCK)}


async def test_a_flush_covers_what_had_completed_when_it_was_submitted(
    backend: Disk, simulator: Simulator
) -> None:
    async with device_on(backend) as dev:
        await dev.write(0, OLD)
        simulator.configure(hold=1)
        flush = asyncio.ensure_future(dev.flush())
        write = asyncio.ensure_future(dev.write(BLOCK, OLD))
        held = {request.operation: request for request in await until_held(simulator, 2)}
        simulator.complete(held["write"])
        await write
        simulator.complete(held["flush"])
        await flush
        assert backend.outcomes(0) == {OLD}
        assert backend.outcomes(1) == {bytes(BLOCK), OLD}


async def test_a_flush_that_fails_covers_nothing(backend: Disk, simulator: Simulator) -> None:
    async with device_on(backend) as dev:
        await dev.write(0, OLD)
        simulator.configure(hold=1)
        flush = asyncio.ensure_future(dev.flush())
        (held,) = await until_held(simulator, 1)
        simulator.complete(held, errno=5)
        assert isinstance((await asyncio.gather(flush, return_exceptions=True))[0], aioblk.BlkioError)
        assert backend.outcomes(0) == {bytes(BLOCK), OLD}
        simulator.configure(hold=0)


async def _after_power_failure(disk: Disk, simulator: Simulator, seed: int, **options: Any) -> list[bytes]:
    simulator.configure(seed=seed)
    async with device_on(disk, **options) as dev:
        for sector in range(16):
            await dev.write(sector * BLOCK, OLD)
        await dev.flush()
        await dev.write(0, NEW * 16)
        await dev.write(0, NEWER * 4, fua=True)
        disk.power_failure()
        dev.abandon("the power has failed")
    return [disk.content(sector * BLOCK, BLOCK) for sector in range(16)]


async def test_a_power_failure_tears_at_sectors_what_no_flush_covers(
    simulator: Simulator, tmp_path: Any
) -> None:
    simulator.configure(abandons=1)
    left: list[list[bytes]] = []
    for seed in range(1, 6):
        disk = new_disk(simulator, Driver.VFIO_PCI, tmp_path / str(seed))
        left.append(await _after_power_failure(disk, simulator, seed))
        assert left[-1][:4] == [NEWER] * 4
        assert set(left[-1][4:]) == {OLD, NEW}
        assert disk.outcomes(9) == {left[-1][9]}, "what has survived is certain"
    assert len({tuple(each) for each in left}) == 5


async def test_a_power_failure_shows_in_the_file(simulator: Simulator, tmp_path: Any) -> None:
    disk = new_disk(simulator, Driver.IO_URING, tmp_path)
    left = await _after_power_failure(disk, simulator, 3)
    assert disk.path.read_bytes()[: 16 * BLOCK] == b"".join(left)
    async with device_on(disk) as dev:
        assert await dev.read(0, 16 * BLOCK) == b"".join(left)


async def test_a_write_in_flight_may_survive_in_part(simulator: Simulator, tmp_path: Any) -> None:
    found = set()
    for seed in range(1, 30):
        disk = new_disk(simulator, Driver.VFIO_PCI, tmp_path / str(seed))
        simulator.configure(seed=seed)
        async with device_on(disk) as dev:
            await dev.read(0, BLOCK)
            simulator.configure(hold=1)
            write = asyncio.ensure_future(dev.write(0, NEW * 2))
            await until_held(simulator, 1)
            disk.power_failure()
            dev.abandon("the power has failed")
            assert isinstance(
                (await asyncio.gather(write, return_exceptions=True))[0], aioblk.DeviceLostError
            )
            simulator.configure(hold=0)
        found.add((disk.content(0, BLOCK), disk.content(BLOCK, BLOCK)))
    assert found == {(a, b) for a in (bytes(BLOCK), NEW) for b in (bytes(BLOCK), NEW)}


async def test_bytes_that_are_no_whole_sectors(simulator: Simulator, tmp_path: Any) -> None:
    disk = new_disk(simulator, Driver.IO_URING, tmp_path)
    async with device_on(disk) as dev:
        await dev.write(0, OLD, fua=True)
        await dev.write(100, b"new")
        half_new = OLD[:100] + b"new" + OLD[103:]
        assert disk.outcomes(0) == {OLD, half_new}
        assert disk.path.read_bytes()[:BLOCK] == half_new


async def test_a_file_grows_and_is_cut(simulator: Simulator, tmp_path: Any) -> None:
    disk = new_disk(simulator, Driver.IO_URING, tmp_path, size=BLOCK)
    async with device_on(disk) as dev:
        await dev.write(3 * BLOCK, NEW)
        assert dev.capacity == 4 * BLOCK
        await dev.truncate(2 * BLOCK)
        assert await dev.read(0, 4 * BLOCK) == bytes(4 * BLOCK)
        await dev.discard(0, BLOCK)
        assert [extent async for extent in dev.extents()]
