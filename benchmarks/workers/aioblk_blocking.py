"""aioblk as a thread without a loop uses it: batches of the depth, on a queue or a poll queue (its option).

There is a loop, which runs the measurement; nothing waits in it.
"""

import aioblk
from benchmarks.workers.measuring import Job, measure_batches, run_loop

job = Job.from_arguments()
polls = job.options == ("poll",)


async def measure() -> None:
    if job.kind == "file":
        device: aioblk.Device = aioblk.IoUring(job.path, direct=job.direct, num_queues=2)
    else:
        device = aioblk.VirtioBlkVhostUser(job.path, num_queues=2 - polls, num_poll_queues=int(polls))
    size = job.block_size
    async with device, device.allocate(job.depth * size) as region:
        buffers = [region[slot * size : (slot + 1) * size] for slot in range(job.depth)]
        with device.blocking_queue(0 if polls else 1, poll=polls) as queue:
            submit = queue.read_into_many if job.reads else queue.write_many

            async def do_batch(offsets: list[int]) -> None:
                queue.wait(submit(zip(offsets, buffers, strict=True)))

            await measure_batches(job, do_batch)


run_loop(job, measure())
