"""A backend that dies: what is in flight fails, nothing hangs, and a new device can be opened."""

import asyncio
from pathlib import Path

import anyio
import pytest

import aioblk
from aioblk.testing.storage_daemon import StorageDaemon

from ..conftest import StorageDaemonFactory
from ..support.devices import BLOCK, LATENCY, held, pattern

NOTICED = 10  # seconds; more than enough for a hang-up


async def lose(device: aioblk.Device, daemon: StorageDaemon) -> None:
    """Kill the daemon, and wait until the device knows."""
    daemon.kill()
    async with asyncio.timeout(NOTICED):
        while "lost" not in repr(device):  # noqa: ASYNC110 (there is no event, except that requests fail)
            await asyncio.sleep(0)


async def outcomes(*requests: "aioblk.Request[object]") -> list[object]:
    async with asyncio.timeout(NOTICED):
        return list(await asyncio.gather(*requests, return_exceptions=True))


async def test_requests_in_flight_fail(slow_device: aioblk.Device, slow_daemon: StorageDaemon) -> None:
    with held(slow_daemon):
        requests: list[aioblk.Request[object]] = [
            slow_device.read(0, BLOCK),
            slow_device.write(0, bytes(BLOCK)),
            slow_device.write_zeroes(0, BLOCK),
            slow_device.discard(0, BLOCK),
            slow_device.flush(),
            slow_device.read_many([(0, BLOCK), (BLOCK, BLOCK)]),
            slow_device.write_many([(0, bytes(BLOCK)), (BLOCK, bytes(BLOCK))]),
        ]
        await lose(slow_device, slow_daemon)
    assert [type(result) for result in await outcomes(*requests)] == [aioblk.DeviceLostError] * 7
    assert slow_device.statistics().in_flight == 0


async def test_a_loss_is_noticed_by_whatever_path_the_socket_was_reached(
    storage_daemon: StorageDaemonFactory,
) -> None:
    daemon = storage_daemon()
    link = daemon.socket.with_name("link")
    link.symlink_to(daemon.socket)
    async with aioblk.VirtioBlkVhostUser(link) as device:
        await lose(device, daemon)
        with pytest.raises(aioblk.DeviceLostError):
            await device.read(0, BLOCK)


async def test_so_do_those_that_have_not_reached_the_device(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon
) -> None:
    with held(slow_daemon):
        requests = [slow_device.read(0, BLOCK) for _ in range(1000)]
        await lose(slow_device, slow_daemon)
    assert {type(result) for result in await outcomes(*requests)} == {aioblk.DeviceLostError}


async def test_and_those_that_wait_for_bounce_memory(slow_daemon: StorageDaemon) -> None:
    async with aioblk.VirtioBlkVhostUser(slow_daemon.socket, bounce_pool_size=64 << 10) as device:
        await device.read(0, 64 << 10)
        with held(slow_daemon):
            requests = [device.read(0, 48 << 10) for _ in range(8)]
            await asyncio.sleep(0)
            await lose(device, slow_daemon)
        assert {type(result) for result in await outcomes(*requests)} == {aioblk.DeviceLostError}


async def test_and_those_for_which_the_bounce_pool_is_being_made(slow_daemon: StorageDaemon) -> None:
    async with aioblk.VirtioBlkVhostUser(slow_daemon.socket) as device:
        with held(slow_daemon):
            request = device.read(0, BLOCK)
            await asyncio.sleep(0)
            await lose(device, slow_daemon)
        [result] = await outcomes(request)
        assert isinstance(result, aioblk.BlkioError)


async def test_the_error_tells_which_request_it_was_and_why(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon
) -> None:
    with held(slow_daemon):
        request = slow_device.read(BLOCK, 512)
        await lose(slow_device, slow_daemon)
    with pytest.raises(aioblk.DeviceLostError, match="lost") as caught:
        await request
    error = caught.value
    assert isinstance(error, anyio.BrokenResourceError)
    assert (error.operation, error.offset, error.length) == ("read", BLOCK, 512)
    assert error.driver == "virtio-blk-vhost-user"
    assert "closed the connection" in str(error.__cause__)


async def test_tasks_that_wait_are_woken(slow_device: aioblk.Device, slow_daemon: StorageDaemon) -> None:
    async def read() -> bytes:
        return await slow_device.read(0, BLOCK)

    with held(slow_daemon):
        tasks = [asyncio.create_task(read()) for _ in range(8)]
        await asyncio.sleep(0)
        slow_daemon.kill()
        async with asyncio.timeout(NOTICED):
            results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in results} == {aioblk.DeviceLostError}


async def test_requests_after_the_loss_are_refused(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon
) -> None:
    await lose(slow_device, slow_daemon)
    for call in (
        lambda: slow_device.read(0, BLOCK),
        lambda: slow_device.write(0, bytes(BLOCK)),
        lambda: slow_device.read_many([(0, BLOCK)]),
        lambda: slow_device.discard(0, BLOCK),
        lambda: slow_device.flush(),
    ):
        with pytest.raises(aioblk.DeviceLostError):
            call()


async def test_a_cancelled_request_stays_cancelled(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon
) -> None:
    with held(slow_daemon):
        request = slow_device.read(0, BLOCK)
        await asyncio.sleep(0)
        request.cancel()
        await lose(slow_device, slow_daemon)
    assert request.cancelled()


async def test_a_lost_device_can_be_closed(slow_daemon: StorageDaemon) -> None:
    device = aioblk.VirtioBlkVhostUser(slow_daemon.socket)
    await device.open()
    await device.read(0, BLOCK)
    with held(slow_daemon):
        request = device.read(0, BLOCK)
        await lose(device, slow_daemon)
    async with asyncio.timeout(NOTICED):
        await device.aclose()
        await device.aclose()
    assert device.closed
    assert isinstance(request.exception(), aioblk.DeviceLostError)
    with pytest.raises(aioblk.BlkioError):
        device.read(0, BLOCK)


async def test_closing_ends_when_the_device_is_lost_meanwhile(slow_daemon: StorageDaemon) -> None:
    device = aioblk.VirtioBlkVhostUser(slow_daemon.socket)
    await device.open()
    await device.read(0, BLOCK)
    with held(slow_daemon):
        request = device.read(0, BLOCK)
        closing = asyncio.create_task(device.aclose())
        await asyncio.sleep(0)
        slow_daemon.kill()
        async with asyncio.timeout(NOTICED):
            await closing
    assert isinstance(request.exception(), aioblk.DeviceLostError)


async def test_an_idle_device_notices_too(slow_daemon: StorageDaemon) -> None:
    async with aioblk.VirtioBlkVhostUser(slow_daemon.socket) as device:
        await lose(device, slow_daemon)
        with pytest.raises(aioblk.DeviceLostError):
            device.flush()


async def test_a_new_device_can_be_opened_on_a_new_daemon(
    storage_daemon: StorageDaemonFactory, scratch_file: Path
) -> None:
    first = storage_daemon(scratch_file)
    async with aioblk.VirtioBlkVhostUser(first.socket) as lost:
        await lost.write(0, pattern(BLOCK))
        await lose(lost, first)
        second = storage_daemon(scratch_file)
        async with aioblk.VirtioBlkVhostUser(second.socket) as found:
            assert await found.read(0, BLOCK) == pattern(BLOCK)


async def test_other_devices_are_not_concerned(storage_daemon: StorageDaemonFactory) -> None:
    doomed, fine = storage_daemon(), storage_daemon()
    async with (
        aioblk.VirtioBlkVhostUser(doomed.socket) as lost,
        aioblk.VirtioBlkVhostUser(fine.socket) as kept,
    ):
        await lose(lost, doomed)
        assert await kept.read(0, BLOCK) == bytes(BLOCK)


async def test_regions_of_a_lost_device_can_be_left(slow_daemon: StorageDaemon) -> None:
    async with aioblk.VirtioBlkVhostUser(slow_daemon.socket) as device, device.allocate(BLOCK) as region:
        await device.read_into(0, region)
        await lose(device, slow_daemon)
        async with asyncio.timeout(NOTICED):
            await region.aclose()


async def test_opening_a_daemon_that_dies_meanwhile_fails(storage_daemon: StorageDaemonFactory) -> None:
    daemon = storage_daemon()
    with held(daemon):
        opening = asyncio.create_task(aioblk.VirtioBlkVhostUser(daemon.socket).open())
        await asyncio.wait([opening], timeout=LATENCY)
        daemon.kill()
        async with asyncio.timeout(NOTICED):
            with pytest.raises(aioblk.BlkioError):
                await opening
