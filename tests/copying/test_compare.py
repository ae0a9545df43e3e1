"""Comparisons, checksums and maps agree with arrays of bytes."""

import errno
import hashlib
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import aioblk
from aioblk.testing import Fault, Faulty, MemoryDevice

from .contents import UNIT, Side, Stretch, content_of, device_with, sides, stretches

examples = settings(max_examples=50, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])


def first_difference(one: bytes, other: bytes) -> int | None:
    length = max(len(one), len(other))
    one, other = one.ljust(length, b"\0"), other.ljust(length, b"\0")
    return next((place for place in range(length) if one[place] != other[place]), None)


@given(
    one=stretches,
    other=st.one_of(st.none(), stretches),
    one_side=sides,
    other_side=sides,
    changes=st.lists(st.integers(0, 1 << 15), max_size=3),
    find_all=st.booleans(),
)
@examples
async def test_the_first_difference_and_all_of_them_are_found(
    one: list[Stretch],
    other: list[Stretch] | None,
    one_side: Side,
    other_side: Side,
    changes: list[int],
    find_all: bool,
) -> None:
    ours = await device_with(one, one_side)
    theirs = await device_with(one if other is None else other, other_side)
    for place in changes:
        if place < theirs.capacity:
            await aioblk.ByteView(theirs).write(place, b"\x55")
    found = await aioblk.compare(ours, theirs, find_all=find_all, request_size=4096)
    a, b = ours.content(), theirs.content()
    assert found.first == first_difference(a, b)
    assert found.same is (found.first is None)
    assert found.sizes == (len(a), len(b))
    if find_all:
        length = max(len(a), len(b))
        a, b = a.ljust(length, b"\0"), b.ljust(length, b"\0")
        differing = {at for at in range(0, length, 512) if a[at : at + 512] != b[at : at + 512]}
        assert {at for each in found.ranges for at in range(each.offset, each.end, 512)} == differing


async def test_holes_on_both_sides_are_not_read() -> None:
    one, other = MemoryDevice(1 << 30), MemoryDevice(1 << 30)
    assert (await aioblk.compare(one, other)).same
    assert one.statistics().submitted == other.statistics().submitted == 0


async def test_a_longer_device_is_the_same_if_the_rest_is_zeroes_and_nobody_is_strict() -> None:
    short, long = MemoryDevice(4096, content=b"a" * 4096), MemoryDevice(8192, content=b"a" * 4096)
    assert (await aioblk.compare(short, long)).same
    strict = await aioblk.compare(short, long, strict=True)
    assert (strict.same, strict.first) == (False, 4096)
    await long.write(8191, b"b")
    assert (await aioblk.compare(long, short)).first == 8191
    assert (await aioblk.compare(long, short, length=4096)).same
    with pytest.raises(aioblk.OptionError):
        await aioblk.compare(long, short, length=4097)
    with pytest.raises(aioblk.OptionError, match="unit must be positive"):
        await aioblk.compare(long, short, unit=0)


@given(
    content=stretches, side=sides, begin=st.integers(0, 5000), algorithm=st.sampled_from(["sha256", "md5"])
)
@examples
async def test_a_checksum_is_that_of_the_bytes(
    content: list[Stretch], side: Side, begin: int, algorithm: str
) -> None:
    device = await device_with(content, side)
    begin = min(begin, device.capacity)
    digest = await aioblk.checksum(device, algorithm, offset=begin, request_size=4096)
    assert digest == hashlib.new(algorithm, device.content()[begin:]).hexdigest()


@pytest.mark.parametrize("algorithm", ["nothing", "shake_128"])
async def test_what_is_no_checksum_is_refused(algorithm: str) -> None:
    with pytest.raises(aioblk.OptionError, match=f"no algorithm '{algorithm}'.*sha256"):
        await aioblk.checksum(MemoryDevice(512), algorithm)


@given(content=stretches, side=sides, unit=st.sampled_from([0, 512, 4096]))
@examples
async def test_a_map_goes_over_everything_and_its_holes_are_zeroes(
    content: list[Stretch], side: Side, unit: int
) -> None:
    device = await device_with(content, side)
    all_of_it = device.content()
    async with aclosing(aioblk.map_extents(device, detect_zeroes=unit)) as found:
        stretches = [extent async for extent in found]
    assert b"".join(all_of_it[each.offset : each.end] for each in stretches) == all_of_it
    for each in stretches:
        assert each.kind is aioblk.ExtentKind.DATA or not any(all_of_it[each.offset : each.end])
        if each.kind is aioblk.ExtentKind.DATA and unit:
            pieces = [all_of_it[at : at + unit] for at in range(each.offset, each.end, unit)]
            assert all(map(any, pieces))
    kinds = [each.kind for each in stretches]
    assert all(one is not next_one for one, next_one in pairwise(kinds))


async def look_for_zeroes(device: aioblk.BlockDevice) -> None:
    async with aclosing(aioblk.map_extents(device, detect_zeroes=512)) as found:
        _ = [extent async for extent in found]


@pytest.mark.parametrize(
    "work",
    [
        partial(aioblk.compare, MemoryDevice(90 * UNIT, content=content_of([Stretch("data", 90)]))),
        aioblk.checksum,
        look_for_zeroes,
    ],
    ids=["compare", "checksum", "extents"],
)
async def test_an_error_of_each_read_is_told(work: Callable[[aioblk.BlockDevice], Awaitable[object]]) -> None:
    content = [Stretch("data", 90)]
    for number in range(3):
        device = Faulty(await device_with(content, Side(UNIT, 16384, False)))
        fault = device.add(Fault(after=number, times=1, error=errno.EIO))
        with pytest.raises(aioblk.BlkioError) as caught:
            await work(device)
        assert caught.value.errno == errno.EIO
        assert fault.hits >= number
        assert device.statistics().in_flight == 0


async def test_numbers_that_make_no_sense_are_refused() -> None:
    device = MemoryDevice(4096)
    with pytest.raises(aioblk.OptionError, match="detect_zeroes must not be negative"):
        aioblk.map_extents(device, detect_zeroes=-1)
    for wrong in ({"depth": 0}, {"request_size": -1}):
        with pytest.raises(aioblk.OptionError, match="must be positive"):
            await aioblk.checksum(device, **wrong)  # type: ignore[arg-type]
    with pytest.raises(aioblk.OptionError, match="sparse is -1"):
        await aioblk.copy(device, MemoryDevice(4096), sparse=-1)
