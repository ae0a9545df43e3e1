"""Input that libblkio or a backend takes badly: hangs, panics, crashes. aioblk refuses it or makes it work.

After each test the device must still work, and the tests are under a time limit, since a hang is what many of
these would be.
"""

import array
import asyncio
import functools
import math
import mmap
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, ParamSpec

import pytest

import aioblk

from ..conftest import StorageDaemonFactory
from ..support.devices import BLOCK, Target, pattern

P = ParamSpec("P")
TIME_LIMIT = 20  # seconds
MIB = 1 << 20


def limited(test: Callable[P, Awaitable[None]]) -> Callable[P, Awaitable[None]]:
    @functools.wraps(test)
    async def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async with asyncio.timeout(TIME_LIMIT):
            await test(*args, **kwargs)

    return run


async def check(device: aioblk.Device) -> None:
    """The device works."""
    async with asyncio.timeout(TIME_LIMIT):
        await device.write(0, pattern(BLOCK, 99))
        assert await device.read(0, BLOCK) == pattern(BLOCK, 99)


@pytest.fixture
async def victim(device: aioblk.Device) -> AsyncIterator[aioblk.Device]:
    """A device that must work afterwards."""
    yield device
    await check(device)


@pytest.fixture
async def vhost(storage_daemon: StorageDaemonFactory) -> AsyncIterator[aioblk.Device]:
    """A vhost-user device that is there afterwards."""
    daemon = storage_daemon()
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
        yield device
        async with asyncio.timeout(TIME_LIMIT):
            assert await device.read(0, BLOCK) == bytes(BLOCK)
        assert daemon.alive


# --- offsets and lengths ------------------------------------------------------------------------------------

RANGES: dict[str, Callable[[aioblk.Device, int, int], object]] = {
    "read": lambda device, offset, length: device.read(offset, length),
    "write_zeroes": lambda device, offset, length: device.write_zeroes(offset, length),
    "discard": lambda device, offset, length: device.discard(offset, length),
    "read_many": lambda device, offset, length: device.read_many([(offset, length)]),
}

BUFFERS: dict[str, Callable[[aioblk.Device, int], object]] = {
    "read_into": lambda device, offset: device.read_into(offset, bytearray(BLOCK)),
    "readv": lambda device, offset: device.readv(offset, [bytearray(BLOCK)]),
    "write": lambda device, offset: device.write(offset, bytes(BLOCK)),
    "writev": lambda device, offset: device.writev(offset, [bytes(BLOCK)]),
    "read_into_many": lambda device, offset: device.read_into_many([(offset, bytearray(BLOCK))]),
    "write_many": lambda device, offset: device.write_many([(offset, bytes(BLOCK))]),
}


IMPOSSIBLE = [
    (-BLOCK, BLOCK),
    (0, -BLOCK),
    (2**63, BLOCK),
    (2**64, BLOCK),
    (2**64 - BLOCK, BLOCK),
    (10**30, BLOCK),
    (0, 2**63),
    (0, 2**64),
    (2**63 - BLOCK, 2 * BLOCK),
    (BLOCK, 2**63 - BLOCK),
]


@pytest.mark.parametrize("operation", RANGES)
@limited
async def test_impossible_ranges(victim: aioblk.Device, operation: str) -> None:
    for offset, length in IMPOSSIBLE:
        with pytest.raises(aioblk.OptionError):
            RANGES[operation](victim, offset, length)


@pytest.mark.parametrize("operation", BUFFERS)
@limited
async def test_impossible_offsets(victim: aioblk.Device, operation: str) -> None:
    for offset in (-1, -BLOCK, 2**63 - 512, 2**63, 2**64, 10**30):
        with pytest.raises(aioblk.OptionError):
            BUFFERS[operation](victim, offset)


NO_INTEGERS: list[Any] = [None, 1.0, math.nan, math.inf, "0", b"0", [], object()]


@limited
async def test_offsets_and_lengths_that_are_no_integers(victim: aioblk.Device) -> None:
    for nonsense in NO_INTEGERS:
        for operation in RANGES.values():
            with pytest.raises(TypeError):
                operation(victim, nonsense, BLOCK)
            with pytest.raises(TypeError):
                operation(victim, 0, nonsense)
        for on_buffer in BUFFERS.values():
            with pytest.raises(TypeError):
                on_buffer(victim, nonsense)


@limited
async def test_what_is_like_an_integer_is_one(victim: aioblk.Device) -> None:
    class Offset:
        def __index__(self) -> int:
            return BLOCK

    await victim.write(BLOCK, pattern(BLOCK))
    assert await victim.read(Offset(), Offset()) == pattern(BLOCK)  # type: ignore[arg-type]


@limited
async def test_an_error_in_index_is_raised(victim: aioblk.Device) -> None:
    class Offset:
        def __index__(self) -> int:
            raise ZeroDivisionError

    for operation in RANGES.values():
        with pytest.raises(ZeroDivisionError):
            operation(victim, Offset(), BLOCK)  # type: ignore[arg-type]


@limited
async def test_wrong_numbers_and_names_of_arguments(victim: aioblk.Device) -> None:
    for call in (
        lambda: victim.read(),  # type: ignore[call-arg]
        lambda: victim.read(0),  # type: ignore[call-arg]
        lambda: victim.read(0, BLOCK, BLOCK),  # type: ignore[call-arg]
        lambda: victim.read(0, length=BLOCK, offset=0),  # type: ignore[misc]
        lambda: victim.read(0, size=BLOCK),  # type: ignore[call-arg]
        lambda: victim.write(0, bytes(BLOCK), True),  # type: ignore[call-arg]
        lambda: victim.discard(0, BLOCK, fua=True),  # type: ignore[call-arg]
        lambda: victim.flush(0),  # type: ignore[call-arg]
    ):
        with pytest.raises(TypeError):
            call()


# --- alignment ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", RANGES)
@limited
async def test_misaligned_ranges(vhost: aioblk.Device, operation: str) -> None:
    for offset, length in ((1, 512), (0, 511), (0, 513), (256, 256), (511, 1)):
        with pytest.raises(aioblk.AlignmentError, match="512") as caught:
            RANGES[operation](vhost, offset, length)
        assert str(offset if offset % 512 else length) in str(caught.value)


@limited
async def test_misaligned_buffers_lengths(vhost: aioblk.Device) -> None:
    for length in (1, 511, 513):
        data, buffer = bytes(length), bytearray(length)
        with pytest.raises(aioblk.AlignmentError):
            vhost.read_into(0, buffer)
        with pytest.raises(aioblk.AlignmentError):
            vhost.readv(0, [bytearray(512), buffer])
        with pytest.raises(aioblk.AlignmentError):
            vhost.write(0, data)
        with pytest.raises(aioblk.AlignmentError):
            vhost.writev(0, [data, bytes(1024)])


@limited
async def test_misaligned_direct_io(target: Target) -> None:
    async with aioblk.IoUring(target.file, direct=True) as device:
        for offset, length in ((1, 512), (0, 511)):
            with pytest.raises(aioblk.AlignmentError):
                device.read(offset, length)
        await check(device)


@limited
async def test_direct_io_on_misaligned_memory(target: Target) -> None:
    async with aioblk.IoUring(target.file, direct=True) as device:
        memory = mmap.mmap(-1, 4 * BLOCK)
        odd = memoryview(memory)[1 : 1 + BLOCK]
        odd[:] = pattern(BLOCK)
        await device.write(0, odd)
        odd[:] = bytes(BLOCK)
        await device.read_into(0, odd)
        assert odd == pattern(BLOCK)
        await device.readv(0, [odd[:100], odd[100:]])
        assert odd == pattern(BLOCK)
        odd.release()


# --- the end of the device ----------------------------------------------------------------------------------


@limited
async def test_past_the_end(vhost: aioblk.Device) -> None:
    end = vhost.capacity
    for offset, length in ((end, BLOCK), (end - BLOCK, 2 * BLOCK), (2**63 - MIB, BLOCK), (2**40, MIB)):
        for request in (
            vhost.read(offset, length),
            vhost.write(offset, bytes(length)),
            vhost.write_zeroes(offset, length),
            vhost.discard(offset, length),
        ):
            with pytest.raises(aioblk.BlkioError):
                await request


@limited
async def test_past_what_a_file_can_hold(file_device: aioblk.Device) -> None:
    for request in (
        file_device.write(2**62, bytes(BLOCK)),
        file_device.write_zeroes(2**62, BLOCK),
        file_device.writev(2**63 - 2 * BLOCK, [bytes(BLOCK)]),
    ):
        with pytest.raises(aioblk.BlkioError):
            await request
    await check(file_device)


# --- nothing, and too much ----------------------------------------------------------------------------------


@limited
async def test_requests_of_no_bytes(victim: aioblk.Device) -> None:
    assert await victim.read(0, 0) == b""
    await victim.readv(0, [bytearray()] * 2000)
    await victim.writev(0, [b""])
    await victim.write_zeroes(0, 0)
    await victim.discard(0, 0)


@limited
async def test_reads_larger_than_memory(victim: aioblk.Device) -> None:
    for length in (2**63 - BLOCK, 2**62, 2**50):
        with pytest.raises((MemoryError, OverflowError)):
            victim.read(0, length)


@limited
async def test_zeroes_longer_than_the_device_takes(vhost: aioblk.Device) -> None:
    longest = vhost.limits.max_write_zeroes_len
    with pytest.raises(aioblk.BlkioError):
        await vhost.write_zeroes(0, 4 * longest)  # split, and past the end
    with pytest.raises(aioblk.BlkioError):
        await vhost.discard(0, 4 * longest)
    await vhost.write_zeroes(0, vhost.capacity)
    await vhost.discard(0, vhost.capacity)


@limited
async def test_zeroes_of_more_requests_than_anybody_wants(vhost: aioblk.Device) -> None:
    for call in (vhost.write_zeroes, vhost.discard):
        with pytest.raises(aioblk.OptionError, match="million"):
            call(0, 2**63 - 512)


@limited
async def test_vectors_of_1024_tiny_segments(victim: aioblk.Device) -> None:
    data = pattern(1024 * 512)
    await victim.writev(0, [data[i : i + 512] for i in range(0, len(data), 512)])
    segments = [bytearray(512) for _ in range(1024)]
    await victim.readv(0, segments)
    assert b"".join(segments) == data


@limited
async def test_vectors_of_5000_segments_of_a_byte(victim: aioblk.Device) -> None:
    data = pattern(10 * 512)
    await victim.writev(0, [data[i : i + 1] for i in range(len(data))])
    segments = [bytearray(1) for _ in range(len(data))]
    await victim.readv(0, segments)
    assert b"".join(segments) == data


@limited
async def test_registered_vectors_of_1024_tiny_segments(victim: aioblk.Device) -> None:
    data = pattern(1024 * 512)
    async with victim.allocate(len(data)) as region:
        region[:] = data
        pieces = [region[i : i + 512] for i in range(0, len(data), 512)]
        await victim.writev(0, pieces)
        region[:] = bytes(len(data))
        await victim.readv(0, pieces)
        assert bytes(region) == data


@limited
async def test_registered_vectors_of_bytes(victim: aioblk.Device) -> None:
    data = pattern(4 * 512)
    async with victim.allocate(len(data)) as region:
        region[:] = data
        await victim.writev(0, [region[i : i + 1] for i in range(len(data))])
        assert await victim.read(0, len(data)) == data


@limited
async def test_requests_larger_than_the_bounce_pool(target: Target) -> None:
    async with target.device(bounce_pool_size=64 << 10) as device:
        data = pattern(MIB)
        await device.write(0, data)
        assert await device.read(0, MIB) == data
        await device.writev(0, [data[:1000], data[1000:]])
        assert await device.read(0, MIB) == data


# --- memory -------------------------------------------------------------------------------------------------


@limited
async def test_buffers_outside_every_region(vhost: aioblk.Device) -> None:
    async with vhost.allocate(BLOCK) as region:
        await vhost.readv(0, [region, bytearray(BLOCK), mmap.mmap(-1, BLOCK)])
        await vhost.read_into(0, bytearray(MIB))


@limited
async def test_buffers_across_the_end_of_a_region(victim: aioblk.Device) -> None:
    fd = os.memfd_create("across")
    os.ftruncate(fd, 4 * BLOCK)
    memory = mmap.mmap(fd, 4 * BLOCK)
    os.close(fd)
    view = memoryview(memory)
    data = pattern(3 * BLOCK)
    async with victim.register(view[BLOCK : 2 * BLOCK]):
        view[: 3 * BLOCK] = data
        await victim.write(0, view[: 3 * BLOCK])
        view[: 3 * BLOCK] = bytes(3 * BLOCK)
        await victim.read_into(0, view[: 3 * BLOCK])
        assert view[: 3 * BLOCK] == data
    view.release()


@limited
async def test_more_regions_than_the_device_takes(victim: aioblk.Device) -> None:
    regions = [victim.allocate(BLOCK) for _ in range(33)]
    results = await asyncio.gather(*(region.__aenter__() for region in regions), return_exceptions=True)
    entered = [result for result in results if isinstance(result, aioblk.MemoryRegion)]
    refused = [result for result in results if isinstance(result, aioblk.RegistrationError)]
    assert len(entered) == min(33, victim.limits.max_mem_regions - 1)  # one is kept for the bounce pool
    assert len(refused) == 33 - len(entered)
    assert all("regions" in str(error) for error in refused)
    for region in entered:
        await victim.read_into(0, region)
    assert await victim.read(0, BLOCK) == bytes(BLOCK)
    for region in entered:
        await region.aclose()


@limited
async def test_requests_on_a_region_that_was_left(victim: aioblk.Device) -> None:
    async with victim.allocate(BLOCK) as region:
        part = region[:512]
    for call in (
        lambda: victim.read_into(0, region),
        lambda: victim.write(0, part),
        lambda: victim.readv(0, [part]),
        lambda: victim.write_many([(0, region)]),
    ):
        with pytest.raises(ValueError, match="closed"):
            call()


@limited
async def test_regions_of_no_bytes(victim: aioblk.Device) -> None:
    with pytest.raises(ValueError, match="empty"):
        victim.register(bytearray())
    for length in (0, -1):
        with pytest.raises(ValueError, match="positive"):
            victim.allocate(length)


@limited
async def test_memory_without_a_file_is_not_mapped_but_works(vhost: aioblk.Device) -> None:
    async with vhost.register(bytearray(BLOCK)) as region:
        assert not region.mapped
        await vhost.read_into(0, region)


NO_BUFFERS: list[Any] = [None, 0, 1.5, "text", [b"x"], object()]


@limited
async def test_what_is_no_buffer(victim: aioblk.Device) -> None:
    for nonsense in NO_BUFFERS:
        for call in (
            lambda it: victim.read_into(0, it),
            lambda it: victim.write(0, it),
            lambda it: victim.readv(0, [bytearray(512), it]),
            lambda it: victim.writev(0, [it]),
            lambda it: victim.write_many([(0, it)]),
            lambda it: victim.register(it),
        ):
            with pytest.raises(TypeError):
                call(nonsense)


@limited
async def test_what_is_no_sequence_of_buffers(victim: aioblk.Device) -> None:
    sequences: list[Any] = [None, 0, b"bytes are a sequence of integers"]
    for nonsense in sequences:
        with pytest.raises(TypeError):
            victim.writev(0, nonsense)


@limited
async def test_reading_into_memory_that_cannot_be_written(victim: aioblk.Device) -> None:
    for buffer in (bytes(BLOCK), memoryview(bytes(BLOCK)), memoryview(bytearray(BLOCK)).toreadonly()):
        for call in (
            lambda b: victim.read_into(0, b),
            lambda b: victim.readv(0, [b]),
            lambda b: victim.read_into_many([(0, b)]),
        ):
            with pytest.raises((BufferError, TypeError)):
                call(buffer)


@limited
async def test_memory_that_is_not_contiguous(victim: aioblk.Device) -> None:
    scattered = memoryview(bytearray(2 * BLOCK))[::2]
    for call in (
        lambda: victim.read_into(0, scattered),
        lambda: victim.write(0, scattered),
        lambda: victim.writev(0, [scattered]),
        lambda: victim.register(scattered),
    ):
        with pytest.raises(BufferError):
            call()


@limited
async def test_buffers_of_large_items(victim: aioblk.Device) -> None:
    numbers = array.array("d", range(512))
    await victim.write(0, numbers)
    back = array.array("d", bytes(BLOCK))
    await victim.read_into(0, back)
    assert back == numbers


@limited
async def test_a_list_of_buffers_that_changes_while_it_is_read(victim: aioblk.Device) -> None:
    buffers: list[object] = []

    class Shrinks(bytearray):
        pass

    buffers.extend(Shrinks(512) for _ in range(8))
    request = victim.readv(0, buffers)  # type: ignore[arg-type]
    buffers.clear()
    await request


@limited
async def test_a_refused_request_pins_nothing(victim: aioblk.Device) -> None:
    buffer = bytearray(BLOCK)
    with pytest.raises(aioblk.OptionError):
        victim.read_into(-1, buffer)
    with pytest.raises(TypeError):
        victim.readv(0, [buffer, None])  # type: ignore[list-item]
    with pytest.raises(aioblk.OptionError):
        victim.read_into_many([(0, buffer), (-1, buffer)])
    buffer.clear()


# --- options that would be fatal ----------------------------------------------------------------------------


@limited
async def test_a_device_without_queues(target: Target) -> None:
    with pytest.raises(aioblk.OptionError, match="num_queues"):
        target.device(num_queues=0)


@limited
async def test_queues_too_small_for_one_request(target: Target) -> None:
    if target.is_file:
        with pytest.raises(aioblk.OptionError, match="num_entries"):
            target.device(num_entries=0)
    else:
        for size in (0, 1, 2, 3, 6, 65536):
            with pytest.raises(aioblk.OptionError, match="queue_size"):
                target.device(queue_size=size)


@limited
async def test_the_smallest_queues_work(target: Target) -> None:
    options = {"num_entries": 1} if target.is_file else {"queue_size": 4}
    async with target.device(**options) as device:
        data = pattern(64 * 512)
        await device.writev(0, [data[i : i + 512] for i in range(0, len(data), 512)])
        segments = [bytearray(512) for _ in range(64)]
        await device.readv(0, segments)
        assert b"".join(segments) == data
        async with device.allocate(len(data)) as region:
            await device.readv(0, [region[i : i + 512] for i in range(0, len(data), 512)])
            assert bytes(region) == data
        await asyncio.gather(*(device.read(0, BLOCK) for _ in range(100)))
