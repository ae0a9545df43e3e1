"""What a device tells of itself, to who listens and to the log."""

import asyncio
import gc
import logging
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

import aioblk

from ..conftest import StorageDaemonFactory

PATIENCE = 30.0  # seconds


async def next_of(events: AsyncGenerator[aioblk.DeviceEvent]) -> aioblk.DeviceEvent:
    async with asyncio.timeout(PATIENCE):
        return await anext(events)


async def test_a_loss_and_a_return_on_request(
    storage_daemon: StorageDaemonFactory, scratch_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "aioblk.device")
    daemon = storage_daemon(scratch_file)
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
        events, other = device.events(), device.events()
        daemon.kill()
        lost = await next_of(events)
        assert lost == aioblk.DeviceLost(device.lost)  # type: ignore[arg-type]
        daemon.restart()
        await device.reconnect()
        assert await next_of(events) == aioblk.DeviceReturned()
        assert [await next_of(other), await next_of(other)] == [lost, aioblk.DeviceReturned()]
    assert [event async for event in events] == []
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in said] == ["DEBUG", "WARNING", "INFO", "DEBUG"]
    assert all(str(daemon.socket) in message for _, message in said)


async def test_a_backend_that_dies_and_is_replaced(
    storage_daemon: StorageDaemonFactory, scratch_file: Path
) -> None:
    daemon = storage_daemon(scratch_file)
    async with aioblk.VirtioBlkVhostUser(daemon.socket, reconnect_for=PATIENCE) as device:
        events = device.events()
        daemon.restart()
        assert await next_of(events) == aioblk.DeviceSearching()
        assert await next_of(events) == aioblk.DeviceReturned()
        await device.read(0, 512)


async def test_a_backend_that_comes_back_larger(
    storage_daemon: StorageDaemonFactory, scratch_file: Path
) -> None:
    daemon, size = storage_daemon(scratch_file), scratch_file.stat().st_size  # noqa: ASYNC240
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
        events = device.events()
        daemon.kill()
        os.truncate(scratch_file, 2 * size)
        daemon.restart()
        assert isinstance(await next_of(events), aioblk.DeviceLost)
        await device.reconnect()
        assert await next_of(events) == aioblk.DeviceReturned()
        assert await next_of(events) == aioblk.DeviceResized(size, 2 * size)
        assert device.capacity == 2 * size


async def test_a_new_size_is_found_by_asking(scratch_file: Path) -> None:
    size = scratch_file.stat().st_size  # noqa: ASYNC240
    async with aioblk.IoUring(scratch_file) as device:
        asked, told = device.events(capacity_every=0.001), device.events()
        os.truncate(scratch_file, size + 512)
        assert await next_of(asked) == aioblk.DeviceResized(size, size + 512)
        assert await next_of(told) == aioblk.DeviceResized(size, size + 512)
        os.truncate(scratch_file, size)
        await device.refresh_capacity()
        assert await next_of(told) == aioblk.DeviceResized(size + 512, size)


async def test_asking_goes_on_though_the_device_is_lost(scratch_file: Path) -> None:
    async with aioblk.IoUring(scratch_file) as device:
        events = device.events(capacity_every=0.001)
        device.abandon()
        assert isinstance(await next_of(events), aioblk.DeviceLost)
        waiting = asyncio.create_task(next_of(events))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await device.reconnect()
        assert await waiting == aioblk.DeviceReturned()


async def test_who_waits_is_let_go_when_the_device_is_closed(scratch_file: Path) -> None:
    async with aioblk.IoUring(scratch_file) as device:
        events = device.events()
        waiting = asyncio.create_task(next_of(events))
        await asyncio.sleep(0)
    with pytest.raises(StopAsyncIteration):
        await waiting


async def test_who_does_not_listen_any_more_is_forgotten(scratch_file: Path) -> None:
    async with aioblk.IoUring(scratch_file) as device:
        for _ in range(10):
            device.events()
        gc.collect()
        assert len(device._session("events").events._listeners) == 0


async def test_what_is_refused(scratch_file: Path) -> None:
    device = aioblk.IoUring(scratch_file)
    with pytest.raises(aioblk.UsageError, match="not open"):
        device.events()
    async with device:
        for every in (0, -1.0, float("nan")):
            with pytest.raises(aioblk.OptionError, match="capacity_every must be positive"):
                device.events(capacity_every=every)

        async def elsewhere() -> None:
            with pytest.raises(aioblk.UsageError, match="another event loop"):
                device.events()

        await asyncio.to_thread(asyncio.run, elsewhere())
    with pytest.raises(aioblk.DeviceClosedError):
        device.events()
