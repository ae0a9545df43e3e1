"""virtio-blk in the kernel's vDPA and behind VFIO.

libblkio checks little there, and a request that the device cannot digest blocks its queue for good. Each test
brings one such request, or option, and then shows that the device still works.
"""

import asyncio
import errno
import os

import pytest

import aioblk

from .conftest import VirtioBlk

BLOCK = 4096
MIB = 1 << 20


async def works(device: aioblk.Device) -> bool:
    data = os.urandom(BLOCK)
    await device.write(0, data)
    return await device.read(0, BLOCK) == data


def test_refuses_impossible_queue_sizes(virtio_blk: VirtioBlk) -> None:
    for size in (0, 1, 2, 3, 100, 65536):
        with pytest.raises(aioblk.OptionError, match="queue_size"):
            virtio_blk(queue_size=size)


async def test_works_with_the_smallest_queue(virtio_blk: VirtioBlk) -> None:
    async with virtio_blk(queue_size=4) as device:
        data = os.urandom(MIB)
        await device.writev(0, [data[at : at + 512] for at in range(0, MIB, 512)])
        assert await device.read(0, MIB) == data


async def test_a_queue_larger_than_the_devices_fails_and_lets_go(virtio_blk: VirtioBlk) -> None:
    with pytest.raises(aioblk.BlkioError) as caught:
        await virtio_blk(queue_size=32768).open()
    assert caught.value.operation == "start"
    async with virtio_blk() as device:
        assert await works(device)


async def test_more_queues_than_the_device_has_fail_and_let_go(virtio_blk: VirtioBlk) -> None:
    with pytest.raises(aioblk.BlkioError):
        await virtio_blk(num_queues=3).open()
    async with virtio_blk(num_queues=2) as device:
        assert await works(device)


async def test_belongs_to_one_client(virtio_blk: VirtioBlk) -> None:
    async with virtio_blk() as device:
        with pytest.raises(aioblk.BlkioError) as caught:
            await virtio_blk().open()
        assert caught.value.errno in (errno.EIO, errno.EBUSY)
        assert await works(device)
    async with virtio_blk() as device:
        assert await works(device)


async def test_memory_that_is_not_mapped_bounces(virtio_blk: VirtioBlk) -> None:
    async with virtio_blk() as device, device.allocate(2 * BLOCK) as region:
        with memoryview(bytearray(BLOCK)) as elsewhere:
            await device.writev(0, [elsewhere, region[:BLOCK], elsewhere])
        assert device.statistics().bounced_bytes == 2 * BLOCK
        assert await works(device)


async def test_more_segments_than_a_request_may_have(virtio_blk: VirtioBlk) -> None:
    async with virtio_blk() as device, device.allocate(MIB) as region:
        assert device.limits.max_segments == 254
        region[-512:] = b"\x01" * 512
        await device.writev(0, [region[at : at + 512] for at in range(0, MIB, 512)])
        assert device.statistics().bounced_bytes == 0
        assert device.statistics().parts >= MIB // 512 / 254
        assert await device.read(MIB - 512, 512) == b"\x01" * 512


async def test_more_zeroes_than_a_request_may_have(virtio_blk: VirtioBlk) -> None:
    async with virtio_blk() as device:
        await device.write(device.capacity - BLOCK, b"\x02" * BLOCK)
        await device.write_zeroes(0, device.capacity)
        assert not any(await device.read(device.capacity - BLOCK, BLOCK))
        assert device.statistics().parts >= device.capacity / device.limits.max_write_zeroes_len


async def test_requests_without_length(virtio_blk: VirtioBlk) -> None:
    async with virtio_blk() as device, device.allocate(BLOCK) as region:
        await device.read_into(0, region[:0])
        await device.readv(0, [region[:0], region[:512], region[:0]])
        await device.write(0, region[:0])
        assert await works(device)


async def test_requests_of_odd_length_or_place(virtio_blk: VirtioBlk) -> None:
    async with virtio_blk() as device:
        for offset, length in ((1, 512), (0, 511), (256, 256)):
            with pytest.raises(aioblk.AlignmentError):
                device.read(offset, length)
        assert await works(device)


async def test_an_empty_region_poisons_nothing(virtio_blk: VirtioBlk) -> None:
    async with virtio_blk() as device:
        with pytest.raises(ValueError, match="empty"):
            device.register(b"")
        async with device.allocate(BLOCK) as region:
            assert region.mapped
            await device.read_into(0, region)


async def test_closing_with_requests_in_flight_lets_them_end(virtio_blk: VirtioBlk) -> None:
    for _ in range(3):
        async with virtio_blk() as device:
            requests = [device.write(number * BLOCK, bytes(BLOCK)) for number in range(500)]
            asyncio.get_running_loop().call_soon(requests[0].cancel)
            await asyncio.sleep(0)
        assert all(request.done() for request in requests)
    async with virtio_blk() as device:  # VDUSE's daemon would not have survived the other order
        assert await works(device)
