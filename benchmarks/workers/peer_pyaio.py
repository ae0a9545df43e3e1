"""pyaio: one io_uring for the loop."""

import importlib
import mmap
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.workers.measuring import Job, Prepared, main


@asynccontextmanager
async def prepare(job: Job) -> AsyncGenerator[Prepared]:
    descriptor = os.open(job.path, os.O_RDWR | (os.O_DIRECT if job.direct else 0))
    uring: Any = importlib.import_module("pyaio.uring")
    async with uring.UringIO() as ring:

        def read(offset: int, size: int) -> Any:
            return ring.read(descriptor, offset, size)

        def write(offset: int, data: bytes | mmap.mmap) -> Any:
            return ring.write(descriptor, data, offset)

        if job.reads:
            yield Prepared(read, [job.block_size] * job.depth)
        else:
            # For O_DIRECT, memory that begins at a page.
            data = mmap.mmap(-1, job.block_size) if job.direct else os.urandom(job.block_size)
            yield Prepared(write, [data] * job.depth)
    os.close(descriptor)


main(prepare)
