"""What comes after a change that was given up waits until that cannot land any more.

The device cannot be told to stop: a write that was cancelled may still be carried out, at any time. Who tries
again, and is told that it is done, must find it there ever after.
"""

import asyncio
import random
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import aioblk
import aioblk._queues.discard

from ..conftest import StorageDaemonFactory
from ..support.devices import held, pattern
from ..support.fake_backend import DISCARD, READ, WRITE, WRITE_ZEROES, FakeBackend, Gate

BLOCK = 4096
OLD, NEW = pattern(BLOCK, 1), pattern(BLOCK, 2)
PATIENCE = 30  # seconds


@pytest.fixture
async def device(disk: FakeBackend) -> AsyncIterator[aioblk.Device]:
    """Its bounce pool exists already."""
    async with aioblk.VirtioBlkVhostUser(disk.socket, num_queues=2) as device:
        await device.read(0, 1 << 20)
        yield device


async def give_up(request: "aioblk.Request[Any]", gate: Gate) -> None:
    """Cancel the request while the disk has it."""
    await gate.reached()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request


async def wait_for_others(device: aioblk.Device) -> None:
    """Whatever could be done in the meantime is done."""
    for _ in range(3):
        await device.read(64 * BLOCK, BLOCK)


# --- what it is for -----------------------------------------------------------------------------------------


async def test_a_write_that_timed_out_never_lands_over_a_later_one(
    device: aioblk.Device, disk: FakeBackend
) -> None:
    gate = disk.gate(WRITE, 0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await device.write(0, OLD, fua=True)
    again = asyncio.create_task(device.write(0, NEW, fua=True))
    await gate.reached()
    await wait_for_others(device)
    assert not again.done()
    gate.open()
    async with asyncio.timeout(PATIENCE):
        await again
        await device.flush()
    assert await device.read(0, BLOCK) == NEW
    assert disk.data[:BLOCK] == NEW


GIVEN_UP: dict[str, tuple[int, Callable[[aioblk.Device], "aioblk.Request[Any]"]]] = {
    "write": (WRITE, lambda device: device.write(0, OLD)),
    "writev": (WRITE, lambda device: device.writev(0, [OLD[:512], OLD[512:]])),
    "write_many": (WRITE, lambda device: device.write_many([(8 * BLOCK, OLD), (0, OLD)])),
    "write_zeroes": (WRITE_ZEROES, lambda device: device.write_zeroes(0, BLOCK)),
    "discard": (DISCARD, lambda device: device.discard(0, BLOCK)),
}
AFTER: dict[str, Callable[[aioblk.Device], "aioblk.Request[Any]"]] = {
    "read": lambda device: device.read(BLOCK - 512, BLOCK),
    "read_into": lambda device: device.read_into(0, bytearray(512)),
    "readv": lambda device: device.readv(0, [bytearray(512), bytearray(BLOCK)]),
    "read_many": lambda device: device.read_many([(16 * BLOCK, 512), (0, 512)]),
    "write": lambda device: device.write(0, NEW),
    "writev": lambda device: device.writev(512, [NEW[:512], NEW[512:]]),
    "write_many": lambda device: device.write_many([(16 * BLOCK, NEW), (0, NEW)]),
    "write_zeroes": lambda device: device.write_zeroes(0, 32 * BLOCK),
    "discard": lambda device: device.discard(0, BLOCK),
}


@pytest.mark.parametrize("before", GIVEN_UP)
async def test_whatever_meets_a_change_that_was_given_up_waits(
    device: aioblk.Device, disk: FakeBackend, before: str
) -> None:
    kind, begin = GIVEN_UP[before]
    gate = disk.gate(kind, 0)
    await give_up(begin(device), gate)
    parts = device.statistics().parts
    waiting = [after(device) for after in AFTER.values()]
    await wait_for_others(device)
    assert not any(request.done() for request in waiting)
    assert device.statistics().parts <= parts + 4  # those of wait_for_others(), and what is left of the first
    gate.open()
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*waiting)
    assert device.statistics().in_flight == 0


async def test_nothing_else_waits(device: aioblk.Device, disk: FakeBackend) -> None:
    gate = disk.gate(WRITE, BLOCK)
    await give_up(device.write(BLOCK, OLD), gate)
    async with asyncio.timeout(PATIENCE):
        await device.write(0, NEW)
        await device.write(2 * BLOCK, NEW)
        await device.write_many([(0, NEW), (2 * BLOCK, NEW)])
        await device.discard(2 * BLOCK, BLOCK)
        await device.flush()
        assert await device.read(0, BLOCK) == NEW
        await device.read_many([(0, BLOCK), (2 * BLOCK, BLOCK)])
    gate.open()


async def test_items_of_zero_bytes_meet_nothing(device: aioblk.Device, disk: FakeBackend) -> None:
    gate = disk.gate(WRITE, 8 * BLOCK)
    await give_up(device.write_many([(8 * BLOCK, OLD), (BLOCK, b"")]), gate)
    async with asyncio.timeout(PATIENCE):
        await device.write(0, OLD + NEW)
        await device.write_many([(0, NEW), (8 * BLOCK + 512, b"")])
    gate.open()


async def test_reads_that_were_given_up_and_writes_on_the_callers_memory_hold_nobody_up(
    device: aioblk.Device, disk: FakeBackend
) -> None:
    gate = disk.gate(READ, 0)
    await give_up(device.read(0, BLOCK), gate)
    async with asyncio.timeout(PATIENCE):
        await device.write(0, NEW)
    gate.open()


async def test_what_was_done_after_all_is_seen_by_reads(device: aioblk.Device, disk: FakeBackend) -> None:
    gate = disk.gate(WRITE, 0)
    await give_up(device.write(0, OLD), gate)
    reading = device.read(0, BLOCK)
    await wait_for_others(device)
    gate.open()
    async with asyncio.timeout(PATIENCE):
        assert await reading == OLD


# --- what waits can be given up itself ----------------------------------------------------------------------


async def test_what_waits_is_left_at_once_and_never_reaches_the_disk(
    device: aioblk.Device, disk: FakeBackend
) -> None:
    gate = disk.gate(WRITE, 0)
    await give_up(device.write(0, OLD), gate)
    async with device.allocate(BLOCK) as region:
        waiting = [device.write(0, NEW), device.write(0, region), device.read_into(0, region)]
        for request in waiting:
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
        assert device.statistics().in_flight == 1
        third = device.write(0, pattern(BLOCK, 3))
        gate.open()
        async with asyncio.timeout(PATIENCE):
            await third
    assert disk.data[:BLOCK] == pattern(BLOCK, 3)


async def test_timing_out_again_and_again(device: aioblk.Device, disk: FakeBackend) -> None:
    gate = disk.gate(WRITE, 0)
    for number in range(5):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await device.write(0, pattern(BLOCK, number))
    await gate.reached()
    assert device.statistics().in_flight == 1  # the others never began
    last = device.write(0, NEW)
    gate.open()
    async with asyncio.timeout(PATIENCE):
        await last
    assert disk.data[:BLOCK] == NEW


async def test_what_has_never_been_issued_is_not_waited_for(
    storage_daemon: StorageDaemonFactory, scratch_file: Path
) -> None:
    daemon = storage_daemon(scratch_file)
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
        await device.read(0, 1 << 20)
        with held(daemon):
            reading = [device.read(BLOCK * number, 512) for number in range(200)]  # more than the ring holds
            writing = device.write(0, OLD)
            await asyncio.sleep(0)
            writing.cancel()
            later = device.write(0, NEW)
            assert not device._session("core").core.has_given_up
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*reading, later)
        assert await device.read(0, BLOCK) == NEW


# --- across queues ------------------------------------------------------------------------------------------


async def test_queues_of_other_loops_wait(device: aioblk.Device, disk: FakeBackend) -> None:
    gate = disk.gate(WRITE, 0)
    await give_up(device.write(0, OLD), gate)
    submitted = threading.Event()

    async def elsewhere() -> bytes:
        async with device.queue(1) as queue:
            writing = queue.write(0, NEW)
            await queue.read(64 * BLOCK, BLOCK)
            assert not writing.done()
            submitted.set()
            await writing
            return await queue.read(0, BLOCK)

    async with asyncio.timeout(PATIENCE):
        other = asyncio.create_task(asyncio.to_thread(asyncio.run, elsewhere()))
        await asyncio.to_thread(submitted.wait)
        await wait_for_others(device)
        assert not other.done()
        gate.open()
        assert await other == NEW
    assert disk.data[:BLOCK] == NEW


async def test_what_another_loop_has_given_up_is_waited_for(device: aioblk.Device, disk: FakeBackend) -> None:
    gate = disk.gate(WRITE, 0)
    given_up, may_end = threading.Event(), threading.Event()

    async def elsewhere() -> None:
        async with device.queue(1) as queue:
            await give_up(queue.write(0, OLD), gate)
            given_up.set()
            await asyncio.to_thread(may_end.wait)

    async with asyncio.timeout(PATIENCE):
        other = asyncio.create_task(asyncio.to_thread(asyncio.run, elsewhere()))
        await asyncio.to_thread(given_up.wait)
        writing = device.write(0, NEW)
        await wait_for_others(device)
        assert not writing.done()
        gate.open()
        await writing
        may_end.set()
        await other
    assert disk.data[:BLOCK] == NEW


async def test_threads_without_a_loop_wait(device: aioblk.Device, disk: FakeBackend) -> None:
    gate = disk.gate(WRITE, 0)
    await give_up(device.write(0, OLD), gate)
    submitted = threading.Event()

    def elsewhere() -> bytes:
        with device.blocking_queue(1) as queue:
            writing = queue.write(0, NEW)
            queue.wait(queue.read(64 * BLOCK, BLOCK))
            with pytest.raises(TimeoutError):
                queue.wait(writing, timeout=0)
            submitted.set()
            queue.wait(writing)
            return queue.wait(queue.read(0, BLOCK))

    async with asyncio.timeout(PATIENCE):
        other = asyncio.create_task(asyncio.to_thread(elsewhere))
        await asyncio.to_thread(submitted.wait)
        gate.open()
        assert await other == NEW
    assert disk.data[:BLOCK] == NEW


async def test_threads_without_a_loop_go_on_with_more_than_their_bounce_memory_holds(
    device: aioblk.Device, disk: FakeBackend
) -> None:
    """Each waits for memory in the middle of going on; what goes on then does not do so within the first."""
    gate = disk.gate(WRITE, 0)
    await give_up(device.write(0, OLD), gate)
    submitted = threading.Event()

    def elsewhere() -> None:
        with device.blocking_queue(1) as queue:
            writing = [queue.write(0, bytes(1 << 19)) for _ in range(400)]
            submitted.set()
            for request in writing:
                queue.wait(request)

    async with asyncio.timeout(PATIENCE):
        other = asyncio.create_task(asyncio.to_thread(elsewhere))
        await asyncio.to_thread(submitted.wait)
        gate.open()
        await other


async def test_what_a_thread_without_a_loop_has_given_up_is_waited_for(
    device: aioblk.Device, disk: FakeBackend
) -> None:
    gate = disk.gate(WRITE, 0)
    given_up, may_end = threading.Event(), threading.Event()

    def elsewhere() -> None:
        with device.blocking_queue(1) as queue:
            writing = queue.write(0, OLD)
            with pytest.raises(TimeoutError):
                queue.wait(writing, timeout=0.01)
            writing.cancel()
            given_up.set()
            may_end.wait()

    async with asyncio.timeout(PATIENCE):
        other = asyncio.create_task(asyncio.to_thread(elsewhere))
        await asyncio.to_thread(given_up.wait)
        writing = device.write(0, NEW)
        await wait_for_others(device)
        assert not writing.done()
        may_end.set()
        gate.open()
        await other
        await writing
    assert disk.data[:BLOCK] == NEW


def refuse_once(
    monkeypatch: pytest.MonkeyPatch, loop: asyncio.AbstractEventLoop, name: str
) -> threading.Event:
    """Once the event is set, the loop has no memory for the next flush that it is asked for; it clears it."""
    call, refusing = getattr(loop, name), threading.Event()

    def refuse(callback: Callable[..., object], *args: object, **named: Any) -> asyncio.Handle:
        if refusing.is_set() and getattr(callback, "__name__", "") == "flush":
            refusing.clear()
            raise MemoryError
        handle: asyncio.Handle = call(callback, *args, **named)
        return handle

    monkeypatch.setattr(loop, name, refuse)
    return refusing


async def test_a_loop_that_has_no_memory_for_a_flush_goes_on_all_the_same(
    disk: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = refuse_once(monkeypatch, asyncio.get_running_loop(), "call_soon")
    async with aioblk.VirtioBlkVhostUser(disk.socket) as device:
        await device.read(0, 1 << 20)
        gate = disk.gate(WRITE, 0)
        await give_up(device.write(0, OLD), gate)
        writing = device.write(0, NEW)
        await wait_for_others(device)
        refusing.set()
        gate.open()
        async with asyncio.timeout(PATIENCE):
            await writing
        assert not refusing.is_set()


async def test_another_loop_that_had_no_memory_is_told_later(
    device: aioblk.Device, disk: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = disk.gate(WRITE, 0)
    await give_up(device.write(0, OLD), gate)
    refusals: list[threading.Event] = []
    submitted = threading.Event()

    async def elsewhere() -> None:
        async with device.queue(1) as queue:
            refusals.append(refuse_once(monkeypatch, asyncio.get_running_loop(), "call_soon_threadsafe"))
            writing = queue.write(0, NEW)
            await queue.read(64 * BLOCK, BLOCK)
            refusals[0].set()
            submitted.set()
            await writing

    async with asyncio.timeout(PATIENCE):
        other = asyncio.create_task(asyncio.to_thread(asyncio.run, elsewhere()))
        await asyncio.to_thread(submitted.wait)
        gate.open()
        await other
    assert not refusals[0].is_set()
    assert disk.data[:BLOCK] == NEW


# --- the end of waiting -------------------------------------------------------------------------------------


async def test_closing_waits_for_what_waits(device: aioblk.Device, disk: FakeBackend) -> None:
    gate = disk.gate(WRITE, 0)
    await give_up(device.write(0, OLD), gate)
    waiting = device.write(0, NEW)
    closing = asyncio.create_task(device.aclose())
    await asyncio.wait([closing], timeout=0.05)
    assert not closing.done()
    gate.open()
    async with asyncio.timeout(PATIENCE):
        await closing
    assert waiting.done()
    assert waiting.exception() is None
    assert disk.data[:BLOCK] == NEW


@pytest.mark.abandons_memory
async def test_closing_gives_up_first_who_does_not_wait_for_what_it_has_given_up() -> None:
    """All queues are closed at once: one of them may be waiting for another."""
    with FakeBackend(num_queues=3) as disk:
        async with aioblk.VirtioBlkVhostUser(disk.socket, num_queues=3) as device:
            given_up, may_end = threading.Event(), threading.Event()

            def elsewhere() -> None:
                queue = device.blocking_queue(2)
                queue.write(0, OLD).cancel()
                given_up.set()
                may_end.wait(PATIENCE)

            waiting = device.queue(1)  # bound first
            async with asyncio.timeout(PATIENCE):
                other = asyncio.create_task(asyncio.to_thread(elsewhere))
                await asyncio.to_thread(given_up.wait)
                writing = waiting.write(0, NEW)
                await waiting.read(64 * BLOCK, BLOCK)
                assert not writing.done()
                await device.aclose()
                may_end.set()
                await other
        assert writing.exception() is None
        assert disk.data[:BLOCK] == NEW


async def test_what_waited_and_was_cancelled_goes_with_its_queue(
    device: aioblk.Device, disk: FakeBackend
) -> None:
    gate = disk.gate(WRITE, 0)
    await give_up(device.write(0, OLD), gate)

    def elsewhere() -> "weakref.ref[aioblk.Request[None]]":
        with device.blocking_queue(1) as queue:
            writing = queue.write(0, NEW)
            writing.cancel()
            return weakref.ref(writing)

    waited = await asyncio.to_thread(elsewhere)
    assert waited() is None
    gate.open()


@pytest.mark.abandons_memory
async def test_a_lost_device_is_not_waited_for(device: aioblk.Device, disk: FakeBackend) -> None:
    gate = disk.gate(WRITE, 0)
    await give_up(device.write(0, OLD), gate)
    async with device.queue(1) as other:
        waiting = [device.write(0, NEW), other.read(0, BLOCK)]
        await wait_for_others(device)
        device.abandon("as an example")
        async with asyncio.timeout(PATIENCE):
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {aioblk.DeviceLostError}
        gate.open()
        await device.reconnect()
        async with asyncio.timeout(PATIENCE):
            await device.write(0, NEW)
            assert await other.read(0, BLOCK) == NEW


async def test_a_device_that_came_back_does_first_what_came_first(
    storage_daemon: StorageDaemonFactory, scratch_file: Path
) -> None:
    """What was given up is not made again: the dead backend cannot do it any more. What waited goes on."""
    daemon = storage_daemon(scratch_file)
    async with aioblk.VirtioBlkVhostUser(daemon.socket, reconnect_for=PATIENCE) as device:
        await device.write(0, pattern(BLOCK, 3))
        daemon.pause()
        given_up = device.write(0, OLD)
        await asyncio.sleep(0)
        given_up.cancel()
        waiting = device.write(0, NEW), device.read(0, BLOCK)
        await asyncio.sleep(0)
        daemon.restart()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*waiting)
            assert await device.read(0, BLOCK) == NEW
        assert device.reconnections == 1
        assert device.statistics().in_flight == 0


# --- discards on block devices ------------------------------------------------------------------------------


class HeldDiscards:
    """Threads that discard stop before they do, until they may go on."""

    def __init__(self) -> None:
        self.reached, self.may_go_on = threading.Event(), threading.Event()
        self._discard_and_close = aioblk._queues.discard._discard_and_close

    def __call__(self, own: int, offset: int, length: int) -> None:
        self.reached.set()
        self.may_go_on.wait(PATIENCE)
        self._discard_and_close(own, offset, length)


@pytest.fixture
def discards(monkeypatch: pytest.MonkeyPatch) -> HeldDiscards:
    held_discards = HeldDiscards()
    monkeypatch.setattr(aioblk._queues.discard, "_discard_and_close", held_discards)
    return held_discards


async def test_a_discard_that_a_thread_carries_out_is_waited_for(
    loop_device: Path, discards: HeldDiscards
) -> None:
    async with aioblk.IoUring(loop_device) as device:
        discarding = device.discard(0, BLOCK)
        await asyncio.to_thread(discards.reached.wait)
        discarding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await discarding
        writing, again = device.write(0, NEW), device.discard(0, 2 * BLOCK)
        await device.read(2 * BLOCK, BLOCK)
        assert not writing.done()
        assert not again.done()
        again.cancel()
        discards.may_go_on.set()
        async with asyncio.timeout(PATIENCE):
            await writing
            third = device.discard(4 * BLOCK, BLOCK)
            await third
        assert await device.read(0, BLOCK) == NEW


async def test_a_thread_without_a_loop_closes_its_queue_while_a_discard_waits(
    loop_device: Path, discards: HeldDiscards
) -> None:
    submitted = threading.Event()
    blocks = aioblk.IoUring(loop_device, num_queues=2)

    def elsewhere() -> "aioblk.Request[None]":
        with blocks.blocking_queue(1) as queue:
            waiting = queue.discard(0, BLOCK)
            submitted.set()
        return waiting

    async with blocks as device:
        discarding = device.discard(0, BLOCK)
        await asyncio.to_thread(discards.reached.wait)
        discarding.cancel()
        async with asyncio.timeout(PATIENCE):
            other = asyncio.create_task(asyncio.to_thread(elsewhere))
            await asyncio.to_thread(submitted.wait)
            discards.may_go_on.set()
            assert (await other).exception() is None


@pytest.mark.abandons_memory
async def test_a_queue_holds_until_it_is_told_of_the_loss_itself(
    loop_device: Path, discards: HeldDiscards, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the device was given up with may still land."""
    submitted = threading.Event()
    blocks = aioblk.IoUring(loop_device, num_queues=2)

    async def elsewhere() -> None:
        async with blocks.queue(1) as queue:
            writing = queue.write(0, NEW)
            await queue.read(64 * BLOCK, BLOCK)
            submitted.set()
            with pytest.raises(aioblk.DeviceLostError):
                await writing

    abandon = aioblk.Queue._abandon

    def abandon_and_let_others_run(queue: aioblk.Queue, error: aioblk.BlkioError) -> None:
        abandon(queue, error)
        time.sleep(0.02)

    monkeypatch.setattr(aioblk.Queue, "_abandon", abandon_and_let_others_run)
    async with blocks as device:
        discarding = device.discard(0, BLOCK)
        await asyncio.to_thread(discards.reached.wait)
        discarding.cancel()
        async with asyncio.timeout(PATIENCE):
            other = asyncio.create_task(asyncio.to_thread(asyncio.run, elsewhere()))
            await asyncio.to_thread(submitted.wait)
            device.abandon("as an example")
            await other
            discards.may_go_on.set()
            await device.reconnect()
            await device.write(0, NEW)


# --- files --------------------------------------------------------------------------------------------------


async def test_a_file_is_made_shorter_after_what_was_given_up(tmp_path: Path) -> None:
    async with aioblk.IoUring(tmp_path / "file", create=0) as device:
        for _ in range(20):
            zeroing = device.write_zeroes(0, 1 << 30, no_unmap=True)
            writing = device.write_zeroes(1 << 30, BLOCK)
            await asyncio.sleep(0)
            zeroing.cancel()
            writing.cancel()
            await device.truncate(BLOCK)
            assert device.capacity == BLOCK
            assert device.statistics().in_flight == 0


# --- whatever happens ---------------------------------------------------------------------------------------


async def test_what_was_acknowledged_stays(device: aioblk.Device, disk: FakeBackend) -> None:
    """Writers of a few blocks give up after random times, on a disk that takes random times."""
    chance = random.Random(7)
    disk.delay = lambda: chance.random() * 0.02
    acknowledged = {block: bytes(BLOCK) for block in range(4)}
    counts = {"given up": 0, "acknowledged": 0}

    async def use(submitter: aioblk.Device | aioblk.Queue, block: int) -> None:
        data = pattern(BLOCK, chance.randrange(1 << 30))
        try:
            async with asyncio.timeout(chance.random() * 0.03):
                await submitter.write(block * BLOCK, data)
        except TimeoutError:
            counts["given up"] += 1
            data = pattern(BLOCK, chance.randrange(1 << 30))
            await submitter.write(block * BLOCK, data)
        counts["acknowledged"] += 1
        acknowledged[block] = data
        assert await device.read(block * BLOCK, BLOCK) == data

    async def use_for_long(submitter: aioblk.Device | aioblk.Queue, block: int) -> None:
        for _ in range(25):
            await use(submitter, block)

    async with device.queue(1) as other, asyncio.timeout(PATIENCE):
        await asyncio.gather(*(use_for_long(other if block % 2 else device, block) for block in range(4)))
        while device.statistics().in_flight:  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.01)
    for block, data in acknowledged.items():
        assert disk.data[block * BLOCK : (block + 1) * BLOCK] == data
    assert counts["given up"] > 10


# --- what is in flight --------------------------------------------------------------------------------------


async def test_a_queue_tells_which_changes_it_has(device: aioblk.Device, disk: FakeBackend) -> None:
    """Each range once, with its request; not what was given up, nor what changes nothing."""
    gates = [disk.gate(WRITE, place * BLOCK) for place in (0, 4)]
    given_up, write = device.write(0, NEW), device.write(4 * BLOCK, NEW)
    await give_up(given_up, gates[0])
    await gates[1].reached()
    batch = device.write_many([(8 * BLOCK, NEW), (10 * BLOCK, OLD)])
    others = [device.read(20 * BLOCK, BLOCK), device.flush(), device.write(0, b"")]
    assert sorted(device._changes(), key=lambda change: change[0]) == [
        (4 * BLOCK, 5 * BLOCK, write),
        (8 * BLOCK, 9 * BLOCK, batch),
        (10 * BLOCK, 11 * BLOCK, batch),
    ]
    for gate in gates:
        gate.open()
    await asyncio.gather(write, batch, *others)
    assert device._changes() == []
    await device.aclose()
    assert device._changes() == []


async def test_who_asks_for_them_may_cancel_them_all(device: aioblk.Device) -> None:
    requests = [device.write(place * BLOCK, NEW) for place in range(20)]
    for _, _, request in device._changes():
        request.cancel()
    await asyncio.gather(*requests, return_exceptions=True)
    assert all(request.cancelled() for request in requests)
    assert device._changes() == []


def test_a_device_that_is_not_open_has_none(scratch_file: Path) -> None:
    assert aioblk.IoUring(scratch_file)._changes() == []
