"""Splitting: requests beyond what the device takes become several, and every byte goes where it belongs.

The devices are real. Their limits are made smaller than they are, so that small requests meet every one of
them.
"""

import asyncio
import mmap
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import aioblk
from aioblk._libblkio.limits import Limits

from ..support.devices import BLOCK, Target, pattern

MIB = 1 << 20
ROOM = 2 * MIB  # of a region that has all segments


@pytest.fixture
def impose(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Devices opened after ``impose(max_segments=3)`` have that limit."""
    imposed: dict[str, Any] = {}
    read = Limits.read

    def read_smaller(device: Any) -> Limits:
        return replace(read(device), **imposed)

    monkeypatch.setattr(Limits, "read", read_smaller)

    def change(**limits: Any) -> None:
        imposed.clear()
        imposed.update(limits)

    return change


async def parts_of(device: aioblk.Device, submit: Callable[[], "aioblk.Request[object]"]) -> int:
    before = device.statistics().parts
    await submit()
    return device.statistics().parts - before


# --- one limit at a time ------------------------------------------------------------------------------------


async def test_max_transfer(target: Target, impose: Callable[..., None]) -> None:
    impose(max_transfer=2 * BLOCK)
    async with target.device() as device:
        data = pattern(7 * BLOCK)
        assert await parts_of(device, lambda: device.write(BLOCK, data)) == 4
        assert await parts_of(device, lambda: device.read(0, 2 * BLOCK)) == 1
        assert await device.read(BLOCK, 7 * BLOCK) == data


async def test_max_segments(target: Target, impose: Callable[..., None]) -> None:
    impose(max_segments=3)
    async with target.device() as device, device.allocate(8 * BLOCK) as region:
        data = pattern(8 * BLOCK)
        region[:] = data
        pieces = [region[i : i + BLOCK] for i in range(0, 8 * BLOCK, BLOCK)]
        assert await parts_of(device, lambda: device.writev(0, pieces)) == 3
        region[:] = bytes(8 * BLOCK)
        assert await parts_of(device, lambda: device.readv(0, pieces)) == 3
        assert bytes(region) == data


async def test_max_segment_len(target: Target, impose: Callable[..., None]) -> None:
    impose(max_segment_len=BLOCK, max_segments=2)
    async with target.device() as device, device.allocate(5 * BLOCK) as region:
        region[:] = pattern(5 * BLOCK)
        assert await parts_of(device, lambda: device.write(0, region)) == 3
        assert await device.read(0, 5 * BLOCK) == pattern(5 * BLOCK)


async def test_max_write_zeroes_len(target: Target, impose: Callable[..., None]) -> None:
    impose(max_write_zeroes_len=2 * BLOCK)
    async with target.device() as device:
        data = pattern(8 * BLOCK)
        await device.write(0, data)
        assert await parts_of(device, lambda: device.write_zeroes(BLOCK, 5 * BLOCK)) == 3
        assert await device.read(0, 8 * BLOCK) == data[:BLOCK] + bytes(5 * BLOCK) + data[6 * BLOCK :]


async def test_max_discard_len(target: Target, impose: Callable[..., None]) -> None:
    impose(max_discard_len=2 * BLOCK, max_write_zeroes_len=2 * BLOCK)  # files are discarded by zeroing
    async with target.device() as device:
        data = pattern(8 * BLOCK)
        await device.write(0, data)
        assert await parts_of(device, lambda: device.discard(BLOCK, 5 * BLOCK)) == 3
        read = await device.read(0, 8 * BLOCK)
        assert (read[:BLOCK], read[6 * BLOCK :]) == (data[:BLOCK], data[6 * BLOCK :])


async def test_the_bounce_pool(target: Target) -> None:
    async with target.device(bounce_pool_size=64 << 10) as device:
        data = pattern(MIB)
        parts = await parts_of(device, lambda: device.write(0, data))
        assert parts == (16 if device.limits.needs_mem_regions else 1)
        assert await device.read(0, MIB) == data


async def test_buf_alignment(target: Target, impose: Callable[..., None]) -> None:
    impose(buf_alignment=512, mem_region_alignment=512)
    async with target.device() as device:
        memory = mmap.mmap(-1, 4 * BLOCK)
        view = memoryview(memory)
        view[3 : 3 + BLOCK] = pattern(BLOCK)
        await device.writev(0, [view[3:1000], view[1000 : 3 + BLOCK]])
        assert device.statistics().bounced_bytes == BLOCK
        await device.read_into(0, view[BLOCK + 1 : 2 * BLOCK + 1])
        assert view[BLOCK + 1 : 2 * BLOCK + 1] == pattern(BLOCK)
        view.release()


async def test_discard_alignment(target: Target, impose: Callable[..., None]) -> None:
    impose(discard_alignment=2 * BLOCK, discard_alignment_offset=BLOCK)
    async with target.device() as device:
        for offset, length in ((0, 2 * BLOCK), (BLOCK, BLOCK), (2 * BLOCK, 2 * BLOCK)):
            with pytest.raises(aioblk.AlignmentError, match="discard-alignment"):
                device.discard(offset, length)
        await device.discard(BLOCK, 2 * BLOCK)
        await device.discard(5 * BLOCK, 4 * BLOCK)


async def test_parts_are_in_flight_at_the_same_time(slow_device: aioblk.Device) -> None:
    request = slow_device.read(0, 8 * MIB)
    assert len(await request) == 8 * MIB
    assert slow_device.statistics().in_flight == 0


async def test_a_split_request_fails_as_a_whole(slow_device: aioblk.Device) -> None:
    offset = slow_device.capacity - MIB
    with pytest.raises(aioblk.BlkioError) as caught:
        await slow_device.read(offset, 3 * MIB)
    assert (caught.value.offset, caught.value.length) == (offset, 3 * MIB)


# --- all limits together ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segment:
    length: int
    registered: bool
    shift: int
    """How far the memory is from being aligned."""


@st.composite
def layouts(draw: st.DrawFn) -> list[Segment]:
    """Segments of any size and alignment, whole blocks together."""
    lengths = draw(
        st.lists(
            st.sampled_from([0, 1, 7, 63, 64, 100, 511, 512, 513, 1024, 4096, 5000, 16 << 10, 20000, 40000]),
            min_size=1,
            max_size=24,
        )
    )
    padding = -sum(lengths) % 512
    return [
        Segment(length, draw(st.booleans()), draw(st.sampled_from([0, 0, 1, 64, 412, 512])))
        for length in [*lengths, padding]
    ]


@st.composite
def smaller_limits(draw: st.DrawFn) -> dict[str, int]:
    alignment = draw(st.sampled_from([1, 4, 64, 512, 4096]))
    least = max(alignment, 512)
    return {
        "max_segments": draw(st.integers(1, 8)),
        "max_segment_len": draw(st.sampled_from([0, least, least + 488, 4096])),
        "max_transfer": draw(st.sampled_from([0, least, 2 * least, 4096, 8192])),
        "buf_alignment": alignment,
        "mem_region_alignment": alignment,
    }


def lay_out(layout: list[Segment], region: aioblk.MemoryRegion) -> list[memoryview]:
    """Memory for the segments, some of it in the region."""
    room = memoryview(region)
    at = 0
    segments = []
    for segment in layout:
        if segment.registered:
            start = -(-at // 512) * 512 + segment.shift
            segments.append(room[start : start + segment.length])
            at = start + segment.length
        else:
            memory = memoryview(mmap.mmap(-1, segment.length + segment.shift + 1))
            segments.append(memory[segment.shift : segment.shift + segment.length])
    return segments


async def fill_write_and_read(
    device: aioblk.Device, region: aioblk.MemoryRegion, offset: int, layout: list[Segment], data: bytes
) -> None:
    segments = lay_out(layout, region)
    at = 0
    for segment in segments:
        segment[:] = data[at : at + len(segment)]
        at += len(segment)
    await device.writev(offset, segments)
    for segment in segments:
        segment[:] = bytes(len(segment))
    await device.readv(offset, segments)
    assert b"".join(segments) == data
    for segment in segments:
        segment.release()


async def write_and_read_back(
    target: Target, impose: Callable[..., None], layout: list[Segment], limits: dict[str, int], seed: int
) -> None:
    impose(**limits)
    data = pattern(sum(segment.length for segment in layout), seed)
    async with (
        asyncio.timeout(30),
        target.device(bounce_pool_size=64 << 10) as device,
        device.allocate(ROOM) as region,
    ):
        await device.write_zeroes(0, len(data) + 2 * BLOCK)
        await fill_write_and_read(device, region, BLOCK, layout, data)
        assert await device.read(0, len(data) + 2 * BLOCK) == bytes(BLOCK) + data + bytes(BLOCK)


async def write_and_read_back_directly(path: Path, layout: list[Segment], seed: int) -> None:
    data = pattern(sum(segment.length for segment in layout), seed)
    async with (
        asyncio.timeout(30),
        aioblk.IoUring(path, direct=True) as device,
        device.allocate(ROOM) as region,
    ):
        await fill_write_and_read(device, region, 0, layout, data)


SOME = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@settings(SOME, max_examples=40)
@given(layout=layouts(), limits=smaller_limits(), seed=st.integers(1, 1000))
async def test_any_segments_within_any_limits(
    target: Target, impose: Callable[..., None], layout: list[Segment], limits: dict[str, int], seed: int
) -> None:
    await write_and_read_back(target, impose, layout, limits, seed)


@settings(SOME, max_examples=20)
@given(layout=layouts(), seed=st.integers(1, 1000))
async def test_any_segments_of_direct_io_on_a_block_device(
    loop_device: Path, layout: list[Segment], seed: int
) -> None:
    """The kernel checks the alignment of each segment."""
    await write_and_read_back_directly(loop_device, layout, seed)
