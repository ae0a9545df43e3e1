"""Requests that nobody waits for any more."""

import asyncio
import contextlib
import os

import aioblk

from .drivers import Opener

BLOCK = 4096
MIB = 1 << 20


async def test_a_cancelled_read_leaves_the_device_usable(device: aioblk.Device) -> None:
    await device.write(0, b"\x01" * MIB)
    reads = [asyncio.ensure_future(device.read(0, MIB)) for _ in range(8)]
    for read in reads[::2]:
        read.cancel()
    for number, read in enumerate(reads):
        if number % 2 or not read.cancelled():
            assert await read == b"\x01" * MIB
    assert await device.read(0, BLOCK) == b"\x01" * BLOCK


async def test_a_cancelled_task_keeps_its_buffer_until_the_device_is_done(device: aioblk.Device) -> None:
    await device.write(0, b"\x02" * MIB)
    buffer = bytearray(MIB)

    async def read() -> None:
        await device.read_into(0, buffer)

    task = asyncio.create_task(read())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    buffer[:] = bytes(MIB)  # whether cancelled or not, the device does not write any more
    assert await device.read(0, BLOCK) == b"\x02" * BLOCK
    assert buffer == bytes(MIB)


async def test_a_storm_of_cancellations_loses_nothing(device: aioblk.Device) -> None:
    data = os.urandom(64 * BLOCK)
    await device.write(0, data)
    for lap in range(20):
        tasks = [asyncio.ensure_future(device.read(BLOCK * number, BLOCK)) for number in range(64)]
        await asyncio.sleep(0)
        for number, task in enumerate(tasks):
            if (number + lap) % 3 == 0:
                task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        for number, block in enumerate(found):
            if not isinstance(block, asyncio.CancelledError):
                assert block == data[BLOCK * number : BLOCK * (number + 1)]
    await device.flush()


async def test_a_missed_deadline_leaves_the_device_usable(device: aioblk.Device) -> None:
    await device.write(0, b"\x03" * MIB)
    with contextlib.suppress(TimeoutError):  # what is cached may be there at once
        await asyncio.wait_for(device.read(0, MIB), 0)
    assert await device.read(0, BLOCK) == b"\x03" * BLOCK


async def test_closing_waits_for_cancelled_requests(new_device: Opener) -> None:
    async with new_device() as device:
        requests = [asyncio.ensure_future(device.read(BLOCK * number, BLOCK)) for number in range(256)]
        for request in requests:
            request.cancel()
    assert device.closed
