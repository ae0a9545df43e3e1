"""Closing a device while queues of it are bound, here and elsewhere: they are closed too. Nothing hangs."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import aioblk

from ..conftest import StorageDaemonFactory
from ..support.devices import BLOCK, held

PATIENCE = 15  # seconds; more than enough
Body = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture(params=["io_uring", "vhost_user"])
def closed_device(
    request: pytest.FixtureRequest, scratch_file: Any, storage_daemon: StorageDaemonFactory
) -> aioblk.Device:
    """Three queues; not yet open, and to be closed by the test."""
    if request.param == "io_uring":
        return aioblk.IoUring(scratch_file, num_queues=3)
    return aioblk.VirtioBlkVhostUser(storage_daemon(scratch_file, num_queues=3).socket, num_queues=3)


async def in_thread(body: Body) -> None:
    await asyncio.to_thread(lambda: asyncio.run(body()))


async def test_a_queue_of_the_same_loop_is_closed_with_the_device(closed_device: aioblk.Device) -> None:
    async with closed_device as device:
        queue = device.queue(1)
        requests = [queue.read(0, BLOCK) for _ in range(50)]
    assert {len(request.result()) for request in requests} == {BLOCK}
    with pytest.raises(aioblk.DeviceClosedError):
        queue.read(0, BLOCK)
    await queue.aclose()


async def test_a_queue_of_another_loop_is_closed_with_the_device(closed_device: aioblk.Device) -> None:
    bound = threading.Event()
    results: list[int] = []

    async def elsewhere() -> None:
        async with closed_device.queue(1) as queue:
            requests = [queue.write(0, bytes(BLOCK)) for _ in range(200)]
            bound.set()
            await asyncio.gather(*requests)
            results.append(len(requests))
            with contextlib.suppress(aioblk.DeviceClosedError):
                while True:
                    await queue.read(0, BLOCK)

    async with asyncio.timeout(PATIENCE):
        async with closed_device:
            other = asyncio.create_task(in_thread(elsewhere))
            await asyncio.to_thread(bound.wait)
        await other
    assert results == [200]


async def test_the_bodys_error_is_the_one_that_is_seen(closed_device: aioblk.Device) -> None:
    async def body() -> None:
        async with closed_device as device:
            device.queue(1)
            device.queue(2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await body()
    assert closed_device.closed


@pytest.mark.parametrize("in_flight", [0, 20])
async def test_a_queue_whose_loop_is_closed_is_given_up(
    storage_daemon: StorageDaemonFactory, in_flight: int
) -> None:
    daemon = storage_daemon(num_queues=3)
    async with asyncio.timeout(PATIENCE):
        async with aioblk.VirtioBlkVhostUser(daemon.socket, num_queues=3) as device:
            requests: list[aioblk.Request[bytes]] = []

            async def elsewhere() -> None:
                queue = device.queue(1)
                await queue.read(0, BLOCK)
                if in_flight:
                    daemon.pause()
                requests.extend(queue.read(0, BLOCK) for _ in range(in_flight))

            await in_thread(elsewhere)
            daemon.resume()
            assert await device.read(0, BLOCK) == bytes(BLOCK)
    assert all(isinstance(request.exception(), aioblk.DeviceLostError) for request in requests)


async def test_a_queue_whose_loop_has_stopped_is_given_up(closed_device: aioblk.Device) -> None:
    loop = asyncio.new_event_loop()

    async def bind() -> None:
        closed_device.queue(1)

    async with asyncio.timeout(PATIENCE):
        async with closed_device as device:
            await asyncio.to_thread(loop.run_until_complete, bind())
            assert len(await device.read(0, BLOCK)) == BLOCK
    loop.close()


async def test_a_blocking_queue_is_closed_when_its_thread_has_what_it_waits_for(
    closed_device: aioblk.Device,
) -> None:
    busy = threading.Event()
    rounds: list[int] = []

    def work() -> None:
        with closed_device.blocking_queue(1) as queue:
            try:
                while True:
                    queue.wait(queue.read(0, BLOCK))
                    rounds.append(1)
                    busy.set()
            except aioblk.DeviceClosedError:
                rounds.append(0)

    async with asyncio.timeout(PATIENCE):
        async with closed_device:
            thread = asyncio.create_task(asyncio.to_thread(work))
            await asyncio.to_thread(busy.wait)
        await thread
    assert rounds[-1] == 0


async def test_a_blocking_queue_that_nobody_uses_is_given_up(closed_device: aioblk.Device) -> None:
    async with asyncio.timeout(PATIENCE):
        async with closed_device as device:
            queue = await asyncio.to_thread(device.blocking_queue, 1)
            forgotten = await asyncio.to_thread(device.blocking_queue, 2)
    with pytest.raises(aioblk.DeviceClosedError):
        queue.read(0, BLOCK)
    forgotten.close()


async def test_a_blocking_queue_that_is_not_waited_for_is_given_up(
    storage_daemon: StorageDaemonFactory,
) -> None:
    daemon = storage_daemon(num_queues=2)
    done = threading.Event()
    async with asyncio.timeout(PATIENCE):
        async with aioblk.VirtioBlkVhostUser(daemon.socket, num_queues=2) as device:
            bound = threading.Event()
            outcome: list[BaseException | None] = []

            def work() -> None:
                queue = device.blocking_queue(1)
                with held(daemon):
                    request = queue.read(0, BLOCK)
                bound.set()
                done.wait()  # as a thread does that has other things in mind
                outcome.append(request.exception())

            thread = asyncio.create_task(asyncio.to_thread(work))
            await asyncio.to_thread(bound.wait)
        done.set()
        await thread
    assert isinstance(outcome[0], aioblk.DeviceLostError)


async def test_closing_with_queues_can_be_cancelled_and_goes_on(closed_device: aioblk.Device) -> None:
    device = await closed_device.open()
    queue = device.queue(1)
    requests = [queue.read(0, BLOCK) for _ in range(50)]
    closing = asyncio.create_task(device.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    async with asyncio.timeout(PATIENCE):
        await device.aclose()
    assert all(request.exception() is None for request in requests)


async def test_the_default_queue_needs_no_index(storage_daemon: StorageDaemonFactory) -> None:
    daemon = storage_daemon(num_queues=1)
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
        assert device.queue() is device.queue(0)
        assert device.queue() is not None
    async with aioblk.VirtioBlkVhostUser(daemon.socket, num_queues=0, num_poll_queues=1) as polled:
        assert polled.queue() is polled.poll_queue(0)
        assert await polled.queue().read(0, BLOCK) == bytes(BLOCK)
        with pytest.raises(aioblk.UsageError, match="no queue 0"):
            polled.queue(0)
