"""Ways to write 4 KiB blocks to a file: microseconds for each block, as JSON.

Offsets are in random order where each block is written by itself, and adjacent where several go together.
"""

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aioblk
from benchmarks.workers.measuring import WARM_UP, Job, repeated, run_loop

BLOCK = 4096
TOGETHER = 32

job = Job.from_arguments()
random = repeated(job.offsets(), 1 << 14)

Step = Callable[[int], Awaitable[object]]
"""Writes some blocks; it is given a number that grows by one."""


async def microseconds(step: Step, blocks: int) -> float:
    """For each of the blocks that a step writes."""
    clock = time.perf_counter
    warm = clock() + WARM_UP
    number = begun = 0
    start = end = 0.0
    while not end or clock() < end:
        if not end and clock() >= warm:
            begun, start = number, clock()
            end = start + job.seconds
        await step(number)
        number += 1
    return (clock() - start) / ((number - begun) * blocks) * 1e6


class Writer:
    """The ways on one device."""

    def __init__(self, device: aioblk.Device, memory: aioblk.MemoryRegion) -> None:
        self._device = device
        self._blocks = [memory[at : at + BLOCK] for at in range(0, TOGETHER * BLOCK, BLOCK)]
        self._places = job.capacity // (TOGETHER * BLOCK)

    def _place(self, number: int) -> int:
        return number % self._places * TOGETHER * BLOCK

    def _adjacent(self, number: int) -> list[tuple[int, aioblk.View]]:
        return [(self._place(number) + at * BLOCK, block) for at, block in enumerate(self._blocks)]

    async def one(self, number: int) -> None:
        await self._device.write(random[number % len(random)], self._blocks[0])

    async def many(self, number: int) -> None:
        first = number * TOGETHER
        await asyncio.gather(
            *(
                self._device.write(random[(first + at) % len(random)], block)
                for at, block in enumerate(self._blocks)
            )
        )

    async def batch(self, number: int) -> None:
        await self._device.write_many(self._adjacent(number))

    async def vector(self, number: int) -> None:
        await self._device.writev(self._place(number), self._blocks)

    async def each_durable(self, number: int) -> None:
        writes = (self._device.write(at, block, fua=True) for at, block in self._adjacent(number))
        await asyncio.gather(*writes)

    async def group(self, number: int) -> None:
        await self.vector(number)
        await self._device.flush()

    async def measure(self) -> dict[str, float]:
        figures: dict[str, float] = {"one": await microseconds(self.one, 1)}
        for step in (self.many, self.batch, self.vector, self.each_durable, self.group):
            await self._device.flush()  # what the step before has left behind is not this one's
            figures[step.__name__] = await microseconds(step, TOGETHER)
        return figures


async def measure() -> None:
    file = os.open(Path(job.path), os.O_RDWR)

    async def plain(number: int) -> None:
        os.pwrite(file, bytes(BLOCK), random[number % len(random)])

    figures = {"pwrite": await microseconds(plain, 1)}
    os.close(file)
    for kind in ("buffered", "direct"):
        async with (
            aioblk.IoUring(job.path, direct=kind == "direct") as device,
            device.allocate(TOGETHER * BLOCK) as memory,
        ):
            await device.flush()
            for way, taken in (await Writer(device, memory).measure()).items():
                figures[f"{kind}_{way}"] = taken
    print(json.dumps(figures), flush=True)


run_loop(job, measure())
