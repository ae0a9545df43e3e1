"""Registering memory, allocating it, opening a device: the median of each in milliseconds, as JSON."""

import json
import mmap
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from benchmarks.workers.aioblk_device import make_device
from benchmarks.workers.measuring import WARM_UP, Job, run_loop

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


def shared_memory() -> mmap.mmap:
    """Of a file, as a backend needs it."""
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.truncate(SIZE)
        return mmap.mmap(file.fileno(), SIZE)


async def measure() -> None:
    if job.kind == "file":
        figures = {"open_ms": await milliseconds(lambda: make_device(job))}
    else:
        async with make_device(job) as device:
            memory = shared_memory()
            figures = {
                "register_ms": await milliseconds(lambda: device.register(memory)),
                "allocate_ms": await milliseconds(lambda: device.allocate(SIZE)),
            }
    print(json.dumps(figures), flush=True)


run_loop(job, measure())
