"""What happens to a device while it waits to be detached from its loop."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

import aioblk

from ..support.devices import BLOCK, Target


async def both(detach: Awaitable[None], other: Awaitable[Any]) -> list[Any]:
    """What becomes of detaching a device, and of something else that is begun right after."""
    return list(await asyncio.gather(detach, other, return_exceptions=True))


async def test_a_device_that_is_closed_meanwhile_is_closed(target: Target) -> None:
    device = await target.device().open()
    await device.read(0, BLOCK)
    assert await both(device.detach(), device.aclose()) == [None, None]
    assert device.closed
    with pytest.raises(aioblk.DeviceClosedError):
        await device.attach()


async def test_what_is_not_detached_is_not_attached(target: Target) -> None:
    device = target.device()
    with pytest.raises(aioblk.UsageError, match="not open; use `async with device` first"):
        await device.attach()
    async with device:
        with pytest.raises(aioblk.UsageError, match=r"the device is open; await its detach\(\) there first"):
            await device.attach()


async def test_a_device_that_is_lost_meanwhile_can_come_back(target: Target) -> None:
    async with target.device() as device:
        detaching = asyncio.create_task(device.detach())
        await asyncio.sleep(0)
        device.abandon()
        await detaching
        await device.attach()
        with pytest.raises(aioblk.DeviceLostError):
            await device.read(0, BLOCK)
        await device.reconnect()
        assert await device.read(0, BLOCK) == bytes(BLOCK)
        await device.detach()
        await device.attach()
        assert await device.read(0, BLOCK) == bytes(BLOCK)


async def test_two_may_wait_for_a_device_to_be_detached(target: Target) -> None:
    async with target.device() as device:
        assert await both(device.detach(), device.detach()) == [None, None]
        await device.attach()
        assert await device.read(0, BLOCK) == bytes(BLOCK)


async def test_detaching_can_be_given_up_and_tried_again(target: Target) -> None:
    async with target.device() as device:
        detaching = asyncio.create_task(device.detach())
        await asyncio.sleep(0)
        detaching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await detaching
        await device.detach()
        await device.attach()
        assert await device.read(0, BLOCK) == bytes(BLOCK)
