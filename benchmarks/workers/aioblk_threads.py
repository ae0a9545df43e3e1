"""aioblk with two loops in two threads, which share a device; as many tasks as the depth in each."""

import asyncio
from collections.abc import Sequence
from typing import Any

import aioblk
from benchmarks.workers.measuring import Job, measure_rounds, run_loop, run_tasks

QUEUES = 2
Orders = list[list[int]]

job = Job.from_arguments()


async def measure() -> None:
    device = aioblk.IoUring(job.path, direct=job.direct, num_queues=QUEUES)
    size = job.block_size
    async with device, device.allocate(QUEUES * job.depth * size) as region:
        buffers = [region[slot * size : (slot + 1) * size] for slot in range(QUEUES * job.depth)]

        async def run(orders: tuple[Orders, Orders], latencies: list[int] | None) -> None:
            own, others = buffers[: job.depth], buffers[job.depth :]
            await asyncio.gather(
                run_tasks(operation(device), orders[0], own, latencies),
                asyncio.to_thread(asyncio.run, run_on_second_queue(device, orders[1], others, latencies)),
            )

        def plan(count: int) -> tuple[Orders, Orders]:
            """Numbers for each thread: without a GIL, it takes time to count references to shared ones."""
            return job.orders(count), job.orders(count)

        await measure_rounds(job, plan, run, operations_each=QUEUES * job.depth)


async def run_on_second_queue(
    device: aioblk.Device, orders: Orders, buffers: Sequence[Any], latencies: list[int] | None
) -> None:
    async with device.queue(1) as queue:
        await run_tasks(operation(queue), orders, buffers, latencies)


def operation(submitter: aioblk.Device | aioblk.Queue) -> Any:
    return submitter.read_into if job.reads else submitter.write


run_loop(job, measure())
