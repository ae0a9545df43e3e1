"""pyaio: one io_uring for the loop."""

import importlib
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.workers.measuring import Job, Prepared, main


@asynccontextmanager
async def prepare(job: Job) -> AsyncGenerator[Prepared]:
    descriptor = os.open(job.path, os.O_RDWR)
    uring: Any = importlib.import_module("pyaio.uring")
    async with uring.UringIO() as ring:

        def read(offset: int, size: int) -> Any:
            return ring.read(descriptor, offset, size)

        def write(offset: int, data: bytes) -> Any:
            return ring.write(descriptor, data, offset)

        if job.reads:
            yield Prepared(read, [job.block_size] * job.depth)
        else:
            yield Prepared(write, [os.urandom(job.block_size)] * job.depth)
    os.close(descriptor)


main(prepare)
