"""ByteView: any byte of a device, and writers that do not undo each other."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import aioblk
from aioblk.byte_view import ByteView

from .conftest import StorageDaemonFactory

BLOCK = 512
SLOW = 20_000_000  # nanoseconds


@pytest.fixture
async def view(storage_daemon: StorageDaemonFactory, scratch_file: Path) -> AsyncIterator[ByteView]:
    """Of a device with blocks of 512 bytes."""
    async with aioblk.VirtioBlkVhostUser(storage_daemon(scratch_file).socket) as device:
        assert device.limits.request_alignment == BLOCK
        yield ByteView(device)


@pytest.fixture
async def direct_view(loop_device: Path) -> AsyncIterator[ByteView]:
    """Of a block device where memory must be aligned as well."""
    async with aioblk.IoUring(loop_device, direct=True) as device:
        assert device.limits.buf_alignment == BLOCK
        yield ByteView(device)


# --- bytes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, 1),
        (1, 1),
        (511, 1),
        (511, 2),
        (0, 512),
        (512, 512),
        (1, 511),
        (1, 512),
        (100, 300),
        (5, 5000),
        (0, 4097),
    ],
)
async def test_writes_and_reads_any_bytes(view: ByteView, offset: int, length: int) -> None:
    await view.device.write(0, b"-" * 8192)
    data = bytes(range(1, 251)) * 21
    await view.write(offset, data[:length])
    expected = b"-" * offset + data[:length] + b"-" * (8192 - offset - length)
    assert await view.device.read(0, 8192) == expected
    assert await view.read(offset, length) == data[:length]
    buffer = bytearray(length)
    await view.read_into(offset, buffer)
    assert buffer == data[:length]


async def test_misaligned_memory_and_bytes_under_direct_io(direct_view: ByteView) -> None:
    await direct_view.write(3, b"abc" * 1000, fua=True)
    assert await direct_view.read(0, 3010) == bytes(3) + b"abc" * 1000 + bytes(7)
    buffer = bytearray(1001)
    await direct_view.read_into(1000, memoryview(buffer)[1:])
    assert buffer[1:5] == b"bcab"


@pytest.mark.parametrize(
    ("offset", "length"), [(10, 20), (0, 512), (500, 600), (100, 2000), (512, 1000), (7, 505)]
)
async def test_zeroes_any_bytes(view: ByteView, offset: int, length: int) -> None:
    await view.write(0, b"x" * 4096)
    await view.write_zeroes(offset, length)
    expected = b"x" * offset + bytes(length) + b"x" * (4096 - offset - length)
    assert await view.read(0, 4096) == expected
    await view.flush()


async def test_nothing_is_nothing(view: ByteView) -> None:
    assert await view.read(3, 0) == b""
    await view.write(3, b"")
    await view.read_into(3, bytearray())
    await view.write_zeroes(3, 0)


async def test_refuses_negative_offsets_and_lengths(view: ByteView) -> None:
    with pytest.raises(aioblk.OptionError):
        await view.read(-1, 1)
    with pytest.raises(aioblk.OptionError):
        await view.read(0, -1)
    with pytest.raises(aioblk.OptionError):
        await view.write(-1, b"x")
    with pytest.raises(aioblk.OptionError):
        await view.write_zeroes(-1, 1)


async def test_whole_blocks_are_passed_on(view: ByteView) -> None:
    async with view.device.allocate(4096) as region:
        await view.write(512, region[:1024])
        await view.read_into(512, region[1024:2048])
        assert view.device.statistics().bounced_bytes == 0
        assert view.device.statistics().submitted == 2
        await view.read_into(100, region[:2048])
        assert view.device.statistics().bounced_bytes == 512  # the edges alone


# --- writers ------------------------------------------------------------------------------------------------


async def test_writers_in_one_block_do_not_undo_each_other(view: ByteView) -> None:
    await asyncio.gather(*(view.write(place, bytes([place % 251])) for place in range(2000)))
    assert await view.read(0, 2000) == bytes(place % 251 for place in range(2000))


async def test_overlapping_writers_take_turns_in_order(view: ByteView) -> None:
    await asyncio.gather(*(view.write(number, bytes([number]) * 1000) for number in range(100)))
    assert await view.read(0, 1099) == bytes([*range(99), *[99] * 1000])


async def test_disjoint_writers_run_concurrently(storage_daemon: StorageDaemonFactory) -> None:
    async with aioblk.VirtioBlkVhostUser(storage_daemon(latency_ns=SLOW).socket) as device:
        view = ByteView(device)
        writes = [asyncio.create_task(view.write(BLOCK * number, b"x")) for number in range(8)]
        same = asyncio.create_task(view.write(1, b"y"))
        for _ in range(4):
            await asyncio.sleep(0)
        assert device.statistics().in_flight == 8  # the ninth waits for the first
        await asyncio.gather(*writes, same)


async def test_a_cancelled_writer_lets_the_next_one_go_on(view: ByteView) -> None:
    first = asyncio.create_task(view.write(0, b"1" * 1000))
    second = asyncio.create_task(view.write(500, b"2" * 1000))
    third = asyncio.create_task(view.write(999, b"3" * 10))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(first, third)
    with pytest.raises(asyncio.CancelledError):
        await second
    assert await view.read(990, 30) == b"1" * 9 + b"3" * 10 + bytes(11)


async def test_a_write_on_its_way_is_waited_for(storage_daemon: StorageDaemonFactory) -> None:
    async with aioblk.VirtioBlkVhostUser(storage_daemon(latency_ns=SLOW).socket) as device:
        view = ByteView(device)
        await device.write(0, bytes(512))  # the pool has its memory from here on
        writing = asyncio.create_task(view.write(0, bytes(512)))
        await asyncio.sleep(0)
        assert device.statistics().in_flight == 1
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert device.statistics().in_flight == 0


async def test_an_error_lets_the_next_one_go_on(view: ByteView) -> None:
    end = view.device.capacity
    outcomes = await asyncio.gather(
        view.write(end - 10, b"x" * 20),
        view.write(end - 100, b"y" * 50),
        view.read(end - 1, 2),
        return_exceptions=True,
    )
    assert isinstance(outcomes[0], aioblk.BlkioError)
    assert outcomes[1] is None
    assert isinstance(outcomes[2], aioblk.BlkioError)
    assert await view.read(end - 100, 100) == b"y" * 50 + bytes(50)
    assert view._writers == []


# --- against a model ----------------------------------------------------------------------------------------

SPACE = 16 * BLOCK
ranges = st.tuples(st.integers(0, SPACE - 1), st.integers(1, 4 * BLOCK)).map(
    lambda pair: (pair[0], min(pair[1], SPACE - pair[0]))
)
kinds = st.sampled_from(["write", "zero", "read", "cancelled"])
Step = tuple[str, tuple[int, int], int]
steps = st.lists(
    st.lists(st.tuples(kinds, ranges, st.integers(0, 6)), min_size=1, max_size=8),
    max_size=8,
)


async def cancel_after(turns: int, task: "asyncio.Task[None]") -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()


async def check_against_model(view: ByteView, rounds: list[list[Step]]) -> None:
    """Each round's requests run concurrently. The model keeps what every byte may be, and learns what it is.

    Overlapping writes count in the order in which they were begun; a cancelled one may or may not count.
    """
    await view.device.write_zeroes(0, SPACE)
    content = bytes(SPACE)
    serial = 0
    for requests in rounds:
        after = [{byte} for byte in content]  # what each byte may be when all is done
        ever = [{byte} for byte in content]  # and in the meantime
        work: list[asyncio.Future[None]] = []
        reads: list[tuple[int, asyncio.Task[bytes]]] = []
        for kind, (offset, length), turns in requests:
            serial = serial % 255 + 1
            value = 0 if kind == "zero" else serial
            places = range(offset, offset + length)
            if kind == "read":
                reads.append((offset, asyncio.create_task(view.read(offset, length))))
                continue
            if kind == "zero":
                work.append(asyncio.create_task(view.write_zeroes(offset, length)))
            else:
                work.append(task := asyncio.create_task(view.write(offset, bytes([value]) * length)))
                if kind == "cancelled":
                    work.append(asyncio.create_task(cancel_after(turns, task)))
            for place in places:
                after[place] = after[place] | {value} if kind == "cancelled" else {value}
                ever[place].add(value)
        for outcome in await asyncio.gather(*work, return_exceptions=True):
            assert outcome is None or isinstance(outcome, asyncio.CancelledError)
        for offset, read in reads:
            assert all(byte in ever[offset + place] for place, byte in enumerate(await read))
        content = await view.read(0, SPACE)
        assert all(byte in possible for byte, possible in zip(content, after, strict=True))
    assert view._writers == []


@given(rounds=steps)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_agrees_with_a_model(view: ByteView, rounds: list[list[Step]]) -> None:
    await check_against_model(view, rounds)


@given(rounds=steps)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_agrees_with_a_model_under_direct_io(direct_view: ByteView, rounds: list[list[Step]]) -> None:
    await check_against_model(direct_view, rounds)
