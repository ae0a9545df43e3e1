"""A fixed number of operations, for counting instructions. Options: the form and the number."""

import asyncio
import itertools

from benchmarks.workers.aioblk_device import device_and_buffers
from benchmarks.workers.measuring import Job, run_loop

job = Job.from_arguments()
form, number = job.options[0], int(job.options[1])


async def run() -> None:
    async with device_and_buffers(job) as (device, buffers):
        offsets = job.offsets()
        if form == "batch":
            submit = device.read_into_many if job.reads else device.write_many
            for _ in range(number // job.depth):
                await submit(zip(offsets, buffers, strict=False))
            return
        operation = device.read_into if job.reads else device.write

        async def one_at_a_time(slot: int) -> None:
            buffer = buffers[slot]
            for offset in itertools.islice(itertools.cycle(offsets), number // job.depth):
                await operation(offset, buffer)

        async with asyncio.TaskGroup() as group:
            for slot in range(job.depth):
                group.create_task(one_at_a_time(slot))


run_loop(job, run())
