"""Libraries shaped like Python's own files: urio, py-asyncfiles and aiofiles.

A file has one position, so each slot seeks and reads in a file of its own; unbuffered where that can be asked
for, so that one read is one read.
"""

import importlib
import mmap
import os
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from benchmarks.workers.measuring import Job, Prepared, main

OPEN_OPTIONS: dict[str, dict[str, int]] = {"aiofiles": {"buffering": 0}}
SEEK_IS_IMMEDIATE = {"asyncfiles"}


@asynccontextmanager
async def prepare(job: Job) -> AsyncGenerator[Prepared]:
    (name,) = job.options
    library = importlib.import_module(name)
    immediate = name in SEEK_IS_IMMEDIATE
    options: dict[str, Any] = {**OPEN_OPTIONS.get(name, {})}
    data: Any = os.urandom(job.block_size)
    if job.direct:
        options["opener"] = open_direct
        data = mmap.mmap(-1, job.block_size)  # O_DIRECT wants memory that begins at a page

    async def read(offset: int, file: Any) -> None:
        sought = file.seek(offset)
        if not immediate:
            await sought
        await file.read(job.block_size)

    async def read_direct(offset: int, file: Any) -> None:
        sought = file.seek(offset)
        if not immediate:
            await sought
        await file.readinto(data)

    async def write(offset: int, file: Any) -> None:
        sought = file.seek(offset)
        if not immediate:
            await sought
        await file.write(data)

    async with AsyncExitStack() as stack:
        files = [
            await stack.enter_async_context(library.open(job.path, "rb" if job.reads else "r+b", **options))
            for _ in range(job.depth)
        ]
        yield Prepared(write if not job.reads else read_direct if job.direct else read, files)


def open_direct(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_DIRECT)


main(prepare)
