# ruff: noqa: ASYNC240 - these tests look at the devices' files, and do nothing else meanwhile
"""Mirror: what becomes of it when legs fail, leave and come back."""

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

from ..conftest import LoopError, StorageDaemonFactory
from .model import BLOCK, BLOCKS, SPACE

LIMITS = aioblk.Limits(request_alignment=BLOCK)
GRANULARITY = 2 * BLOCK
NEW = b"n" * BLOCK


def faulty(*faults: Fault, capacity: int = SPACE) -> Faulty:
    return Faulty(MemoryDevice(capacity, limits=LIMITS), *faults)


def mirror_of(*devices: aioblk.BlockDevice, stale: tuple[aioblk.BlockDevice, ...] = ()) -> aioblk.Mirror:
    return aioblk.Mirror(*devices, stale=stale, granularity=GRANULARITY)


def states(mirror: aioblk.Mirror) -> list[aioblk.LegState]:
    return [leg.state for leg in mirror.legs]


IN_SYNC, DROPPED, RESILVERING = aioblk.LegState.IN_SYNC, aioblk.LegState.DROPPED, aioblk.LegState.RESILVERING

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


# --- resilvering --------------------------------------------------------------------------------------------


async def test_everything_is_copied_to_what_is_stale_or_new() -> None:
    content = random.Random(1).randbytes(SPACE)
    good = MemoryDevice(SPACE, limits=LIMITS, content=content)
    stale, spare = faulty(), faulty(capacity=2 * SPACE)
    mirror = mirror_of(good, stale=(stale,))
    [_, second] = mirror.legs
    assert second.state is DROPPED
    assert second.missing.dirty_bytes == SPACE
    assert second.error is None
    await mirror.resilver(second)
    assert stale.device.content() == content
    stale.lose()
    await mirror.write(0, NEW)
    await mirror.resilver(second, spare)
    assert second.device is spare
    assert spare.device.content()[:SPACE] == NEW + content[BLOCK:]
    assert states(mirror) == [IN_SYNC, IN_SYNC]


async def test_what_cannot_be_resilvered() -> None:
    one, other = faulty(), faulty()
    mirror, another = mirror_of(one, stale=(other,)), mirror_of(faulty(), stale=(faulty(),))
    with pytest.raises(aioblk.UsageError, match="it is in sync"):
        await mirror.resilver(mirror.legs[0])
    with pytest.raises(aioblk.UsageError, match="none of this mirror"):
        await mirror.resilver(another.legs[1])
    for device, words in (
        (one, "once"),
        (faulty(capacity=SPACE - BLOCK), f"it has {SPACE - BLOCK} bytes, and the mirror {SPACE}"),
        (MemoryDevice(SPACE, limits=aioblk.Limits(request_alignment=4096)), "accepts less than the mirror"),
    ):
        with pytest.raises(aioblk.OptionError, match=words):
            await mirror.resilver(mirror.legs[1], device)
    assert states(mirror) == [IN_SYNC, DROPPED]


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("fault", ["error", "error though executed", "loss"])
async def test_a_leg_may_die_at_any_step_of_resilvering(victim: int, fault: str) -> None:
    """Its own, and that of the leg that is read. What was acknowledged is on whoever is in sync."""
    step = 0
    while True:
        legs = [faulty(), faulty()]
        for leg in legs:
            await leg.write(0, bytes(SPACE))
        mirror = mirror_of(legs[0], stale=(legs[1],))
        content = bytearray(random.Random(step).randbytes(SPACE))
        await mirror.write(0, content)
        dying = legs[victim].add(
            Fault(
                after=step, times=None if fault == "loss" else 1, error=errno.EIO, executed=fault != "error"
            )
        )
        resilvering = asyncio.ensure_future(mirror.resilver(mirror.legs[1]))
        for number in range(6):
            new = bytes([number + 1]) * BLOCK
            try:
                await mirror.write(number * 7 * BLOCK, new)
            except aioblk.BlkioError:
                assert victim == 0
                new = await legs[0].device.read(number * 7 * BLOCK, BLOCK)  # one or the other
            content[number * 7 * BLOCK : (number * 7 + 1) * BLOCK] = new
        await asyncio.wait([resilvering])
        [first, second] = mirror.legs
        assert first.state is IN_SYNC or second.state is IN_SYNC
        if resilvering.exception() is not None and second.state is not IN_SYNC:
            assert second.state is DROPPED
            assert second.missing or victim == 1
        hits = dying.hits
        legs[victim].remove(dying)
        for dropped in mirror.legs:
            if dropped.state is DROPPED:
                await mirror.resilver(dropped)
        assert legs[0].device.content() == content == legs[1].device.content(), f"step {step}"
        if hits <= step:
            assert step > 5
            return
        step += 1


async def test_resilvering_that_is_cancelled_goes_on_later() -> None:
    content = random.Random(1).randbytes(SPACE)
    for turns in range(30):
        good, stale = MemoryDevice(SPACE, limits=LIMITS, content=content), faulty(Fault(probability=0.5))
        mirror = mirror_of(good, stale=(stale,))
        resilvering = asyncio.ensure_future(mirror.resilver(mirror.legs[1]))
        for _ in range(turns):
            await asyncio.sleep(0)
        resilvering.cancel()
        await asyncio.wait([resilvering])
        if not resilvering.cancelled():
            assert states(mirror) == [IN_SYNC, IN_SYNC]
            break
        assert states(mirror) == [IN_SYNC, DROPPED]
        await mirror.resilver(mirror.legs[1])
        assert stale.device.content() == content
    else:
        pytest.fail("it takes longer than that")


async def test_a_resilvered_leg_is_as_durable_as_the_others() -> None:
    good, stale = PowerLoss(SPACE, limits=LIMITS), PowerLoss(SPACE, limits=LIMITS)
    mirror = mirror_of(good, stale=(stale,))
    await mirror.write(0, NEW)
    await mirror.flush()
    await mirror.resilver(mirror.legs[1])
    for seed in range(20):
        assert await stale.crash(seed).read(0, BLOCK) == NEW


async def test_who_is_told_may_raise(loop_errors: list[LoopError]) -> None:
    def object_to(leg: aioblk.Leg) -> None:
        raise RuntimeError(f"{leg.state} is not what I want")

    mirror = aioblk.Mirror(faulty(), faulty(Fault(times=1, error=errno.EIO)), on_change=object_to)
    await mirror.write(0, NEW)
    await asyncio.sleep(0)
    [context] = loop_errors
    assert "dropped is not what I want" in str(context["exception"])
    loop_errors.clear()


# --- what has been found by search --------------------------------------------------------------------------


class Held(aioblk.Layer[aioblk.BlockDevice]):
    """Its writes and flushes end when a test says so."""

    def __init__(self, device: aioblk.BlockDevice) -> None:
        super().__init__(device)
        self.held: list[asyncio.Future[None]] = []
        self.is_holding = False

    def _hold(self) -> "asyncio.Future[None]":
        self.held.append(asyncio.get_running_loop().create_future())
        return self.held[-1]

    def write(self, offset: int, data: Buffer, *, fua: bool = False) -> Awaitable[None]:
        return self._hold() if self.is_holding else super().write(offset, data, fua=fua)

    def flush(self) -> Awaitable[None]:
        return self._hold() if self.is_holding else super().flush()


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


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


async def test_what_was_copied_and_not_flushed_is_missing_still() -> None:
    size = 8 << 20
    content = b"d" * size
    stale = Faulty(PowerLoss(size), Fault(operations={"write"}, after=6, times=1, error=errno.EIO))
    mirror = aioblk.Mirror(MemoryDevice(size, content=content), stale=[stale])
    with pytest.raises(aioblk.BlkioError):
        await mirror.resilver(mirror.legs[1])
    assert mirror.legs[1].missing.dirty_bytes == size
    after_a_crash = stale.device.crash(1)
    await mirror.resilver(mirror.legs[1], after_a_crash)
    assert after_a_crash.content() == content


async def test_a_leg_is_resilvered_by_one_at_a_time() -> None:
    content = b"d" * SPACE
    old, new = Held(faulty()), MemoryDevice(SPACE, limits=LIMITS)
    mirror = mirror_of(MemoryDevice(SPACE, limits=LIMITS, content=content), stale=(old,))
    [_, leg] = mirror.legs
    old.is_holding = True
    first = asyncio.ensure_future(mirror.resilver(leg))
    await turns()
    flush = asyncio.ensure_future(mirror.flush())
    await turns()
    old.held[-1].set_exception(aioblk.BlkioError("as an example"))  # of the flush
    await flush
    assert leg.state is DROPPED
    second = asyncio.ensure_future(mirror.resilver(leg, new))
    await turns()
    assert leg.device is old, "the first has not noticed"
    for held in old.held[:-1]:
        held.set_result(None)
    await asyncio.wait([first, second])
    assert isinstance(first.exception(), aioblk.BlkioError)
    await second
    assert leg.state is IN_SYNC
    assert new.content() == content


async def test_an_outcome_of_the_device_before_is_none_of_the_one_after() -> None:
    old, new = Held(faulty()), faulty()
    mirror = mirror_of(faulty(), old)
    [_, leg] = mirror.legs
    old.is_holding = True
    flush, write = asyncio.ensure_future(mirror.flush()), asyncio.ensure_future(mirror.write(0, NEW))
    await turns()
    old.held[1].set_exception(aioblk.BlkioError("the write fails"))
    await write
    await mirror.resilver(leg, new)
    old.held[0].set_exception(aioblk.BlkioError("and later the flush"))
    await flush
    assert leg.state is IN_SYNC


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
    other.write_bytes(bytes(scratch_file.stat().st_size))
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


async def test_closing_ends_resilvering() -> None:
    stale = Recorder(faulty(Fault(probability=0.9)))
    mirror = mirror_of(MemoryDevice(SPACE, limits=LIMITS), stale=(stale,))
    resilvering = asyncio.ensure_future(mirror.resilver(mirror.legs[1]))
    await turns(6)
    await mirror.aclose()
    count = len(stale.records)
    with pytest.raises(aioblk.DeviceClosedError):
        await resilvering
    assert len(stale.records) == count
    assert states(mirror) == [IN_SYNC, DROPPED]


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


# --- real devices -------------------------------------------------------------------------------------------


async def test_a_backend_that_is_killed_and_comes_back(
    storage_daemon: StorageDaemonFactory, scratch_file: Path, tmp_path: Path
) -> None:
    exported = tmp_path / "exported"
    exported.write_bytes(bytes(scratch_file.stat().st_size))
    daemon = storage_daemon(exported)
    async with aioblk.IoUring(scratch_file) as one, aioblk.VirtioBlkVhostUser(daemon.socket) as other:  # noqa: SIM117
        async with aioblk.Mirror(one, other) as mirror:
            await mirror.write(0, 8 * NEW)
            daemon.kill()
            await asyncio.gather(*(mirror.write(block * BLOCK, b"w" * BLOCK) for block in range(100)))
            assert states(mirror) == [IN_SYNC, DROPPED]
            assert isinstance(mirror.legs[1].error, aioblk.DeviceLostError)
            daemon.restart()
            await other.reconnect()
            await mirror.resilver(mirror.legs[1])
            assert states(mirror) == [IN_SYNC, IN_SYNC]
            assert await mirror.read(0, 100 * BLOCK) == b"w" * (100 * BLOCK)
    assert exported.read_bytes() == scratch_file.read_bytes()
