"""Two ways to work in turn, some 20 ms each, in one process: what else the machine does meanwhile meets
both."""

import time
from collections.abc import Awaitable, Callable

from benchmarks.workers.measuring import WARM_UP, Job

__all__ = ["Orders", "Work", "ratios"]

STEP = 0.02
ORDER = (True, False, False, True)

Orders = list[list[int]]
Work = Callable[[Orders], Awaitable[None]]
"""Requests at the offsets: a list of them for each of as many slots as the depth."""


async def ratios(job: Job, choose: Callable[[bool], Work]) -> list[float]:
    """Throughput of the one to that of the other, of each pair, for as long as the job takes."""
    count, elapsed = 1, 0.0
    while elapsed < WARM_UP:
        count *= 2
        elapsed = await _stopwatch(choose(True), job.orders(count))
    orders = job.orders(max(1, round(count / elapsed * STEP)))
    found: list[float] = []
    end = time.perf_counter() + job.seconds
    while time.perf_counter() < end:
        taken = {True: 0.0, False: 0.0}
        for way in ORDER:
            taken[way] += await _stopwatch(choose(way), orders)
        found.append(taken[False] / taken[True])
    return found


async def _stopwatch(work: Work, orders: Orders) -> float:
    start = time.perf_counter()
    await work(orders)
    return time.perf_counter() - start
