"""aioblk's batch form: as many operations as the depth in one call with one await."""

from collections.abc import Awaitable

from benchmarks.workers.aioblk_device import device_and_buffers
from benchmarks.workers.measuring import Job, measure_batches, run_loop

job = Job.from_arguments()


async def measure() -> None:
    async with device_and_buffers(job) as (device, buffers):
        submit = device.read_into_many if job.reads else device.write_many

        def do_batch(offsets: list[int]) -> Awaitable[object]:
            return submit(zip(offsets, buffers, strict=True))

        await measure_batches(job, do_batch)


run_loop(job, measure())
