"""aioblk with two loops in two threads, which share a device; as many tasks as the depth in each."""

import asyncio
from collections.abc import Sequence
from typing import Any

import aioblk
from benchmarks.workers.measuring import Job, measure_rounds, run_loop, run_tasks

QUEUES = 2

job = Job.from_arguments()


async def measure() -> None:
    device = aioblk.IoUring(job.path, direct=job.direct, num_queues=QUEUES)
    size = job.block_size
    async with device, device.allocate(QUEUES * job.depth * size) as region:
        buffers = [region[slot * size : (slot + 1) * size] for slot in range(QUEUES * job.depth)]

        async def run(orders: list[list[int]], latencies: list[int] | None) -> None:
            own, others = buffers[: job.depth], buffers[job.depth :]
            await asyncio.gather(
                run_tasks(operation(device), orders, own, latencies),
                asyncio.to_thread(asyncio.run, run_on_second_queue(device, orders, others, latencies)),
            )

        await measure_rounds(job, job.orders, run, operations_each=QUEUES * job.depth)


async def run_on_second_queue(
    device: aioblk.Device, orders: list[list[int]], buffers: Sequence[Any], latencies: list[int] | None
) -> None:
    async with device.queue(1) as queue:
        await run_tasks(operation(queue), orders, buffers, latencies)


def operation(submitter: aioblk.Device | aioblk.Queue) -> Any:
    return submitter.read_into if job.reads else submitter.write


run_loop(job, measure())
