"""caio with one of its backends."""

import importlib
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.workers.measuring import Job, Prepared, main

MODULES = {"uring": "linux_uring", "linux": "linux_aio", "thread": "thread_aio", "python": "python_aio"}


@asynccontextmanager
async def prepare(job: Job) -> AsyncGenerator[Prepared]:
    descriptor = os.open(job.path, os.O_RDWR)
    module = importlib.import_module(f"caio.{MODULES[job.options[0]]}_asyncio")
    async with module.AsyncioContext(max_requests=max(job.depth, 2)) as context:

        def read(offset: int, size: int) -> Any:
            return context.read(size, descriptor, offset)

        def write(offset: int, data: bytes) -> Any:
            return context.write(data, descriptor, offset)

        if job.reads:
            yield Prepared(read, [job.block_size] * job.depth)
        else:
            yield Prepared(write, [os.urandom(job.block_size)] * job.depth)
    os.close(descriptor)


main(prepare)
