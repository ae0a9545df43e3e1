"""A device that starts and never answers, as its memory lies behind an IOMMU that it does not know of."""

import asyncio
import os

import pytest

import aioblk

from .conftest import RecordProperty

BLOCK = 4096
NOTICED = 30  # seconds; the guest is slow


@pytest.fixture(autouse=True)
def vfio(record_property: RecordProperty) -> None:
    record_property("driver", "vfio")


async def test_a_device_that_never_answers_is_noticed_and_let_go() -> None:
    async with asyncio.timeout(2 * NOTICED):
        for _ in range(2):
            async with aioblk.VirtioBlkVfioPci(os.environ["AIOBLK_VM_MUTE"], lost_after=0.5) as device:
                with pytest.raises(aioblk.DeviceLostError):
                    await device.read(0, BLOCK)
                assert "has not answered" in str(device.lost)


async def test_a_device_that_never_answers_does_not_disturb_the_others() -> None:
    async with asyncio.timeout(2 * NOTICED), aioblk.VirtioBlkVfioPci(os.environ["AIOBLK_VM_VFIO"]) as device:
        async with aioblk.VirtioBlkVfioPci(os.environ["AIOBLK_VM_MUTE"]) as mute:
            request = mute.read(0, BLOCK)
            await device.write(0, bytes(BLOCK))
            mute.abandon()
            with pytest.raises(aioblk.DeviceLostError):
                await request
        assert await device.read(0, BLOCK) == bytes(BLOCK)
