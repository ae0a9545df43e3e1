"""How every Python contender is measured.

Throughput and latency are taken one after the other: the clock calls around each operation, which latency
needs, would cost a fast contender a tenth of its throughput. The number of operations is fixed before, from
a short warm-up, so that nothing is decided or counted in the loops.
"""

from __future__ import annotations

import asyncio
import json
import platform
import random
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

WARM_UP = 0.05
"""Seconds, at least, before anything is measured."""
LATENCY_SHARE = 0.3
"""Length of the latency measurement, of the throughput's."""
DISTINCT_OFFSETS = 1 << 16


@dataclass(frozen=True)
class Job:
    """What to do: sizes in bytes, times in seconds."""

    path: str
    kind: str
    """`file` or `vhost-user`."""
    capacity: int
    operation: str
    """`read` or `write`."""
    block_size: int
    depth: int
    seconds: float
    direct: bool = False
    loop: str = "asyncio"
    options: tuple[str, ...] = ()
    """What else the contender's name says, for example the backend of a library."""

    @classmethod
    def from_arguments(cls) -> Job:
        fields = json.loads(sys.argv[1])
        return cls(**{**fields, "options": tuple(fields.get("options", ()))})

    @property
    def reads(self) -> bool:
        return self.operation == "read"

    def offsets(self) -> list[int]:
        """Offsets of whole blocks in random order, none twice."""
        blocks = self.capacity // self.block_size
        order = random.Random(0).sample(range(blocks), min(blocks, DISTINCT_OFFSETS))
        return [block * self.block_size for block in order]

    def orders(self, count: int) -> list[list[int]]:
        """For each of as many slots as the depth, `count` offsets: a list, which costs a loop the least.

        Every slot goes through the whole device, each from another place on. If each had a part of it, a
        contender that never suspends a task, and so does slot after slot, would find in the processor's cache
        what the others fetch from memory.
        """
        offsets = self.offsets()
        twice, length = offsets * 2, min(count, len(offsets))
        places = [slot * len(offsets) // self.depth for slot in range(self.depth)]
        return [repeated(twice[place : place + length], count) for place in places]

    def batches(self, count: int) -> list[list[int]]:
        """`count` times as many offsets as the depth."""
        offsets = self.offsets()
        places = range(0, max(1, len(offsets) - self.depth + 1), self.depth)
        return repeated(
            [repeated(offsets[place : place + self.depth], self.depth) for place in places], count
        )


T = TypeVar("T")


def repeated(items: list[T], count: int) -> list[T]:
    """`count` items, beginning again where they run out."""
    return (items * (count // len(items) + 1))[:count]


AsyncOperation = Callable[[int, Any], Awaitable[object]]
"""Called with an offset and the slot's buffer."""


@dataclass
class Prepared:
    """A contender ready to be measured: one operation, and a buffer for each of the concurrent slots."""

    operation: AsyncOperation
    buffers: Sequence[Any]


def main(prepare: Callable[[Job], AbstractAsyncContextManager[Prepared]]) -> None:
    """Measure a contender with one await per operation: as many tasks as the depth."""
    job = Job.from_arguments()

    async def measure() -> None:
        async with prepare(job) as prepared:

            async def run(orders: list[list[int]], latencies: list[int] | None) -> None:
                await run_tasks(prepared.operation, orders, prepared.buffers, latencies)

            await measure_rounds(job, job.orders, run)

    run_loop(job, measure())


async def run_tasks(
    operation: AsyncOperation,
    orders: list[list[int]],
    buffers: Sequence[Any],
    latencies: list[int] | None,
) -> None:
    """A task for each of the orders, with its buffer, that awaits one operation after the other."""

    async def untimed(offsets: list[int], buffer: object) -> None:
        for offset in offsets:
            await operation(offset, buffer)

    async def timed(offsets: list[int], buffer: object, latencies: list[int]) -> None:
        clock = time.perf_counter_ns
        for offset in offsets:
            start = clock()
            await operation(offset, buffer)
            latencies.append(clock() - start)

    async with asyncio.TaskGroup() as group:
        for offsets, buffer in zip(orders, buffers, strict=True):
            slot = untimed(offsets, buffer) if latencies is None else timed(offsets, buffer, latencies)
            group.create_task(slot)


Work = TypeVar("Work")


async def measure_rounds(
    job: Job,
    plan: Callable[[int], Work],
    run: Callable[[Work, list[int] | None], Awaitable[None]],
    *,
    operations_each: int | None = None,
) -> None:
    """Warm up, measure throughput, measure latency, print.

    `plan` makes the work for a count, of which each stands for `operations_each` operations (by default, the
    depth); `run` does it and, where it is given a list, appends the latency of each operation in nanoseconds.
    """
    count, elapsed = 1, 0.0
    while elapsed < WARM_UP:
        count *= 2
        elapsed, _ = await stopwatch(run, plan(count), None)

    count = max(1, round(count / elapsed * job.seconds))
    elapsed, cpu = await stopwatch(run, plan(count), None)

    latencies: list[int] = []
    share = max(1, round(count / elapsed * job.seconds * LATENCY_SHARE))
    await stopwatch(run, plan(share), latencies)
    report(count * (operations_each or job.depth), elapsed, cpu, latencies)


async def stopwatch(
    run: Callable[[Work, list[int] | None], Awaitable[None]], work: Work, latencies: list[int] | None
) -> tuple[float, float]:
    """Seconds by the clock and of processor time."""
    cpu_start, start = cpu_seconds(), time.perf_counter()
    await run(work, latencies)
    return time.perf_counter() - start, cpu_seconds() - cpu_start


def measure_blocking(job: Job, operation: Callable[[int], object]) -> None:
    """The same for a contender that does one blocking operation after the other."""

    def plan(count: int) -> list[int]:
        return repeated(job.offsets(), count)

    async def run(offsets: list[int], latencies: list[int] | None) -> None:
        if latencies is None:
            for offset in offsets:
                operation(offset)
        else:
            clock = time.perf_counter_ns
            for offset in offsets:
                start = clock()
                operation(offset)
                latencies.append(clock() - start)

    run_loop(job, measure_rounds(job, plan, run, operations_each=1))


def measure_batches(
    job: Job, do_batch: Callable[[list[int]], Awaitable[object]]
) -> Coroutine[Any, Any, None]:
    """The same for one that does as many operations as the depth at once, given their offsets."""

    async def run(batches: list[list[int]], latencies: list[int] | None) -> None:
        if latencies is None:
            for batch in batches:
                await do_batch(batch)
        else:
            clock = time.perf_counter_ns
            for batch in batches:
                start = clock()
                await do_batch(batch)
                latencies.append(clock() - start)

    return measure_rounds(job, job.batches, run)


def run_loop(job: Job, coroutine: Coroutine[Any, Any, None]) -> None:
    if job.loop == "uvloop":
        import uvloop

        loop_factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    else:
        loop_factory = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(coroutine)


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def report(operations: int, elapsed: float, cpu: float, latencies: list[int]) -> None:
    """Print the result as one line of JSON, latencies in microseconds; the percentiles are exact."""
    latencies.sort()
    last = len(latencies) - 1
    percentiles = {
        name: latencies[min(last, int(last * share + 0.5))] / 1000
        for name, share in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999))
    }
    result = {
        "rate": operations / elapsed,
        "mean": sum(latencies) / len(latencies) / 1000,
        **percentiles,
        "cpu": cpu / operations * 1e6,
    }
    print(json.dumps({"sample": result, "python": platform.python_version()}), flush=True)
