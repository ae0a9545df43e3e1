"""Layers agree with an array of bytes, whatever is asked of them at once, fails, or is cancelled."""

import asyncio
import errno
import random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import aioblk
from aioblk.testing import Fault, Faulty, MemoryDevice

from .model import BLOCK, SPACE, Model, Step, rounds_of_steps

LIMITS = aioblk.Limits(request_alignment=BLOCK)
GRANULARITY = 4 * BLOCK

Rounds = list[list[Step]]
examples = settings(max_examples=60, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
seeds = st.integers(0, 1 << 16)


def memory(content: bytes = bytes(SPACE)) -> MemoryDevice:
    return MemoryDevice(SPACE, limits=LIMITS, content=content)


def slow(device: MemoryDevice, seed: int, errors: float = 0.0) -> Faulty:
    """Some of its requests take some turns of the loop; some fail, of which some are executed."""
    return Faulty(
        device,
        Fault(probability=0.4),  # a turn later
        Fault(probability=errors / 2, error=errno.EIO),
        Fault(probability=errors / 2, error=errno.EIO, executed=True),
        seed=seed,
    )


@given(rounds=rounds_of_steps, seed=seeds)
@examples
async def test_memory_and_faults(rounds: Rounds, seed: int) -> None:
    device, model = slow(memory(), seed, errors=0.2), Model()
    for steps in rounds:
        await model.play(device, steps)


@given(rounds=rounds_of_steps, seed=seeds)
@examples
async def test_a_slice(rounds: Rounds, seed: int) -> None:
    around = random.Random(seed).randbytes(SPACE)
    whole = MemoryDevice(3 * SPACE, limits=LIMITS, content=around + bytes(SPACE) + around)
    part, model = aioblk.Slice(slow(whole, seed, errors=0.1), SPACE, SPACE), Model()
    for steps in rounds:
        await model.play(part, steps)
    assert whole.content() == around + b"".join(model.known) + around


@given(rounds=rounds_of_steps, seed=seeds)
@examples
async def test_a_throttle(rounds: Rounds, seed: int) -> None:
    rate = aioblk.Rate(operations=50_000, bytes=1 << 30, burst_operations=3, burst_bytes=8 * BLOCK)
    group = aioblk.ThrottleGroup(total=rate, writes=aioblk.Rate(operations=40_000, burst_operations=1))
    device, model = aioblk.Throttle(slow(memory(), seed, errors=0.1), group), Model()
    for steps in rounds:
        await model.play(device, steps)
    await device.aclose()
    assert group.statistics().waiting == 0


@given(rounds=rounds_of_steps, seed=seeds, take=st.lists(st.booleans(), min_size=6, max_size=6))
@examples
async def test_what_is_tracked_is_all_that_was_changed(rounds: Rounds, seed: int, take: list[bool]) -> None:
    below, model = memory(), Model()
    device = aioblk.Tracked(slow(below, seed, errors=0.1), granularity=GRANULARITY)
    backup = below.content()
    for steps, is_time in zip(rounds, take, strict=False):
        await model.play(device, steps)
        if is_time:
            content = bytearray(backup)
            for offset, length in device.take():
                content[offset : offset + length] = await below.read(offset, min(length, SPACE - offset))
            backup = bytes(content)
            assert backup == below.content()


@given(rounds=rounds_of_steps, seed=seeds, commit=st.lists(st.booleans(), min_size=6, max_size=6))
@examples
async def test_copy_on_write(rounds: Rounds, seed: int, commit: list[bool]) -> None:
    content = random.Random(seed).randbytes(SPACE)
    base, overlay = memory(content), memory(random.Random(~seed).randbytes(SPACE))
    device, model = aioblk.CopyOnWrite(slow(base, seed), slow(overlay, seed + 1, errors=0.1)), Model(content)
    for steps, is_time in zip(rounds, commit, strict=False):
        before = base.content()
        committing = asyncio.ensure_future(device.commit()) if is_time else None
        await model.play(device, steps)
        if committing is None:
            assert base.content() == before
        else:
            await asyncio.wait([committing])
            if committing.exception() is None:
                await model.play(device, [])
    assert base.content() == content or any(commit)
    while device.changed:
        try:
            await device.commit()
        except aioblk.BlkioError:
            continue
    assert base.content() == b"".join(model.known)


@pytest.mark.parametrize("legs", [1, 2, 3])
@given(rounds=rounds_of_steps, seed=seeds, resilver=st.lists(st.booleans(), min_size=6, max_size=6))
@examples
async def test_a_mirror(rounds: Rounds, seed: int, resilver: list[bool], legs: int) -> None:
    below = [memory() for _ in range(legs)]
    devices = [slow(device, seed + number, errors=0.1) for number, device in enumerate(below)]
    mirror, model = aioblk.Mirror(*devices, granularity=GRANULARITY), Model()
    for steps, is_time in zip(rounds, resilver, strict=False):
        coming_back = [
            asyncio.ensure_future(mirror.resilver(leg))
            for leg in mirror.legs
            if is_time and leg.state is aioblk.LegState.DROPPED
        ]
        await model.play(mirror, steps)
        await asyncio.gather(*coming_back, return_exceptions=True)
        await model.play(mirror, [])  # whoever came back has the same
        check_legs(mirror, below, model)
    for device in devices:
        for fault in device.faults:
            device.remove(fault)
    for leg in mirror.legs:
        if leg.state is aioblk.LegState.DROPPED:
            await mirror.resilver(leg)
    check_legs(mirror, below, model)
    assert all(device.content() == b"".join(model.known) for device in below)


def check_legs(mirror: aioblk.Mirror, below: list[MemoryDevice], model: Model) -> None:
    """Those in sync have everything; the others know what they are missing."""
    content = b"".join(model.known)
    assert any(leg.state is aioblk.LegState.IN_SYNC for leg in mirror.legs)
    for leg, device in zip(mirror.legs, below, strict=True):
        found = bytearray(device.content())
        for offset, length in leg.missing:
            found[offset : offset + length] = content[offset : offset + length]
        assert found == content, f"{leg} differs, and does not know"
