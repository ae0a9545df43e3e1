"""Limits, alignment and splitting."""

import os

import pytest

import aioblk

from .drivers import Can, Driver

BLOCK = 4096
MIB = 1 << 20


async def test_reports_the_properties_of_its_kind(device: aioblk.Device, driver: Driver) -> None:
    assert {name: device.properties[name] for name in driver.properties} == driver.properties


async def test_limits_are_no_wider_than_the_properties(device: aioblk.Device) -> None:
    for name in (
        "max_transfer",
        "max_segments",
        "max_segment_len",
        "max_write_zeroes_len",
        "max_discard_len",
    ):
        limit = getattr(device.limits, name)
        reported = device.properties[name.replace("_", "-")]
        assert isinstance(reported, int)
        assert limit == reported or reported == 0 or 0 < limit < reported


async def test_divides_long_transfers(device: aioblk.Device) -> None:
    data = os.urandom(8 * MIB)
    await device.write(0, data)
    assert device.statistics().parts > 1
    assert await device.read(0, len(data)) == data
    buffer = bytearray(len(data))
    await device.read_into(0, buffer)
    assert buffer == data


async def test_divides_transfers_with_many_segments(device: aioblk.Device) -> None:
    count = min(device.limits.max_segments, 1024) + 73
    size = max(device.limits.request_alignment, 512)
    data = os.urandom(count * size)
    await device.writev(0, [data[i : i + size] for i in range(0, len(data), size)])
    buffers = [bytearray(size) for _ in range(count)]
    await device.readv(0, buffers)
    assert b"".join(buffers) == data


async def test_divides_transfers_with_tiny_segments(device: aioblk.Device) -> None:
    data = os.urandom(4 * BLOCK)
    await device.writev(0, [data[i : i + 7] for i in range(0, len(data), 7)])
    assert await device.read(0, len(data)) == data


async def test_divides_long_zeroes(device: aioblk.Device) -> None:
    await device.write(8 * MIB - BLOCK, b"\x66" * BLOCK)
    await device.write_zeroes(0, device.capacity)
    assert await device.read(8 * MIB - BLOCK, BLOCK) == bytes(BLOCK)


async def test_divides_long_discards(device: aioblk.Device) -> None:
    await device.discard(0, device.capacity)
    await device.write(0, b"\x77" * BLOCK)
    assert await device.read(0, BLOCK) == b"\x77" * BLOCK


async def test_transfers_bytes_or_refuses_what_is_not_aligned(device: aioblk.Device, can: Can) -> None:
    if can("bytes instead of blocks"):
        await device.write(1, b"abc")
        assert await device.read(2, 2) == b"bc"
        await device.write_zeroes(2, 1)
        assert await device.read(1, 3) == b"a\0c"
        return
    alignment = device.limits.request_alignment
    for submit in (
        lambda: device.read(1, alignment),
        lambda: device.read(0, alignment + 1),
        lambda: device.read_into(alignment // 2, bytearray(alignment)),
        lambda: device.readv(0, [bytearray(alignment), bytearray(1)]),
        lambda: device.write(0, b"abc"),
        lambda: device.writev(1, [bytes(alignment)]),
        lambda: device.write_zeroes(1, alignment),
        lambda: device.discard(0, alignment + 1),
    ):
        with pytest.raises(aioblk.AlignmentError, match=f"multiple of {alignment}"):
            submit()
    assert device.statistics().submitted == 0


async def test_a_byte_view_transfers_bytes(device: aioblk.Device) -> None:
    view = aioblk.ByteView(device)
    await device.write(0, b"\x01" * 2 * BLOCK)
    await view.write(BLOCK - 2, b"abcd")
    await view.write_zeroes(BLOCK - 1, 2)
    await view.flush()
    assert await view.read(BLOCK - 3, 6) == b"\x01a\0\0d\x01"
    assert await device.read(0, 2 * BLOCK) == b"\x01" * (BLOCK - 2) + b"a\0\0d" + b"\x01" * (BLOCK - 2)


async def test_takes_buffers_at_any_address(device: aioblk.Device) -> None:
    data = os.urandom(2 * BLOCK)
    shifted = bytearray(3 * BLOCK)
    for shift in (0, 1, 511, 513):
        here = memoryview(shifted)[shift : shift + 2 * BLOCK]
        here[:] = data
        await device.write(0, here)
        here[:] = bytes(2 * BLOCK)
        await device.read_into(0, here)
        assert here == data
