# ruff: noqa: ASYNC240 - these tests look at the devices' files, and do nothing else meanwhile
"""Reading ahead and writing behind, in order, whatever fails."""

import asyncio
import errno
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aioblk
from aioblk.testing import Fault, Faulty, MemoryDevice, PowerLoss, Recorder

from ..conftest import StorageDaemonFactory

BLOCK = 512
SIZE = 64 << 10
CONTENT = random.Random(1).randbytes(SIZE)
LIMITS = aioblk.Limits(request_alignment=BLOCK)


def memory(content: bytes = CONTENT) -> MemoryDevice:
    return MemoryDevice(SIZE, limits=LIMITS, content=content)


def slow(device: MemoryDevice, seed: int = 0) -> Faulty:
    return Faulty(device, Fault(probability=0.5), seed=seed)


async def all_of(reader: aioblk.Reader) -> bytes:
    return b"".join([bytes(data) async for data in reader])


# --- reading ------------------------------------------------------------------------------------------------


@given(
    offset=st.integers(0, SIZE),
    length=st.integers(0, SIZE),
    chunk=st.sampled_from([1000, 1024, 4096, 50_000]),
    depth=st.integers(1, 5),
    seed=st.integers(0, 100),
)
@settings(max_examples=80, deadline=None)
async def test_any_range_is_read_in_order(
    offset: int, length: int, chunk: int, depth: int, seed: int
) -> None:
    length = min(length, SIZE - offset)
    device = slow(memory(), seed)
    async with aioblk.Reader(device, offset, length, chunk=chunk, depth=depth) as reader:
        assert await all_of(reader) == CONTENT[offset : offset + length]
        with pytest.raises(StopAsyncIteration):
            await anext(reader)


async def test_the_next_pieces_are_under_way() -> None:
    recorder = Recorder(memory())
    async with aioblk.Reader(recorder, chunk=4096, depth=4) as reader:
        assert len(recorder.records) == 4
        assert await anext(reader) == CONTENT[:4096]
        assert (reader.offset, len(recorder.records)) == (0, 4)
        assert await anext(reader) == CONTENT[4096:8192]
        assert (reader.offset, len(recorder.records)) == (4096, 5)
    assert all(record.ended is not None for record in recorder.records)


async def test_an_error_comes_where_its_piece_would_be_and_may_be_skipped() -> None:
    device = Faulty(memory(), Fault(offset=10_000, length=1, error=errno.EIO))
    found = b""
    async with aioblk.Reader(device, chunk=4096, depth=4) as reader:
        for _ in range(2):
            found += await anext(reader)
        for _ in range(3):
            with pytest.raises(aioblk.BlkioError):
                await anext(reader)
        reader.seek(3 * 4096)
        found += await all_of(reader)
    assert found == CONTENT[: 2 * 4096] + CONTENT[3 * 4096 :]


async def test_a_piece_whose_waiting_is_cancelled_is_given_next() -> None:
    device = slow(memory())
    for turns in range(8):
        async with aioblk.Reader(device, chunk=4096, depth=2) as reader:
            piece = asyncio.ensure_future(anext(reader))
            for _ in range(turns):
                await asyncio.sleep(0)
            piece.cancel()
            await asyncio.wait([piece])
            start = 4096 if not piece.cancelled() else 0
            assert await all_of(reader) == CONTENT[start:]


async def test_who_waits_for_a_piece_is_not_given_another_one() -> None:
    async def piece(reader: aioblk.Reader) -> tuple[int, bytes]:
        data = await anext(reader)
        return reader.offset, bytes(data)

    refused = 0
    for turns in range(5):
        async with aioblk.Reader(memory(), chunk=4096, depth=2) as reader:
            waiting = asyncio.ensure_future(piece(reader))
            for _ in range(turns):
                await asyncio.sleep(0)
            try:
                reader.seek(8 * 4096)
            except aioblk.StreamBusyError:
                refused += 1
            offset, data = await waiting
            assert data == CONTENT[offset : offset + 4096]
    assert refused


async def test_seeking_back_and_forth() -> None:
    chance = random.Random(2)
    async with aioblk.Reader(slow(memory()), chunk=4096, depth=3) as reader:
        for _ in range(50):
            place = chance.randrange(SIZE)
            reader.seek(place)
            assert reader.offset == place
            assert await anext(reader) == CONTENT[place : min(place + 4096, SIZE)]
        for wrong in (-1, SIZE + 1):
            with pytest.raises(aioblk.OptionError):
                reader.seek(wrong)
        reader.seek(SIZE)
        assert await all_of(reader) == b""


async def test_what_readers_refuse() -> None:
    for options in ({"offset": -1}, {"length": SIZE + 1}, {"chunk": 0}, {"depth": 0}, {"offset": SIZE + 1}):
        with pytest.raises(aioblk.OptionError):
            aioblk.Reader(memory(), **options)
    reader = aioblk.Reader(Faulty(memory(), Fault(delay=0.001)))
    with pytest.raises(aioblk.UsageError, match="within `async with`"):
        await anext(reader)
    async with reader:
        with pytest.raises(aioblk.UsageError, match="entered once"):
            await reader.__aenter__()
        piece = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0)
        with pytest.raises(aioblk.StreamBusyError):
            await anext(reader)
        await piece
    await reader.aclose()
    for call in (lambda: anext(reader), lambda: reader.seek(0)):
        with pytest.raises(aioblk.DeviceClosedError):
            await call()  # type: ignore[misc]


async def test_a_device_that_is_closed_meanwhile() -> None:
    device = memory()
    async with aioblk.Reader(device, chunk=4096, depth=2) as reader:
        await device.aclose()
        await anext(reader)
        await anext(reader)
        with pytest.raises(aioblk.DeviceClosedError):
            await anext(reader)


# --- writing ------------------------------------------------------------------------------------------------


@given(
    offset=st.integers(0, 5000),
    pieces=st.lists(st.integers(0, 9000), max_size=6),
    flush=st.integers(0, 6),
    chunk=st.sampled_from([1000, 1024, 4096, 50_000]),
    depth=st.integers(1, 4),
)
@settings(max_examples=80, deadline=None)
async def test_whatever_is_written_is_there(
    offset: int, pieces: list[int], flush: int, chunk: int, depth: int
) -> None:
    device, content = memory(), bytearray(CONTENT)
    async with aioblk.Writer(slow(device), offset, chunk=chunk, depth=depth) as writer:
        place = offset
        for number, length in enumerate(pieces):
            data = bytearray([number + 1]) * length
            await writer.write(data)
            data[:] = bytes(length)  # it is the caller's again
            content[place : place + length] = bytes([number + 1]) * length
            place += length
            assert writer.offset == place
            if number == flush:
                await writer.flush()
                assert writer.written == place
                assert device.content() == content
    assert writer.written == place
    assert device.content() == content


async def test_writes_are_collected() -> None:
    recorder = Recorder(memory())
    async with aioblk.Writer(recorder, chunk=4096, depth=2) as writer:
        for _ in range(100):
            await writer.write(b"x" * 100)
    assert [(record.offset, record.length) for record in recorder.changes] == [
        (0, 4096),
        (4096, 4096),
        (8192, 2048),  # whole blocks
    ]


async def test_only_flushing_makes_it_durable() -> None:
    device = PowerLoss(SIZE, limits=LIMITS)
    async with aioblk.Writer(device, chunk=4096) as writer:
        await writer.write(CONTENT[:10_000])
        await writer.flush()
        assert all(device.crash(seed).content()[:10_000] == CONTENT[:10_000] for seed in range(20))
        await writer.write(CONTENT[10_000:])
    assert device.content() == CONTENT
    assert any(device.crash(seed).content() != CONTENT for seed in range(20))


@pytest.mark.parametrize("after", range(4))
@pytest.mark.parametrize("way", ["write", "flush", "leave"])
async def test_a_write_that_fails_is_told_by_the_next_call(after: int, way: str) -> None:
    device = Faulty(memory(bytes(SIZE)), Fault(operations={"write"}, after=after, times=1, error=errno.EIO))
    writer = aioblk.Writer(device, chunk=4096, depth=2)
    await writer.__aenter__()
    with pytest.raises(aioblk.BlkioError):  # noqa: PT012 (where it is raised depends)
        for number in range(after + 1):
            await writer.write(CONTENT[number * 4096 : (number + 1) * 4096])
        if way == "write":
            for _ in range(10):
                await writer.write(bytes(4096))
                await asyncio.sleep(0)
        elif way == "flush":
            await writer.flush()
        else:
            await writer.aclose()
    assert writer.written == after * 4096
    assert device.device.content()[: after * 4096] == CONTENT[: after * 4096]
    if way != "leave":
        for call in (writer.write(b"more"), writer.flush()):
            with pytest.raises(aioblk.BlkioError):
                await call
    await writer.aclose()


async def test_a_write_that_fails_unnoticed_is_told_when_the_block_is_left() -> None:
    device = Faulty(memory(), Fault(operations={"write"}, times=1, error=errno.EIO))
    with pytest.raises(aioblk.BlkioError):  # noqa: PT012
        async with aioblk.Writer(device, chunk=4096) as writer:
            await writer.write(bytes(4096))
            for _ in range(10):
                await asyncio.sleep(0)
    device.add(Fault(operations={"write"}, times=1, error=errno.EIO))
    writer = await aioblk.Writer(device, chunk=4096).__aenter__()
    await writer.write(bytes(4096))
    for _ in range(10):
        await asyncio.sleep(0)
    with pytest.raises(aioblk.BlkioError):
        await writer.write(bytes(100))
    await writer.aclose()


async def test_closing_that_is_cancelled_goes_on() -> None:
    limits = aioblk.Limits(needs_mem_regions=True, max_mem_regions=1, mem_region_alignment=4096)
    device = MemoryDevice(SIZE, limits=limits)
    writer = await aioblk.Writer(Faulty(device, Fault(delay=0.001)), chunk=4096).__aenter__()
    await writer.write(bytes(5000))
    closing = asyncio.ensure_future(writer.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    await writer.aclose()
    assert writer.written == 5000
    async with device.allocate(4096) as region:
        assert region.zero_copy


async def test_leaving_by_an_exception_drops_what_was_not_begun() -> None:
    recorder = Recorder(memory())
    with pytest.raises(RuntimeError, match="something else"):  # noqa: PT012
        async with aioblk.Writer(recorder, chunk=4096) as writer:
            await writer.write(bytes(5000))
            raise RuntimeError("something else")
    assert [record.length for record in recorder.changes] == [4096]


async def test_what_writers_refuse() -> None:
    for options in ({"offset": -1}, {"chunk": 0}, {"depth": 0}):
        with pytest.raises(aioblk.OptionError):
            aioblk.Writer(memory(), **options)
    writer = aioblk.Writer(Faulty(memory(), Fault(delay=0.001)), chunk=BLOCK, depth=1)
    with pytest.raises(aioblk.UsageError, match="within `async with`"):
        await writer.write(b"")
    async with writer:
        with pytest.raises(aioblk.UsageError, match="entered once"):
            await writer.__aenter__()
        writing = asyncio.ensure_future(writer.write(bytes(8 * BLOCK)))
        await asyncio.sleep(0)
        with pytest.raises(aioblk.StreamBusyError):
            await writer.write(b"")
        await writing
    with pytest.raises(aioblk.DeviceClosedError, match="the writer is closed"):
        await writer.write(b"")


async def test_beyond_the_end() -> None:
    async with aioblk.Writer(memory(), SIZE - 1000, chunk=BLOCK) as writer:
        await writer.write(bytes(1000))
        await writer.write(bytes(1))
        with pytest.raises(aioblk.BlkioError):
            await writer.flush()
        assert writer.written == SIZE


# --- together -----------------------------------------------------------------------------------------------


async def test_copying(storage_daemon: StorageDaemonFactory, scratch_file: Path, tmp_path: Path) -> None:
    content = random.Random(3).randbytes(scratch_file.stat().st_size)
    scratch_file.write_bytes(content)
    copy = tmp_path / "copy"
    copy.touch()
    async with aioblk.VirtioBlkVhostUser(storage_daemon(scratch_file).socket) as source:
        async with aioblk.IoUring(copy) as target:  # noqa: SIM117
            async with aioblk.Reader(source, chunk=256 << 10) as reader, aioblk.Writer(target) as writer:
                async for data in reader:
                    await writer.write(data)
                await writer.flush()
        assert source.statistics().bounced_bytes == 0
    assert copy.read_bytes() == content


async def test_a_flush_that_has_failed_is_not_made_good_by_another() -> None:
    device = Faulty(memory(), Fault(operations={"flush"}, times=1, error=errno.EIO))
    async with aioblk.Writer(device) as writer:
        await writer.write(bytes(BLOCK))
        for call in (writer.flush, writer.flush, lambda: writer.write(bytes(BLOCK))):
            with pytest.raises(aioblk.BlkioError) as failed:
                await call()
            assert failed.value.errno == errno.EIO
