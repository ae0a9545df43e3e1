"""aioblk at its simplest: `await device.read(offset, length)` gives bytes; writes take bytes."""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from benchmarks.workers.aioblk_device import make_device
from benchmarks.workers.measuring import Job, Prepared, main


@asynccontextmanager
async def prepare(job: Job) -> AsyncGenerator[Prepared]:
    async with make_device(job) as device:
        if job.reads:
            yield Prepared(device.read, [job.block_size] * job.depth)
        else:
            yield Prepared(device.write, [os.urandom(job.block_size)] * job.depth)


main(prepare)
