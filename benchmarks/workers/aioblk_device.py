"""The device that aioblk's contenders use, and memory for them."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import aioblk
from benchmarks.workers.measuring import Job


def make_device(job: Job, *, num_queues: int = 1) -> aioblk.Device:
    """A device that is not open yet."""
    if job.kind == "file":
        return aioblk.IoUring(job.path, direct=job.direct, num_queues=num_queues)
    return aioblk.VirtioBlkVhostUser(job.path, num_queues=num_queues)


@asynccontextmanager
async def device_and_buffers(
    job: Job, *, num_queues: int = 1
) -> AsyncGenerator[tuple[aioblk.Device, list[Any]]]:
    """An open device, and for each concurrent operation a buffer that the device reaches without copying."""
    size = job.block_size
    async with (
        make_device(job, num_queues=num_queues) as device,
        device.allocate(job.depth * size) as region,
    ):
        yield device, [region[slot * size : (slot + 1) * size] for slot in range(job.depth)]
