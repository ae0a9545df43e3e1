"""Registered, allocated and bounced memory."""

import asyncio
import mmap
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager

import pytest

import aioblk

from .drivers import Can, Opener

BLOCK = 4096
MIB = 1 << 20


@contextmanager
def memory_file(size: int) -> Iterator[tuple[mmap.mmap, int]]:
    """Memory that can be shared by its descriptor."""
    fd = os.memfd_create("test")
    try:
        os.truncate(fd, size)
        with mmap.mmap(fd, size) as memory:
            yield memory, fd
    finally:
        os.close(fd)


async def test_allocated_memory_is_not_copied(device: aioblk.Device) -> None:
    async with device.allocate(MIB) as region:
        region[:BLOCK] = b"\x01" * BLOCK
        await device.write(0, region)
        region[:BLOCK] = bytes(BLOCK)
        await device.read_into(0, region)
        assert region[:BLOCK] == b"\x01" * BLOCK
        assert device.statistics().bounced_bytes == 0


async def test_registered_memory_is_not_copied(device: aioblk.Device) -> None:
    with memory_file(MIB) as (memory, fd):
        async with device.register(memory, fd=fd) as region:
            memory[: 2 * BLOCK] = b"\x02" * 2 * BLOCK
            await device.write(0, region[: 2 * BLOCK])
            await device.read_into(0, region[4 * BLOCK : 6 * BLOCK])
            await device.readv(0, [region[8 * BLOCK : 9 * BLOCK], region[7 * BLOCK : 8 * BLOCK]])
            assert memory[4 * BLOCK : 6 * BLOCK] == memory[7 * BLOCK : 9 * BLOCK] == b"\x02" * 2 * BLOCK
            assert device.statistics().bounced_bytes == 0


async def test_any_view_of_registered_memory_is_not_copied(device: aioblk.Device) -> None:
    with memory_file(MIB) as (memory, fd):
        async with device.register(memory, fd=fd):
            with memoryview(memory) as view, view[BLOCK : 3 * BLOCK] as part:
                part[:] = b"\x03" * 2 * BLOCK
                await device.write(0, part)
                assert device.statistics().bounced_bytes == 0
        assert await device.read(0, 2 * BLOCK) == b"\x03" * 2 * BLOCK


async def test_memory_without_a_descriptor_is_registered_or_bounces(device: aioblk.Device, can: Can) -> None:
    with mmap.mmap(-1, MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        async with device.register(memory) as region:
            memory[:BLOCK] = b"\x04" * BLOCK
            await device.write(0, region[:BLOCK])
            assert await device.read(0, BLOCK) == b"\x04" * BLOCK
            if can("memory without a descriptor"):
                assert region.zero_copy
            else:
                assert not region.mapped
                assert region.reason
                with pytest.raises(aioblk.RegistrationError):
                    await device.register(memory, required=True).__aenter__()


async def test_a_buffer_across_the_end_of_a_region_works(device: aioblk.Device) -> None:
    with memory_file(4 * BLOCK) as (memory, fd), memoryview(memory) as view:
        async with device.register(view[: 2 * BLOCK], fd=fd):
            with view[BLOCK : 3 * BLOCK] as across:
                across[:] = b"\x05" * 2 * BLOCK
                await device.write(0, across)
                across[:] = bytes(2 * BLOCK)
                await device.read_into(0, across)
                assert across == b"\x05" * 2 * BLOCK


async def test_a_buffer_across_two_regions_works(device: aioblk.Device) -> None:
    with memory_file(4 * BLOCK) as (memory, fd), memoryview(memory) as view:
        async with (
            device.register(view[: 2 * BLOCK], fd=fd),
            device.register(view[2 * BLOCK :], fd=fd, fd_offset=2 * BLOCK),
        ):
            with view[BLOCK : 3 * BLOCK] as across:
                across[:] = b"\x06" * 2 * BLOCK
                await device.write(0, across)
                across[:] = bytes(2 * BLOCK)
                await device.read_into(0, across)
                assert across == b"\x06" * 2 * BLOCK


async def test_registered_and_other_memory_in_one_request(device: aioblk.Device) -> None:
    async with device.allocate(2 * BLOCK) as region:
        region[:BLOCK] = b"\x07" * BLOCK
        await device.writev(0, [b"\x08" * BLOCK, region[:BLOCK], b"\x09" * BLOCK])
        other = bytearray(2 * BLOCK)
        await device.readv(0, [memoryview(other)[:BLOCK], region[BLOCK:], memoryview(other)[BLOCK:]])
        assert other == b"\x08" * BLOCK + b"\x09" * BLOCK
        assert region[BLOCK:] == b"\x07" * BLOCK


async def test_an_arenas_buffers_are_not_copied(device: aioblk.Device) -> None:
    async with aioblk.Arena(MIB) as arena:
        await arena.attach(device)
        with arena.allocate(2 * BLOCK) as buffer:
            buffer[:] = b"\x0b" * 2 * BLOCK
            await device.write(0, buffer)
            await device.read_into(0, buffer[BLOCK:])
        assert device.statistics().bounced_bytes == 0
        await arena.detach(device)
    assert await device.read(0, BLOCK) == b"\x0b" * BLOCK


async def test_more_regions_than_the_device_takes(device: aioblk.Device) -> None:
    async with AsyncExitStack() as stack:
        for number in range(40):
            region = await stack.enter_async_context(
                device._session("memory").memory.allocate(BLOCK, required=False)
            )
            region[:] = bytes([number]) * BLOCK
            await device.write(number * BLOCK, region)
        for number in range(40):
            assert await device.read(number * BLOCK, BLOCK) == bytes([number]) * BLOCK


async def test_memory_comes_and_goes_while_requests_are_in_flight(device: aioblk.Device) -> None:
    async def come_and_go() -> None:
        for _ in range(20):
            async with device.allocate(16 * BLOCK):
                await asyncio.sleep(0)

    async with device.allocate(64 * BLOCK) as region:
        coming_and_going = asyncio.create_task(come_and_go())
        while not coming_and_going.done():
            pieces = [region[BLOCK * n : BLOCK * (n + 1)] for n in range(64)]
            await asyncio.gather(*(device.write(BLOCK * n, piece) for n, piece in enumerate(pieces)))
            await asyncio.gather(*(device.read_into(BLOCK * n, piece) for n, piece in enumerate(pieces)))
        await coming_and_going


async def test_no_empty_region(device: aioblk.Device) -> None:
    with pytest.raises(ValueError, match="empty"):
        device.register(bytearray())
    with pytest.raises(ValueError, match="positive"):
        device.allocate(0)
    async with device.allocate(BLOCK) as region:  # later regions are not poisoned
        await device.read_into(0, region)
    assert device.statistics().bounced_bytes == 0


async def test_overlapping_regions(device: aioblk.Device) -> None:
    with memory_file(4 * BLOCK) as (memory, fd), memoryview(memory) as view:
        async with device.register(view[: 3 * BLOCK], fd=fd) as outer:
            async with device.register(view[BLOCK : 2 * BLOCK], fd=fd, fd_offset=BLOCK) as inner:
                assert inner.zero_copy == outer.zero_copy
            async with device.register(view[2 * BLOCK :], fd=fd, fd_offset=2 * BLOCK) as crossing:
                crossing[:BLOCK] = b"\x0a" * BLOCK
                await device.write(0, crossing)
            await device.read_into(0, outer[:BLOCK])
            assert outer[:BLOCK] == b"\x0a" * BLOCK


async def test_a_region_that_was_left_cannot_be_used(device: aioblk.Device) -> None:
    async with device.allocate(BLOCK) as region:
        part = region[:512]
    with pytest.raises(ValueError, match=r"closed|released"):
        device.read_into(0, region)
    with pytest.raises(ValueError, match=r"closed|released"):
        len(part)


async def test_leaving_a_region_waits_for_its_requests(device: aioblk.Device) -> None:
    async with device.allocate(64 * BLOCK) as region:
        requests = [device.write(BLOCK * i, region[BLOCK * i : BLOCK * (i + 1)]) for i in range(64)]
    for request in requests:
        await request
    assert await device.read(0, 64 * BLOCK) == bytes(64 * BLOCK)


async def test_bounces_more_than_the_pool_holds(new_device: Opener) -> None:
    data = os.urandom(4 * MIB)
    async with new_device(bounce_pool_size=256 << 10) as device:
        await device.write(0, data)
        assert await device.read(0, len(data)) == data
        bounced = device.statistics().bounced_bytes
        assert bounced == (2 * len(data) if device.limits.needs_mem_regions else bounced)
