"""A fixed number of operations, for counting instructions. Options: the form, the number, and "measured"."""

import asyncio
from typing import Any

from benchmarks.workers.aioblk_device import device_and_buffers
from benchmarks.workers.measuring import Job, run_loop

job = Job.from_arguments()
form, number = job.options[0], int(job.options[1])
measured = "measured" in job.options


async def run() -> None:
    async with device_and_buffers(job) as (device, buffers):
        device.measuring = measured
        if form == "batch":
            submit = device.read_into_many if job.reads else device.write_many
            for offsets in job.batches(number // job.depth):
                await submit(zip(offsets, buffers, strict=True))
            return
        operation = device.read_into if job.reads else device.write

        async def one_at_a_time(offsets: list[int], buffer: Any) -> None:
            for offset in offsets:
                await operation(offset, buffer)

        async with asyncio.TaskGroup() as group:
            for offsets, buffer in zip(job.orders(number // job.depth), buffers, strict=True):
                group.create_task(one_at_a_time(offsets, buffer))


run_loop(job, run())
