"""PowerLoss: what may be left is what a device may leave, all of it, and nothing else."""

import asyncio
import random

import pytest

import aioblk
from aioblk.testing import PowerLoss

SECTOR = 512
SIZE = 32 * SECTOR
A, B, C = b"a" * SECTOR, b"b" * SECTOR, b"c" * SECTOR
OLD = bytes(SECTOR)
CRASHES = 300


async def left(device: PowerLoss, *sectors: int) -> set[tuple[bytes, ...]]:
    """What the sectors may hold."""
    crashes = [device.crash(seed) for seed in range(CRASHES)]
    return {tuple([await crash.read(sector * SECTOR, SECTOR) for sector in sectors]) for crash in crashes}


async def test_what_was_flushed_is_there() -> None:
    device = PowerLoss(SIZE)
    await device.write(0, A)
    await device.flush()
    assert device.doubtful_sectors == 0
    assert await left(device, 0) == {(A,)}


async def test_what_was_not_flushed_may_be_there() -> None:
    device = PowerLoss(SIZE, content=C)
    await device.write(0, A)
    assert await left(device, 0) == {(C,), (A,)}
    await device.write(0, B)
    assert await left(device, 0) == {(C,), (A,), (B,)}
    await device.flush()
    await device.write_zeroes(0, SECTOR)
    assert await left(device, 0) == {(B,), (OLD,)}


async def test_sectors_are_torn_from_each_other_in_any_order() -> None:
    device = PowerLoss(SIZE)
    await device.write(0, A + A)
    await device.write(SECTOR, B)
    assert await left(device, 0, 1) == {(one, other) for one in (OLD, A) for other in (OLD, A, B)}


async def test_forced_unit_access_covers_itself() -> None:
    device = PowerLoss(SIZE)
    await device.write(0, A)
    await device.write(SECTOR, A, fua=True)
    assert await left(device, 0, 1) == {(OLD, A), (A, A)}
    await device.write(SECTOR, B)
    await device.write(SECTOR, C, fua=True)
    assert await left(device, 1) == {(C,)}, "what was before it does not come back"


async def test_what_is_in_flight_is_covered_by_nothing() -> None:
    device = PowerLoss(SIZE)
    write = asyncio.ensure_future(device.write(0, A, fua=True))
    flush = asyncio.ensure_future(device.flush())
    assert await left(device, 0) == {(OLD,), (A,)}
    await write
    assert await left(device, 0) == {(A,)}
    write = asyncio.ensure_future(device.write(SECTOR, A))
    flush = asyncio.ensure_future(device.flush())
    await asyncio.gather(write, flush)
    assert await left(device, 1) == {(OLD,), (A,)}, "it was not done when the flush began"
    flush = asyncio.ensure_future(device.flush())
    assert await left(device, 1) == {(OLD,), (A,)}, "the flush is not done"
    await flush
    assert await left(device, 1) == {(A,)}


async def test_what_comes_after_a_flush_began_is_not_covered() -> None:
    device = PowerLoss(SIZE)
    await device.write(0, A)
    flush = asyncio.ensure_future(device.flush())
    write = asyncio.ensure_future(device.write(0, B))
    await asyncio.gather(flush, write)
    assert await left(device, 0) == {(A,), (B,)}


async def test_a_crash_is_repeated_by_its_seed_and_disturbs_nothing() -> None:
    device = PowerLoss(SIZE)
    for number in range(10):
        await device.write(random.Random(number).randrange(31) * SECTOR, bytes([number]) * (2 * SECTOR))
    before, doubtful = device.content(), device.doubtful_sectors
    contents = [device.crash(7).content() for _ in range(3)]
    assert len(set(contents)) == 1
    assert len({device.crash(seed).content() for seed in range(50)}) > 20
    assert device.content() == before
    assert device.doubtful_sectors == doubtful


async def test_a_crash_may_leave_everything_or_nothing() -> None:
    device = PowerLoss(SIZE)
    await device.write(0, 32 * A)
    contents = {device.crash(seed).content() for seed in range(CRASHES)}
    assert {bytes(SIZE), 32 * A} <= contents


async def test_what_is_left_can_crash_as_well() -> None:
    device = PowerLoss(SIZE)
    await device.write(0, A, fua=True)
    again = device.crash(1)
    await again.write(0, B)
    assert await left(again, 0) == {(A,), (B,)}


async def test_writes_that_are_not_of_whole_sectors() -> None:
    device = PowerLoss(SIZE, content=A)
    await device.write(10, b"x")
    assert await left(device, 0) == {(A,), (A[:10] + b"x" + A[11:],)}


async def test_thousands_of_crashes() -> None:
    device = PowerLoss(8 << 20)
    for number in range(1000):
        await device.write(number * 4096, bytes([number % 256]) * 4096)
        if number % 10 == 0:
            await device.flush()
        for seed in range(5):
            device.crash(seed)


async def test_what_nobody_has_seen_complete_is_not_durable() -> None:
    for request in ("flush", "write"):
        device = PowerLoss(SIZE)
        if request == "flush":
            await device.write(0, A)
            waiting = asyncio.ensure_future(device.flush())
        else:
            waiting = asyncio.ensure_future(device.write(0, A, fua=True))
        waiting.cancel()
        await asyncio.wait([waiting])
        for _ in range(3):
            await asyncio.sleep(0)
        assert await left(device, 0) == {(OLD,), (A,)}


async def test_growth_that_was_not_flushed_may_be_lost() -> None:
    device = PowerLoss(SECTOR, limits=aioblk.Limits(can_grow=True))
    await device.write(SECTOR, A)
    assert {device.crash(seed).capacity for seed in range(CRASHES)} == {SECTOR, 2 * SECTOR}
    await device.flush()
    assert {device.crash(seed).capacity for seed in range(CRASHES)} == {2 * SECTOR}


async def test_growth_is_as_durable_as_what_made_it() -> None:
    def sizes() -> set[int]:
        return {device.crash(seed).capacity // SECTOR for seed in range(CRASHES)}

    device = PowerLoss(SECTOR, limits=aioblk.Limits(can_grow=True))
    write = asyncio.ensure_future(device.write(SECTOR, A))
    flush = asyncio.ensure_future(device.flush())
    await asyncio.gather(write, flush)
    assert sizes() == {1, 2}, "it was not done when the flush began"
    await device.flush()
    assert sizes() == {2}
    await device.write(2 * SECTOR, A)
    await device.write(4 * SECTOR, A)
    assert sizes() == {2, 3, 5}, "each of the writes may have come through, or not"
    await device.write(3 * SECTOR, A, fua=True)
    assert sizes() == {4, 5}
    await device.flush()
    assert sizes() == {5}


async def test_zeroing_takes_as_long_as_there_is_something_to_zero() -> None:
    device = PowerLoss(1 << 50)
    await device.write(1 << 40, A)
    await device.flush()
    await device.write_zeroes(0, 1 << 50)
    await device.discard(0, 1 << 50)
    assert device.doubtful_sectors == 8  # of the one chunk that there was
    assert [extent async for extent in device.extents()] == [(0, 1 << 50, aioblk.ExtentKind.HOLE)]


def test_what_it_cannot_be() -> None:
    with pytest.raises(aioblk.OptionError, match="sector_size must be positive, not 0"):
        PowerLoss(SIZE, sector_size=0)
