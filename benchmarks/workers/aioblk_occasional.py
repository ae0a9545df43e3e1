"""Registering memory, allocating it, opening a device: the median of each in milliseconds, as JSON.

Beside them what libblkio's own calls take for the same, one after the other in one thread, with the caller
standing still: less nobody can take over libblkio.
"""

import json
import mmap
import os
import statistics
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from typing import TYPE_CHECKING

from aioblk._native._blkio import ffi, lib
from aioblk._sync.blocking import run_blocking
from benchmarks.workers.aioblk_device import make_device
from benchmarks.workers.measuring import WARM_UP, Job, run_loop

if TYPE_CHECKING:
    from aioblk._native._blkio import Pointer

SIZE = 1 << 20

job = Job.from_arguments()


async def milliseconds(make: Callable[[], AbstractAsyncContextManager[object]]) -> float:
    """What entering and leaving takes, one after the other."""
    clock = time.perf_counter
    warm, end = clock() + WARM_UP, clock() + WARM_UP + job.seconds
    taken: list[float] = []
    while (start := clock()) < end:
        async with make():
            pass
        if start > warm:
            taken.append(clock() - start)
    return statistics.median(taken) * 1e3


# --- libblkio alone -----------------------------------------------------------------------------------------


def ensure(status: int) -> None:
    if status < 0:
        raise OSError(-status, os.strerror(-status))


@contextmanager
def opened() -> "Iterator[Pointer]":
    driver = b"io_uring" if job.kind == "file" else b"virtio-blk-vhost-user"
    handle = ffi.new("struct blkio **")
    ensure(lib.blkio_create(driver, handle))
    ensure(lib.blkio_set_str(handle[0], b"path", job.path.encode()))
    ensure(lib.blkio_connect(handle[0]))
    ensure(lib.blkio_start(handle[0]))
    yield handle[0]
    lib.blkio_destroy(handle)


@contextmanager
def mapped(device: "Pointer", fd: int, memory: mmap.mmap) -> Iterator[None]:
    region = ffi.new("struct blkio_mem_region *")
    region.addr = ffi.from_buffer(memory)
    region.len = len(memory)
    region.fd = fd
    ensure(lib.blkio_map_mem_region(device, region))
    yield
    lib.blkio_unmap_mem_region(device, region)


async def milliseconds_alone(make: Callable[[], AbstractContextManager[object]]) -> float:
    @asynccontextmanager
    async def made() -> AsyncGenerator[None]:
        with make():
            yield

    return await milliseconds(made)


@asynccontextmanager
async def handed_over() -> AsyncGenerator[None]:
    """To a thread and back, which is how aioblk calls whatever may block."""
    await run_blocking(int)
    yield


async def measure() -> None:
    if job.kind == "file":
        figures = {
            "hand_over_ms": await milliseconds(handed_over),
            "open_alone_ms": await milliseconds_alone(opened),
            "open_ms": await milliseconds(lambda: make_device(job)),
        }
    else:
        fd = os.memfd_create("memory")  # a file, as a backend needs it
        os.truncate(fd, SIZE)
        memory = mmap.mmap(fd, SIZE)
        with opened() as handle:
            figures = {"map_alone_ms": await milliseconds_alone(lambda: mapped(handle, fd, memory))}
        async with make_device(job) as device:
            figures["register_ms"] = await milliseconds(lambda: device.register(memory))
            figures["allocate_ms"] = await milliseconds(lambda: device.allocate(SIZE))
    print(json.dumps(figures), flush=True)


run_loop(job, measure())
