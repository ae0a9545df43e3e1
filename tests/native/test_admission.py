"""A request that cannot be admitted has failed, and is over in the loop's next turn.

Until then it is in flight as any other: waited for, and cancelled, closed on or given up in between.
"""

import asyncio
import ctypes
from collections.abc import Iterator
from typing import Any, Literal

import pytest

import aioblk
from aioblk._native._core import Memory, QueueCore, View
from aioblk.testing.storage_daemon import StorageDaemon

from ..conftest import StorageDaemonFactory
from ..support.bench import BLOCK, Bench
from ..support.fake_backend import WRITE, FakeBackend
from ..support.refused_memory import new_device_core

PATIENCE = 30  # seconds
LARGEST = 64 << 10  # bytes; what a part of a real device's bounces at most


def refuse(*_: object) -> None:
    raise OSError("no room")


@pytest.fixture
def short() -> Iterator[Bench]:
    """No request finds bounce memory, and the hook that is to find some fails."""
    bench = Bench(needs_regions=True, bounce_cap=BLOCK)
    loop: Any = bench.loop
    asyncio._set_running_loop(loop)
    bench.core.on_bounce = refuse
    yield bench
    bench.end()
    asyncio._set_running_loop(None)


def counts(bench: Bench, *names: str) -> list[int]:
    statistics = bench.core.statistics()
    return [statistics[name] for name in names]


# --- in the next turn ---------------------------------------------------------------------------------------


def test_it_is_in_flight_until_the_next_turn(short: Bench) -> None:
    idle: list[int] = []
    short.core.on_idle = lambda: idle.append(short.core.in_flight)
    request = short.read()
    assert (request.done(), short.core.in_flight, idle) == (False, 1, [])
    short.loop.run()
    assert str(request.exception()) == "no room"
    assert (short.called, short.core.in_flight, idle) == ([request], 0, [0])
    assert counts(short, "submitted", "failed", "cancelled", "parts") == [1, 1, 0, 0]


def test_all_of_a_turn_fail_together_and_each_for_itself(short: Bench) -> None:
    requests = [short.read() for _ in range(3)]
    assert short.core.in_flight == 3
    short.loop.run()
    assert short.called == requests
    assert len({id(request.exception()) for request in requests}) == 3


def test_what_of_it_had_been_admitted_is_not_issued(short: Bench) -> None:
    core: Any = short.core
    core.attach_bounce(1 << 20, 2 * BLOCK, BLOCK)
    request = short.submitter.read(0, 3 * BLOCK)
    assert core.bounce_in_use == 2 * BLOCK
    short.loop.run()
    assert str(request.exception()) == "no room"
    assert (core.in_flight, core.bounce_in_use) == (0, 0)


def test_of_a_batch_the_items_that_were_admitted_go_on(short: Bench) -> None:
    core: Any = short.core
    core.attach_bounce(1 << 20, 2 * BLOCK, BLOCK)
    batch = short.submitter.read_many([(n * BLOCK, BLOCK) for n in range(4)], return_exceptions=True)
    short.loop.run()
    assert (batch.done(), core.in_flight, core.bounce_in_use) == (False, 4, 2 * BLOCK)
    core.abandon(OSError("lost"))
    assert [str(result) for result in batch.result()] == ["refused", "refused", "no room", "no room"]


def test_a_batch_of_which_nothing_is_admitted(short: Bench) -> None:
    batch = short.submitter.write_many([(n * BLOCK, bytes(BLOCK)) for n in range(4)])
    assert short.core.in_flight == 4
    short.loop.run()
    assert str(batch.exception()) == "no room"
    assert counts(short, "submitted", "failed", "in_flight") == [4, 4, 0]


def test_who_waits_for_memory_may_be_refused_it(short: Bench) -> None:
    """By the pool, when it could not grow. The first error counts."""
    short.core.on_bounce = lambda *_: None
    request = short.read()
    short.loop.run()
    assert not short.core.admit(request)
    for reason in ("no room", "still none"):
        short.core.refuse(request, OSError(reason))
    assert short.core.admit(request)
    assert not request.done()
    short.loop.run()
    assert str(request.exception()) == "no room"
    assert short.called == [request]


# --- in between ---------------------------------------------------------------------------------------------


def test_cancelled_in_between(short: Bench) -> None:
    request = short.read()
    assert request.cancel("enough")
    assert request.cancelled()
    assert short.core.in_flight == 1
    short.loop.run()
    with pytest.raises(asyncio.CancelledError, match="enough"):
        request.result()
    assert short.called == [request]
    assert counts(short, "failed", "cancelled", "in_flight") == [0, 1, 0]


def test_cancelled_in_between_with_memory_of_the_callers(short: Bench) -> None:
    """Only a part of it bounces. Nothing is written there, but that is known in the next turn only."""
    device: Any = short.device
    buffers = [bytearray(BLOCK) for _ in range(2)]
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffers[0]))
    device.add_region(address, BLOCK)
    request = short.submitter.readv(0, buffers)
    assert request.cancel()
    assert request.cancel()
    assert not request.done()
    short.loop.run()
    assert request.cancelled()
    assert counts(short, "failed", "cancelled", "in_flight") == [0, 1, 0]
    assert device.retire_region(address) == 0


def test_closed_in_between(short: Bench) -> None:
    request = short.read()
    short.core.close("closed")
    with pytest.raises(OSError, match="refused"):
        short.read()
    with pytest.raises(RuntimeError, match="1 requests are in flight"):
        short.core.dispose()
    short.loop.run()
    assert str(request.exception()) == "no room"
    short.core.dispose()


def test_given_up_in_between(short: Bench) -> None:
    """It ends once, with what it had failed with."""
    idle: list[int] = []
    short.core.on_idle = lambda: idle.append(short.core.in_flight)
    request = short.read()
    batch = short.submitter.read_many([(0, BLOCK), (BLOCK, BLOCK)])
    assert short.core.abandon(OSError("lost")) == 3
    short.loop.run()
    assert [str(each.exception()) for each in (request, batch)] == ["no room"] * 2
    assert short.called == [request]
    assert idle[-1] == 0
    assert counts(short, "failed", "in_flight") == [3, 0]


def test_recalled_in_between(short: Bench) -> None:
    """Another device comes, which has nothing to do for it."""
    request = short.read()
    short.core.recall()
    assert str(request.exception()) == "no room"
    short.loop.run()
    assert short.called == [request]
    assert short.core.in_flight == 0


@pytest.mark.parametrize("end", ["abandon", "cancel", "recall", "submit"])
def test_what_the_first_lets_go_of_may_end_the_others(short: Bench, end: str) -> None:
    """Ending a request may run Python code, which finds the others where it finds all that is in flight."""

    def submit() -> None:
        others.append(short.read())
        short.core.flush()

    ends = {
        "abandon": lambda: short.core.abandon(OSError("lost")),
        "cancel": lambda: [each.cancel() for each in others],
        "recall": short.core.recall,
        "submit": submit,
    }
    memory = Memory.from_buffer(bytearray(BLOCK), on_release=ends[end])
    others: list[aioblk.Request[bytes]] = [short.read() for _ in range(2)]
    short.submitter.write(0, View(memory))
    others += [short.read() for _ in range(2)]
    memory.close()
    short.loop.run()
    assert memory.released
    assert all(each.done() for each in others)
    assert sorted(map(id, short.called)) == sorted(map(id, others))
    assert short.core.in_flight == 0


def lose_what_waits(bench: Bench) -> None:
    """What a lost device lets go of cancels what waits, which is lost as well: nothing of it is left."""
    memory = Memory.from_buffer(bytearray(BLOCK), on_release=lambda: [each.cancel() for each in waiting])
    waiting = [bench.submitter.read_many([(0, BLOCK), (BLOCK, BLOCK)]) for _ in range(2)]
    bench.submitter.write(0, View(memory))
    memory.close()
    bench.core.abandon(OSError("lost"))
    assert memory.released
    bench.loop.run()
    assert all(each.cancelled() for each in waiting)
    assert bench.core.in_flight == 0


def test_what_waits_for_memory_may_be_cancelled_while_the_device_is_given_up(short: Bench) -> None:
    short.core.on_bounce = lambda *_: None
    lose_what_waits(short)


def test_what_is_held_may_be_cancelled_while_the_device_is_given_up(outside: Bench) -> None:
    outside.core.on_discard = lambda *_: None
    discard = outside.submitter.discard(0, 2 * BLOCK)
    discard.cancel()
    lose_what_waits(outside)


# --- what asks for memory, and what it does meanwhile -------------------------------------------------------


@pytest.mark.parametrize("before", ["cancelled", "refused", "lost"])
def test_the_hook_may_have_ended_it_before_it_fails(short: Bench, before: str) -> None:
    def end(request: aioblk.Request[Any], _need: int) -> None:
        if before == "cancelled":
            request.cancel()
        elif before == "refused":
            short.core.refuse(request, OSError("refused before"))
        else:
            short.core.abandon(OSError("lost"))
        raise OSError("no room")

    short.core.on_bounce = end
    request = short.submitter.read(0, BLOCK)
    short.loop.run()
    assert short.core.in_flight == 0
    assert request.cancelled() == (before == "cancelled")
    if before == "refused":
        assert str(request.exception()) == "refused before"
    elif before == "lost":
        assert isinstance(request.exception(), OSError)


def test_an_order_leaves_nothing_behind_the_next_turn(short: Bench) -> None:
    """Whoever submits gets it instead of the request."""

    def arrive(*_: object) -> None:
        raise KeyboardInterrupt

    short.core.on_bounce = arrive
    with pytest.raises(KeyboardInterrupt):
        short.submitter.write(0, bytes(BLOCK))
    assert short.core.in_flight == 1
    short.loop.run()
    assert counts(short, "failed", "cancelled", "in_flight") == [0, 1, 0]
    assert not short.device.has_given_up


@pytest.fixture
def daemon(storage_daemon: StorageDaemonFactory) -> StorageDaemon:
    return storage_daemon()


async def test_what_an_order_leaves_with_the_device_is_given_up() -> None:
    """That part may land yet, and nobody waits for it: what meets its range waits."""

    def arrive(*_: object) -> None:
        raise KeyboardInterrupt

    with FakeBackend() as disk:
        async with aioblk.VirtioBlkVhostUser(disk.socket, bounce_pool_size=LARGEST) as device:
            await device.read(0, LARGEST)
            core: Any = device.queue()._compiled
            as_ever, core.on_bounce = core.on_bounce, arrive
            gate = disk.gate(WRITE, 0)
            with pytest.raises(KeyboardInterrupt):
                device.write(0, b"\xff" * (2 * LARGEST))
            core.on_bounce = as_ever
            writing = device.write(0, bytes(LARGEST))
            for _ in range(3):
                await device.flush()
            assert not writing.done()
            gate.open()
            async with asyncio.timeout(PATIENCE):
                await writing
            assert await device.read(0, LARGEST) == bytes(LARGEST)


async def test_closing_a_device_waits_for_it(daemon: StorageDaemon) -> None:
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
        device.queue()._compiled.on_bounce = refuse
        request = device.read(0, BLOCK)
        waiting = asyncio.ensure_future(request)
        assert not waiting.done()
    with pytest.raises(OSError, match="no room"):
        await waiting


async def test_who_awaits_it_goes_on_in_the_next_turn(daemon: StorageDaemon) -> None:
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
        device.queue()._compiled.on_bounce = refuse
        results = await asyncio.gather(
            device.read(0, BLOCK),
            device.read_many([(0, BLOCK), (BLOCK, BLOCK)], return_exceptions=True),
            device.flush(),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [OSError, list, type(None)]
        assert device.statistics().in_flight == 0


# --- without a loop -----------------------------------------------------------------------------------------


@pytest.fixture
def alone() -> Iterator[Bench]:
    """A queue without a loop, whose requests find no memory either; libblkio is never asked."""
    bench = Bench(needs_regions=True, bounce_cap=BLOCK)
    bench.core = QueueCore(bench.device, 1, -1, None, 8)
    bench.core.on_bounce = refuse
    bench.submitter._core = bench.core
    yield bench
    bench.core.abandon(OSError("lost"))


def test_waiting_ends_it(alone: Bench) -> None:
    request = alone.submitter.read(0, BLOCK)
    assert not request.done()
    assert alone.core.wait(request, 0) is True
    assert str(request.exception()) == "no room"
    assert alone.core.in_flight == 0


def test_waiting_for_anything_ends_all(alone: Bench) -> None:
    requests = [alone.submitter.read(0, BLOCK) for _ in range(3)]
    requests[1].cancel()
    alone.core.wait(None, 0)
    assert alone.core.in_flight == 0
    assert [request.cancelled() for request in requests] == [False, True, False]


def test_a_queue_without_a_loop_may_be_given_up_in_between(alone: Bench) -> None:
    request = alone.submitter.read(0, BLOCK)
    alone.core.abandon(OSError("lost"))
    assert str(request.exception()) == "no room"
    assert alone.core.in_flight == 0


# --- while it was prepared ----------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["a loop", "no loop"])
@pytest.mark.parametrize("end", ["lost", "closed"])
def test_a_queue_that_ends_while_a_request_is_prepared_refuses_it(
    end: Literal["lost", "closed"], loop: str
) -> None:
    """In the call, as if it had ended before: on a lost device, or a closed queue, nothing is in flight."""
    reasons: list[str] = []

    def make_refusal(reason: str, *_: object) -> OSError:
        reasons.append(reason)
        return OSError(reason)

    bench = Bench(suspended=False)
    device = new_device_core(make_refusal=make_refusal)
    running: Any = bench.loop
    core = QueueCore(device, 1, -1, running if loop == "a loop" else None, 8)
    bench.submitter._core = core
    asyncio._set_running_loop(running)

    def pairs() -> Iterator[tuple[int, int]]:
        yield (0, BLOCK)
        core.close(end)
        if end == "lost":
            core.abandon(OSError("lost"))
        core.dispose()
        yield (BLOCK, BLOCK)

    try:
        with pytest.raises(OSError, match=end):
            bench.submitter.read_many(pairs())
        assert reasons == [end]
        assert core.statistics()["in_flight"] == 0
    finally:
        bench.loop.run()
        bench.core.suspend()
        bench.end()
        asyncio._set_running_loop(None)
