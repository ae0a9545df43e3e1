"""Recorder: what was asked, in order, and asked again."""

import asyncio
import errno
import random

import pytest

import aioblk
from aioblk.testing import Fault, Faulty, MemoryDevice, Record, Recorder

SIZE = 1 << 16


async def test_what_is_remembered() -> None:
    recorder = Recorder(MemoryDevice(SIZE, limits=aioblk.Limits(request_alignment=512)))
    await recorder.write(512, b"x" * 512, fua=True)
    await recorder.write_zeroes(0, 512, no_unmap=True)
    await recorder.read_into(0, bytearray(1024))
    await recorder.discard(512, 512)
    await recorder.flush()
    await recorder.read_many([(0, 512), (512, 512)])
    assert recorder.records == [
        Record(operation="write", offset=512, length=512, fua=True, data=b"x" * 512),
        Record(operation="write_zeroes", length=512, no_unmap=True),
        Record(operation="read", length=1024),
        Record(operation="discard", offset=512, length=512),
        Record(operation="flush"),
        Record(operation="read", length=512),
        Record(operation="read", offset=512, length=512),
    ]
    assert [record.operation for record in recorder.changes] == ["write", "write_zeroes", "discard"]
    assert all(record.ended is not None and record.ended >= record.began for record in recorder.records)
    with pytest.raises(aioblk.AlignmentError):
        recorder.write(1, bytes(512))
    assert len(recorder.records) == 7


async def test_how_it_ended_is_remembered() -> None:
    recorder = Recorder(Faulty(MemoryDevice(SIZE), Fault(times=1, error=errno.EIO), Fault(after=1, delay=60)))
    with pytest.raises(aioblk.BlkioError):
        await recorder.read(0, 512)
    read = asyncio.ensure_future(recorder.read(0, 512))
    await asyncio.sleep(0)
    assert recorder.records[1].ended is None
    read.cancel()
    await asyncio.wait([read])
    failed, cancelled = recorder.records
    assert isinstance(failed.error, aioblk.BlkioError)
    assert isinstance(cancelled.error, asyncio.CancelledError)


async def test_every_prefix_can_be_replayed() -> None:
    recorder, contents = Recorder(MemoryDevice(SIZE)), [bytes(SIZE)]
    chance = random.Random(1)
    for _ in range(40):
        offset, length = chance.randrange(SIZE // 2), chance.randrange(4096)
        match chance.randrange(5):
            case 0:
                await recorder.write_zeroes(offset, length)
            case 1:
                await recorder.discard(offset, length)
            case 2:
                await recorder.flush()
            case 3:
                await recorder.read(offset, length)
            case _:
                await recorder.write(offset, chance.randbytes(length))
        contents.append(recorder.device.content())
    for count, content in enumerate(contents):
        device = MemoryDevice(SIZE)
        await recorder.replay(device, recorder.records[:count])
        assert device.content() == content
