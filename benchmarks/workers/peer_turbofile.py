"""turbofile: positional reads on one file, as its documentation advises for random access.

It has no positional write: each slot writes through a file of its own.
"""

import importlib
import os
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from benchmarks.workers.measuring import Job, Prepared, main


@asynccontextmanager
async def prepare(job: Job) -> AsyncGenerator[Prepared]:
    turbofile = importlib.import_module("turbofile")
    async with AsyncExitStack() as stack:
        if job.reads:
            file = await stack.enter_async_context(turbofile.open(job.path, "rb"))
            if "into" in job.options:
                yield Prepared(file.readinto_at, [bytearray(job.block_size) for _ in range(job.depth)])
            else:
                yield Prepared(file.read_at, [job.block_size] * job.depth)
            return
        data = os.urandom(job.block_size)

        async def write(offset: int, file: Any) -> None:
            await file.seek(offset)
            await file.write(data)

        yield Prepared(
            write,
            [
                await stack.enter_async_context(turbofile.open(job.path, "r+b", buffering=0))
                for _ in range(job.depth)
            ],
        )


main(prepare)
