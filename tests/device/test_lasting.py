"""Whatever can use libblkio's instance keeps it, and a device that is lost has no queues to bind.

What used to end a process with a segmentation fault is tried in one of its own.
"""

import asyncio
import gc
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import aioblk

from ..conftest import StorageDaemonFactory
from ..support.devices import BLOCK, Target, held

PATIENCE = 30  # seconds; more than enough

SCRIPT = """
import asyncio, gc, sys, warnings
import aioblk
warnings.simplefilter("ignore")
driver, path = sys.argv[1:]
async def main():
    device = await aioblk.open(driver, path=path, num_queues=2).open()
{body}
asyncio.run(main())
print("survived")
"""


def survives(target: Target, body: str) -> None:
    lines = "\n".join(f"    {line}" for line in body.strip().splitlines())
    ended = subprocess.run(
        [
            sys.executable,
            "-X",
            "faulthandler",
            "-c",
            SCRIPT.format(body=lines),
            target.driver,
            str(target.path),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith("survived\n")


@pytest.fixture(params=["io_uring", "vhost_user"])
def two_queues(
    request: pytest.FixtureRequest, scratch_file: Path, storage_daemon: StorageDaemonFactory
) -> Target:
    if request.param == "io_uring":
        return Target("io_uring", scratch_file, scratch_file)
    daemon = storage_daemon(scratch_file, num_queues=2)
    return Target("virtio-blk-vhost-user", daemon.socket, scratch_file)


# --- a device that nobody holds -----------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["1", "", "0"])
def test_a_queue_keeps_its_device(two_queues: Target, which: str) -> None:
    survives(
        two_queues,
        f"""
queue = device.queue({which})
del device
gc.collect()
for _ in range(20):
    assert len(await queue.read(0, 4096)) == 4096
await queue.aclose()
""",
    )


def test_a_blocking_queue_keeps_its_device(two_queues: Target) -> None:
    survives(
        two_queues,
        """
queue = device.blocking_queue(1)
del device
gc.collect()
for _ in range(20):
    assert len(queue.wait(queue.read(0, 4096))) == 4096
queue.close()
""",
    )


@pytest.mark.parametrize("queue", ["device", "device.queue(1)"])
def test_requests_in_flight_outlive_whoever_made_them(two_queues: Target, queue: str) -> None:
    survives(
        two_queues,
        f"""
requests = [{queue}.read(0, 4096) for _ in range(50)]
del device
gc.collect()
assert [len(data) for data in await asyncio.gather(*requests)] == 50 * [4096]
""",
    )


def test_a_region_keeps_its_device(two_queues: Target) -> None:
    survives(
        two_queues,
        """
async with device.allocate(4096) as region:
    del device
    gc.collect()
    region[:5] = b"bytes"
assert region.memory.closed
""",
    )


def test_what_a_device_tells_of_itself_outlives_it(two_queues: Target) -> None:
    survives(
        two_queues,
        """
properties, limits, pool = device.properties, device.limits, device.bounce_pool
del device
gc.collect()
assert properties["capacity"] == 8 << 20 and limits.request_alignment and not pool.statistics().in_use
dict(properties)
""",
    )


async def test_a_device_that_its_queue_keeps_notices_a_loss(storage_daemon: StorageDaemonFactory) -> None:
    daemon = storage_daemon(num_queues=2)
    device = await aioblk.VirtioBlkVhostUser(daemon.socket, num_queues=2).open()
    queue = device.queue(1)
    await queue.read(0, BLOCK)
    with held(daemon):
        reading = queue.read(0, BLOCK)
        del device
        gc.collect()
        daemon.kill()
    with pytest.raises(aioblk.DeviceLostError):
        async with asyncio.timeout(PATIENCE):
            await reading
    await queue.aclose()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the device's
        del queue, reading
        gc.collect()


async def test_a_device_and_its_queues_end_together_once_nobody_holds_any(two_queues: Target) -> None:
    device = await two_queues.device(num_queues=2).open()
    queue = device.queue(1)
    await queue.read(0, BLOCK)
    del device, queue
    with pytest.warns(ResourceWarning, match="unclosed"):
        gc.collect()


# --- queues that are removed --------------------------------------------------------------------------------


async def test_a_queue_is_bound_or_removed_but_never_both(scratch_file: Path) -> None:
    """Whoever comes first in the thread and on the loop: the other one is refused."""
    ends: set[str] = set()
    async with aioblk.IoUring(scratch_file) as device:
        for turns in (*range(-1, 6), 100, 1000, 10_000):  # as long as a thread may take to be woken
            index = await device.add_queue()
            if turns < 0:
                device.queue(index)  # an eager task would always be the first
            removing = asyncio.create_task(device.remove_queue(index))
            for _ in range(turns):
                await asyncio.sleep(0)
            try:
                queue = device.queue(index)
            except aioblk.UsageError:
                await removing
                ends.add("removed")
                continue
            with pytest.raises(aioblk.UsageError, match=f"queue {index} is in use; close it first"):
                await removing
            assert await queue.read(0, BLOCK) == bytes(BLOCK)
            await queue.aclose()
            await device.remove_queue(index)
            ends.add("bound")
    assert ends == {"removed", "bound"}


async def test_a_blocking_queue_is_not_removed_either(scratch_file: Path) -> None:
    async with aioblk.IoUring(scratch_file, num_queues=2) as device:
        with device.blocking_queue(1) as queue:
            with pytest.raises(aioblk.UsageError, match="queue 1 is in use; close it first"):
                await device.remove_queue(1)
            assert queue.wait(queue.read(0, BLOCK)) == bytes(BLOCK)
        await device.remove_queue(1)
        with pytest.raises(aioblk.UsageError, match="there is no queue 1"):
            device.queue(1)
        with pytest.raises(aioblk.UsageError, match="queue 0 of io_uring> is the default queue, which stays"):
            await device.remove_queue(0)


# --- a lost device ------------------------------------------------------------------------------------------

BINDINGS: dict[str, Callable[[aioblk.Device], object]] = {
    "queue": lambda device: device.queue(1),
    "the default queue": lambda device: device.queue(),
    "poll queue": lambda device: device.poll_queue(0),
    "blocking queue": lambda device: device.blocking_queue(1),
    "add_queue": lambda device: device.add_queue(),
    "remove_queue": lambda device: device.remove_queue(1),
    "detach": lambda device: device.detach(),
    "refresh_capacity": lambda device: device.refresh_capacity(),
}


@pytest.mark.parametrize("binding", BINDINGS)
async def test_a_lost_device_has_no_queues(two_queues: Target, binding: str) -> None:
    async with two_queues.device(num_queues=2) as device:
        device.abandon("for a test")

        async def bind() -> None:
            answer: Any = BINDINGS[binding](device)
            if hasattr(answer, "__await__"):
                await answer

        with pytest.raises(aioblk.DeviceLostError, match="for a test"):
            await bind()
        with pytest.raises(aioblk.DeviceLostError):
            device.read(0, BLOCK)
        await device.reconnect()
        async with device.queue(1) as queue:
            assert await queue.read(0, BLOCK) == bytes(BLOCK)


async def test_another_thread_cannot_bind_a_queue_of_a_lost_device(two_queues: Target) -> None:
    async with two_queues.device(num_queues=2) as device:
        device.abandon()

        async def bind() -> None:
            with pytest.raises(aioblk.DeviceLostError):
                device.queue(1)

        await asyncio.to_thread(lambda: asyncio.run(bind()))


async def test_a_blocking_queue_bound_while_the_device_is_lost_is_given_back(
    two_queues: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss comes between its being made and its being bound."""
    async with two_queues.device(num_queues=2) as device:
        made = aioblk.BlockingQueue.__init__

        def make_and_lose(queue: aioblk.BlockingQueue, *args: Any, **options: Any) -> None:
            made(queue, *args, **options)
            device.abandon("meanwhile")

        with monkeypatch.context() as patch:
            patch.setattr(aioblk.BlockingQueue, "__init__", make_and_lose)
            with pytest.raises(aioblk.DeviceLostError, match="meanwhile"):
                device.blocking_queue(1)
        await device.reconnect()
        with device.blocking_queue(1) as queue:
            assert queue.wait(queue.read(0, BLOCK)) == bytes(BLOCK)


async def until_taken(device: aioblk.Device) -> None:
    """A thread has queue 1, and waits for the stopped backend to map its memory."""
    handle = device._session("handle").handle
    async with asyncio.timeout(PATIENCE):
        while not handle._slots[False, 1].taken:  # noqa: ASYNC110 (a thread's doing)
            await asyncio.sleep(0.001)


async def test_closing_a_device_while_a_thread_binds_a_queue(storage_daemon: StorageDaemonFactory) -> None:
    daemon = storage_daemon(num_queues=2)
    device = await aioblk.VirtioBlkVhostUser(daemon.socket, num_queues=2).open()
    with held(daemon):
        binding = asyncio.create_task(asyncio.to_thread(device.blocking_queue, 1))
        await until_taken(device)
        closing = asyncio.create_task(device.aclose())
        await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE):
        await closing
        with pytest.raises(aioblk.DeviceClosedError):
            await binding


async def test_closing_a_device_while_a_thread_waits_for_a_silent_one(
    storage_daemon: StorageDaemonFactory,
) -> None:
    daemon = storage_daemon(num_queues=2)
    device = await aioblk.VirtioBlkVhostUser(daemon.socket, num_queues=2, lost_after=0.5).open()
    with held(daemon):
        binding = asyncio.create_task(asyncio.to_thread(device.blocking_queue, 1))
        await until_taken(device)
        async with asyncio.timeout(PATIENCE):
            await device.aclose()
            with pytest.raises(aioblk.BlkioError):
                await binding
    assert device.lost


async def test_a_device_lost_while_a_thread_binds_a_queue(storage_daemon: StorageDaemonFactory) -> None:
    daemon = storage_daemon(num_queues=2)
    async with aioblk.VirtioBlkVhostUser(daemon.socket, num_queues=2) as device:
        with held(daemon):
            binding = asyncio.create_task(asyncio.to_thread(device.blocking_queue, 1))
            await until_taken(device)
            device.abandon("for a test")
            returning = asyncio.create_task(device.reconnect())
            with pytest.raises(aioblk.DeviceLostError, match="for a test"):
                await binding
        async with asyncio.timeout(PATIENCE):
            await returning
        with device.blocking_queue(1) as queue:
            assert queue.wait(queue.read(0, BLOCK)) == bytes(BLOCK)


async def test_no_blocking_queue_while_the_device_is_being_reconnected(
    storage_daemon: StorageDaemonFactory,
) -> None:
    daemon = storage_daemon(num_queues=2)
    async with aioblk.VirtioBlkVhostUser(daemon.socket, num_queues=2, reconnect_for=PATIENCE) as device:
        daemon.kill()
        async with asyncio.timeout(PATIENCE):
            while not device.reconnecting:  # noqa: ASYNC110 (the very turn is what matters)
                await asyncio.sleep(0)
        with pytest.raises(aioblk.UsageError, match="the device is being reconnected"):
            device.blocking_queue(1)


async def test_queues_that_were_added_come_back_too(scratch_file: Path) -> None:
    async with aioblk.IoUring(scratch_file) as device:
        added = device.queue(await device.add_queue())
        device.abandon()
        await device.reconnect()
        assert await added.read(0, BLOCK) == bytes(BLOCK)


# --- a loop that never waits for a lock ---------------------------------------------------------------------


def never_enter(region: aioblk.MemoryRegion) -> None:
    region.memory.close()


QUESTIONS: dict[str, Callable[[aioblk.Device], object]] = {
    "queue": lambda device: device.queue(1),
    "poll_queue": lambda device: device.poll_queue(0),
    "a property": lambda device: device.properties["queue-size"],
    "the capacity among the properties": lambda device: device.properties["capacity"],
    "all properties": lambda device: dict(device.properties),
    "capacity": lambda device: device.capacity,
    "limits": lambda device: device.limits,
    "statistics": lambda device: device.statistics(),
    "repr": repr,
    "bounce_pool": lambda device: device.bounce_pool.statistics(),
    "register": lambda device: never_enter(device.register(bytearray(4096))),
    "allocate": lambda device: never_enter(device.allocate(4096)),
    "extents": lambda device: device.extents(),
    "cancel": lambda device: device.read(0, BLOCK).cancel(),
    "abandon": lambda device: device.abandon(),
}


@pytest.mark.parametrize("question", QUESTIONS)
async def test_the_loop_does_not_wait_for_a_stopped_backend(
    storage_daemon: StorageDaemonFactory, question: str
) -> None:
    """A worker thread is within libblkio, mapping memory; what is asked on the loop meanwhile is answered."""
    daemon = storage_daemon(num_queues=3)
    device = aioblk.VirtioBlkVhostUser(daemon.socket, num_queues=2, num_poll_queues=1)
    async with device:
        await device.read(0, BLOCK)
        with held(daemon):
            region = device.allocate(BLOCK)
            mapping = asyncio.create_task(region.__aenter__())
            async with asyncio.timeout(PATIENCE):
                while not device._session("memory").memory.calls.are_busy:  # noqa: ASYNC110 (there is no event)
                    await asyncio.sleep(0.001)
            answered = threading.Event()
            resumer = threading.Timer(PATIENCE, daemon.resume)  # or the loop would stand still for ever
            resumer.start()
            try:
                QUESTIONS[question](device)
                answered.set()
            finally:
                in_time = resumer.is_alive()
                resumer.cancel()
                resumer.join()
            assert answered.is_set()
            assert in_time, f"{question} was answered only when the backend went on"
        await asyncio.wait([mapping])
        assert (mapping.exception() is None) == (device.lost is None)
        await region.aclose()
