"""A device that does not answer any more: noticed after a time, or given up by hand; nothing hangs."""

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

import aioblk
from aioblk.testing.storage_daemon import StorageDaemon

from ..conftest import StorageDaemonFactory
from ..support.devices import BLOCK, held

LOST_AFTER = 0.5  # seconds
NOTICED = 15  # seconds; more than enough


@pytest.fixture
def daemon(storage_daemon: StorageDaemonFactory) -> StorageDaemon:
    return storage_daemon(num_queues=3)


@pytest.fixture
async def watched(daemon: StorageDaemon) -> AsyncIterator[aioblk.Device]:
    """Is lost after LOST_AFTER; its bounce pool exists already."""
    async with aioblk.VirtioBlkVhostUser(daemon.socket, num_queues=3, lost_after=LOST_AFTER) as device:
        await device.read(0, BLOCK)
        yield device


@pytest.fixture
async def patient(daemon: StorageDaemon) -> AsyncIterator[aioblk.Device]:
    """Is never lost by itself; its bounce pool exists already."""
    async with aioblk.VirtioBlkVhostUser(daemon.socket, num_queues=3) as device:
        await device.read(0, BLOCK)
        yield device


async def until_lost(device: aioblk.Device) -> aioblk.DeviceLostError:
    async with asyncio.timeout(NOTICED):
        while device.lost is None:  # noqa: ASYNC110 (there is no event, except that requests fail)
            await asyncio.sleep(0.01)
    return device.lost


# --- noticing -----------------------------------------------------------------------------------------------


async def test_a_request_without_an_answer_fails_and_says_why(
    watched: aioblk.Device, daemon: StorageDaemon
) -> None:
    with held(daemon):
        oldest = watched.read(BLOCK, 512)
        await asyncio.sleep(0)
        others = [watched.write(0, bytes(BLOCK)), watched.flush()]
        async with asyncio.timeout(NOTICED):
            results = await asyncio.gather(oldest, *others, return_exceptions=True)
    assert {type(result) for result in results} == {aioblk.DeviceLostError}
    cause = str(oldest.exception().__cause__)  # type: ignore[union-attr]
    assert "read at offset 4096, length 512" in cause
    assert "0.5 seconds" in cause
    assert "reconnect()" in cause
    with pytest.raises(aioblk.DeviceLostError):
        watched.read(0, BLOCK)


async def test_requests_without_a_range_are_named_as_well(
    watched: aioblk.Device, daemon: StorageDaemon
) -> None:
    with held(daemon):
        request = watched.flush()
        assert "is: flush." in str(await until_lost(watched))
    assert isinstance(request.exception(), aioblk.DeviceLostError)


async def test_a_slow_device_is_not_a_silent_one(storage_daemon: StorageDaemonFactory) -> None:
    daemon = storage_daemon(latency_ns=int(0.04e9))
    async with aioblk.VirtioBlkVhostUser(daemon.socket, lost_after=1.0, queue_size=4) as device:
        # One after the other, 1.2 seconds in all: the last wait for their turn for longer than lost_after.
        await asyncio.gather(*(device.read(0, BLOCK) for _ in range(30)))
        await device.read(0, 4 << 20)
        assert device.lost is None


async def test_a_device_that_has_what_its_ring_holds_is_not_a_silent_one(
    storage_daemon: StorageDaemonFactory,
) -> None:
    """A ring of 256 descriptors holds two vectors of 126 segments; the others wait for 1.2 seconds in all."""
    daemon = storage_daemon(latency_ns=int(0.02e9), size=64 << 20)
    async with (
        aioblk.VirtioBlkVhostUser(daemon.socket, lost_after=LOST_AFTER) as device,
        device.allocate(1 << 20) as region,
    ):
        buffers = [region[at : at + 512] for at in range(0, 126 * 1024, 1024)]
        await asyncio.gather(*(device.writev(number << 16, buffers) for number in range(120)))
        assert device.lost is None


async def test_an_idle_device_is_not_a_silent_one(watched: aioblk.Device, daemon: StorageDaemon) -> None:
    with held(daemon):
        await asyncio.sleep(2 * LOST_AFTER)
    assert await watched.read(0, BLOCK) == bytes(BLOCK)


async def test_a_loop_that_stands_still_does_not_make_the_device_silent(watched: aioblk.Device) -> None:
    requests = [watched.read(0, BLOCK) for _ in range(8)]
    await asyncio.sleep(0)
    threading.Event().wait(3 * LOST_AFTER)
    await asyncio.gather(*requests)
    assert watched.lost is None


@pytest.mark.abandons_memory
async def test_requests_on_callers_memory_end_too(watched: aioblk.Device, daemon: StorageDaemon) -> None:
    region = watched.allocate(BLOCK)
    await region.__aenter__()
    with held(daemon):
        request = watched.read_into(0, region)
        await asyncio.sleep(0)
        request.cancel()  # which waits for the device, as it may still write there
        async with asyncio.timeout(NOTICED):
            await asyncio.wait([request])  # type: ignore[type-var]
            assert request.cancelled()
            await region.aclose()
            await watched.aclose()


@pytest.mark.abandons_memory
async def test_silence_while_memory_is_being_mapped(watched: aioblk.Device, daemon: StorageDaemon) -> None:
    with held(daemon):
        async with asyncio.timeout(NOTICED):
            with pytest.raises(aioblk.RegistrationError):
                await watched.allocate(BLOCK).__aenter__()
            assert "call to the device" in str(watched.lost)
            await watched.aclose()


async def test_a_queue_of_another_thread_notices(watched: aioblk.Device, daemon: StorageDaemon) -> None:
    failure: list[BaseException] = []

    async def elsewhere() -> None:
        async with watched.queue(1) as queue:
            await queue.read(0, BLOCK)
            asked.set()
            held_now.wait()
            with pytest.raises(aioblk.DeviceLostError) as caught:
                await queue.read(0, BLOCK)
            failure.append(caught.value)

    asked, held_now = threading.Event(), threading.Event()
    other = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(elsewhere())))
    await asyncio.to_thread(asked.wait)
    with held(daemon):
        held_now.set()
        async with asyncio.timeout(NOTICED):
            await other
        await until_lost(watched)
    assert failure


async def test_a_thread_without_a_loop_notices(watched: aioblk.Device, daemon: StorageDaemon) -> None:
    def work() -> None:
        with watched.blocking_queue(1) as queue:
            queue.wait(queue.read(0, BLOCK))
            daemon.pause()
            with pytest.raises(aioblk.DeviceLostError):
                queue.wait(queue.read(0, BLOCK))
            with pytest.raises(aioblk.DeviceLostError):
                queue.read(0, BLOCK)

    async with asyncio.timeout(NOTICED):
        await asyncio.to_thread(work)
    await until_lost(watched)
    daemon.resume()


def test_impossible_times_are_refused() -> None:
    for wrong in (0, -1, 0.05, float("inf"), float("nan"), 100_000, "soon", True):
        with pytest.raises(aioblk.OptionError, match="lost_after"):
            aioblk.IoUring("disk.img", lost_after=wrong)  # type: ignore[arg-type]


def test_times_can_be_text() -> None:
    aioblk.open("io_uring", path="disk.img", lost_after="2.5")
    aioblk.open("io_uring", path="disk.img", lost_after="none")
    aioblk.open("io_uring", path="disk.img", lost_after="2s")
    with pytest.raises(aioblk.OptionError, match="lost_after"):
        aioblk.open("io_uring", path="disk.img", lost_after="soon")


# --- giving up ----------------------------------------------------------------------------------------------


async def test_giving_up_fails_what_is_in_flight(patient: aioblk.Device, daemon: StorageDaemon) -> None:
    with held(daemon):
        requests = [patient.read(0, BLOCK) for _ in range(500)]
        await asyncio.sleep(0)
        patient.abandon("the operator says so")
        async with asyncio.timeout(NOTICED):
            results = await asyncio.gather(*requests, return_exceptions=True)
            await patient.aclose()
    assert {type(result) for result in results} == {aioblk.DeviceLostError}
    assert "the operator says so" in str(requests[0].exception().__cause__)  # type: ignore[union-attr]


async def test_giving_up_while_the_device_is_being_closed(
    patient: aioblk.Device, daemon: StorageDaemon
) -> None:
    with held(daemon):
        request = patient.read(0, BLOCK)
        closing = asyncio.create_task(patient.aclose())
        await asyncio.sleep(0.05)
        assert not closing.done()
        patient.abandon()
        async with asyncio.timeout(NOTICED):
            await closing
    assert isinstance(request.exception(), aioblk.DeviceLostError)


async def test_giving_up_while_memory_is_being_unmapped(
    patient: aioblk.Device, daemon: StorageDaemon
) -> None:
    async with patient.allocate(BLOCK) as region:
        with held(daemon):
            leaving = asyncio.create_task(region.aclose())
            await asyncio.sleep(0.05)
            patient.abandon()
            async with asyncio.timeout(NOTICED):
                await leaving
                await patient.aclose()


async def test_giving_up_while_the_bounce_pool_is_being_made(daemon: StorageDaemon) -> None:
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
        with held(daemon):
            request = device.read(0, BLOCK)
            await asyncio.sleep(0.05)
            device.abandon()
            async with asyncio.timeout(NOTICED):
                with pytest.raises(aioblk.DeviceLostError):
                    await request
                await device.aclose()


@pytest.mark.abandons_memory
async def test_a_region_in_use_is_left_and_never_given_back(
    patient: aioblk.Device, daemon: StorageDaemon
) -> None:
    async with patient.allocate(BLOCK) as region:
        with held(daemon):
            request = patient.read_into(0, region)
            await asyncio.sleep(0)
            patient.abandon()
            with pytest.raises(aioblk.DeviceLostError):
                await request
            memory = region.memory
            async with asyncio.timeout(NOTICED):
                await region.aclose()
            assert memory.closed
            assert not memory.released  # the device may still write there
            await patient.aclose()
    assert not memory.released


async def test_a_device_on_a_file_can_be_given_up(file_device: aioblk.Device) -> None:
    requests = [file_device.write(0, bytes(BLOCK)) for _ in range(64)]
    file_device.abandon()
    results = await asyncio.gather(*requests, return_exceptions=True)
    # The first had the device to itself and may have been through before its method returned.
    assert {type(result) for result in results[1:]} == {aioblk.DeviceLostError}
    assert "given up" in str(file_device.lost)


async def test_giving_up_twice_or_after_closing_does_nothing(file_device: aioblk.Device) -> None:
    file_device.abandon("first")
    file_device.abandon("second")
    assert "first" in str(file_device.lost)
    await file_device.aclose()
    file_device.abandon()


async def test_giving_up_is_for_the_devices_own_thread(file_device: aioblk.Device) -> None:
    with pytest.raises(aioblk.UsageError, match="another thread"):
        await asyncio.to_thread(file_device.abandon)
    assert file_device.lost is None
    with pytest.raises(aioblk.UsageError, match="not open"):
        aioblk.IoUring("disk.img").abandon()
