"""What the device says of its work."""

from dataclasses import replace

import pytest

import aioblk

BLOCK = 4096


async def test_counts_requests_and_bytes(device: aioblk.Device) -> None:
    await device.write(0, bytes(4 * BLOCK))
    await device.writev(0, [bytes(BLOCK), bytes(BLOCK)])
    await device.read(0, 3 * BLOCK)
    await device.flush()
    await device.write_zeroes(0, BLOCK)
    seen = device.statistics()
    assert (seen.submitted, seen.completed, seen.failed, seen.in_flight) == (5, 5, 0, 0)
    assert (seen.bytes_read, seen.bytes_written) == (3 * BLOCK, 6 * BLOCK)
    assert seen.parts >= 5


async def test_counts_failures(device: aioblk.Device) -> None:
    with pytest.raises(aioblk.BlkioError):
        await device.write(1 << 62, bytes(BLOCK))
    seen = device.statistics()
    assert (seen.submitted, seen.completed, seen.failed, seen.in_flight) == (1, 0, 1, 0)


async def test_counts_what_was_copied(device: aioblk.Device) -> None:
    async with device.allocate(BLOCK) as region:
        await device.write(0, region)
        assert device.statistics().bounced_bytes == 0
    shifted = memoryview(bytearray(BLOCK + 8192))
    await device.write(0, shifted[1 : BLOCK + 1])
    bounces = device.limits.needs_mem_regions or device.limits.buf_alignment > 1
    assert device.statistics().bounced_bytes == (BLOCK if bounces else 0)


async def test_what_was_counted_stays(device: aioblk.Device) -> None:
    await device.read(0, BLOCK)
    before = device.statistics()
    await device.queue().aclose()
    after = device.statistics()
    looked = {name: getattr(after, name) for name in ("flushes", "do_io_calls", "events", "empty_events")}
    assert after == replace(before, **looked)  # the loop may have had a turn
    await device.aclose()
    assert device.statistics() == after


async def test_what_was_done_since_is_told_of_the_later_one_alone(device: aioblk.Device) -> None:
    before = device.statistics()
    await device.read(0, BLOCK)
    after = device.statistics()
    assert ((after - before).submitted, (after - before).read.completed) == (1, 1)
    with pytest.raises(ValueError, match="submitted cannot have fallen from 1 to 0; subtract the earlier"):
        _ = before - after
    with pytest.raises(ValueError, match="completed cannot have fallen from 1 to 0"):
        _ = before.read - after.read
