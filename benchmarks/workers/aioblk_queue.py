"""aioblk with one await per operation, on the queue that its option names.

queue: it spins as it thinks best; no-spin: never; spin: for as long as it is told; poll: a poll queue.
"""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

import aioblk
from benchmarks.workers.measuring import Job, Prepared, main

SPINS = {"spin": 100e-6, "no-spin": 0.0}


@asynccontextmanager
async def prepare(job: Job) -> AsyncGenerator[Prepared]:
    (way,) = job.options
    polls = way == "poll"
    async with AsyncExitStack() as stack:
        if job.kind == "file":
            device: aioblk.Device = aioblk.IoUring(job.path, direct=job.direct)
        else:
            device = aioblk.VirtioBlkVhostUser(job.path, num_poll_queues=int(polls))
        await stack.enter_async_context(device)
        region = await stack.enter_async_context(device.allocate(job.depth * job.block_size))
        queue = await stack.enter_async_context(device.poll_queue()) if polls else device.queue()
        if way in SPINS:
            queue.spin = SPINS[way]
        places = range(0, job.depth * job.block_size, job.block_size)
        buffers = [region[at : at + job.block_size] for at in places]
        yield Prepared(queue.read_into if job.reads else queue.write, buffers)


main(prepare)
