"""aioblk on a device that needs mapped memory: registered memory, bounce pool, a region for each request.

The last is a program that maps, submits, copies and unmaps each time; nothing in aioblk does.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import aioblk
from benchmarks.workers.aioblk_device import device_and_buffers, make_device
from benchmarks.workers.measuring import AsyncOperation, Job, Prepared, main

SPARE_REGIONS = 4
"""Regions left to the device itself, of the few dozen that it accepts."""


@asynccontextmanager
async def prepare(job: Job) -> AsyncGenerator[Prepared]:
    (way,) = job.options
    if way == "registered":
        async with device_and_buffers(job) as (device, buffers):
            yield Prepared(device.read_into if job.reads else device.write, buffers)
        return
    async with make_device(job) as device:
        own_memory = [bytearray(job.block_size) for _ in range(job.depth)]
        if way == "pool":
            yield Prepared(device.read_into if job.reads else device.write, own_memory)
        else:
            yield Prepared(mapped_each_time(device, job), own_memory)


def mapped_each_time(device: aioblk.Device, job: Job) -> AsyncOperation:
    regions = asyncio.Semaphore(min(job.depth, device.limits.max_mem_regions - SPARE_REGIONS))

    async def read(offset: int, memory: bytearray) -> None:
        async with regions, device.allocate(job.block_size) as region:
            await device.read_into(offset, region[:])
            memory[:] = region[:].tobytes()

    async def write(offset: int, memory: bytearray) -> None:
        async with regions, device.allocate(job.block_size) as region:
            region[:] = memory
            await device.write(offset, region[:])

    return read if job.reads else write


main(prepare)
