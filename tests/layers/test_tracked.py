"""What a Tracked device marks, and the bitmap that it marks it in."""

import asyncio
import errno
import tracemalloc
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import Buffer

import aioblk
from aioblk.layers._bitmaps import bitmaps_of
from aioblk.testing import Fault, Faulty, MemoryDevice

UNIT = 4096
SIZE = 64 * UNIT


@pytest.fixture
def below() -> Faulty:
    return Faulty(MemoryDevice(SIZE, limits=aioblk.Limits(request_alignment=512)))


@pytest.fixture
def tracked(below: Faulty) -> "aioblk.Tracked[Faulty]":
    return aioblk.Tracked(below, granularity=UNIT)


CHANGES: list[Callable[[aioblk.BlockDevice], Awaitable[object]]] = [
    lambda device: device.write(2 * UNIT - 512, bytes(1024)),
    lambda device: device.writev(2 * UNIT - 512, [bytes(1024)], fua=True),
    lambda device: device.write_zeroes(UNIT, 2 * UNIT),
    lambda device: device.discard(UNIT, 2 * UNIT),
    lambda device: device.write_many([(UNIT, bytes(512)), (2 * UNIT, bytes(512))]),
]


@pytest.mark.parametrize("change", CHANGES)
async def test_every_change_is_marked(
    tracked: "aioblk.Tracked[Faulty]",
    below: Faulty,
    change: Callable[[aioblk.BlockDevice], Awaitable[object]],
) -> None:
    await change(tracked)
    assert list(tracked.take()) == [(UNIT, 2 * UNIT)]
    assert not tracked.dirty
    below.add(Fault(error=errno.EIO))
    with pytest.raises(aioblk.BlkioError):
        await change(tracked)
    assert list(tracked.take()) == [(UNIT, 2 * UNIT)]


async def test_what_is_refused_or_read_is_not_marked(tracked: "aioblk.Tracked[Faulty]") -> None:
    for call in (
        lambda: tracked.write(1, bytes(512)),
        lambda: tracked.write_zeroes(-512, 512),
        lambda: tracked.write_many([(1, bytes(512))]),
    ):
        with pytest.raises(aioblk.BlkioError):
            call()
    await tracked.read(0, SIZE)
    await tracked.flush()
    await tracked.write_many([(1, bytes(512)), (0,), 3], return_exceptions=True)  # type: ignore[list-item]
    assert not tracked.dirty


class Held(aioblk.Layer[MemoryDevice]):
    """Its writes to the first unit take as long as a test wants."""

    def __init__(self, device: MemoryDevice) -> None:
        super().__init__(device)
        self.written: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def write(self, offset: int, data: Buffer, *, fua: bool = False) -> Awaitable[None]:
        return self.written if offset == 0 else super().write(offset, data, fua=fua)


async def test_what_is_in_flight_is_marked_again() -> None:
    below = Held(MemoryDevice(SIZE))
    tracked = aioblk.Tracked(below, granularity=UNIT)
    write = tracked.write(0, bytes(512))
    await tracked.write(UNIT, bytes(512))
    taken = tracked.take()
    assert list(taken) == [(0, 2 * UNIT)]
    assert list(tracked.dirty) == [(0, UNIT)]
    below.written.set_result(None)
    await write
    assert list(tracked.take()) == [(0, UNIT)]
    assert not tracked.take()
    tracked.put_back(taken)
    assert list(tracked.dirty) == [(0, 2 * UNIT)]


async def test_with_a_real_device_as_well(scratch_file: object) -> None:
    async with aioblk.IoUring(str(scratch_file)) as device:
        tracked = aioblk.Tracked(device, granularity=UNIT)
        requests = [asyncio.ensure_future(tracked.write(place * UNIT, bytes(512))) for place in range(200)]
        taken = tracked.take()
        again = {offset for offset, _ in tracked.dirty}
        await asyncio.gather(*requests)
        assert taken.dirty_bytes == 200 * UNIT
        assert again <= {place * UNIT for place in range(200)}
        assert tracked.take().dirty_bytes <= 200 * UNIT
        assert not tracked.take()


async def test_a_failed_backup_loses_nothing(tracked: "aioblk.Tracked[Faulty]") -> None:
    await tracked.write(0, bytes(512))
    for error in (OSError, asyncio.CancelledError, KeyboardInterrupt):
        with pytest.raises(error), tracked.taking():
            raise error
        assert list(tracked.dirty) == [(0, UNIT)]
    with tracked.taking() as changed:
        assert list(changed) == [(0, UNIT)]
    assert not tracked.dirty


async def test_a_device_that_grows() -> None:
    tracked = aioblk.Tracked(MemoryDevice(UNIT, limits=aioblk.Limits(can_grow=True)), granularity=UNIT)
    seen = tracked.dirty
    await tracked.write(10 * UNIT, b"x")
    assert list(seen) == [(10 * UNIT, UNIT)]
    assert list(tracked.take()) == [(10 * UNIT, UNIT)]


class Number:
    def __index__(self) -> int:
        return UNIT


async def test_numbers_of_any_kind_are_what_they_are_to_the_device(tracked: "aioblk.Tracked[Faulty]") -> None:
    places: list[Any] = [Number(), np.uint16(UNIT)]
    for offset in places:
        await tracked.write(offset, b"x" * 512)
        await tracked.writev(offset, [b"x" * 512])
        await tracked.write_zeroes(offset, 512)
        await tracked.write_many([(offset, b"x" * 512)])
        assert list(tracked.take()) == [(UNIT, UNIT)]
    part = aioblk.Slice(MemoryDevice(1 << 20), 1 << 15, 1 << 16)
    far = np.uint16(1 << 15)
    await part.write(far, b"here")  # type: ignore[arg-type]
    assert await part.read(1 << 15, 4) == await part.read(far, 4) == b"here"  # type: ignore[arg-type]
    assert part.device.content().index(b"here") == 1 << 16


class Moving:
    """Another number each time it is asked."""

    def __init__(self) -> None:
        self._places = iter((UNIT, 9 * UNIT, 9 * UNIT))

    def __index__(self) -> int:
        return next(self._places)


async def test_what_can_be_looked_at_once_is_marked(tracked: "aioblk.Tracked[Faulty]") -> None:
    """A change that nobody knows of would be missing in every backup from then on."""
    pairs: list[Any] = [iter((UNIT, b"x" * 512)), [2 * UNIT, b"y" * 512], (Moving(), b"z" * 512)]
    for pair in pairs:
        await tracked.write_many([pair])
        changed = [place for place in range(0, SIZE, UNIT) if any(await tracked.read(place, UNIT))]
        assert [offset for offset, _ in tracked.take()] == changed
        await tracked.write_zeroes(0, SIZE)
        tracked.take()
    longer: Any = iter((UNIT, b"x" * 512, UNIT, b"x" * 512))
    with pytest.raises(ValueError, match="pair is needed, not 4 values"):
        await tracked.write_many([longer])
    assert not tracked.dirty


# --- the bitmap ---------------------------------------------------------------------------------------------

LARGE = 20_000
"""Units: several chunks of a bitmap."""
marks = st.tuples(st.booleans(), st.integers(0, LARGE * 10), st.integers(0, LARGE * 6))


def units_of(bitmap: aioblk.DirtyBitmap) -> set[int]:
    size = bitmap.granularity
    return {unit for offset, length in bitmap for unit in range(offset // size, (offset + length) // size)}


@given(steps=st.lists(marks, max_size=12), granularity=st.sampled_from([1, 7, 10]))
@settings(max_examples=200, deadline=None)
def test_a_bitmap_is_a_set_of_units(steps: list[tuple[bool, int, int]], granularity: int) -> None:
    bitmap, units = aioblk.DirtyBitmap(granularity), set[int]()
    for is_mark, offset, length in steps:
        if is_mark:
            bitmap.mark(offset, length)
            if length:
                units.update(range(offset // granularity, -(-(offset + length) // granularity)))
        else:
            bitmap.clear(offset, length)
            units.difference_update(range(-(-offset // granularity), (offset + length) // granularity))
    assert bool(bitmap) == bool(units)
    assert bitmap.dirty_bytes == granularity * len(units)
    ranges = list(bitmap)
    assert units_of(bitmap) == units
    assert all(start + length < after for (start, length), (after, _) in pairwise(ranges))
    runs = list(bitmap.runs(5, LARGE * 10))
    assert sum(length for _, length, _ in runs) == LARGE * 10
    assert all(one[2] != other[2] for one, other in pairwise(runs))
    assert all((offset // granularity in units) == marked for offset, _, marked in runs)
    others = aioblk.DirtyBitmap(granularity)
    for _, offset, length in steps[::2]:
        others.mark(offset, length)
    left = bitmap._copy()
    left._clear_all_of(others)
    assert units_of(left) == units - units_of(others)
    assert list(bitmap) == ranges, "a copy is one of its own"
    copy = aioblk.DirtyBitmap(granularity)
    copy.update(bitmap)
    assert list(copy.take()) == ranges
    assert not copy


def test_what_no_bitmap_is_made_of() -> None:
    with pytest.raises(ValueError, match="granularity must be positive, not 0"):
        aioblk.DirtyBitmap(0)


def test_marks_here_and_there_take_no_longer_than_there_are_marks() -> None:
    bitmap = aioblk.DirtyBitmap(512)
    for number in range(20_000):
        bitmap.mark(number << 40, 1)
    assert len(list(bitmap)) == 20_000
    assert list(bitmap.runs(5, 100)) == [(5, 100, True)]
    bitmap.mark(0, 1 << 36)
    assert bitmap.overlaps((1 << 36) - 1, 1)
    bitmap.clear(0, 1 << 60)
    assert not bitmap


def test_marking_much_takes_no_more_memory_than_marking_little() -> None:
    bitmap = aioblk.DirtyBitmap(1)
    bitmap.mark(1 << 20, 5)
    tracemalloc.start()
    try:
        bitmap.mark(7, 1 << 30)
        bitmap.clear(1 << 29, 5)
        bitmap.mark(1 << 30, 1 << 30)
        assert tracemalloc.get_traced_memory()[1] < 1 << 17
    finally:
        tracemalloc.stop()
    assert list(bitmap) == [(7, (1 << 29) - 7), ((1 << 29) + 5, (1 << 31) - (1 << 29) - 5)]
    assert bitmap.dirty_bytes == (1 << 31) - 12
    for place in range(0, 1 << 31, 1 << 20):  # as after writing all of it
        bitmap.clear(place, 1 << 20)
    assert not bitmap


async def test_marking_goes_on_while_it_is_looked_at() -> None:
    bitmap = aioblk.DirtyBitmap(1)
    bitmap.mark(5, 1)
    seen = []
    for offset, length in bitmap:
        seen.append((offset, length))
        bitmap.clear(offset, length)
        if offset < 50_000:
            bitmap.mark(offset + 9000, 2)
    assert seen == [(5, 1), *((5 + 9000 * number, 2) for number in range(1, 7))]
    assert not bitmap


# --- bitmaps by name ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", CHANGES)
async def test_every_bitmap_is_marked_and_taken_by_itself(
    tracked: "aioblk.Tracked[Faulty]", change: Callable[[aioblk.BlockDevice], Awaitable[object]]
) -> None:
    one = tracked.add_bitmap("one", granularity=UNIT)
    other = tracked.add_bitmap("other", granularity=2 * UNIT)
    await change(tracked)
    assert list(one.take()) == [(UNIT, 2 * UNIT)]
    assert not one.dirty
    assert list(other.dirty) == [(0, 4 * UNIT)]
    assert list(tracked.dirty) == [(UNIT, 2 * UNIT)]


async def test_what_is_being_taken_is_shown_as_it_was(tracked: "aioblk.Tracked[Faulty]") -> None:
    bitmap = tracked.add_bitmap("nightly", granularity=UNIT)
    await tracked.write(0, bytes(512))
    assert list(bitmap.shown) == [(0, UNIT)]
    with bitmap.taking() as changed:
        await tracked.write(4 * UNIT, bytes(512))
        assert list(bitmap.shown) == list(changed) == [(0, UNIT)]
        assert list(bitmap.dirty) == [(4 * UNIT, UNIT)]
    assert list(bitmap.shown) == [(4 * UNIT, UNIT)]
    with pytest.raises(OSError), bitmap.taking():  # noqa: PT011, PT012
        await tracked.write(0, bytes(512))
        raise OSError
    assert list(bitmap.shown) == [(0, UNIT), (4 * UNIT, UNIT)]


async def test_one_backup_at_a_time_takes_from_a_bitmap(tracked: "aioblk.Tracked[Faulty]") -> None:
    bitmap = tracked.add_bitmap("nightly")
    for taking in (bitmap.taking, tracked.taking):
        with taking(), pytest.raises(aioblk.UsageError, match="already"), taking():
            pass
        with taking():
            pass


async def test_what_is_in_flight_when_a_bitmap_is_added_is_marked_in_it() -> None:
    below = Held(MemoryDevice(SIZE))
    tracked = aioblk.Tracked(below, granularity=UNIT)
    write = tracked.write(0, bytes(512))
    bitmap = tracked.add_bitmap("late", granularity=UNIT)
    assert list(bitmap.dirty) == [(0, UNIT)]  # a full backup may read it before it is written
    below.written.set_result(None)
    await write


async def test_a_bitmap_that_was_removed_tells_nothing(tracked: "aioblk.Tracked[Faulty]") -> None:
    bitmap = tracked.add_bitmap("nightly", granularity=UNIT)
    assert dict(tracked.bitmaps) == {"nightly": bitmap}
    tracked.remove_bitmap("nightly")
    await tracked.write(0, bytes(512))
    assert not bitmap.dirty
    with pytest.raises(aioblk.UsageError, match="'nightly' was removed"):
        _ = bitmap.shown
    with pytest.raises(aioblk.UsageError, match="no bitmap 'nightly'"):
        tracked.remove_bitmap("nightly")
    assert tracked.add_bitmap("nightly") is not bitmap


async def test_bitmaps_have_names_that_clients_can_be_told(tracked: "aioblk.Tracked[Faulty]") -> None:
    tracked.add_bitmap("nightly")
    with pytest.raises(aioblk.UsageError, match="already"):
        tracked.add_bitmap("nightly")
    for name in ("", "x" * 1024, "a\0", "a\nb", "\udcff"):
        with pytest.raises(aioblk.OptionError, match="name"):
            tracked.add_bitmap(name)
    for granularity in (0, 1000, -512):
        with pytest.raises(aioblk.OptionError, match="power of two"):
            tracked.add_bitmap("x", granularity=granularity)


async def test_bitmaps_are_seen_through_layers(tracked: "aioblk.Tracked[Faulty]") -> None:
    tracked.add_bitmap("nightly", granularity=UNIT)
    await tracked.write(4 * UNIT, bytes(512))
    upper = aioblk.Tracked(tracked)
    upper.add_bitmap("upper")
    throttled = aioblk.Throttle(upper, aioblk.ThrottleGroup())
    part = aioblk.Slice(aioblk.ByteView(throttled), 3 * UNIT, 4 * UNIT)
    assert bitmaps_of(throttled).keys() == {"nightly", "upper"}
    assert list(bitmaps_of(part)["nightly"](0, 4 * UNIT)) == [
        (0, UNIT, False),
        (UNIT, UNIT, True),
        (2 * UNIT, 2 * UNIT, False),
    ]

    class Elsewhere(aioblk.Layer["aioblk.Tracked[Faulty]"]):
        """Has its bytes elsewhere."""

        def extents(self, offset: int = 0, length: int | None = None) -> AsyncGenerator[aioblk.Extent]:
            raise NotImplementedError

    assert bitmaps_of(Elsewhere(tracked)) == {}
    assert bitmaps_of(MemoryDevice(SIZE)) == {}


# --- across restarts ----------------------------------------------------------------------------------------


async def test_what_was_changed_is_known_across_restarts(below: Faulty) -> None:
    tracked = aioblk.Tracked(below, granularity=UNIT)
    await tracked.write(3 * UNIT, bytes(UNIT))
    await tracked.write(SIZE - 512, bytes(512))
    saved = tracked.dirty.save()
    assert len(saved) == 44 + 2 * 16
    again = aioblk.Tracked(below, granularity=2 * UNIT)
    await again.write(0, bytes(512))
    again.put_back(aioblk.DirtyBitmap.load(saved))
    assert list(again.take()) == [(0, 4 * UNIT), (SIZE - 2 * UNIT, 2 * UNIT)]


@given(
    st.integers(1, 1 << 20),
    st.none() | st.integers(0, 1 << 40),
    st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(0, 1 << 24)), max_size=8),
)
@settings(max_examples=50)
def test_what_was_saved_is_loaded(granularity: int, end: int | None, ranges: list[tuple[int, int]]) -> None:
    bitmap = aioblk.DirtyBitmap(granularity, end=end)
    for offset, length in ranges:
        bitmap.mark(offset, length % (100 * granularity))
    loaded = aioblk.DirtyBitmap.load(memoryview(bitmap.save()))
    assert (loaded.granularity, loaded.end, list(loaded)) == (granularity, end, list(bitmap))


def test_what_is_no_bitmap_as_it_was_saved_is_refused() -> None:
    bitmap = aioblk.DirtyBitmap(UNIT, end=SIZE)
    bitmap.mark(0, 1)
    saved = bitmap.save()
    for place in range(len(saved)):
        wrong = bytearray(saved)
        wrong[place] ^= 1
        with pytest.raises(aioblk.OptionError, match=r"are no bitmap|is damaged.*make a full backup"):
            aioblk.DirtyBitmap.load(wrong)
        with pytest.raises(aioblk.OptionError, match=r"are no bitmap|is damaged"):
            aioblk.DirtyBitmap.load(saved[:place])
    with pytest.raises(aioblk.OptionError, match="is damaged"):
        aioblk.DirtyBitmap.load(saved + b"\0")
    for place, value, words in ((8, 2, "is of version 2"), (32, 2, "of 2 ranges cannot have 60 bytes")):
        body = bytearray(saved[:-4])
        body[place] = value
        with pytest.raises(aioblk.OptionError, match=words):
            aioblk.DirtyBitmap.load(bytes(body) + zlib.crc32(body).to_bytes(4, "little"))
