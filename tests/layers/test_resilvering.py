# ruff: noqa: ASYNC240 - these tests look at the devices' files, and do nothing else meanwhile
"""Legs of a mirror that come back, or are replaced."""

import asyncio
import errno
import random
from pathlib import Path

import pytest

import aioblk
from aioblk.testing import Fault, Faulty, MemoryDevice, PowerLoss, Recorder

from ..conftest import StorageDaemonFactory
from .mirrors import (
    DROPPED,
    IN_SYNC,
    LIMITS,
    NEW,
    Held,
    HeldReads,
    faulty,
    mirror_of,
    states,
    turns,
)
from .model import BLOCK, SPACE


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
    for steps in range(30):
        good, stale = MemoryDevice(SPACE, limits=LIMITS, content=content), faulty(Fault(probability=0.5))
        mirror = mirror_of(good, stale=(stale,))
        resilvering = asyncio.ensure_future(mirror.resilver(mirror.legs[1]))
        await turns(steps)
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


async def test_a_failed_read_of_the_device_before_is_none_of_the_one_after() -> None:
    old, new, other = HeldReads(faulty()), faulty(), HeldReads(faulty())
    mirror = mirror_of(old, other)
    [leg, _] = mirror.legs
    old.is_holding = other.is_holding = True
    read = asyncio.ensure_future(mirror.read(0, BLOCK))
    await turns()
    old.held[0].set_exception(aioblk.BlkioError("the read fails"))
    await turns()  # and goes on to the other
    other.is_holding = False
    old.device.add(Fault(operations={"write"}, error=errno.EIO))
    await mirror.write(0, NEW)
    assert leg.state is DROPPED
    await mirror.resilver(leg, new)
    other.held[0].set_result(NEW)
    assert await read == NEW
    assert states(mirror) == [IN_SYNC, IN_SYNC]
    assert not leg.missing


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
