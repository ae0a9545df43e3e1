"""Cancellation, wherever a task may wait, while a real device is slow or does not answer at all.

The device cannot be told to stop. So what matters is whose memory it may still write to: a request that only
touches memory of aioblk's own is left at once, one on the caller's memory when the device has finished with
it.
"""

import asyncio
import threading
from collections.abc import Callable

import pytest

import aioblk
from aioblk._sync.threads import NAME, dismiss
from aioblk.testing.storage_daemon import StorageDaemon

from ..conftest import StorageDaemonFactory
from ..support.devices import BLOCK, LATENCY, held, pattern
from ..support.turns import turns


async def cancel_at_once(task: "asyncio.Task[object]") -> None:
    """Cancel the task; it ends within a few turns of the loop."""
    task.cancel()
    await turns()
    assert task.cancelled()


async def cancel_and_find_waiting(task: "asyncio.Task[object]") -> None:
    """Cancel the task; it does not end."""
    task.cancel()
    await asyncio.wait([task], timeout=LATENCY)
    assert not task.done()


# --- memory of aioblk's own ---------------------------------------------------------------------------------

PRIVATE: dict[str, Callable[[aioblk.Device], "aioblk.Request[object]"]] = {
    "read": lambda device: device.read(0, BLOCK),
    "bounced read_into": lambda device: device.read_into(0, bytearray(BLOCK)),
    "bounced readv": lambda device: device.readv(0, [bytearray(BLOCK), bytearray(BLOCK)]),
    "bounced write": lambda device: device.write(0, bytes(BLOCK)),
    "bounced writev": lambda device: device.writev(0, [bytes(BLOCK), bytes(BLOCK)]),
    "split read": lambda device: device.read(0, 4 << 20),
    "read_many": lambda device: device.read_many([(0, BLOCK), (BLOCK, BLOCK)]),
    "bounced write_many": lambda device: device.write_many([(0, bytes(BLOCK)), (BLOCK, bytes(BLOCK))]),
    "write_zeroes": lambda device: device.write_zeroes(0, BLOCK),
    "discard": lambda device: device.discard(0, BLOCK),
    "flush": lambda device: device.flush(),
}


@pytest.mark.parametrize("operation", PRIVATE)
async def test_requests_on_private_memory_are_left_at_once(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon, operation: str
) -> None:
    await slow_device.read(0, 4 << 20)  # so that the bounce pool is large enough for all

    async def run() -> object:
        return await PRIVATE[operation](slow_device)

    with held(slow_daemon):
        task = asyncio.create_task(run())
        await turns()
        await cancel_at_once(task)
        assert slow_device.statistics().in_flight > 0
    await slow_device.aclose()


async def test_a_cancelled_read_changes_no_buffer_afterwards(
    storage_daemon: StorageDaemonFactory, slow_daemon: StorageDaemon
) -> None:
    async with aioblk.VirtioBlkVhostUser(slow_daemon.socket) as device:
        await device.read(0, BLOCK)
        buffer = bytearray(b"\x55" * BLOCK)
        with held(slow_daemon):
            request = device.read_into(0, buffer)
            await turns()
            request.cancel()
        await device.read(0, BLOCK)
    assert buffer == b"\x55" * BLOCK


async def test_bounce_memory_of_cancelled_requests_is_not_used_until_the_device_is_done(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon
) -> None:
    with held(slow_daemon):
        request = slow_device.read(0, BLOCK)
        await turns()
        request.cancel()
        assert slow_device.bounce_pool.statistics().in_use >= BLOCK
    await slow_device.flush()
    async with asyncio.timeout(60):
        while slow_device.statistics().in_flight:
            await slow_device.flush()
    assert slow_device.bounce_pool.statistics().in_use == 0


# --- the caller's memory ------------------------------------------------------------------------------------

ON_REGIONS: dict[str, Callable[[aioblk.Device, aioblk.MemoryRegion], "aioblk.Request[object]"]] = {
    "read_into": lambda device, region: device.read_into(0, region[:BLOCK]),
    "readv": lambda device, region: device.readv(0, [region[:512], region[512:BLOCK]]),
    "partly bounced readv": lambda device, region: device.readv(0, [region[:BLOCK], bytearray(BLOCK)]),
    "write": lambda device, region: device.write(0, region[:BLOCK]),
    "writev": lambda device, region: device.writev(0, [region[:512], region[512:BLOCK]]),
    "split read_into": lambda device, region: device.read_into(0, region),
    "read_into_many": lambda device, region: device.read_into_many(
        [(0, region[:512]), (0, region[512:1024])]
    ),
    "write_many": lambda device, region: device.write_many([(0, region[:512]), (0, region[512:1024])]),
}


@pytest.mark.parametrize("operation", ON_REGIONS)
async def test_requests_on_the_callers_memory_wait_for_the_device(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon, operation: str
) -> None:
    async with slow_device.allocate(3 << 20) as region:

        async def run() -> object:
            return await ON_REGIONS[operation](slow_device, region)

        with held(slow_daemon):
            task = asyncio.create_task(run())
            await turns()
            await cancel_and_find_waiting(task)
        await asyncio.wait([task])
        assert task.cancelled()
        assert slow_device.statistics().in_flight == 0


async def test_a_second_cancellation_does_not_hurry_the_first(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon
) -> None:
    async with slow_device.allocate(BLOCK) as region:

        async def run() -> None:
            await slow_device.read_into(0, region)

        with held(slow_daemon):
            task = asyncio.create_task(run())
            await turns()
            await cancel_and_find_waiting(task)
            await cancel_and_find_waiting(task)
        await asyncio.wait([task])
        assert task.cancelled()


async def test_a_timeout_on_the_callers_memory_waits_for_the_device(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon
) -> None:
    async with slow_device.allocate(BLOCK) as region:

        async def run() -> None:
            async with asyncio.timeout(0):
                await slow_device.read_into(0, region)

        with held(slow_daemon):
            task = asyncio.create_task(run())
            await asyncio.wait([task], timeout=LATENCY)
            assert not task.done()
        with pytest.raises(TimeoutError):
            await task


async def test_buffers_cannot_be_resized_until_the_device_is_done(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon
) -> None:
    buffer = bytearray(BLOCK)
    with held(slow_daemon):
        request = slow_device.read_into(0, buffer)
        await turns()
        with pytest.raises(BufferError):
            buffer.clear()
        request.cancel()
        with pytest.raises(BufferError):
            buffer.clear()
    async with asyncio.timeout(60):
        while slow_device.statistics().in_flight:
            await slow_device.flush()
    buffer.clear()


async def test_buffers_of_finished_requests_are_free_again(device: aioblk.Device) -> None:
    buffer = bytearray(BLOCK)
    request = device.read_into(0, buffer)
    await request
    buffer.clear()


# --- through asyncio's ways of waiting ----------------------------------------------------------------------


async def test_gather_cancels_its_requests(slow_device: aioblk.Device, slow_daemon: StorageDaemon) -> None:
    requests = [slow_device.read(0, BLOCK) for _ in range(4)]
    with held(slow_daemon):
        gathered = asyncio.gather(*requests)
        await turns()
        gathered.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gathered
        assert all(request.cancelled() for request in requests)


async def test_wait_leaves_requests_alone(slow_device: aioblk.Device, slow_daemon: StorageDaemon) -> None:
    request = slow_device.read(0, BLOCK)

    async def run() -> None:
        await asyncio.wait([request])  # type: ignore[type-var]

    with held(slow_daemon):
        task = asyncio.create_task(run())
        await turns()
        await cancel_at_once(task)
    assert await request == bytes(BLOCK)


async def test_shield_protects_requests(slow_device: aioblk.Device, slow_daemon: StorageDaemon) -> None:
    request = slow_device.read(0, BLOCK)

    async def run() -> None:
        await asyncio.shield(request)

    with held(slow_daemon):
        task = asyncio.create_task(run())
        await turns()
        await cancel_at_once(task)
    assert await request == bytes(BLOCK)


async def test_task_groups_wait_for_the_device_before_they_are_left(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon
) -> None:
    async with slow_device.allocate(BLOCK) as region:

        async def run() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(slow_device.read_into(0, region))
                group.create_task(slow_device.read_into(0, region))

        with held(slow_daemon):
            task = asyncio.create_task(run())
            await turns()
            await cancel_and_find_waiting(task)
        await asyncio.wait([task])
        assert task.cancelled()
        assert slow_device.statistics().in_flight == 0


async def test_tasks_of_requests_can_be_cancelled(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon
) -> None:
    with held(slow_daemon):
        task = asyncio.create_task(slow_device.read(0, BLOCK))
        await turns()
        await cancel_at_once(task)


async def test_a_task_cancelled_before_its_first_step_leaves_private_memory_at_once(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon
) -> None:
    with held(slow_daemon):
        await cancel_at_once(asyncio.create_task(slow_device.read(0, BLOCK)))


async def test_a_task_cancelled_before_its_first_step_waits_for_the_device(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon
) -> None:
    async with slow_device.allocate(BLOCK) as region:
        with held(slow_daemon):
            task = asyncio.create_task(slow_device.read_into(0, region))
            await cancel_and_find_waiting(task)
        await asyncio.wait([task])
        assert task.cancelled()


async def test_only_the_awaiting_task_is_cancelled_not_the_others(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon
) -> None:
    with held(slow_daemon):
        first = asyncio.create_task(slow_device.read(0, BLOCK))
        second = asyncio.create_task(slow_device.read(0, BLOCK))
        await turns()
        await cancel_at_once(first)
    assert await second == bytes(BLOCK)


# --- before the device has seen the request -----------------------------------------------------------------


async def test_requests_that_wait_in_the_backlog_never_reach_the_device(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon
) -> None:
    async with slow_device.allocate(BLOCK) as region:
        parts = slow_device.statistics().parts
        with held(slow_daemon):
            requests = [slow_device.read_into(0, region) for _ in range(1000)]
            await turns()
            waiting = requests[500:]
            for request in waiting:
                request.cancel()
            await turns()
            assert all(request.cancelled() for request in waiting)
            assert slow_device.statistics().in_flight == 500
        await asyncio.gather(*requests[:500])
        assert slow_device.statistics().bytes_read == 501 * BLOCK
    assert parts < 1000


@pytest.mark.parametrize(
    ("segments", "descriptors", "held_by_the_ring"), [(1, 256, 85), (126, 256, 2), (62, 64, 1), (2, 4, 1)]
)
async def test_what_the_ring_does_not_hold_never_reaches_the_device(
    slow_daemon: StorageDaemon, segments: int, descriptors: int, held_by_the_ring: int
) -> None:
    """A request takes a descriptor for each segment and two more; libblkio would take any number of them."""
    async with (
        aioblk.VirtioBlkVhostUser(slow_daemon.socket, queue_size=descriptors) as device,
        device.allocate(1 << 20) as region,
    ):
        buffers = [region[at : at + 512] for at in range(0, segments * 1024, 1024)]
        with held(slow_daemon):
            requests = [device.readv(0, buffers) for _ in range(300)]
            await turns()
            for request in requests:
                request.cancel()
            await turns()
            assert device.statistics().in_flight == held_by_the_ring
        await asyncio.wait(requests)  # type: ignore[type-var]


async def test_cancelled_in_the_middle_of_the_backlog(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon
) -> None:
    async with slow_device.allocate(BLOCK) as region:
        with held(slow_daemon):
            requests = [slow_device.read_into(0, region) for _ in range(1000)]
            await turns()
            for request in requests[600:900:2]:
                request.cancel()
            await turns()
            assert [request.cancelled() for request in requests[600:900]] == [True, False] * 150
        results = await asyncio.gather(*requests, return_exceptions=True)
    assert sum(isinstance(result, asyncio.CancelledError) for result in results) == 150
    assert results.count(None) == 850


async def test_requests_that_wait_for_bounce_memory_are_left_at_once(slow_daemon: StorageDaemon) -> None:
    async with aioblk.VirtioBlkVhostUser(slow_daemon.socket, bounce_pool_size=64 << 10) as device:
        await device.read(0, 64 << 10)
        with held(slow_daemon):
            first = device.read(0, 64 << 10)
            waiting = [device.read(0, 32 << 10) for _ in range(4)]
            await turns()
            assert device.bounce_pool.statistics().waiting == 4
            for request in waiting[:3]:
                request.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await request
        assert await first == bytes(64 << 10)
        assert await waiting[3] == bytes(32 << 10)
        assert device.statistics().parts == 3


async def test_cancelling_whoever_waits_for_bounce_memory_lets_the_others_have_it(
    slow_daemon: StorageDaemon,
) -> None:
    async with aioblk.VirtioBlkVhostUser(slow_daemon.socket, bounce_pool_size=64 << 10) as device:
        async with asyncio.timeout(60):
            for _ in range(3):
                requests = [device.read(0, 48 << 10) for _ in range(6)]
                await turns()
                for request in requests[::2]:
                    request.cancel()
                assert await asyncio.gather(*requests[1::2]) == [bytes(48 << 10)] * 3


# --- writes -------------------------------------------------------------------------------------------------


async def test_a_cancelled_write_is_written_or_not_but_never_torn_by_new_data(
    file_device: aioblk.Device,
) -> None:
    old, new = pattern(BLOCK, 1), pattern(BLOCK, 2)
    await file_device.write(0, old)
    buffer = bytearray(new)
    task = asyncio.create_task(file_device.write(0, buffer))
    task.cancel()
    await asyncio.wait([task])
    buffer[:] = pattern(BLOCK, 3)
    assert await file_device.read(0, BLOCK) in {old, new}


# --- opening and closing ------------------------------------------------------------------------------------


async def test_opening_a_busy_device_can_be_cancelled(slow_daemon: StorageDaemon) -> None:
    async with aioblk.VirtioBlkVhostUser(slow_daemon.socket):
        second = aioblk.VirtioBlkVhostUser(slow_daemon.socket)
        task = asyncio.create_task(second.open())
        await asyncio.wait([task], timeout=LATENCY)
        assert not task.done()
        await cancel_at_once(task)
        assert second.closed
        await second.aclose()
        dismiss()
        late = [thread for thread in threading.enumerate() if thread.name == NAME]
    # The connection that comes about now is given back, so the socket is free for others.
    for thread in late:
        await asyncio.to_thread(thread.join)
    async with aioblk.VirtioBlkVhostUser(slow_daemon.socket) as third:
        assert await third.read(0, BLOCK) == bytes(BLOCK)
    await asyncio.get_running_loop().shutdown_default_executor()


async def test_closing_goes_on_when_the_closing_task_is_cancelled(slow_daemon: StorageDaemon) -> None:
    device = aioblk.VirtioBlkVhostUser(slow_daemon.socket)
    await device.open()
    await device.read(0, BLOCK)
    with held(slow_daemon):
        request = device.read(0, BLOCK)
        await turns()
        task = asyncio.create_task(device.aclose())
        await turns()
        await cancel_at_once(task)
        with pytest.raises(aioblk.DeviceClosedError):
            device.read(0, BLOCK)
    await device.aclose()
    assert request.result() == bytes(BLOCK)


async def test_allocating_memory_can_be_cancelled(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon
) -> None:
    async def allocate() -> None:
        async with slow_device.allocate(BLOCK):
            pass

    with held(slow_daemon):
        task = asyncio.create_task(allocate())
        await asyncio.wait([task], timeout=LATENCY)
        assert not task.done()
        task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    async with slow_device.allocate(BLOCK) as region:
        await slow_device.read_into(0, region)
