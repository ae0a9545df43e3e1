"""Many requests with one await."""

import os

import pytest

import aioblk

BLOCK = 4096
COUNT = 700  # more than a queue holds


async def test_writes_and_reads_a_batch(device: aioblk.Device) -> None:
    pieces = {number * BLOCK: os.urandom(BLOCK) for number in range(COUNT)}
    await device.write_many(pieces.items())
    assert await device.read_many((offset, BLOCK) for offset in pieces) == list(pieces.values())
    buffers = [(offset, bytearray(BLOCK)) for offset in pieces]
    await device.read_into_many(buffers)
    assert [buffer for _, buffer in buffers] == list(pieces.values())
    assert device.statistics().submitted == 3 * COUNT


async def test_a_batch_of_different_lengths(device: aioblk.Device) -> None:
    data = os.urandom(64 * BLOCK)
    await device.write(0, data)
    wanted = [(0, BLOCK), (7 * BLOCK, 0), (BLOCK, 60 * BLOCK), (63 * BLOCK, BLOCK)]
    assert await device.read_many(wanted) == [data[offset : offset + length] for offset, length in wanted]


async def test_one_bad_item_fails_alone(device: aioblk.Device) -> None:
    await device.write(0, b"\x01" * BLOCK)
    far = 1 << 60
    found = await device.read_many([(0, BLOCK), (far, BLOCK), (0, BLOCK)], return_exceptions=True)
    assert found[0] == found[2] == b"\x01" * BLOCK
    assert found[1] == bytes(BLOCK) if device.limits.can_grow else isinstance(found[1], aioblk.BlkioError)


async def test_a_batch_raises_its_first_error(device: aioblk.Device) -> None:
    with pytest.raises(aioblk.BlkioError):
        await device.write_many([(0, b"\x02" * BLOCK), (1 << 62, b"\x02" * BLOCK), (BLOCK, b"\x02" * BLOCK)])
    assert await device.read_many([(0, BLOCK), (BLOCK, BLOCK)]) == [b"\x02" * BLOCK] * 2
