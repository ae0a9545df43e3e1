"""What a request does: every method, its arguments, its result, its errors."""

import asyncio
import errno
import mmap
from array import array
from pathlib import Path
from typing import Any

import pytest

import aioblk
from aioblk.testing.storage_daemon import StorageDaemon

from ..support.devices import BLOCK, Target, held, pattern
from ..support.turns import Others

# --- reading and writing ------------------------------------------------------------------------------------


async def test_what_is_written_is_read_back(device: aioblk.Device) -> None:
    data = pattern(2 * BLOCK)
    await device.write(BLOCK, data)
    assert await device.read(BLOCK, 2 * BLOCK) == data
    assert await device.read(0, BLOCK) == bytes(BLOCK)


async def test_read_gives_bytes_and_the_others_nothing(device: aioblk.Device) -> None:
    buffer = bytearray(BLOCK)
    assert type(await device.read(0, BLOCK)) is bytes
    others: list[aioblk.Request[Any]] = [
        device.write(0, bytes(BLOCK)),
        device.writev(0, [bytes(BLOCK)]),
        device.read_into(0, buffer),
        device.readv(0, [buffer]),
        device.write_zeroes(0, BLOCK),
        device.discard(0, BLOCK),
        device.flush(),
        device.write_many([(0, bytes(BLOCK))]),
        device.read_into_many([(0, buffer)]),
    ]
    assert [await request for request in others] == [None] * len(others)


async def test_arguments_can_be_given_by_name(device: aioblk.Device) -> None:
    data, buffer = pattern(BLOCK), bytearray(BLOCK)
    await device.write(offset=0, data=data, fua=True)
    assert await device.read(offset=0, length=BLOCK) == data
    await device.writev(offset=BLOCK, buffers=[data], fua=True)
    await device.read_into(offset=BLOCK, buffer=buffer)
    assert buffer == data
    await device.readv(offset=0, buffers=[buffer])
    await device.write_zeroes(offset=0, length=BLOCK, fua=True, no_unmap=True, no_fallback=False)
    await device.discard(offset=0, length=BLOCK)


@pytest.mark.parametrize("make", [bytearray, lambda n: array("Q", bytes(n)), lambda n: mmap.mmap(-1, n)])
async def test_any_writable_buffer_can_be_filled(device: aioblk.Device, make: Any) -> None:
    data = pattern(BLOCK)
    await device.write(0, data)
    buffer = make(BLOCK)
    await device.read_into(0, buffer)
    assert memoryview(buffer).tobytes() == data


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview, lambda data: array("B", data)])
async def test_any_buffer_can_be_written(device: aioblk.Device, make: Any) -> None:
    data = pattern(BLOCK)
    await device.write(0, make(data))
    assert await device.read(0, BLOCK) == data


async def test_slices_of_memoryviews_are_filled_in_place(device: aioblk.Device) -> None:
    data, buffer = pattern(BLOCK), bytearray(3 * BLOCK)
    await device.write(0, data)
    await device.read_into(0, memoryview(buffer)[BLOCK : 2 * BLOCK])
    assert buffer == bytes(BLOCK) + data + bytes(BLOCK)


async def test_vectors_are_one_range_of_the_device(device: aioblk.Device) -> None:
    data = pattern(4 * BLOCK)
    await device.writev(
        BLOCK, [data[:BLOCK], bytearray(data[BLOCK : 2 * BLOCK]), memoryview(data)[2 * BLOCK :]]
    )
    assert await device.read(BLOCK, 4 * BLOCK) == data
    buffers = [bytearray(3 * BLOCK), bytearray(BLOCK)]
    await device.readv(BLOCK, buffers)
    assert b"".join(buffers) == data


async def test_vectors_may_be_tuples_and_contain_empty_buffers(device: aioblk.Device) -> None:
    data, buffer = pattern(BLOCK), bytearray(BLOCK)
    await device.writev(0, (b"", data, b""))
    await device.readv(0, (bytearray(), buffer))
    assert buffer == data


async def test_a_buffer_may_occur_twice_in_a_vector(device: aioblk.Device) -> None:
    data = pattern(BLOCK)
    await device.writev(0, [data, data])
    assert await device.read(0, 2 * BLOCK) == data * 2


async def test_views_of_allocated_memory_are_not_copied(target: Target) -> None:
    async with target.device() as device, device.allocate(4 * BLOCK) as region:
        region[BLOCK : 2 * BLOCK] = pattern(BLOCK)
        await device.write(0, region[BLOCK : 2 * BLOCK])
        await device.read_into(0, region[2 * BLOCK : 3 * BLOCK])
        assert bytes(region[2 * BLOCK : 3 * BLOCK]) == pattern(BLOCK)
        assert device.statistics().bounced_bytes == 0


async def test_other_memory_is_copied_where_the_device_needs_regions(device: aioblk.Device) -> None:
    await device.write(0, pattern(BLOCK))
    assert await device.read(0, BLOCK) == pattern(BLOCK)
    assert device.statistics().bounced_bytes == (2 * BLOCK if device.limits.needs_mem_regions else 0)


async def test_data_is_taken_as_it_is_when_the_request_is_done(device: aioblk.Device) -> None:
    buffer = bytearray(pattern(BLOCK))
    await device.write(0, buffer)
    buffer[:] = bytes(BLOCK)
    assert await device.read(0, BLOCK) == pattern(BLOCK)


async def test_files_grow_and_read_as_zeroes_beyond_their_end(file_device: aioblk.Device) -> None:
    end = file_device.capacity
    assert await file_device.read(end - 1, 3) == bytes(3)
    await file_device.write(end + 5, b"x")
    assert file_device.capacity == end + 6
    assert await file_device.read(end, 7) == bytes(5) + b"x" + bytes(1)


async def test_files_are_read_and_written_by_the_byte(file_device: aioblk.Device) -> None:
    await file_device.write(3, b"abc")
    assert await file_device.read(2, 5) == b"\0abc\0"


# --- the others ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", [None, "fua", "no_unmap"])
async def test_write_zeroes_zeroes_its_range_only(device: aioblk.Device, flag: str | None) -> None:
    data = pattern(3 * BLOCK)
    await device.write(0, data)
    await device.write_zeroes(BLOCK, BLOCK, **({flag: True} if flag else {}))
    assert await device.read(0, 3 * BLOCK) == data[:BLOCK] + bytes(BLOCK) + data[2 * BLOCK :]


async def test_no_fallback_zeroes_or_says_that_it_cannot(device: aioblk.Device) -> None:
    await device.write(0, pattern(BLOCK))
    try:
        await device.write_zeroes(0, BLOCK, no_fallback=True)
    except aioblk.UnsupportedError:
        assert await device.read(0, BLOCK) == pattern(BLOCK)
    else:
        assert await device.read(0, BLOCK) == bytes(BLOCK)


async def test_flush_makes_writes_durable(target: Target) -> None:
    async with target.device() as device:
        await device.write(0, pattern(BLOCK))
        await device.flush()
        assert target.file.read_bytes()[:BLOCK] == pattern(BLOCK)


async def test_requests_without_bytes_succeed_and_do_nothing(device: aioblk.Device) -> None:
    assert await device.read(BLOCK, 0) == b""
    await device.read_into(0, bytearray())
    await device.readv(0, [])
    await device.readv(0, [bytearray(), bytearray()])
    await device.write(0, b"")
    await device.writev(0, [])
    await device.write_zeroes(0, 0)
    await device.discard(0, 0)
    assert await device.read_many([]) == []
    await device.write_many([])
    assert device.statistics().parts == 0


# --- concurrency --------------------------------------------------------------------------------------------


async def test_a_request_is_submitted_when_its_method_is_called(device: aioblk.Device) -> None:
    request = device.write(0, pattern(BLOCK))
    assert device.statistics().submitted == 1
    await request


async def test_more_requests_than_the_queue_holds_all_complete(device: aioblk.Device) -> None:
    blocks = [pattern(512, seed) for seed in range(2000)]
    await asyncio.gather(*(device.write(i * 512, block) for i, block in enumerate(blocks)))
    assert await asyncio.gather(*(device.read(i * 512, 512) for i in range(2000))) == blocks
    assert device.statistics().in_flight == 0


async def test_more_completions_than_a_turn_of_the_loop_takes(scratch_file: Path) -> None:
    """The kernel completes cached reads while they are submitted; one event tells of all of them."""
    async with aioblk.IoUring(scratch_file, num_entries=4096) as device, asyncio.timeout(60):
        assert await device.read_many([(i * 512, 512) for i in range(4000)]) == [bytes(512)] * 4000
        assert await asyncio.gather(*(device.read(i * 512, 512) for i in range(4000))) == [bytes(512)] * 4000


async def test_waiting_for_a_full_queue_costs_no_turns_of_the_loop(slow_device: aioblk.Device) -> None:
    async with slow_device.allocate(BLOCK) as region:
        await asyncio.gather(*(slow_device.read_into(0, region) for _ in range(600)))
    assert slow_device.statistics().flushes < 600


async def test_requests_that_complete_at_once_let_others_run(file_device: aioblk.Device) -> None:
    async with Others() as others:
        for _ in range(5000):
            await file_device.read(0, 512)
    assert others.turns >= 5000 // 600


# --- errors -------------------------------------------------------------------------------------------------


async def test_an_error_tells_what_failed(storage_daemon: object, target: Target) -> None:
    async with target.device() as device:
        if target.is_file:
            target.file.write_bytes(b"")
            offset = 2**62  # no file system has files of this size
            request = device.write(offset, bytes(512))
        else:
            offset = device.capacity
            request = device.write(offset, bytes(512))
        with pytest.raises(aioblk.BlkioError) as caught:
            await request
    error = caught.value
    assert isinstance(error, OSError)
    assert (error.driver, error.operation, error.offset, error.length) == (
        target.driver,
        "write",
        offset,
        512,
    )
    assert error.errno in {errno.EFBIG, errno.EINVAL, errno.EIO}
    assert str(offset) in str(error)


async def test_flush_errors_name_no_range(slow_device: aioblk.Device) -> None:
    request = slow_device.flush()
    assert "flush" in repr(request)
    await request


async def test_a_failed_read_leaves_the_buffer_alone(target: Target) -> None:
    async with target.device() as device:
        offset = 2**62 if target.is_file else device.capacity
        buffer = bytearray(b"\x55" * BLOCK)
        try:
            await device.read_into(offset, buffer)
        except aioblk.BlkioError:
            assert buffer == b"\x55" * BLOCK
        else:
            assert target.is_file  # past the end a file reads as zeroes
            assert buffer == bytes(BLOCK)


async def test_a_read_only_device_refuses_to_write(target: Target) -> None:
    async with target.device(read_only=True) as device:
        assert await device.read(0, BLOCK) == bytes(BLOCK)
        for call in (
            lambda: device.write(0, bytes(BLOCK)),
            lambda: device.writev(0, [bytes(BLOCK)]),
            lambda: device.write_many([(0, bytes(BLOCK))]),
            lambda: device.write_zeroes(0, BLOCK),
            lambda: device.discard(0, BLOCK),
        ):
            with pytest.raises(aioblk.BlkioError) as caught:
                call()
            assert caught.value.errno == errno.EBADF
        await device.flush()


# --- the requests as objects --------------------------------------------------------------------------------


async def test_a_request_describes_itself(slow_device: aioblk.Device, slow_daemon: StorageDaemon) -> None:
    with held(slow_daemon):
        request = slow_device.read(512, 1024)
        assert repr(request) == "<Request read offset=512 length=1024 pending>"
    await request
    assert repr(request) == "<Request read offset=512 length=1024 finished>"


async def test_statistics_add_up(device: aioblk.Device) -> None:
    before = device.statistics()
    await device.write(0, bytes(2 * BLOCK))
    await device.read(0, BLOCK)
    now = device.statistics()
    assert now.submitted - before.submitted == 2
    assert now.completed - before.completed == 2
    assert (now.bytes_written, now.bytes_read) == (2 * BLOCK, BLOCK)
    assert (now.failed, now.cancelled, now.in_flight) == (0, 0, 0)


async def test_capacity_is_live(file_device: aioblk.Device, scratch_file: Path) -> None:
    with scratch_file.open("r+b") as file:
        file.truncate(1 << 20)
    assert file_device.capacity == 1 << 20
