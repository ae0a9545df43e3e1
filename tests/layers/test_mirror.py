"""Mirror: what becomes of requests when legs fail."""

import asyncio
import errno
import logging
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
from typing_extensions import Buffer

import aioblk
from aioblk.layers import _mirrored
from aioblk.testing import Fault, Faulty, MemoryDevice, PowerLoss, Recorder

from ..conftest import LoopError
from .mirrors import (
    DROPPED,
    GRANULARITY,
    IN_SYNC,
    LIMITS,
    NEW,
    Held,
    faulty,
    mirror_of,
    states,
    turns,
)
from .model import BLOCK, BLOCKS, SPACE

CHANGES: dict[str, Callable[[aioblk.BlockDevice], Awaitable[None]]] = {
    "write": lambda device: device.write(0, NEW),
    "write through": lambda device: device.write(0, NEW, fua=True),
    "write_zeroes": lambda device: device.write_zeroes(0, BLOCK),
    "discard": lambda device: device.discard(0, BLOCK),
    "flush": lambda device: device.flush(),
}


# --- making -------------------------------------------------------------------------------------------------


async def test_what_no_mirror_can_be_made_of() -> None:
    one, other = faulty(), faulty()
    for devices, stale, words in (
        ((), (one,), "one device at least is to be in sync"),
        ((one, one), (), "a device is in a mirror once"),
        ((one,), (one,), "a device is in a mirror once"),
    ):
        with pytest.raises(aioblk.OptionError, match=words):
            aioblk.Mirror(*devices, stale=stale)
    with pytest.raises(aioblk.OptionError, match="granularity is 100; it must be a multiple of 512"):
        aioblk.Mirror(one, other, granularity=100)
    odd = MemoryDevice(
        SPACE,
        limits=aioblk.Limits(
            request_alignment=BLOCK, discard_alignment=2 * BLOCK, discard_alignment_offset=BLOCK
        ),
    )
    with pytest.raises(aioblk.OptionError, match="begins at a different place on each device"):
        aioblk.Mirror(one, odd)


async def test_it_is_as_small_and_as_strict_as_its_legs_are_together() -> None:
    small = MemoryDevice(10_000, limits=aioblk.Limits(request_alignment=512, max_transfer=4096))
    strict = MemoryDevice(
        100_000, limits=aioblk.Limits(request_alignment=4096, needs_mem_regions=True, max_mem_regions=4)
    )
    mirror = aioblk.Mirror(small, strict)
    assert mirror.capacity == 8192
    limits = mirror.limits
    assert (limits.request_alignment, limits.max_transfer, limits.max_mem_regions) == (4096, 4096, 4)
    assert limits.needs_mem_regions
    assert not mirror.read_only
    assert aioblk.Mirror(small, MemoryDevice(8192, read_only=True)).read_only


# --- legs that fail -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("failing", [0, 1])
async def test_a_leg_that_fails_a_change_is_dropped(
    change: str, failing: int, caplog: pytest.LogCaptureFixture
) -> None:
    legs = [faulty(), faulty()]
    told: list[aioblk.Leg] = []
    mirror = aioblk.Mirror(*legs, granularity=GRANULARITY, on_change=told.append)
    legs[failing].add(Fault(times=1, error=errno.EIO))
    with caplog.at_level(logging.WARNING, "aioblk.mirror"):
        await CHANGES[change](mirror)
    assert states(mirror)[failing] is DROPPED
    assert states(mirror)[1 - failing] is IN_SYNC
    await asyncio.sleep(0)
    assert told == [mirror.legs[failing]]
    assert isinstance(mirror.legs[failing].error, aioblk.BlkioError)
    assert "a leg of the mirror is dropped" in caplog.text
    assert list(mirror.legs[failing].missing) == ([] if change == "flush" else [(0, GRANULARITY)])
    await mirror.resilver(mirror.legs[failing])
    assert states(mirror) == [IN_SYNC, IN_SYNC]
    assert legs[0].device.content() == legs[1].device.content()


@pytest.mark.parametrize("change", CHANGES)
async def test_where_all_fail_the_first_stays(change: str) -> None:
    legs = [faulty(Fault(times=1, error=errno.ENOSPC)), faulty(Fault(times=1, error=errno.EIO))]
    mirror = mirror_of(*legs)
    with pytest.raises(aioblk.BlkioError) as failed:
        await CHANGES[change](mirror)
    assert failed.value.errno == errno.ENOSPC
    assert states(mirror) == [IN_SYNC, DROPPED]
    await CHANGES[change](mirror)


async def test_a_read_goes_on_to_the_next_leg() -> None:
    legs = [faulty(Fault(operations={"read"}, times=1, error=errno.EIO)), faulty()]
    mirror = mirror_of(*legs)
    await mirror.write(0, NEW)
    assert await mirror.read(0, BLOCK) == NEW
    assert states(mirror) == [DROPPED, IN_SYNC]


async def test_what_no_leg_can_read_costs_none_of_them() -> None:
    mirror = mirror_of(
        *(faulty(Fault(operations={"read"}, offset=0, length=1, error=errno.EIO)) for _ in range(3))
    )
    for _ in range(2):
        with pytest.raises(aioblk.BlkioError):
            await mirror.read(0, BLOCK)
    assert states(mirror) == [IN_SYNC] * 3
    assert await mirror.read(BLOCK, BLOCK) == bytes(BLOCK)


async def test_reads_go_to_the_least_busy() -> None:
    legs = [Recorder(faulty()) for _ in range(3)]
    mirror = mirror_of(*legs)
    await asyncio.gather(*(mirror.read(block * BLOCK, BLOCK) for block in range(12)))
    assert [len(leg.records) for leg in legs] == [4, 4, 4]


async def test_a_leg_that_was_closed_is_dropped() -> None:
    legs = [faulty(), faulty(), faulty()]
    mirror = mirror_of(*legs)
    await legs[0].aclose()
    assert await mirror.read(0, BLOCK) == bytes(BLOCK)
    await legs[1].aclose()
    await mirror.write(0, NEW)
    assert states(mirror) == [DROPPED, DROPPED, IN_SYNC]
    assert await mirror.read(0, BLOCK) == NEW


async def test_what_was_not_flushed_is_missing_as_well() -> None:
    """The device that is gone may have had it in a cache."""
    leaving = Faulty(PowerLoss(SPACE, limits=LIMITS))
    mirror = mirror_of(PowerLoss(SPACE, limits=LIMITS), leaving)
    await mirror.write(0, NEW)
    await mirror.flush()
    await mirror.write(8 * BLOCK, NEW)
    leaving.lose()
    await mirror.write(16 * BLOCK, NEW)
    assert states(mirror) == [IN_SYNC, DROPPED]
    assert list(mirror.legs[1].missing) == [(8 * BLOCK, GRANULARITY), (16 * BLOCK, GRANULARITY)]


async def test_what_a_flush_under_way_covers_is_missing_until_it_is_done() -> None:
    legs = [faulty(Fault(operations={"flush"}, delay=0.001)), faulty()]
    mirror = mirror_of(*legs)
    await mirror.write(0, NEW)
    flush = mirror.flush()
    legs[1].lose()
    await mirror.write(8 * BLOCK, NEW)
    assert list(mirror.legs[1].missing) == [(0, GRANULARITY), (8 * BLOCK, GRANULARITY)]
    await flush


async def test_what_only_some_can_do_is_done_by_the_others_in_another_way() -> None:
    unable = Fault(operations={"discard", "write_zeroes"}, error=aioblk.UnsupportedError("it cannot"))

    class Unable(aioblk.Layer[MemoryDevice]):
        """Can neither discard nor zero without writing."""

        def discard(self, offset: int, length: int) -> Awaitable[None]:
            return faulty(unable).discard(offset, length)

        def write_zeroes(
            self,
            offset: int,
            length: int,
            *,
            fua: bool = False,
            no_unmap: bool = False,
            no_fallback: bool = False,
        ) -> Awaitable[None]:
            if no_fallback:
                return self.discard(offset, length)
            return super().write_zeroes(offset, length, fua=fua, no_unmap=no_unmap)

    legs: list[aioblk.BlockDevice] = [
        MemoryDevice(SPACE, limits=LIMITS),
        Unable(MemoryDevice(SPACE, limits=LIMITS)),
    ]
    mirror = mirror_of(*legs)
    await mirror.write(0, 4 * NEW)
    await mirror.discard(0, BLOCK)
    assert states(mirror) == [IN_SYNC, IN_SYNC]
    assert [await leg.read(0, BLOCK) for leg in legs] == [bytes(BLOCK)] * 2, "they read as one thing"
    with pytest.raises(aioblk.UnsupportedError, match="a leg of the mirror would have to write zeroes out"):
        await mirror.write_zeroes(BLOCK, BLOCK, no_fallback=True)
    await mirror.discard(BLOCK, BLOCK)
    assert [await leg.read(BLOCK, BLOCK) for leg in legs] == [NEW] * 2, "it is advice"
    await mirror.write_zeroes(BLOCK, BLOCK)
    assert [await leg.read(BLOCK, BLOCK) for leg in legs] == [bytes(BLOCK)] * 2

    alone = mirror_of(Unable(MemoryDevice(SPACE, limits=LIMITS)), Unable(MemoryDevice(SPACE, limits=LIMITS)))
    for request in (alone.discard(0, BLOCK), alone.write_zeroes(0, BLOCK, no_fallback=True)):
        with pytest.raises(aioblk.UnsupportedError):
            await request
    assert states(alone) == [IN_SYNC, IN_SYNC]


# --- order and cancellation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
async def test_changes_that_share_bytes_come_to_all_legs_in_the_same_order(seed: int) -> None:
    legs = [
        Faulty(MemoryDevice(SPACE, limits=LIMITS), Fault(probability=0.7), seed=seed + number)
        for number in range(3)
    ]
    mirror = mirror_of(*legs)
    chance = random.Random(seed)
    writes = []
    for number in range(40):
        block = chance.randrange(BLOCKS - 4)
        writes.append(asyncio.ensure_future(mirror.write(block * BLOCK, bytes([number]) * (4 * BLOCK))))
        if chance.random() < 0.3:
            writes[chance.randrange(len(writes))].cancel()
        for _ in range(chance.randrange(3)):
            await asyncio.sleep(0)
    await asyncio.wait(writes)
    contents = {leg.device.content() for leg in legs}
    assert len(contents) == 1


async def test_a_change_that_has_begun_is_carried_through() -> None:
    legs = [faulty(), faulty(Fault(delay=0.001))]
    mirror = mirror_of(*legs)
    write = asyncio.ensure_future(mirror.write(0, NEW))
    await asyncio.sleep(0)
    waiting = asyncio.ensure_future(mirror.write(0, 2 * NEW))
    await asyncio.sleep(0)
    write.cancel()
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert not write.done()
    await asyncio.wait([write])
    assert write.cancelled()
    assert {leg.device.content() for leg in legs} == {NEW + bytes(SPACE - BLOCK)}
    assert mirror.statistics().cancelled == 2


async def test_closing_waits_for_everything() -> None:
    legs = [faulty(Fault(delay=0.001)), faulty()]
    mirror = mirror_of(*legs)
    requests = [asyncio.ensure_future(mirror.write(0, NEW)), asyncio.ensure_future(mirror.read(0, BLOCK))]
    async with mirror:
        pass
    assert mirror.closed
    assert mirror.statistics().in_flight == 0
    await asyncio.gather(*requests)
    with pytest.raises(aioblk.DeviceClosedError):
        await mirror.resilver(mirror.legs[0])


# --- what has been found by search --------------------------------------------------------------------------


async def test_who_is_told_may_raise(loop_errors: list[LoopError]) -> None:
    def object_to(leg: aioblk.Leg) -> None:
        raise RuntimeError(f"{leg.state} is not what I want")

    mirror = aioblk.Mirror(faulty(), faulty(Fault(times=1, error=errno.EIO)), on_change=object_to)
    await mirror.write(0, NEW)
    await asyncio.sleep(0)
    [context] = loop_errors
    assert "dropped is not what I want" in str(context["exception"])
    loop_errors.clear()


async def test_a_scope_of_anyio_knows_its_own_cancellation() -> None:
    mirror = mirror_of(faulty(), faulty(Fault(delay=0.001)))
    overlaid = aioblk.CopyOnWrite(faulty(), faulty(Fault(delay=0.001)))
    for device in (mirror, overlaid, faulty(Fault(delay=0.001))):
        calls: list[Callable[[aioblk.BlockDevice], Awaitable[object]]] = [
            lambda device: device.write(0, NEW),
            lambda device: device.read(0, BLOCK),
        ]
        for call in calls:
            for begins in (False, True):
                with anyio.CancelScope() as scope:
                    if begins:
                        asyncio.get_running_loop().call_soon(scope.cancel)
                    else:
                        scope.cancel()
                    await call(device)
                    await anyio.sleep(1)
                assert scope.cancelled_caught


async def test_what_was_seen_is_seen_again_while_a_change_is_under_way() -> None:
    slow = Held(MemoryDevice(SPACE, limits=LIMITS))
    mirror = mirror_of(MemoryDevice(SPACE, limits=LIMITS), slow)
    slow.is_holding = True
    write = asyncio.ensure_future(mirror.write(0, NEW))
    await turns()
    found = await asyncio.gather(*(mirror.read(0, BLOCK) for _ in range(8)))
    assert len(set(found)) == 1
    slow.held[0].set_result(None)
    await write


async def test_the_leg_that_stays_is_one_that_is_there() -> None:
    gone, there = faulty(), faulty()
    mirror = mirror_of(gone, there)
    await mirror.write(0, NEW)
    gone.lose()
    there.add(Fault(operations={"write"}, times=1, error=errno.ENOSPC))
    with pytest.raises(aioblk.BlkioError) as failed:
        await mirror.write(0, bytes(BLOCK))
    assert failed.value.errno == errno.ENOSPC
    assert states(mirror) == [DROPPED, IN_SYNC]


async def test_what_all_legs_refuse_drops_none(scratch_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(bytes(scratch_file.stat().st_size))  # noqa: ASYNC240 (nothing else is done meanwhile)
    async with aioblk.IoUring(scratch_file) as one, aioblk.IoUring(other) as two:
        mirror = aioblk.Mirror(one, two)

        async def elsewhere() -> None:
            with pytest.raises(aioblk.UsageError):
                await mirror.write(0, NEW)

        await asyncio.to_thread(asyncio.run, elsewhere())
        assert states(mirror) == [IN_SYNC, IN_SYNC]
        await two.aclose()
        await mirror.write(0, NEW)
        assert states(mirror) == [IN_SYNC, DROPPED]


@pytest.mark.parametrize("order", [asyncio.CancelledError, KeyboardInterrupt])
async def test_a_call_that_is_interrupted_keeps_nobody_waiting(
    order: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(aioblk.Layer[aioblk.BlockDevice]):
        def write(self, offset: int, data: Buffer, *, fua: bool = False) -> Awaitable[None]:
            raise order

    obeyed: list[BaseException] = []
    monkeypatch.setattr(_mirrored, "_obey", obeyed.append)
    mirror = mirror_of(faulty(), Interrupted(faulty()))
    await mirror.write(0, NEW)
    assert states(mirror) == [IN_SYNC, DROPPED]
    await mirror.write(0, NEW)
    await mirror.aclose()
    assert [type(each) for each in obeyed] == ([order] if order is KeyboardInterrupt else [])


async def test_a_place_that_cannot_be_read_is_missing() -> None:
    bad = faulty(Fault(operations={"read"}, offset=0, length=1, times=1, error=errno.EIO))
    mirror = mirror_of(bad, faulty())
    await mirror.read(0, BLOCK)
    assert list(mirror.legs[0].missing) == [(0, GRANULARITY)]


async def test_a_buffer_is_held_still_while_a_change_waits() -> None:
    mirror = mirror_of(faulty(Fault(delay=0.001)), faulty())
    first, buffer = asyncio.ensure_future(mirror.write(0, NEW)), bytearray(b"w" * BLOCK)
    second = asyncio.ensure_future(mirror.write(0, buffer))
    with pytest.raises(BufferError):
        buffer.clear()
    await asyncio.gather(first, second)
    assert await mirror.read(0, BLOCK) == b"w" * BLOCK


# --- legs that were lost, and are back ----------------------------------------------------------------------

ASKED: dict[str, Callable[[aioblk.Mirror], object]] = {
    **CHANGES,
    "read": lambda mirror: mirror.read(0, BLOCK),
    "state": lambda mirror: mirror.legs[1].state,
    "missing": lambda mirror: mirror.legs[1].missing,
    "error": lambda mirror: mirror.legs[1].error,
}


@pytest.mark.parametrize("ask", ASKED)
async def test_a_leg_that_was_lost_is_dropped_though_it_is_back(ask: str) -> None:
    """What it had in its cache is gone, and a flush would succeed without it."""
    cached = PowerLoss(SPACE)
    one, other = MemoryDevice(SPACE, limits=LIMITS), Faulty(cached)
    changed = list[aioblk.Leg]()
    mirror = aioblk.Mirror(
        one, aioblk.Slice(other, 0, SPACE), granularity=GRANULARITY, on_change=changed.append
    )
    await mirror.write(0, NEW)
    other.lose("its backend died")
    await other.reconnect()
    assert other.losses == 1
    answer = ASKED[ask](mirror)
    if isinstance(answer, Awaitable):
        await answer
    assert states(mirror) == [IN_SYNC, DROPPED]
    assert mirror.legs[1].missing.overlaps(0, BLOCK)
    assert isinstance(mirror.legs[1].error, aioblk.DeviceLostError)
    await turns()
    assert changed == [mirror.legs[1]]
    await mirror.resilver(mirror.legs[1])
    assert states(mirror) == [IN_SYNC, IN_SYNC]
    for seed in range(8):
        assert await cached.crash(seed).read(0, BLOCK) == await mirror.read(0, BLOCK)


async def test_whoever_resilvers_a_leg_that_has_come_back_need_not_wait_until_it_is_asked() -> None:
    one, other = faulty(), faulty()
    mirror = aioblk.Mirror(one, other, granularity=GRANULARITY)
    await mirror.write(0, NEW)
    other.lose()
    await other.reconnect()
    await mirror.resilver(mirror.legs[1])
    assert states(mirror) == [IN_SYNC, IN_SYNC]


@pytest.mark.parametrize("is_back", [False, True])
async def test_of_legs_that_were_all_lost_one_stays_that_is_back(is_back: bool) -> None:
    one, other = faulty(), faulty()
    mirror = aioblk.Mirror(one, other, granularity=GRANULARITY)
    for leg in (one, other):
        leg.lose()
    await other.reconnect()
    if is_back:
        await one.reconnect()
    await mirror.write(0, NEW)
    assert states(mirror) == ([IN_SYNC, DROPPED] if is_back else [DROPPED, IN_SYNC])
    await mirror.write(0, NEW)
    assert IN_SYNC in states(mirror)


async def test_a_leg_that_is_lost_and_back_while_it_is_resilvered_is_dropped() -> None:
    """What it was given may be gone before it is flushed."""
    other = faulty()
    leg = Held(other)
    leg.is_holding = True
    mirror = aioblk.Mirror(faulty(), stale=[leg], granularity=GRANULARITY)
    resilvering = asyncio.create_task(mirror.resilver(mirror.legs[1]))
    await turns()
    leg.is_holding = False
    for write in leg.held:
        write.set_result(None)
    other.lose()
    await other.reconnect()
    with pytest.raises(aioblk.DeviceLostError):
        await resilvering
    assert states(mirror) == [IN_SYNC, DROPPED]
    assert mirror.legs[1].missing.dirty_bytes == SPACE
