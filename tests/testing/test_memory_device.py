"""MemoryDevice, beside what every block device keeps."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aioblk
from aioblk.testing import MemoryDevice
from aioblk.testing._media import Media

REGIONS = aioblk.Limits(needs_mem_regions=True, mem_region_alignment=4096, max_mem_regions=2)


async def test_its_size_takes_no_memory() -> None:
    async with MemoryDevice(1 << 60) as device:
        await device.write((1 << 60) - 5, b"hello")
        assert await device.read((1 << 60) - 8, 8) == b"\0\0\0hello"
        await device.write_zeroes(0, 1 << 30)


async def test_what_there_is_no_memory_for_is_refused_at_once() -> None:
    device = MemoryDevice(1 << 60)
    await device.write(1 << 50, b"far away")
    with pytest.raises(MemoryError):
        device.read(0, 1 << 60)


async def test_nothing_makes_it_no_longer() -> None:
    """As of a file, which write() with no bytes does not make longer."""
    device = MemoryDevice(4096, limits=aioblk.Limits(can_grow=True))
    await device.write(1 << 20, b"")
    await device.write_zeroes(1 << 20, 0)
    await device.discard(1 << 20, 4096)
    assert device.capacity == 4096


async def test_what_it_cannot_be() -> None:
    for capacity, content in ((-1, b""), (3, b"long")):
        with pytest.raises(aioblk.OptionError, match=f"capacity is {capacity}"):
            MemoryDevice(capacity, content=content)


async def test_buffers_are_exported_until_a_request_is_done() -> None:
    device = MemoryDevice(1 << 20)
    for request, buffer in ((device.write, bytearray(b"x" * 100)), (device.read_into, bytearray(100))):
        begun = asyncio.ensure_future(request(0, buffer))
        with pytest.raises(BufferError):
            buffer.append(0)
        await begun
        buffer.append(0)
        given_up = asyncio.ensure_future(request(0, buffer))
        given_up.cancel()
        await asyncio.wait([given_up])
        buffer.append(0)


async def test_what_it_counts() -> None:
    device = MemoryDevice(1 << 20)
    requests = [device.write(0, bytes(100)), device.read_into(0, bytearray(50)), device.read(1 << 20, 1)]
    assert device.statistics().in_flight == 3
    outcomes = await asyncio.gather(*requests, return_exceptions=True)
    assert isinstance(outcomes[2], aioblk.BlkioError)
    await asyncio.sleep(0)
    counted = device.statistics()
    assert (counted.submitted, counted.completed, counted.failed, counted.in_flight) == (3, 2, 1, 0)
    assert (counted.bytes_read, counted.bytes_written) == (50, 100)
    assert counted.write == aioblk.OperationStatistics(completed=1, bytes=100)
    assert counted.read == aioblk.OperationStatistics(1, 1, 50, {outcomes[2].errno or 0: 1})


async def test_memory_that_it_does_not_reach_is_counted() -> None:
    async with MemoryDevice(1 << 20, limits=REGIONS) as device:
        assert isinstance(device, aioblk.MapsMemory)
        async with device.allocate(8192) as region:
            assert region.zero_copy
            await device.write(0, region)
            await device.readv(0, [region[100:200], region[200:300]])
            assert device.statistics().bounced_bytes == 0
            await device.readv(0, [region[100:200], bytearray(50)])
            assert device.statistics().bounced_bytes == 50
            async with device.register(region[4096:]) as inside:
                await device.read_into(0, inside)
            assert device.statistics().bounced_bytes == 50
            kept = memoryview(region)
        await device.write(0, kept)
        assert device.statistics().bounced_bytes == 50 + 8192
        await device.read(0, 10)
        assert device.statistics().bounced_bytes == 50 + 8192 + 10


async def test_the_rules_of_regions_are_kept() -> None:
    async with MemoryDevice(1 << 20, limits=REGIONS) as device, device.allocate(4096), device.allocate(4096):
        third = device.allocate(4096)
        with pytest.raises(aioblk.RegistrationError, match="has 2 regions already"):
            await third.__aenter__()
        memory = bytearray(100)
        async with device.register(memory) as region:
            assert not region.zero_copy
            assert region.reason == "address and length must be multiples of 4096, the mem-region-alignment"
        for wrong in (0, -1):
            with pytest.raises(ValueError, match="length must be positive"):
                device.allocate(wrong)
        with pytest.raises(ValueError, match="empty"):
            device.register(b"")
    calls: list[Callable[[], object]] = [
        lambda: device.allocate(4096),
        lambda: device.register(bytearray(4096)),
    ]
    for call in calls:
        with pytest.raises(aioblk.DeviceClosedError):
            call()


async def test_an_arena_takes_it() -> None:
    async with MemoryDevice(1 << 20, limits=REGIONS) as device, aioblk.Arena(1 << 20) as arena:
        await arena.attach(device)
        with arena.allocate(4096) as buffer:
            await device.write(0, buffer)
        await arena.detach(device)
        assert device.statistics().bounced_bytes == 0


writes = st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 9000), st.booleans()), max_size=8)


@given(writes=writes)
@settings(max_examples=200, deadline=None)
def test_media_is_an_array_of_bytes(writes: list[tuple[int, int, bool]]) -> None:
    media, model = Media(), bytearray(32_768)
    copies = []
    for number, (offset, length, is_zero) in enumerate(writes):
        copies.append((media.copy(), bytes(model)))
        if is_zero:
            media.zero(offset, length)
            model[offset : offset + length] = bytes(length)
        else:
            media.write(offset, bytes([number + 1]) * length)
            model[offset : offset + length] = bytes([number + 1]) * length
    for copy, content in [*copies, (media, bytes(model))]:
        assert copy.read(0, len(model)) == content
    runs = list(media.runs(0, len(model)))
    assert sum(length for _, length, _ in runs) == len(model)
    assert all(not any(model[offset : offset + length]) for offset, length, is_hole in runs if is_hole)
    other = Media()
    other.write(0, bytes(model))
    assert media == other
    other.write(5, bytes([model[5] ^ 1]))
    assert media != other
    assert media != b""
