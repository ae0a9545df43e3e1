"""Threads that end while they have requests in flight: the kernel cancels what one has given to io_uring."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import aioblk
from aioblk.testing.storage_daemon import StorageDaemon

from .backends import image, over
from .row import Setting, fault

PIECE, PIECES = 256 << 10, 128
Requests = list["aioblk.Request[None]"]

ENDED = (
    "A thread that ends may rely on what it has waited for, and on nothing else; what it had in flight fails"
    " with DeviceLostError when the queue or the device is closed."
)


def data(number: int) -> bytes:
    return bytes([number + 1]) * PIECE


def leave_blocking(device: aioblk.Device, kept: list[object], requests: Requests) -> None:
    """What the thread does; it waits for the first request only."""
    queue = device.blocking_queue(1)
    requests += [queue.write(number * PIECE, data(number)) for number in range(PIECES)]
    kept.append(queue)
    queue.wait(requests[0])


def leave_loop(device: aioblk.Device, kept: list[object], requests: Requests) -> None:
    """The same, on a loop that ends then."""

    async def work() -> None:
        queue = device.queue(1)
        kept.append(queue)
        requests.extend(queue.write(number * PIECE, data(number)) for number in range(PIECES))
        await requests[0]

    asyncio.run(work())


async def left(
    device: aioblk.Device, file: Path, work: Callable[[aioblk.Device, list[object], Requests], None]
) -> str:
    """Let the thread end, and look at what it had in flight once the device is closed."""
    kept: list[object] = []
    requests: Requests = []
    async with device:
        thread = threading.Thread(target=work, args=(device, kept, requests))
        thread.start()
        await asyncio.to_thread(thread.join)
        assert len(await device.read(0, PIECE)) == PIECE, "the device's own queue goes on"
    assert all(request.done() for request in requests)
    outcomes = [request.exception() for request in requests]
    assert outcomes[0] is None
    assert all(outcome is None or isinstance(outcome, aioblk.DeviceLostError) for outcome in outcomes), (
        outcomes
    )
    content = await asyncio.to_thread(file.read_bytes)
    told = [number for number, outcome in enumerate(outcomes) if outcome is None]
    for number in told:
        assert content[number * PIECE : (number + 1) * PIECE] == data(number), (
            f"{number} was answered, and is not there"
        )
    return f"{len(told)} of {PIECES} answered, and there; {PIECES - len(told)} DeviceLostError"


@fault(
    "blocking-queue-thread-ends",
    "the thread of a BlockingQueue ends with requests in flight",
    ENDED,
    "queues.md#threads-that-end",
)
async def blocking_queue_thread_ends(setting: Setting) -> str:
    return await _both(setting, leave_blocking)


@fault(
    "loop-thread-ends",
    "the thread of a second loop ends with requests in flight",
    ENDED,
    "queues.md#threads-that-end",
)
async def loop_thread_ends(setting: Setting) -> str:
    return await _both(setting, leave_loop)


async def _both(setting: Setting, work: Callable[[aioblk.Device, list[object], Requests], None]) -> str:
    path = image(setting, PIECES * PIECE)
    by_ring = await left(aioblk.IoUring(path, num_queues=2), path, work)
    with StorageDaemon(over(path), num_queues=2) as daemon:
        by_backend = await left(aioblk.VirtioBlkVhostUser(daemon.socket, num_queues=2), path, work)
    return f"io_uring: {by_ring}; vhost-user: {by_backend}"
