"""A VDUSE backend that is killed says nothing: the device notices by itself, is closed, and is used again."""

import asyncio
import os

import pytest

import aioblk

from ..support.vduse import kill_backend, restore_backend
from .conftest import RecordProperty

BLOCK = 4096
NOTICED = 30  # seconds; the guest is slow


@pytest.fixture(autouse=True)
def vduse(record_property: RecordProperty) -> None:
    record_property("driver", "vduse")


def vdpa(**options: float) -> aioblk.VirtioBlkVhostVdpa:
    return aioblk.VirtioBlkVhostVdpa(os.environ["AIOBLK_VM_VDPA"], **options)  # type: ignore[arg-type]


async def open_again() -> aioblk.VirtioBlkVhostVdpa:
    """The kernel lets go of a device whose backend is dead only when it has given up asking it."""
    async with asyncio.timeout(NOTICED):
        while True:
            try:
                return await vdpa().open()
            except aioblk.BlkioError:
                await asyncio.sleep(0.1)


async def test_a_killed_backend_is_noticed_and_the_device_can_be_closed_and_used_again() -> None:
    data = os.urandom(BLOCK)
    async with asyncio.timeout(2 * NOTICED):
        async with vdpa(lost_after=1.0) as device:
            await device.write(0, data)
            await device.flush()
            kill_backend()
            requests = [device.read(0, BLOCK) for _ in range(50)]
            results = await asyncio.gather(*requests, return_exceptions=True)
            assert {type(result) for result in results} == {aioblk.DeviceLostError}
            assert "has not answered for 1 seconds" in str(device.lost)
        assert device.closed
        await asyncio.to_thread(restore_backend)
        another = await open_again()
        assert await another.read(0, BLOCK) == data
        await another.aclose()


async def test_a_lost_device_comes_back_in_place() -> None:
    data = os.urandom(BLOCK)
    async with asyncio.timeout(2 * NOTICED):
        async with vdpa(lost_after=1.0) as device, device.allocate(BLOCK) as region:
            region[:] = data
            kill_backend()
            with pytest.raises(aioblk.DeviceLostError):
                await device.read(0, BLOCK)
            with pytest.raises(aioblk.BlkioError):
                await device.reconnect()  # nobody is there; but the old device has been let go of
            await asyncio.to_thread(restore_backend)
            await device.reconnect()
            await device.write(0, region)
            assert await device.read(0, BLOCK) == data


async def test_giving_up_by_hand() -> None:
    async with asyncio.timeout(2 * NOTICED):
        device = await vdpa().open()
        kill_backend()
        request = device.read(0, BLOCK)
        closing = asyncio.create_task(device.aclose())
        await asyncio.sleep(0.2)
        assert not closing.done()
        device.abandon()
        await closing
        assert isinstance(request.exception(), aioblk.DeviceLostError)
        await asyncio.to_thread(restore_backend)
        another = await open_again()
        await another.flush()
        await another.aclose()
