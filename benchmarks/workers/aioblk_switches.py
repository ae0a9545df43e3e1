"""What a queue does by itself, on and off in turn: ratios of throughput with it to without, as JSON.

Its options are the name of a member of QueueCore, and in which form requests are made: with an
await for each, spinning or not, in batches, or by a thread without a loop that has as many in flight as the
depth.
"""

import json
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import aioblk
from benchmarks.workers import in_turn
from benchmarks.workers.aioblk_device import device_and_buffers
from benchmarks.workers.in_turn import Orders, Work
from benchmarks.workers.measuring import Job, run_loop, run_tasks

job = Job.from_arguments()
switch, form = job.options


async def read_in_tasks(device: aioblk.Device, buffers: list[Any], orders: Orders) -> None:
    await run_tasks(device.read_into, orders, buffers, None)


async def read_in_batches(device: aioblk.Device, buffers: list[Any], orders: Orders) -> None:
    for offsets in zip(*orders, strict=True):
        await device.read_into_many(zip(offsets, buffers, strict=True))


def read_and_wait(queue: aioblk.BlockingQueue, buffers: list[Any], orders: Orders) -> None:
    begun: deque[aioblk.Request[None]] = deque()
    for offsets in zip(*orders, strict=True):
        for offset, buffer in zip(offsets, buffers, strict=True):
            if len(begun) == len(buffers):
                queue.wait(begun.popleft())
            begun.append(queue.read_into(offset, buffer))
    for request in begun:
        queue.wait(request)


@asynccontextmanager
async def queue_and_work() -> AsyncGenerator[tuple[Any, Work]]:
    """The compiled part of the queue that is used, and what uses it."""
    async with device_and_buffers(job, num_queues=2) as (device, buffers):
        if form == "blocking":
            with device.blocking_queue(1) as queue:

                async def work(orders: Orders) -> None:
                    read_and_wait(queue, buffers, orders)

                yield queue._compiled, work
        else:
            if form == "no-spin":
                device.queue().spin = 0
            read = read_in_batches if form == "batch" else read_in_tasks
            yield device.queue()._compiled, lambda orders: read(device, buffers, orders)


async def measure() -> None:
    async with queue_and_work() as (core, work):

        def choose(on: bool) -> Work:
            setattr(core, switch, on)
            return work

        print(json.dumps({"ratios": await in_turn.ratios(job, choose)}), flush=True)


run_loop(job, measure())
