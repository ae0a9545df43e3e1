"""aioblk with one await per operation: read_into and write on memory that the device reaches."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from benchmarks.workers.aioblk_device import device_and_buffers
from benchmarks.workers.measuring import Job, Prepared, main


@asynccontextmanager
async def prepare(job: Job) -> AsyncGenerator[Prepared]:
    async with device_and_buffers(job) as (device, buffers):
        yield Prepared(device.read_into if job.reads else device.write, buffers)


main(prepare)
