"""Devices that die, at any call; calls that fail or block; a device that comes back as another one."""

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest

import aioblk
from aioblk._native._core import Memory, View

from .devices import BLOCK, SIZE, device_on, new_disk, pattern, until, until_held
from .library import Death, Disk, Driver, Simulator

SOON = 0.1  # seconds, the least that lost_after may be


# --- death --------------------------------------------------------------------------------------------------


async def test_a_backend_that_hangs_up_fails_what_is_in_flight(backend: Disk, simulator: Simulator) -> None:
    async with device_on(backend) as dev:
        await dev.write(0, pattern(1))
        simulator.configure(hold=1)
        read = asyncio.ensure_future(dev.read(0, BLOCK))
        await until_held(simulator, 1)
        backend.die(Death.HUNG_UP)
        with pytest.raises(aioblk.DeviceLostError, match="the backend has closed the connection"):
            await read
        assert dev.lost


async def test_an_idle_device_notices_too(backend: Disk, simulator: Simulator) -> None:
    async with device_on(backend) as dev:
        backend.die(Death.KILLED)
        await until(lambda: dev.lost)
        with pytest.raises(aioblk.DeviceLostError):
            await dev.read(0, BLOCK)


@pytest.mark.abandons_memory  # bounce memory, on NVMe
async def test_a_broken_queue_loses_the_device(disk: Disk, simulator: Simulator) -> None:
    async with device_on(disk) as dev:
        await dev.read(0, BLOCK)
        disk.die(Death.BROKEN, errno.EIO)
        with pytest.raises(aioblk.DeviceLostError, match="the queue broke down: Input/output error"):
            await dev.read(0, BLOCK)
        assert dev.lost


@pytest.mark.abandons_memory  # bounce memory, on NVMe
async def test_a_silent_device_is_lost_after_a_while(disk: Disk, simulator: Simulator) -> None:
    async with device_on(disk, lost_after=SOON) as dev:
        await dev.read(0, BLOCK)
        disk.die(Death.SILENT)
        with pytest.raises(aioblk.DeviceLostError):
            await dev.read(0, BLOCK)
        assert dev.lost


async def _work(disk: Disk, **options: Any) -> None:
    async with device_on(disk, **options) as dev:
        await asyncio.gather(*(dev.write(i * BLOCK, pattern(i)) for i in range(4)))
        assert await dev.read(BLOCK, BLOCK) == pattern(1)
        async with dev.allocate(4096) as region:
            await dev.read_into(0, region[:BLOCK])
        await dev.write_zeroes(0, BLOCK)
        await dev.flush()


@pytest.mark.abandons_memory
@pytest.mark.parametrize(
    ("driver", "death"),
    [
        (Driver.VHOST_USER, Death.HUNG_UP),
        (Driver.VHOST_USER, Death.KILLED),
        (Driver.VFIO_PCI, Death.BROKEN),
        (Driver.IO_URING, Death.BROKEN),
    ],
)
async def test_a_device_may_die_at_any_call(
    driver: Driver, death: Death, simulator: Simulator, tmp_path: Any
) -> None:
    disk = new_disk(simulator, driver, tmp_path)
    for call in range(1, 1000):
        died = simulator.counts["device dies"]
        simulator.die_at(call, death)
        try:
            await _work(disk)
            failed = False
        except aioblk.BlkioError:
            failed = True
        if simulator.counts["device dies"] == died:
            assert not failed
            break
        simulator.die_at(0, death)
        if death is Death.KILLED:
            disk.restart()
    else:
        pytest.fail("it never came to an end")
    assert call > 40, "each of the calls that there are"


async def test_a_lost_device_is_opened_again(virtio_disk: Disk, simulator: Simulator) -> None:
    simulator.configure(abandons=1)
    async with device_on(virtio_disk) as dev:
        await dev.write(0, pattern(1))
        virtio_disk.die(Death.KILLED if virtio_disk.driver is Driver.VHOST_USER else Death.BROKEN)
        with pytest.raises(aioblk.DeviceLostError):
            await dev.read(0, BLOCK)
        if virtio_disk.driver is Driver.VHOST_USER:
            virtio_disk.restart()
        await dev.reconnect()
        assert await dev.read(0, BLOCK) == pattern(1)


async def test_a_region_is_left_in_any_turn_of_reconnecting(virtio_disk: Disk, simulator: Simulator) -> None:
    """It is unmapped once, where it is mapped: at the lost device, the one that is back, or neither."""
    simulator.configure(abandons=1)
    async with device_on(virtio_disk) as dev:
        for turns in range(40):
            region = await dev.allocate(4096).__aenter__()
            dev.abandon()
            reconnecting = asyncio.ensure_future(dev.reconnect())
            for _ in range(turns):
                await asyncio.sleep(0)
            await region.aclose()
            await reconnecting
            assert await dev.read(0, BLOCK) == bytes(BLOCK)


async def test_requests_in_flight_are_made_again_at_another_backend(
    backend: Disk, simulator: Simulator
) -> None:
    async with device_on(backend, reconnect_for=20) as dev:
        await dev.write(0, pattern(1))
        simulator.configure(hold=1)
        write = asyncio.ensure_future(dev.write(BLOCK, pattern(2)))
        read = asyncio.ensure_future(dev.read(0, BLOCK))
        await until_held(simulator, 2)
        backend.die(Death.KILLED)
        simulator.configure(hold=0)
        backend.restart()
        assert await read == pattern(1)
        await write
        assert dev.reconnections == 1
        assert await dev.read(BLOCK, BLOCK) == pattern(2)


@pytest.mark.abandons_memory
@pytest.mark.parametrize("driver", [Driver.IO_URING, Driver.VHOST_USER])
async def test_a_device_that_was_given_up_may_write_late_and_harms_nobody(
    driver: Driver, simulator: Simulator, tmp_path: Any
) -> None:
    """The kernel or a backend, that is; others have been reset."""
    simulator.configure(abandons=1)
    disk = new_disk(simulator, driver, tmp_path)
    async with device_on(disk) as dev:
        await dev.write(0, pattern(1))
        simulator.configure(hold=1)
        lost = [asyncio.ensure_future(dev.read(i * BLOCK, BLOCK)) for i in range(4)]
        await until_held(simulator, 4)
        dev.abandon()
        await asyncio.gather(*lost, return_exceptions=True)
        assert simulator.haunt() == 4 * BLOCK
        simulator.configure(hold=0)
        await dev.reconnect()
        simulator.configure(late=5, haunt=1000)
        for _ in range(10):
            reads = [dev.read(0, BLOCK) for _ in range(8)]
            assert await asyncio.gather(*reads) == [pattern(1)] * 8
    assert simulator.counts["destroyed in flight"] == 1
    assert simulator.haunt() == 4 * BLOCK


# --- calls that fail ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["create", "connect", "start"])
async def test_opening_fails_with_the_errno_given(call: str, disk: Disk, simulator: Simulator) -> None:
    simulator.fail(call, errno.ENOTBLK)
    with pytest.raises(aioblk.BlkioError) as caught:
        await device_on(disk).open()
    assert caught.value.errno == errno.ENOTBLK
    async with device_on(disk) as dev:
        await dev.read(0, BLOCK)


async def test_memory_that_cannot_be_mapped(virtio_disk: Disk, simulator: Simulator) -> None:
    async with device_on(virtio_disk) as dev:
        simulator.fail("map", errno.ENOMEM)
        with pytest.raises(aioblk.BlkioError) as caught:
            await dev.read(0, BLOCK)  # which needs bounce memory
        assert caught.value.errno == errno.ENOMEM
        assert await dev.read(0, BLOCK) == bytes(BLOCK)
        simulator.fail("map", errno.EBUSY)
        with pytest.raises(aioblk.RegistrationError):
            async with dev.allocate(4096):
                pass


# --- calls that block ---------------------------------------------------------------------------------------


async def test_connecting_may_take_as_long_as_it_pleases(backend: Disk, simulator: Simulator) -> None:
    with simulator.blocking("connect"):
        opening = asyncio.ensure_future(device_on(backend).open())
        await until(lambda: simulator.blocked("connect") == 1)
        assert not opening.done()
    dev = await opening
    await dev.aclose()


async def test_closing_may_take_as_long_as_it_pleases(disk: Disk, simulator: Simulator) -> None:
    dev = await device_on(disk).open()
    with simulator.blocking("destroy"):
        closing = asyncio.ensure_future(dev.aclose())
        await until(lambda: simulator.blocked("destroy") == 1)
        assert not closing.done()
    await closing


async def test_opening_is_given_up_in_time(backend: Disk, simulator: Simulator) -> None:
    with simulator.blocking("connect"), pytest.raises(aioblk.BlkioError) as caught:
        await device_on(backend, connect_timeout=SOON).open()
    assert caught.value.errno == errno.ETIMEDOUT


async def test_a_backend_serves_one_client_at_a_time(backend: Disk, simulator: Simulator) -> None:
    async with device_on(backend) as first:
        opening = asyncio.ensure_future(device_on(backend).open())
        await until(lambda: simulator.counts["create"] == 2)
        await first.write(0, pattern(1))
        assert not opening.done()
    second = await opening
    assert await second.read(0, BLOCK) == pattern(1)
    await second.aclose()


async def test_a_backend_dies_while_memory_is_being_mapped(backend: Disk, simulator: Simulator) -> None:
    async with device_on(backend) as dev:
        with simulator.blocking("map"):
            read = asyncio.ensure_future(dev.read(0, BLOCK))
            await until(lambda: simulator.blocked("map") == 1)
            backend.die(Death.HUNG_UP)
            with pytest.raises(aioblk.DeviceLostError):
                await read


# --- what a device is ---------------------------------------------------------------------------------------


async def test_a_capacity_that_changes_is_known_when_it_is_asked_for(
    virtio_disk: Disk, simulator: Simulator
) -> None:
    async with device_on(virtio_disk) as dev:
        virtio_disk.resize(2 * SIZE)
        assert await dev.refresh_capacity() == dev.capacity == 2 * SIZE
        await dev.write(2 * SIZE - BLOCK, pattern(1))
        virtio_disk.resize(SIZE)
        with pytest.raises(aioblk.BlkioError):
            await dev.read(2 * SIZE - BLOCK, BLOCK)
        assert await dev.refresh_capacity() == SIZE


async def test_a_device_of_other_properties_when_it_comes_back(backend: Disk, simulator: Simulator) -> None:
    async with device_on(backend) as dev:
        backend.die(Death.KILLED)
        await until(lambda: dev.lost)
        backend.override(max_segments=3)
        backend.restart()
        with pytest.raises(aioblk.DeviceLostError, match="max-segments is 3 now, and was 126"):
            await dev.reconnect()


async def test_limits_that_contradict_themselves_are_refused(backend: Disk, simulator: Simulator) -> None:
    backend.override(request_alignment=3)
    with pytest.raises(aioblk.BlkioError, match="request-alignment is 3, but it must be a power of two"):
        await device_on(backend).open()


# --- devices that are given up in the middle of something ---------------------------------------------------


@pytest.mark.abandons_memory
@pytest.mark.parametrize("driver", [Driver.IO_URING, Driver.VHOST_USER])
async def test_memory_that_is_let_go_of_may_give_up_the_device(
    driver: Driver, simulator: Simulator, tmp_path: Any
) -> None:
    """What has completed beside that is lost; what completed before it is not."""
    simulator.configure(abandons=1)
    async with device_on(new_disk(simulator, driver, tmp_path)) as dev:
        await dev.read(0, BLOCK)
        memory = Memory.from_buffer(bytearray(BLOCK), on_release=dev.abandon)
        before = dev.read(0, BLOCK)  # what comes after it goes together
        first = dev.read_into(0, View(memory))
        memory.close()
        others = [dev.read(0, BLOCK) for _ in range(3)]
        await asyncio.wait([before, first, *others])  # type: ignore[type-var]
        assert before.exception() is first.exception() is None
        assert [type(other.exception()) for other in others] == [aioblk.DeviceLostError] * 3


@pytest.mark.abandons_memory
async def test_a_cancelled_batch_that_is_lost_is_cancelled(backend: Disk, simulator: Simulator) -> None:
    simulator.configure(abandons=1)
    async with device_on(backend) as dev, dev.allocate(2 * BLOCK) as region:
        await dev.read(0, BLOCK)
        simulator.configure(hold=1)
        batch = dev.write_many([(BLOCK, region[BLOCK:]), (0, region[:BLOCK])])
        await until_held(simulator, 2)
        batch.cancel()
        assert not batch.done()
        dev.abandon()
        assert batch.cancelled()


@pytest.mark.abandons_memory
async def test_a_suspended_queue_goes_on_when_nothing_is_left_with_the_old_device(
    backend: Disk, simulator: Simulator
) -> None:
    simulator.configure(abandons=1)
    async with device_on(backend) as dev:
        await dev.read(0, BLOCK)
        simulator.configure(hold=1)
        core = dev.queue()._compiled
        read = asyncio.ensure_future(dev.read(0, BLOCK))
        await until_held(simulator, 1)
        core.suspend()
        with pytest.raises(ValueError, match="recalled or abandoned"):
            core.resume(1, -1, 8)
        dev.abandon()
        with pytest.raises(aioblk.DeviceLostError):
            await read


@pytest.mark.abandons_memory  # bounce memory, on NVMe
async def test_who_is_not_told_that_a_queue_is_broken_is_told_again(disk: Disk, simulator: Simulator) -> None:
    """For want of memory, that is."""
    async with device_on(disk) as dev:
        await dev.read(0, BLOCK)
        core: Any = dev.queue()._compiled
        told: list[int] = []
        tell = core.on_broken

        def refuse(number: int) -> None:
            told.append(number)
            core.on_broken = tell
            raise MemoryError

        core.on_broken = refuse
        disk.die(Death.BROKEN, errno.ENXIO)
        with pytest.raises(aioblk.DeviceLostError, match="the queue broke down"):
            await dev.read(0, BLOCK)
        assert told == [errno.ENXIO]


# --- silence ------------------------------------------------------------------------------------------------


async def test_a_request_of_which_a_part_was_heard_of_is_not_the_oldest(
    backend: Disk, simulator: Simulator
) -> None:
    backend.override(max_transfer=BLOCK)
    async with device_on(backend) as dev:
        await dev.read(0, BLOCK)
        simulator.configure(hold=1)
        core = dev.queue()._compiled
        older = asyncio.ensure_future(dev.read(0, 2 * BLOCK))
        (part, _) = await until_held(simulator, 2)
        newer = asyncio.ensure_future(dev.read(4 * BLOCK, BLOCK))
        await until_held(simulator, 3)
        assert core.grow_older() == (1, "read", 0, 2 * BLOCK)
        assert core.grow_older() == (2, "read", 0, 2 * BLOCK)
        completed = dev.statistics().parts
        simulator.complete(part)
        await until(lambda: dev.statistics().parts > completed)
        assert core.grow_older() == (3, "read", 4 * BLOCK, BLOCK)
        simulator.complete()
        await asyncio.gather(older, newer)


# --- spinning -----------------------------------------------------------------------------------------------


async def test_spinning_in_vain_becomes_ever_rarer(backend: Disk, simulator: Simulator) -> None:
    async with device_on(backend) as dev:
        await dev.read(0, BLOCK)
        simulator.configure(hold=1)
        core = dev.queue()._compiled
        read = asyncio.ensure_future(dev.read(0, BLOCK))
        await until_held(simulator, 1)
        core.spin_ns = 20_000
        calls, flushes = dev.statistics().do_io_calls, 3200
        for _ in range(flushes):
            core.flush()
        spun = dev.statistics().do_io_calls - calls - flushes
        assert 1 <= spun < flushes
        core.spin_ns = 0
        simulator.complete()
        assert await read == bytes(BLOCK)


@pytest.mark.abandons_memory
async def test_spinning_ends_where_the_device_is_given_up(backend: Disk, simulator: Simulator) -> None:
    simulator.configure(abandons=1)
    async with device_on(backend) as dev:
        await dev.read(0, BLOCK)
        simulator.configure(hold=1)
        core: Any = dev.queue()._compiled
        read = asyncio.ensure_future(dev.read(0, BLOCK))
        await until_held(simulator, 1)
        core.on_broken = lambda _: dev.abandon()
        core.spin_ns = 10**15
        simulator.die_at(2, Death.BROKEN)
        core.flush()
        with pytest.raises(aioblk.DeviceLostError):
            await read


async def test_bounce_memory_that_went_with_a_lost_device_is_not_given_back_once_more(
    simulator: Simulator, tmp_path: Path
) -> None:
    disk = new_disk(simulator, Driver.VFIO_PCI, tmp_path, SIZE)
    async with device_on(disk, num_queues=2) as dev:
        pool = dev.bounce_pool
        await dev.write(0, pattern(1))
        dev.abandon()
        await pool._start_resizing(4096)  # as when it has been idle: there is nobody to tell
        await dev.reconnect()
        async with dev.queue(1) as queue:
            await queue.write(BLOCK, pattern(2))  # by memory that lies where the other's did
            await dev.write(2 * BLOCK, pattern(3))
            assert pool._region is not None
            assert pool._region != queue.bounce_pool._region
            assert await queue.read(BLOCK, BLOCK) == pattern(2)
