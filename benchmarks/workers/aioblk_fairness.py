"""What aioblk leaves to the rest of the program: how late a ticker gets beside it, how it scales.

Prints one line of JSON; `benchmarks/fairness.py` says what each figure may be.
"""

import asyncio
import json
import math
import resource
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aioblk
from benchmarks.workers.measuring import Job, repeated, run_loop

TICK = 0.001
MANY_TASKS = 100_000
BIG_READS, BIG_READ = 64, 1 << 20

job = Job.from_arguments()
OFFSETS = job.offsets()
BUFFER = bytearray(job.block_size)


class Ticker:
    """Wants to run every millisecond and notes how late it was, in seconds."""

    def __init__(self) -> None:
        self.lateness: list[float] = []

    async def run(self) -> None:
        due = time.perf_counter()
        while True:
            due += TICK
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            now = time.perf_counter()
            self.lateness.append(now - due)
            due = max(due, now - TICK)  # a tick that was missed is not made up for


async def beside_ticker(work: Callable[[], Awaitable[object]]) -> list[float]:
    ticker = Ticker()
    task = asyncio.create_task(ticker.run())
    end = time.perf_counter() + job.seconds
    while time.perf_counter() < end:
        await work()
    task.cancel()
    return sorted(ticker.lateness)


def percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, math.ceil(len(ordered) * share) - 1)]


async def read_all(device: aioblk.Device, offsets: list[int]) -> None:
    for offset in offsets:
        await device.read_into(offset, BUFFER)


async def read_in_tasks(device: aioblk.Device, tasks: int, each: int) -> None:
    async with asyncio.TaskGroup() as group:
        for task in range(tasks):
            start = task % (len(OFFSETS) - each)
            group.create_task(read_all(device, OFFSETS[start : start + each]))


async def seconds_each(device: aioblk.Device, tasks: int, each: int) -> float:
    """Processor time of one read; the difference of two runs leaves out what making the tasks takes."""
    costs: list[float] = []
    for reads in (1, 1 + each):
        start = time.process_time()
        await read_in_tasks(device, tasks, reads)
        costs.append(time.process_time() - start)
    return (costs[1] - costs[0]) / (tasks * each)


async def bytes_in_flight(device: aioblk.Device) -> float:
    """Growth of the process for one request that waits for its turn."""
    offsets = repeated(OFFSETS, MANY_TASKS)
    requests: list[Any] = [None] * MANY_TASKS
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for index, offset in enumerate(offsets):
        requests[index] = device.read_into(offset, BUFFER)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for request in requests:
        await request
    return (after - before) * 1024 / MANY_TASKS


async def measure() -> None:
    async with aioblk.IoUring(job.path) as device:
        big = [index * BIG_READ for index in range(BIG_READS)]
        buffers = [bytearray(BIG_READ) for _ in big]

        async def big_reads() -> None:
            await asyncio.gather(*[device.read_into(at, to) for at, to in zip(big, buffers, strict=True)])

        # The memory first: later there are freed blocks that would hide the growth.
        figures = {"bytes_in_flight": await bytes_in_flight(device)}
        few = await seconds_each(device, 32, 5 * MANY_TASKS // 32)
        many = await seconds_each(device, MANY_TASKS, 5)
        idle = await beside_ticker(lambda: asyncio.sleep(job.seconds))
        busy = await beside_ticker(lambda: read_in_tasks(device, 32, 500))
        inline = await beside_ticker(lambda: read_all(device, OFFSETS[:10_000]))
        stalls = await beside_ticker(big_reads)
        figures |= {
            "idle_p99_ms": percentile(idle, 0.99) * 1e3,
            "ticker_p99_ms": percentile(busy, 0.99) * 1e3,
            "inline_p99_ms": percentile(inline, 0.99) * 1e3,
            "stall_ms": stalls[-1] * 1e3,
            "stall_p99_ms": percentile(stalls, 0.99) * 1e3,
            "scale": many / few,
        }
        print(json.dumps(figures), flush=True)


run_loop(job, measure())
