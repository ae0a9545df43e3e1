"""What may fail at any step: each scenario is run once for every step of what it does ``with fault``.

It ends with a BlkioError at worst, holds nothing afterwards, and its device goes on, or closes.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from mmap import mmap

import aioblk

from ..support.devices import settled
from .fault import BLOCK, CONTENT, Fault, World

__all__ = ["SCENARIOS", "Scenario"]

Scenario = Callable[[World, Fault], Coroutine[None, None, None]]

SCENARIOS: dict[str, Scenario] = {}


def scenario(run: Scenario) -> Scenario:
    SCENARIOS[run.__name__] = run
    return run


# --- opening and closing ------------------------------------------------------------------------------------


async def open_and_close(device: aioblk.Device, world: World, fault: Fault) -> None:
    with fault:
        await device.open()
    if fault.error is None:
        await world.closes(device)
    else:
        await world.is_free(device)


@scenario
async def opening_a_file(world: World, fault: Fault) -> None:
    await open_and_close(world.io_uring(num_queues=2), world, fault)


@scenario
async def opening_a_file_and_locking_it(world: World, fault: Fault) -> None:
    await open_and_close(world.io_uring(lock=True), world, fault)
    aioblk.FileLock(world.file).release()


@scenario
async def making_a_file(world: World, fault: Fault) -> None:
    new = world.file.with_name("new")
    device = aioblk.IoUring(new, create=len(CONTENT))
    try:
        with fault:
            await device.open()
        if fault.error is None:
            assert await device.read(0, BLOCK) == bytes(BLOCK)
        await device.aclose()
    finally:
        new.unlink(missing_ok=True)


@scenario
async def opening_a_descriptor(world: World, fault: Fault) -> None:
    with world.file.open("r+b") as file:
        await open_and_close(aioblk.IoUring(fd=file.fileno()), world, fault)


@scenario
async def opening_a_backend(world: World, fault: Fault) -> None:
    await open_and_close(world.vhost_user(), world, fault)


@scenario
async def opening_a_backend_that_may_come_back(world: World, fault: Fault) -> None:
    await open_and_close(world.vhost_user(reconnect_for=5.0), world, fault)


async def close(device: aioblk.Device, world: World, fault: Fault) -> None:
    """A second aclose() finishes what the first one could not."""
    with fault:
        await device.aclose()
    await device.aclose()
    await world.is_free(device)


@scenario
async def closing_a_file(world: World, fault: Fault) -> None:
    device = await world.io_uring(num_queues=2, direct=True).open()
    async with device.queue(1) as queue:
        await queue.read(0, BLOCK)
        await device.read(0, BLOCK)
        await close(device, world, fault)


@scenario
async def closing_a_backend(world: World, fault: Fault) -> None:
    device = await world.vhost_user(num_queues=2).open()
    await device.read(0, BLOCK)
    await device.queue(1).read(0, BLOCK)
    async with device.allocate(BLOCK) as region:
        await device.read_into(0, region)
        await close(device, world, fault)


@scenario
async def closing_a_lost_backend(world: World, fault: Fault) -> None:
    device = await world.vhost_user().open()
    await device.read(0, BLOCK)
    device.abandon()
    await close(device, world, fault)


@scenario
async def closing_a_detached_device(world: World, fault: Fault) -> None:
    device = await world.vhost_user().open()
    await device.read(0, BLOCK)
    await device.detach()
    await close(device, world, fault)


@scenario
async def leaving_the_block(world: World, fault: Fault) -> None:
    device = world.vhost_user()
    with fault:
        async with device:
            await device.read(0, BLOCK)
    await device.aclose()
    await world.is_free(device)


@scenario
async def detaching_and_attaching(world: World, fault: Fault) -> None:
    device = await world.vhost_user().open()
    await device.read(0, BLOCK)
    with fault:
        await device.detach()
        await device.attach()
    if fault.error is not None:
        with contextlib.suppress(aioblk.UsageError):  # it is attached, or still is
            await device.attach()
    await world.closes(device)


# --- requests -----------------------------------------------------------------------------------------------


@scenario
async def first_bounced_read(world: World, fault: Fault) -> None:
    device = await world.vhost_user().open()
    with fault:
        await device.read(0, BLOCK)
    await world.closes(device)


@scenario
async def first_bounced_write_of_a_file(world: World, fault: Fault) -> None:
    device = await world.io_uring(direct=True).open()
    with fault:
        await device.write(0, memoryview(CONTENT)[256 : 256 + BLOCK])
    await world.closes(device)


@scenario
async def bounced_batch(world: World, fault: Fault) -> None:
    device = await world.vhost_user().open()
    with fault:
        results = await device.read_many([(BLOCK * i, BLOCK) for i in range(8)], return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
    await world.closes(device)


@scenario
async def growing_pool(world: World, fault: Fault) -> None:
    device = await world.vhost_user().open()
    await device.read(0, BLOCK)
    reads: list[aioblk.Request[bytes]] = []
    with fault:
        reads += [device.read(0, 1 << 20) for _ in range(4)]
        await settled(*reads)
        for read in reads:
            assert await read == CONTENT[: 1 << 20]
    for read in reads:
        read.exception()
    await world.closes(device)


@scenario
async def requests_that_need_nothing(world: World, fault: Fault) -> None:
    device = await world.io_uring().open()
    with fault:
        assert await device.read(0, BLOCK) == CONTENT[:BLOCK]
        await device.writev(0, [CONTENT[:512], CONTENT[512:BLOCK]])
        await device.flush()
        await device.write_many([(0, CONTENT[:BLOCK]), (BLOCK, CONTENT[:BLOCK])])
    await world.closes(device)


@scenario
async def discarding_on_a_block_device(world: World, fault: Fault) -> None:
    device = await aioblk.IoUring(world.loop_device).open()
    with fault:
        await device.discard(4 << 20, 1 << 20)
    await world.closes(device)


@scenario
async def growing_and_cutting_a_file(world: World, fault: Fault) -> None:
    device = await world.io_uring().open()
    with fault:
        await device.truncate(len(CONTENT) + BLOCK)
        await device.write_zeroes(len(CONTENT), 2 * BLOCK)
        await device.truncate(len(CONTENT))
    os.truncate(world.file, len(CONTENT))
    await world.closes(device)


@scenario
async def zeroes_that_are_written(world: World, fault: Fault) -> None:
    device = await world.vhost_user().open()
    with fault:
        await device.write_zeroes(4 << 20, 1 << 20, no_unmap=True)
    await world.closes(device)


# --- memory -------------------------------------------------------------------------------------------------


@scenario
async def allocating_memory(world: World, fault: Fault) -> None:
    device = await world.vhost_user().open()
    with fault:
        async with device.allocate(BLOCK) as region:
            await device.read_into(0, region)
    await world.closes(device)


@scenario
async def registering_memory(world: World, fault: Fault) -> None:
    device = await world.vhost_user().open()
    await device.read(0, BLOCK)
    memory = mmap(-1, 1 << 20)
    with fault:
        async with device.register(memory) as region:
            await device.read_into(0, region[:BLOCK])
        assert memory[:BLOCK] == CONTENT[:BLOCK]
    await world.closes(device)


@scenario
async def leaving_memory(world: World, fault: Fault) -> None:
    device = await world.vhost_user().open()
    region = await device.allocate(BLOCK).__aenter__()
    with fault:
        await region.aclose()
    await region.aclose()
    await world.closes(device)


@scenario
async def arena(world: World, fault: Fault) -> None:
    device = await world.vhost_user().open()
    other = await world.io_uring().open()
    with fault:
        async with aioblk.Arena(1 << 20) as arena:
            await arena.trim()
            await arena.attach(device)
            await arena.attach(other)
            await arena.add_block(1 << 20)
            with arena.allocate(BLOCK) as buffer:
                await device.read_into(0, buffer)
    await world.closes(device, other)


# --- queues -------------------------------------------------------------------------------------------------


@scenario
async def adding_and_removing_a_queue(world: World, fault: Fault) -> None:
    device = await world.io_uring().open()
    with fault:
        index = await device.add_queue()
        await device.remove_queue(index)
    await world.closes(device)


@scenario
async def queue_of_a_file(world: World, fault: Fault) -> None:
    device = await world.io_uring(num_queues=2, direct=True).open()
    with fault:
        async with device.queue(1) as queue:
            await queue.read(0, BLOCK)
    if not device.lost:
        async with device.queue(1) as queue:
            assert await queue.read(0, BLOCK) == CONTENT[:BLOCK]
    await world.closes(device)


@scenario
async def queue_of_a_backend(world: World, fault: Fault) -> None:
    device = await world.vhost_user(num_queues=2).open()
    with fault:
        async with device.queue(1) as queue:
            await queue.read(0, BLOCK)
    if not device.lost:
        async with device.queue(1) as queue:
            assert await queue.read(0, BLOCK) == CONTENT[:BLOCK]
    await world.closes(device)


@scenario
async def blocking_queue(world: World, fault: Fault) -> None:
    device = await world.vhost_user(num_queues=2).open()

    def use_queue() -> None:
        with device.blocking_queue(1) as queue:
            assert queue.wait(queue.read(0, BLOCK), timeout=5) == CONTENT[:BLOCK]

    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as thread:
        await loop.run_in_executor(thread, int)  # which starts it
        with fault:
            await loop.run_in_executor(thread, use_queue)
        if not device.lost:
            await loop.run_in_executor(thread, use_queue)
    await world.closes(device)


# --- coming back --------------------------------------------------------------------------------------------


@scenario
async def reconnecting(world: World, fault: Fault) -> None:
    device = await world.vhost_user().open()
    async with device.allocate(BLOCK) as region:
        await device.read(0, BLOCK)
        device.abandon()
        with fault:
            await device.reconnect()
        if device.lost:
            await device.reconnect()
        await device.read_into(0, region)
        assert bytes(region[:BLOCK]) == CONTENT[:BLOCK]
    await world.closes(device)


@scenario
async def reopening_a_file(world: World, fault: Fault) -> None:
    device = await world.io_uring(direct=True).open()
    await device.read(0, BLOCK)
    device.abandon()
    with fault:
        await device.reconnect()
    if device.lost:
        await device.reconnect()
    await world.closes(device)


@scenario
async def another_backend(world: World, fault: Fault) -> None:
    device = await world.vhost_user(reconnect_for=0.2).open()
    async with device.allocate(BLOCK) as region:
        await device.read(0, BLOCK)
        world.daemon.restart()
        with fault:
            await asyncio.gather(device.read(0, BLOCK), device.read_into(0, region))
    await world.closes(device)


# --- what the device is -------------------------------------------------------------------------------------


@scenario
async def refreshing_the_capacity(world: World, fault: Fault) -> None:
    device = await world.vhost_user().open()
    with fault:
        assert await device.refresh_capacity() == len(CONTENT)
        assert device.capacity == len(CONTENT)
    await world.closes(device)


@scenario
async def capacity_of_a_file(world: World, fault: Fault) -> None:
    device = await world.io_uring().open()
    with fault:
        assert device.capacity == len(CONTENT)
        assert device.properties["capacity"] == len(CONTENT)
    await world.closes(device)


@scenario
async def extents(world: World, fault: Fault) -> None:
    device = await world.io_uring().open()
    with fault:
        async for extent in device.extents():
            assert extent.end <= len(CONTENT)
    await world.closes(device)
