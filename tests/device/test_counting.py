"""What a device counts, and how long its requests took."""

import asyncio
import errno
import threading
import time
from pathlib import Path

import pytest

import aioblk

from ..conftest import StorageDaemonFactory
from ..support.devices import BLOCK, held

PATIENCE = 30.0  # seconds
POOL = 64 << 10  # bytes of the smallest bounce pool


# --- counting -----------------------------------------------------------------------------------------------


async def test_each_operation_counts_for_itself(scratch_file: Path) -> None:
    async with aioblk.IoUring(scratch_file) as device:
        await device.write_many([(0, bytes(BLOCK)), (2 * BLOCK, bytes(BLOCK))])
        await device.read(0, 3 * BLOCK)
        await device.write_zeroes(0, BLOCK)
        await device.discard(BLOCK, BLOCK)
        await device.flush()
        before = device.statistics()
        await device.read(0, BLOCK)
        seen = device.statistics()
    done = {name: (each.completed, each.failed, each.bytes) for name, each in before.operations.items()}
    assert done == {
        "read": (1, 0, 3 * BLOCK),
        "write": (2, 0, 2 * BLOCK),
        "write_zeroes": (1, 0, BLOCK),
        "discard": (1, 0, BLOCK),
        "flush": (1, 0, 0),
        "zones": (0, 0, 0),
    }
    assert (seen - before).read == aioblk.OperationStatistics(completed=1, bytes=BLOCK)
    assert (seen - before).completed == 1


async def test_errors_count_by_their_number(scratch_file: Path) -> None:
    async with aioblk.IoUring(scratch_file) as device:
        results = await asyncio.gather(
            *[device.write(1 << 62, bytes(BLOCK)) for _ in range(3)], return_exceptions=True
        )
        (number,) = {result.errno for result in results if isinstance(result, aioblk.BlkioError)}
        assert device.statistics().write.errors == {number: 3}
        outcome = await device.write_many(
            [(0, bytes(BLOCK)), (1 << 62, bytes(BLOCK))], return_exceptions=True
        )
        assert outcome[0] is None
        assert device.statistics().write.errors == {number: 4}
        assert device.statistics().write.failed == 4
        device.abandon("as an example")


async def test_what_a_lost_device_had_has_failed_with_that(storage_daemon: StorageDaemonFactory) -> None:
    daemon = storage_daemon()
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
        await device.read(0, BLOCK)
        with held(daemon):
            reading = [device.read(0, BLOCK), device.read_many([(0, BLOCK), (BLOCK, BLOCK)])]
            await asyncio.sleep(0)
            device.abandon("as an example")
            await asyncio.gather(*reading, return_exceptions=True)
        assert device.statistics().read.errors == {errno.ENODEV: 3}
        before = device.statistics()
    assert device.statistics() == before


async def test_nothing_is_forgotten_when_queues_come_and_go(storage_daemon: StorageDaemonFactory) -> None:
    daemon = storage_daemon(num_queues=3)
    async with aioblk.VirtioBlkVhostUser(daemon.socket, num_queues=3) as device:
        async with device.queue(1) as queue:
            await queue.read(0, BLOCK)

        def use() -> aioblk.BlockingQueue:
            with device.blocking_queue(2) as queue:
                queue.wait(queue.read(0, BLOCK))
            return queue

        blocking = await asyncio.to_thread(use)
        assert queue.statistics().completed == blocking.statistics().completed == 1
        assert device.statistics().completed == 2
        await device.read(0, BLOCK)
        await device.detach()
        assert device.statistics().completed == 3
        await device.attach()
        await device.read(0, BLOCK)
    assert device.statistics().completed == 4
    assert device.statistics().in_flight == 0


def test_what_has_not_been_open_has_no_statistics(scratch_file: Path) -> None:
    with pytest.raises(aioblk.UsageError):
        aioblk.IoUring(scratch_file).statistics()


async def test_waiting_for_bounce_memory_counts(storage_daemon: StorageDaemonFactory) -> None:
    daemon = storage_daemon()
    async with aioblk.VirtioBlkVhostUser(daemon.socket, bounce_pool_size=POOL) as device:
        await device.read(0, POOL)
        before = device.statistics()
        with held(daemon):
            reading = [device.read(0, POOL) for _ in range(4)]
            await asyncio.sleep(0)
        await asyncio.gather(*reading)
        waited = device.statistics() - before
        assert waited.bounce_wait.count == 3
        assert 0 < waited.bounce_wait.min <= waited.bounce_wait.max
    assert (device.statistics() - before).bounce_wait.count == 3


async def test_who_gave_up_waiting_for_bounce_memory_has_not_got_it(
    storage_daemon: StorageDaemonFactory,
) -> None:
    daemon = storage_daemon()
    async with aioblk.VirtioBlkVhostUser(daemon.socket, bounce_pool_size=POOL) as device:
        await device.read(0, POOL)
        before, pool = device.statistics(), device.bounce_pool.statistics()
        with held(daemon):
            reading = [device.read(0, POOL) for _ in range(4)]
            assert reading[2].cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        assert device.bounce_pool.statistics().waits - pool.waits == 3
        assert (device.statistics() - before).bounce_wait.count == 2


# --- times --------------------------------------------------------------------------------------------------


async def test_times_are_taken_while_somebody_wants_to_know(scratch_file: Path) -> None:
    async with aioblk.IoUring(scratch_file) as device:
        assert not device.measuring
        await device.read(0, BLOCK)
        assert device.statistics().read.latency.count == 0
        device.measuring = True
        assert device.measuring
        await device.read(0, BLOCK)
        await asyncio.gather(*[device.read(0, BLOCK) for _ in range(8)])
        await device.read_many([(offset * BLOCK, BLOCK) for offset in range(5)])
        await device.flush()
        device.measuring = False
        await device.read(0, BLOCK)
    taken = device.statistics()
    assert taken.read.latency.count == 1 + 8 + 5
    assert taken.flush.latency.count == 1
    assert 0 < taken.read.latency.min <= taken.read.latency.mean <= taken.read.latency.max
    assert taken.read.completed == 16


async def test_a_time_is_that_of_the_device(storage_daemon: StorageDaemonFactory) -> None:
    daemon = storage_daemon()
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
        await device.read(0, BLOCK)
        device.measuring = True
        with held(daemon):
            began = time.monotonic()
            reading = [device.read(0, BLOCK) for _ in range(2)]
            await asyncio.sleep(0)  # they are handed over
            since = time.monotonic()
            await asyncio.sleep(0.05)
            waited = time.monotonic() - since
        await asyncio.gather(*reading)
        longest = time.monotonic() - began
        latency = device.statistics().read.latency
        assert latency.count == 2
        assert waited <= latency.min <= latency.max <= longest


async def test_what_began_before_is_not_timed(storage_daemon: StorageDaemonFactory) -> None:
    daemon = storage_daemon()
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
        await device.read(0, BLOCK)
        with held(daemon):
            before = device.read(0, BLOCK)
            await asyncio.sleep(0)
            device.measuring = True
            after = device.read(0, BLOCK)
        await asyncio.gather(before, after)
        assert device.statistics().read.latency.count == 1


async def test_what_was_cancelled_is_not_timed(storage_daemon: StorageDaemonFactory) -> None:
    daemon = storage_daemon()
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device, device.allocate(2 * BLOCK) as region:
        device.measuring = True
        with held(daemon):
            reading = [device.read(0, BLOCK), device.read_into(0, region[:BLOCK])]
            new = device.read_into(0, region[BLOCK:])
            await asyncio.sleep(0)
            for request in [*reading, new]:
                request.cancel()
        await asyncio.gather(*reading, new, return_exceptions=True)
        assert device.statistics().cancelled == 3
        assert device.statistics().read.latency.count == 0


async def test_who_is_cancelled_before_the_flush_hides_nobody(scratch_file: Path) -> None:
    async with aioblk.IoUring(scratch_file) as device:
        device.measuring = True
        for _ in range(10):
            reading = [device.read(0, BLOCK) for _ in range(16)]
            reading[-1].cancel()
            await asyncio.gather(*reading, return_exceptions=True)
        counted = device.statistics()
        assert counted.read.latency.count == counted.completed


async def test_no_time_is_longer_than_it_was(storage_daemon: StorageDaemonFactory) -> None:
    """Also of what ends otherwise than by an answer of the device."""
    daemon = storage_daemon()
    began = time.monotonic()
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
        await device.read(0, BLOCK)
        device.measuring = True
        with held(daemon):
            reading = [device.read(0, BLOCK) for _ in range(3)]
            await asyncio.sleep(0)
            since = time.monotonic()
            await asyncio.sleep(0.01)
            waited = time.monotonic() - since
            device.abandon("as an example")
            await asyncio.gather(*reading, return_exceptions=True)
    latency = device.statistics().read.latency
    assert latency.count == 3
    assert waited <= latency.min <= latency.max <= time.monotonic() - began


@pytest.mark.usefixtures("loop_device")
async def test_discards_outside_libblkio_are_timed(loop_device: Path) -> None:
    async with aioblk.IoUring(loop_device) as device:
        device.measuring = True
        await device.discard(0, BLOCK)
        await asyncio.gather(device.discard(0, BLOCK), device.read(BLOCK, BLOCK))
        latency = device.statistics().discard.latency
        assert latency.count == 2
        assert 0 < latency.min <= latency.max < PATIENCE


async def test_who_only_wants_to_be_told_times_nothing(scratch_file: Path) -> None:
    class Listener:
        def request_begun(self, _request: aioblk.RequestInfo) -> None:
            pass

    async with aioblk.IoUring(scratch_file) as device:
        device.add_instrument(Listener())
        reading = device.read(0, BLOCK)
        others = [device.read(0, BLOCK) for _ in range(3)]
        device.measuring = True
        await asyncio.gather(reading, *others)
        assert device.statistics().read.latency.count == 0
        await device.read(0, BLOCK)
        assert device.statistics().read.latency.count == 1


async def test_failures_are_timed_as_well(scratch_file: Path) -> None:
    async with aioblk.IoUring(scratch_file) as device:
        device.measuring = True
        with pytest.raises(aioblk.BlkioError):
            await device.write(1 << 62, bytes(BLOCK))
        assert device.statistics().write.latency.count == 1


async def test_other_queues_are_timed_as_well(storage_daemon: StorageDaemonFactory) -> None:
    """Those that are bound already, in another loop or a thread, and those that come."""
    daemon = storage_daemon(num_queues=3)
    switched = threading.Event()
    bound = threading.Barrier(3)
    async with aioblk.VirtioBlkVhostUser(daemon.socket, num_queues=3) as device:

        async def in_a_loop() -> None:
            async with device.queue(1) as queue:
                await queue.read(0, BLOCK)
                await asyncio.to_thread(bound.wait)
                await asyncio.to_thread(switched.wait)
                await queue.read(0, BLOCK)

        def in_a_thread() -> None:
            with device.blocking_queue(2) as queue:
                queue.wait(queue.read(0, BLOCK))
                bound.wait()
                switched.wait()
                queue.wait(queue.read(0, BLOCK))
                queue.wait(queue.read(0, BLOCK))

        threads = [
            asyncio.create_task(asyncio.to_thread(asyncio.run, in_a_loop())),
            asyncio.create_task(asyncio.to_thread(in_a_thread)),
        ]
        await asyncio.to_thread(bound.wait)
        device.measuring = True
        switched.set()
        await asyncio.gather(*threads)
        latency = device.statistics().read.latency
        assert latency.count == 1 + 1, "a thread hears of it when it waits next"
