"""aioblk's batch form, two of half the depth in turn: one is with the device while the next is made."""

from collections.abc import Awaitable, Callable
from typing import Any

import aioblk
from benchmarks.workers.aioblk_device import device_and_buffers
from benchmarks.workers.measuring import Job, measure_batches, run_loop

job = Job.from_arguments()


def in_halves(
    submit: Callable[..., aioblk.Request[Any]], buffers: list[Any]
) -> Callable[[list[int]], Awaitable[None]]:
    """As many operations as the depth in two batches, of which the second ends within the next call."""
    half = (len(buffers) + 1) // 2
    second: list[aioblk.Request[Any]] = []

    async def do_both(offsets: list[int]) -> None:
        first = submit(zip(offsets[:half], buffers[:half], strict=True))
        while second:
            await second.pop()
        if len(buffers) > half:
            second.append(submit(zip(offsets[half:], buffers[half:], strict=True)))
        await first

    return do_both


async def measure() -> None:
    async with device_and_buffers(job) as (device, buffers):
        submit = device.read_into_many if job.reads else device.write_many
        await measure_batches(job, in_halves(submit, buffers))


run_loop(job, measure())
