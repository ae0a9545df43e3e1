"""Every type of request with every flag, and every kind of buffer."""

import array
import itertools
import mmap

import pytest

import aioblk

BLOCK = 4096
PATTERN = bytes(range(256)) * (BLOCK // 256)


async def test_reads_what_was_written(device: aioblk.Device) -> None:
    await device.write(2 * BLOCK, PATTERN)
    assert await device.read(2 * BLOCK, BLOCK) == PATTERN
    await device.write(device.capacity - BLOCK, PATTERN)
    assert await device.read(device.capacity - BLOCK, BLOCK) == PATTERN


async def test_reads_into_a_buffer(device: aioblk.Device) -> None:
    await device.write(0, PATTERN)
    buffer = bytearray(3 * BLOCK)
    await device.read_into(0, memoryview(buffer)[BLOCK : 2 * BLOCK])
    assert buffer == bytes(BLOCK) + PATTERN + bytes(BLOCK)


async def test_scatters_and_gathers(device: aioblk.Device) -> None:
    pieces = [bytes([i]) * BLOCK * (1 + i % 3) for i in range(7)]
    await device.writev(BLOCK, pieces)
    assert await device.read(BLOCK, sum(map(len, pieces))) == b"".join(pieces)
    buffers = [bytearray(len(piece)) for piece in reversed(pieces)]
    await device.readv(BLOCK, buffers)
    assert b"".join(buffers) == b"".join(pieces)


async def test_scatters_and_gathers_through_odd_buffers(device: aioblk.Device) -> None:
    data = PATTERN * 2
    cuts = [0, 1, 514, 515, BLOCK - 1, BLOCK + 7, 2 * BLOCK]
    await device.writev(0, [data[a:b] for a, b in itertools.pairwise(cuts)])
    buffers = [bytearray(b - a) for a, b in itertools.pairwise(cuts)]
    await device.readv(0, buffers)
    assert b"".join(buffers) == data


async def test_writes_through_when_asked(device: aioblk.Device) -> None:
    for fua in (False, True):
        await device.write_zeroes(0, 4 * BLOCK, fua=fua)
        await device.write(0, PATTERN, fua=fua)
        await device.writev(BLOCK, [PATTERN, PATTERN], fua=fua)
        await device.write_many([(3 * BLOCK, PATTERN)], fua=fua)
        assert await device.read(0, 4 * BLOCK) == 4 * PATTERN


async def test_writes_zeroes_in_every_way(device: aioblk.Device) -> None:
    for fua, no_unmap, no_fallback in itertools.product([False, True], repeat=3):
        await device.write(0, 4 * PATTERN)
        try:
            await device.write_zeroes(BLOCK, 2 * BLOCK, fua=fua, no_unmap=no_unmap, no_fallback=no_fallback)
        except aioblk.UnsupportedError:
            assert no_fallback  # which is what it is for
        else:
            assert await device.read(0, 4 * BLOCK) == PATTERN + bytes(2 * BLOCK) + PATTERN


async def test_discards(device: aioblk.Device) -> None:
    await device.write(0, 4 * PATTERN)
    await device.discard(BLOCK, 2 * BLOCK)
    assert await device.read(0, BLOCK) == PATTERN
    assert await device.read(3 * BLOCK, BLOCK) == PATTERN
    for block in (await device.read(BLOCK, BLOCK), await device.read(2 * BLOCK, BLOCK)):
        assert block in (PATTERN, bytes(BLOCK))


async def test_flushes(device: aioblk.Device) -> None:
    await device.write(0, PATTERN)
    await device.flush()
    assert await device.read(0, BLOCK) == PATTERN


async def test_empty_requests_complete(device: aioblk.Device) -> None:
    assert await device.read(0, 0) == b""
    await device.read_into(0, bytearray())
    await device.readv(0, [])
    await device.readv(0, [bytearray(), bytearray()])
    await device.write(0, b"")
    await device.writev(0, [])
    await device.write_zeroes(0, 0)
    await device.discard(0, 0)
    assert await device.read_many([]) == []
    assert await device.read_many([(0, 0), (BLOCK, 0)]) == [b"", b""]
    await device.write_many([])
    await device.write(0, PATTERN)
    assert await device.read(0, BLOCK) == PATTERN


async def test_takes_any_buffer(device: aioblk.Device) -> None:
    with mmap.mmap(-1, BLOCK) as memory:
        memory[:] = PATTERN
        for source in (PATTERN, bytearray(PATTERN), memoryview(PATTERN), array.array("Q", PATTERN), memory):
            await device.write_zeroes(0, BLOCK)
            await device.write(0, source)
            assert await device.read(0, BLOCK) == PATTERN
        numbers = array.array("Q", bytes(BLOCK))
        grid = memoryview(bytearray(BLOCK)).cast("B", (64, 64))
        memory[:] = bytes(BLOCK)
        for target in (numbers, grid, memory):
            await device.read_into(0, target)
            assert memoryview(target).tobytes() == PATTERN


async def test_refuses_what_is_no_buffer(device: aioblk.Device) -> None:
    with pytest.raises((TypeError, BufferError)):
        device.read_into(0, bytes(BLOCK))
    with pytest.raises(TypeError):
        device.write(0, "text")  # type: ignore[arg-type]
    with pytest.raises((TypeError, BufferError, ValueError)):
        device.read_into(0, memoryview(bytearray(2 * BLOCK))[::2])
    with pytest.raises(TypeError):
        device.readv(0, 5)  # type: ignore[arg-type]
