"""aioblk's batch form: as many operations as the depth in one call with one await."""

import itertools
import time

from benchmarks.workers.aioblk_device import device_and_buffers
from benchmarks.workers.measuring import Job, measure_rounds, run_loop

job = Job.from_arguments()


async def measure() -> None:
    async with device_and_buffers(job) as (device, buffers):
        submit = device.read_into_many if job.reads else device.write_many
        offsets, depth = job.offsets(), job.depth
        batches = itertools.cycle(
            [offsets[start : start + depth] for start in range(0, len(offsets) - depth + 1, depth)]
        )

        async def untimed(count: int) -> None:
            for batch in itertools.islice(batches, count):
                await submit(zip(batch, buffers, strict=True))

        async def timed(count: int, latencies: list[int]) -> None:
            clock = time.perf_counter_ns
            for batch in itertools.islice(batches, count):
                start = clock()
                await submit(zip(batch, buffers, strict=True))
                latencies.append(clock() - start)

        await measure_rounds(job, untimed, timed)


run_loop(job, measure())
