"""os.pread and os.pwrite in the event loop's default thread pool: what asyncio itself offers for files."""

import asyncio
import mmap
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from benchmarks.workers.measuring import Job, Prepared, main


@asynccontextmanager
async def prepare(job: Job) -> AsyncGenerator[Prepared]:
    descriptor = os.open(job.path, os.O_RDWR | (os.O_DIRECT if job.direct else 0))
    run = asyncio.get_running_loop().run_in_executor

    def read(offset: int, _: None) -> asyncio.Future[bytes]:
        return run(None, os.pread, descriptor, job.block_size, offset)

    def write(offset: int, data: bytes) -> asyncio.Future[int]:
        return run(None, os.pwrite, descriptor, data, offset)

    def direct(offset: int, aligned: mmap.mmap) -> asyncio.Future[int]:
        return run(None, os.preadv if job.reads else os.pwritev, descriptor, [aligned], offset)

    if job.direct:
        yield Prepared(direct, [mmap.mmap(-1, job.block_size) for _ in range(job.depth)])
    elif job.reads:
        yield Prepared(read, [None] * job.depth)
    else:
        yield Prepared(write, [os.urandom(job.block_size)] * job.depth)
    os.close(descriptor)


main(prepare)
