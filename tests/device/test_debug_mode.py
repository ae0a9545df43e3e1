"""A device in asyncio's debug mode, and what it says in the log."""

import asyncio
import gc
import logging
import time
from pathlib import Path
from typing import Any

import pytest

import aioblk

from ..conftest import StorageDaemonFactory
from ..support.devices import BLOCK, held

PATIENCE = 30.0  # seconds
POOL = 64 << 10  # bytes of the smallest bounce pool


# --- debug mode ---------------------------------------------------------------------------------------------


async def test_debug_mode_blames_the_slow_task(
    storage_daemon: StorageDaemonFactory, caplog: pytest.LogCaptureFixture
) -> None:
    daemon = storage_daemon()
    loop = asyncio.get_running_loop()
    was, loop.slow_callback_duration = loop.slow_callback_duration, 0.01
    loop.set_debug(True)
    try:
        async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:

            async def dawdle() -> None:
                await device.read(0, BLOCK)
                with held(daemon):
                    reading = device.read(0, BLOCK)
                    await asyncio.sleep(0)
                await reading
                time.sleep(0.02)  # noqa: ASYNC251 (which is what it is about)

            caplog.clear()
            await asyncio.create_task(dawdle(), name="dawdler")
    finally:
        loop.set_debug(False)
        loop.slow_callback_duration = was
    blamed = [record.getMessage() for record in caplog.records if record.name == "asyncio"]
    slow = [message for message in blamed if message.startswith("Executing")]
    assert any("dawdler" in message for message in slow)
    assert not any("QueueCore" in message for message in slow)


async def test_debug_mode_says_where_a_request_was_made(
    scratch_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    heard: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: heard.append(context))
    try:
        async with aioblk.IoUring(scratch_file) as device:
            device.write(1 << 62, bytes(BLOCK))
            await device.flush()
            gc.collect()
    finally:
        loop.set_debug(False)
        loop.set_exception_handler(None)
    (context,) = heard
    assert context["message"] == "aioblk request's error was never retrieved"
    frames = [frame.name for frame in context["source_traceback"]]
    assert frames[-1] == "test_debug_mode_says_where_a_request_was_made"
    loop.default_exception_handler(context)
    assert "Object created at" in caplog.text


async def test_where_it_was_made_is_no_message_of_a_cancellation(
    storage_daemon: StorageDaemonFactory,
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    try:
        daemon = storage_daemon()
        async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
            await device.read(0, BLOCK)
            with held(daemon):
                request: Any = device.read(0, BLOCK)
                gathered = asyncio.gather(request, device.read(BLOCK, BLOCK))
                assert request._cancel_message is None
                gathered.cancel("enough")
                with pytest.raises(asyncio.CancelledError):
                    await gathered
                assert request._cancel_message == "enough"
                other: Any = device.read(0, BLOCK)
                other.cancel()
                assert other._cancel_message is None
                with pytest.raises(asyncio.CancelledError) as caught:
                    await other
            assert caught.value.args == ()
    finally:
        loop.set_debug(False)


async def test_when_debug_mode_is_over_tasks_are_woken_directly_again(
    storage_daemon: StorageDaemonFactory,
) -> None:
    loop = asyncio.get_running_loop()
    daemon = storage_daemon()
    woken: list[int] = []

    async def read() -> None:
        with held(daemon):
            reading = device.read(0, BLOCK)
            await asyncio.sleep(0)
        await reading

    loop.set_debug(True)
    try:
        async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
            await device.read(0, BLOCK)
            for is_debugged in (True, False, True):
                loop.set_debug(is_debugged)
                device.measuring = not device.measuring
                before = device.statistics().direct_wakes
                await asyncio.create_task(read())
                woken.append(device.statistics().direct_wakes - before)
    finally:
        loop.set_debug(False)
    assert woken == [0, 1, 0]


# --- the log ------------------------------------------------------------------------------------------------


async def test_silence_is_said_before_it_is_taken_for_loss(
    storage_daemon: StorageDaemonFactory, caplog: pytest.LogCaptureFixture
) -> None:
    daemon = storage_daemon()
    async with aioblk.VirtioBlkVhostUser(daemon.socket, lost_after=0.2) as device:
        await device.read(0, BLOCK)
        with held(daemon):
            with pytest.raises(aioblk.DeviceLostError):
                await device.read(BLOCK, BLOCK)
            messages = [record.getMessage() for record in caplog.records if record.name == "aioblk.device"]
    assert "has not answered for 0.05 seconds or more; the oldest" in messages[0]
    assert f"read at offset {BLOCK}, length {BLOCK}" in messages[0]
    assert "is lost" in messages[1]


async def test_a_pool_that_is_too_small_is_said_once_a_minute(
    storage_daemon: StorageDaemonFactory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aioblk.memory")
    daemon = storage_daemon()
    async with aioblk.VirtioBlkVhostUser(daemon.socket, bounce_pool_size=POOL) as device:
        await device.read(0, POOL)
        for _ in range(3):
            with held(daemon):
                reading = [device.read(0, POOL) for _ in range(4)]
                await asyncio.sleep(0)
            await asyncio.gather(*reading)
    (message,) = [record.getMessage() for record in caplog.records if record.name == "aioblk.memory"]
    assert "requests wait for bounce memory" in message
    assert "bounce_pool_size" in message


@pytest.mark.abandons_memory
async def test_memory_that_is_never_released_is_said(
    storage_daemon: StorageDaemonFactory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aioblk.memory")
    daemon = storage_daemon()
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device, device.allocate(BLOCK) as region:
        with held(daemon):
            reading = device.read_into(0, region)
            await asyncio.sleep(0)
            device.abandon("as an example")
            with pytest.raises(aioblk.DeviceLostError):
                await reading
    said = [record.getMessage() for record in caplog.records if record.name == "aioblk.memory"]
    assert len(said) == 1
    assert "registered bytes are never released" in said[0]
