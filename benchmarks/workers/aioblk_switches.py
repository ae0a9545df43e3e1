"""What a queue does by itself, on and off in turn: ratios of throughput with it to without, as JSON.

On, off, off, on, some 20 ms each, in one process and on one device: what else the machine does meanwhile
meets both. Its option is the name of a member of QueueCore.
"""

import json
import time

from benchmarks.workers.aioblk_device import device_and_buffers
from benchmarks.workers.measuring import WARM_UP, Job, run_loop, run_tasks

STEP = 0.02
ORDER = (True, False, False, True)

job = Job.from_arguments()
(switch,) = job.options


async def measure() -> None:
    async with device_and_buffers(job) as (device, buffers):
        core = device.queue()._compiled

        async def run(orders: list[list[int]]) -> float:
            start = time.perf_counter()
            await run_tasks(device.read_into, orders, buffers, None)
            return time.perf_counter() - start

        count, elapsed = 1, 0.0
        while elapsed < WARM_UP:
            count *= 2
            elapsed = await run(job.orders(count))
        orders = job.orders(max(1, round(count / elapsed * STEP)))
        ratios: list[float] = []
        end = time.perf_counter() + job.seconds
        while time.perf_counter() < end:
            taken = {True: 0.0, False: 0.0}
            for on in ORDER:
                setattr(core, switch, on)
                taken[on] += await run(orders)
            ratios.append(taken[False] / taken[True])
    print(json.dumps({"ratios": ratios}), flush=True)


run_loop(job, measure())
