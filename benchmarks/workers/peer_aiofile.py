"""aiofile: positional reads and writes on one file."""

import importlib
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.workers.measuring import Job, Prepared, main


@asynccontextmanager
async def prepare(job: Job) -> AsyncGenerator[Prepared]:
    aiofile = importlib.import_module("aiofile")
    async with aiofile.AIOFile(job.path, "rb" if job.reads else "r+b") as file:

        def read(offset: int, size: int) -> Any:
            return file.read(size, offset)

        def write(offset: int, data: bytes) -> Any:
            return file.write(data, offset)

        if job.reads:
            yield Prepared(read, [job.block_size] * job.depth)
        else:
            yield Prepared(write, [os.urandom(job.block_size)] * job.depth)


main(prepare)
