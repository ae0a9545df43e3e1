"""How every Python contender is measured.

Throughput and latency are taken one after the other: the clock calls around each operation, which latency
needs, would cost a fast contender a tenth of its throughput. The number of operations is fixed before, from
a short warm-up, so that nothing is decided or counted in the loops.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import platform
import random
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

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

    def offsets(self, slot: int = 0, slots: int = 1) -> list[int]:
        """Random offsets of whole blocks; each of several concurrent slots has its own."""
        blocks = self.capacity // self.block_size
        draw = random.Random(slot).randrange
        return [draw(blocks) * self.block_size for _ in range(max(64, DISTINCT_OFFSETS // slots))]


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
            orders = [job.offsets(slot, job.depth) for slot in range(job.depth)]

            async def untimed(slot: int, count: int) -> None:
                operation, buffer = prepared.operation, prepared.buffers[slot]
                for offset in itertools.islice(itertools.cycle(orders[slot]), count):
                    await operation(offset, buffer)

            async def timed(slot: int, count: int, latencies: list[int]) -> None:
                operation, buffer, clock = prepared.operation, prepared.buffers[slot], time.perf_counter_ns
                for offset in itertools.islice(itertools.cycle(orders[slot]), count):
                    start = clock()
                    await operation(offset, buffer)
                    latencies.append(clock() - start)

            await measure_rounds(
                job,
                lambda count: in_tasks(untimed(slot, count) for slot in range(job.depth)),
                lambda count, latencies: in_tasks(timed(slot, count, latencies) for slot in range(job.depth)),
            )

    run_loop(job, measure())


async def in_tasks(coroutines: Iterator[Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for coroutine in coroutines:
            group.create_task(coroutine)


async def measure_rounds(
    job: Job,
    untimed: Callable[[int], Awaitable[None]],
    timed: Callable[[int, list[int]], Awaitable[None]],
    *,
    operations_each: int | None = None,
) -> None:
    """Warm up, measure throughput, measure latency, print.

    Both callables take a count. Each of that count stands for `operations_each` operations (the depth).
    """
    each = operations_each or job.depth
    count, elapsed = 1, 0.0
    while elapsed < WARM_UP:
        count *= 2
        start = time.perf_counter()
        await untimed(count)
        elapsed = time.perf_counter() - start

    rate = count / elapsed
    count = max(1, round(rate * job.seconds))
    cpu_start = cpu_seconds()
    start = time.perf_counter()
    await untimed(count)
    elapsed = time.perf_counter() - start
    cpu = cpu_seconds() - cpu_start

    latencies: list[int] = []
    await timed(max(1, round(count / elapsed * job.seconds * LATENCY_SHARE)), latencies)
    report(job, count * each, elapsed, cpu, latencies)


def measure_blocking(job: Job, operation: Callable[[int], object]) -> None:
    """The same for a contender that does one blocking operation after the other."""
    offsets = itertools.cycle(job.offsets())

    async def untimed(count: int) -> None:
        for offset in itertools.islice(offsets, count):
            operation(offset)

    async def timed(count: int, latencies: list[int]) -> None:
        clock = time.perf_counter_ns
        for offset in itertools.islice(offsets, count):
            start = clock()
            operation(offset)
            latencies.append(clock() - start)

    run_loop(job, measure_rounds(job, untimed, timed, operations_each=1))


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


def report(job: Job, operations: int, elapsed: float, cpu: float, latencies: list[int]) -> None:
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
