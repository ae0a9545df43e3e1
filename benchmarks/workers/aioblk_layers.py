"""A device with a layer over it, and without, in turn: ratios of throughput, as JSON.

Its options are the name of the layer, and in which form requests are made: with an await for each, or in
batches.
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import aioblk
from benchmarks.workers import in_turn
from benchmarks.workers.aioblk_device import device_and_buffers
from benchmarks.workers.in_turn import Orders, Work
from benchmarks.workers.measuring import Job, run_loop, run_tasks

LAYERS: dict[str, Callable[[aioblk.Device], Any]] = {
    "Layer": aioblk.Layer,
    "Slice": aioblk.Slice,
    "Tracked": aioblk.Tracked,
    "Throttle, without limits": lambda device: aioblk.Throttle(device, aioblk.ThrottleGroup()),
    "Throttle": lambda device: aioblk.Throttle(
        device, aioblk.ThrottleGroup(total=aioblk.Rate(operations=1e8, bytes=1e12))
    ),
    "ByteView, whole blocks": aioblk.ByteView,
}

job = Job.from_arguments()
layer, form = job.options


async def in_tasks(device: Any, buffers: list[Any], orders: Orders) -> None:
    await run_tasks(device.read_into if job.operation == "read" else device.write, orders, buffers, None)


async def in_batches(device: Any, buffers: list[Any], orders: Orders) -> None:
    request = device.read_into_many if job.operation == "read" else device.write_many
    for offsets in zip(*orders, strict=True):
        await request(zip(offsets, buffers, strict=True))


async def measure() -> None:
    async with device_and_buffers(job) as (device, buffers):
        use = in_batches if form == "batch" else in_tasks
        ways: dict[bool, Work] = {
            True: partial(use, LAYERS[layer](device), buffers),
            False: partial(use, device, buffers),
        }
        print(json.dumps({"ratios": await in_turn.ratios(job, ways.__getitem__)}), flush=True)


run_loop(job, measure())
