"""Copies agree with arrays of bytes, whatever the devices are, fail at, or when they are cancelled."""

import asyncio
import errno
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import aioblk
from aioblk.testing import Fault, Faulty, MemoryDevice, PowerLoss

from ..support.gate import Gate
from ..support.turns import turns
from .contents import UNIT, Side, Stretch, content_of, device_with, sides, stretches

examples = settings(
    max_examples=60,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
PLAIN = Side(UNIT, 0, False)
MIXED = [
    Stretch("data", 30),
    Stretch("hole", 16),
    Stretch("data", 3),
    Stretch("zeroes", 40),
    Stretch("data", 7),
]


@given(
    source=stretches,
    before=stretches,
    source_side=sides,
    destination_side=sides,
    room=st.integers(0, 20),
    request_size=st.sampled_from([None, 512, 4096, 12288]),
    depth=st.sampled_from([None, 1, 3]),
    sparse=st.sampled_from([0, 4096, 8192]),
    allocate=st.booleans(),
    verify=st.booleans(),
)
@examples
async def test_the_destination_begins_with_the_source_and_keeps_the_rest(
    source: list[Stretch],
    before: list[Stretch],
    source_side: Side,
    destination_side: Side,
    room: int,
    request_size: int | None,
    depth: int | None,
    sparse: int,
    allocate: bool,
    verify: bool,
) -> None:
    ours = await device_with(source, source_side)
    theirs = await device_with(before, destination_side, size=ours.capacity + room * UNIT, seed=2)
    rest = theirs.content()[ours.capacity :]
    told: list[aioblk.CopyProgress] = []
    result = await aioblk.copy(
        ours,
        theirs,
        request_size=request_size,
        depth=depth,
        sparse=sparse,
        allocate=allocate,
        verify=verify,
        on_progress=told.append,
    )
    assert theirs.content() == ours.content() + rest
    assert result.size == result.copied + result.zeroed + result.skipped == ours.capacity
    assert [step.done for step in told if step.phase == "copy"][-1:] == [ours.capacity][: bool(ours.capacity)]
    assert (await aioblk.compare(ours, theirs, length=ours.capacity)).same


@given(source=stretches, side=sides, capacity=st.integers(0, 60))
@examples
async def test_what_grows_gets_the_size(source: list[Stretch], side: Side, capacity: int) -> None:
    ours = await device_with(source, side)
    theirs = MemoryDevice(capacity * 4096, limits=side.limits(can_grow=True))
    await aioblk.copy(ours, theirs)
    assert theirs.content()[: ours.capacity] == ours.content()
    assert theirs.capacity == max(ours.capacity, capacity * 4096)


@given(source=stretches, others=stretches, side=sides)
@examples
async def test_zeroes_are_written_nowhere_on_what_is_zero(
    source: list[Stretch], others: list[Stretch], side: Side
) -> None:
    ours = await device_with(source, side)
    theirs = Faulty(
        MemoryDevice(ours.capacity, limits=side.limits()),
        Fault(operations={"write_zeroes", "discard"}, error=errno.EIO),
    )
    for destination_is_zero in (False, True):
        result = await aioblk.copy(ours, theirs, destination_is_zero=destination_is_zero)
        assert theirs.device.content() == ours.content()
        if not destination_is_zero:
            data = sum(each.units * UNIT for each in source if each.kind == "data")
            assert result.copied <= data + 2 * 4096 * len(source)
            await theirs.device.write_zeroes(0, theirs.capacity)


# --- errors and cancellation --------------------------------------------------------------------------------


def small() -> Any:
    return {"request_size": 4096, "depth": 3}


async def requests_of_a_copy() -> dict[str, int]:
    source, destination = await both()
    before = [device.statistics().submitted for device in (source, destination)]
    await aioblk.copy(source, destination, **small())
    return {
        "source": source.statistics().submitted - before[0],
        "destination": destination.statistics().submitted - before[1],
    }


async def both() -> tuple[Faulty, Faulty]:
    source = await device_with(MIXED, PLAIN)
    destination = await device_with([Stretch("data", 90)], PLAIN, size=source.capacity, seed=2)
    return Faulty(source), Faulty(destination)


@pytest.mark.parametrize("side", ["source", "destination"])
async def test_an_error_of_each_request_is_told_and_the_copy_goes_on_later(side: str, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    for number in range((await requests_of_a_copy())[side]):
        source, destination = await both()
        faulty = {"source": source, "destination": destination}[side]
        fault = faulty.add(Fault(after=number, times=1, error=errno.EIO))
        with pytest.raises(aioblk.BlkioError) as caught:
            await aioblk.copy(source, destination, journal=journal, **small())
        assert caught.value.errno == errno.EIO
        assert caught.value.__notes__ == [f"of the {side}"]
        faulty.remove(fault)
        result = await aioblk.copy(source, destination, journal=journal, **small())
        assert destination.device.content() == source.device.content()
        assert not journal.exists()
        assert result.copied + result.zeroed + result.skipped == result.size - result.resumed_at


@given(turns=st.integers(0, 60), delays=st.booleans())
@examples
async def test_a_copy_is_cancelled_anywhere_and_goes_on_later(
    tmp_path: Path, turns: int, delays: bool
) -> None:
    journal = tmp_path / "journal"
    source, destination = await both()
    if delays:
        for device in (source, destination):
            device.add(Fault(probability=0.5))
    copying = asyncio.create_task(aioblk.copy(source, destination, journal=journal, **small()))
    for _ in range(turns):
        await asyncio.sleep(0)
    copying.cancel()
    if not await is_cancelled(copying):
        return
    result = await aioblk.copy(source, destination, journal=journal, **small())
    assert destination.device.content() == source.device.content()
    assert result.resumed_at == 0 or result.copied < result.size
    assert not journal.exists()


@pytest.mark.parametrize("change", ["write", "write_zeroes", "discard"])
async def test_however_often_all_is_cancelled_a_copy_is_left_when_nothing_changes_any_more(
    change: str,
) -> None:
    size = 1 << 18
    content = {"write": b"\1" * size, "write_zeroes": bytes(size), "discard": bytes(size)}[change]
    source, destination = MemoryDevice(size, content=content), Gate(2 * size, content=b"\2" * size)
    destination.hold()
    before = asyncio.all_tasks()
    ends = change == "discard"
    copying = asyncio.create_task(
        aioblk.copy(source, destination, destination_is_zero=ends, discard_rest=ends)
    )
    async with asyncio.timeout(60):
        while not destination.statistics().in_flight:
            await turns(1)
    for _ in range(3):
        for task in asyncio.all_tasks() - before:  # as asyncio.run() does in the end
            task.cancel()
        await turns(8)
        assert not copying.done()
        assert destination.statistics().in_flight
    destination.release()
    assert await is_cancelled(copying)
    counts = destination.statistics()
    assert not counts.in_flight
    assert getattr(counts, change).completed >= 1
    assert counts.flush.completed == 0
    assert asyncio.all_tasks() == before


async def is_cancelled(task: "asyncio.Task[Any]") -> bool:
    try:
        await task
    except asyncio.CancelledError:
        return True
    return False


@given(turns=st.integers(0, 60), seed=st.integers(0, 1000))
@examples
async def test_a_power_failure_takes_nothing_that_the_journal_has(
    tmp_path: Path, turns: int, seed: int
) -> None:
    journal = tmp_path / "journal"
    content = content_of(MIXED)
    source = MemoryDevice(len(content), content=content)
    destination = PowerLoss(len(content))
    copying = asyncio.create_task(aioblk.copy(source, destination, journal=journal, **small()))
    for _ in range(turns):
        await asyncio.sleep(0)
    copying.cancel()
    if not await is_cancelled(copying):
        return
    left = destination.crash(seed)
    result = await aioblk.copy(source, left, journal=journal, **small())
    assert left.content() == content
    assert result.resumed_at <= len(content)


async def test_what_is_done_is_in_the_journal_and_not_copied_again(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    source, destination = await both()
    fault = source.add(Fault(operations={"read"}, offset=40 * UNIT, length=UNIT, error=errno.EIO))
    with pytest.raises(aioblk.BlkioError):
        await aioblk.copy(source, destination, journal=journal, sparse=0, request_size=4096, depth=1)
    source.remove(fault)
    result = await aioblk.copy(source, destination, journal=journal, sparse=0, request_size=4096, depth=1)
    assert result.resumed_at == 40 * UNIT
    assert result.copied + result.zeroed == result.size - result.resumed_at


async def test_a_flush_that_failed_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    """The next one may succeed without those that were lost."""
    journal = tmp_path / "journal"
    source, destination = await both()
    destination.add(Fault(operations={"flush"}, times=1, error=errno.EIO))
    with pytest.raises(aioblk.BlkioError):
        await aioblk.copy(source, destination, journal=journal, **small())
    assert json.loads(journal.read_text())["done"] == 0
    result = await aioblk.copy(source, destination, journal=journal, **small())
    assert result.resumed_at == 0


async def test_an_exbibyte_of_nothing_is_copied_and_compared_in_few_pieces() -> None:
    source, destination = MemoryDevice(1 << 60), MemoryDevice(1 << 60)
    await source.write(1 << 59, b"x" * 4096)
    told: list[int] = []
    result = await aioblk.copy(
        source, destination, verify=True, on_progress=lambda now: told.append(now.done)
    )
    assert (result.copied, result.skipped) == (4096, (1 << 60) - 4096)
    assert len(told) < 50_000


async def test_a_copy_that_was_cancelled_anywhere_has_nothing_under_way() -> None:
    before = asyncio.all_tasks()
    turns, done = 0, False
    while not done:
        source, destination = await both()
        copying = asyncio.create_task(aioblk.copy(source, destination, verify=True, **small()))
        for _ in range(turns):
            await asyncio.sleep(0)
        done = copying.done()
        copying.cancel()
        await asyncio.wait([copying])
        assert asyncio.all_tasks() == before
        turns += 5
