"""A queue tries whether handing parts over in the middle of a turn pays, and does what takes less time.

What it takes is said by the tests: the clock is theirs.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest

import aioblk
from aioblk._native._core import QueueCore

from ..support.turns import Others
from .devices import BLOCK, device_on, pattern, until_held
from .library import Disk, Place, Simulator

DEPTH = 16
EPOCH = 512  # requests
MICROSECOND = 1e-6

Cost = Callable[[bool], float]
"""What a request takes, in seconds, with kicks or without."""


class User:
    """Reads in many tasks, and lets the time pass that this takes."""

    def __init__(self, simulator: Simulator, dev: aioblk.Device) -> None:
        self.core: QueueCore = dev.queue()._compiled
        self.kicked: list[bool] = []  # for each request
        self._simulator, self._dev = simulator, dev
        self._now = 5.0

    async def read(self, epochs: int, cost: Cost) -> None:
        async def some() -> None:
            for _ in range(epochs * EPOCH // DEPTH):
                await self._dev.read(0, BLOCK)
                self.kicked.append(self.core.kicks)
                self._now += cost(self.core.kicks)
                self._simulator.clock(self._now)

        self.kicked.clear()
        await asyncio.gather(*(some() for _ in range(DEPTH)))

    async def read_batches(self, count: int, length: int, cost: Cost) -> None:
        self.kicked.clear()
        for _ in range(count):
            await self._dev.read_many([(0, BLOCK)] * length)
            self.kicked.append(self.core.kicks)
            self._now += length * cost(self.core.kicks)
            self._simulator.clock(self._now)

    @property
    def share(self) -> float:
        """Of the requests, with kicks."""
        return sum(self.kicked) / len(self.kicked)


@asynccontextmanager
async def user_on(disk: Disk, simulator: Simulator, **weather: int) -> AsyncGenerator[User]:
    async with device_on(disk) as dev:
        await dev.read(0, BLOCK)  # has bounce memory mapped, in a thread
        simulator.configure(record=0, **weather)
        simulator.clock(5)
        yield User(simulator, dev)
        simulator.clock(None)


def pays(kicks: bool) -> float:
    return MICROSECOND if kicks else 2 * MICROSECOND


def costs(kicks: bool) -> float:
    return 2 * MICROSECOND if kicks else MICROSECOND


async def test_what_pays_is_done(backend: Disk, simulator: Simulator) -> None:
    async with user_on(backend, simulator, late=2) as user:
        await user.read(30, pays)
        await user.read(40, pays)
        assert user.share > 0.8


async def test_what_costs_is_tried_less_and_less(backend: Disk, simulator: Simulator) -> None:
    async with user_on(backend, simulator, late=2) as user:
        await user.read(20, costs)
        assert 0 < user.share < 0.5
        await user.read(60, costs)
        assert 0 < user.share < 0.1


async def test_what_pays_no_more_is_left(backend: Disk, simulator: Simulator) -> None:
    async with user_on(backend, simulator, late=2) as user:
        await user.read(40, pays)
        assert user.core.kicks
        await user.read(60, costs)
        await user.read(60, costs)
        assert user.share < 0.15


async def test_what_makes_no_difference_is_not_done(backend: Disk, simulator: Simulator) -> None:
    async with user_on(backend, simulator, late=2) as user:
        await user.read(40, lambda _: MICROSECOND)
        assert not user.core.kicks
        await user.read(40, lambda _: MICROSECOND)
        assert user.share < 0.1


@pytest.mark.parametrize("epochs", [4, 5])
async def test_a_program_that_rests_now_and_then_is_not_misled(
    backend: Disk, simulator: Simulator, epochs: int
) -> None:
    """A rest may fall into the same part of each trial."""
    requests = 0

    def costs_and_rests(kicks: bool) -> float:
        nonlocal requests
        requests += 1
        return costs(kicks) + (0 if requests % (epochs * EPOCH) else 8000 * MICROSECOND)

    async with user_on(backend, simulator, late=2) as user:
        await user.read(40, costs_and_rests)
        for _ in range(4):
            await user.read(40, costs_and_rests)
            assert user.share < 0.3


async def test_where_the_device_is_slow_nothing_is_learnt(backend: Disk, simulator: Simulator) -> None:
    async with user_on(backend, simulator, late=2) as user:
        await user.read(40, lambda kicks: 30 * pays(kicks))
        assert user.share < 0.1


async def test_where_all_is_done_in_the_call_nothing_is_tried(backend: Disk, simulator: Simulator) -> None:
    async with user_on(backend, simulator, late=0) as user:
        await user.read(20, pays)
        assert user.share == 0


# --- a turn with kicks --------------------------------------------------------------------------------------


async def test_parts_are_handed_over_before_the_turn_ends(backend: Disk, simulator: Simulator) -> None:
    async with device_on(backend) as dev:
        await dev.write(0, pattern(1))
        simulator.configure(late=2)

        async def some() -> None:
            for _ in range(8):
                assert await dev.read(0, BLOCK) == pattern(1)

        async def calls_of_a_flush() -> float:
            before = dev.statistics()
            await asyncio.gather(*(some() for _ in range(DEPTH)))
            after = dev.statistics()
            return (after.do_io_calls - before.do_io_calls) / (after.flushes - before.flushes)

        at_the_end = await calls_of_a_flush()
        dev.queue()._compiled.kicks = True
        assert await calls_of_a_flush() > at_the_end + 2


@pytest.mark.parametrize("kicks", [False, True])
async def test_the_first_of_a_batch_are_with_the_device_while_the_others_are_issued(
    backend: Disk, simulator: Simulator, kicks: bool
) -> None:
    async with device_on(backend) as dev:
        await dev.write(0, pattern(1))
        simulator.configure(hold=1)
        earlier = dev.read(0, BLOCK)  # or else the whole batch would be submitted at once
        await until_held(simulator, 1)
        dev.queue()._compiled.kicks = kicks
        batch = dev.read_many([(0, BLOCK)] * DEPTH)
        at_device = sum(each.place is Place.AT_DEVICE for each in simulator.requests())
        assert at_device == (DEPTH - 4 + 1 if kicks else 1)
        simulator.configure(hold=0)
        simulator.complete()
        assert [await earlier, *await batch] == [pattern(1)] * (DEPTH + 1)


@pytest.mark.parametrize(("count", "length"), [(1000, 16), (40, 1500)])
async def test_batches_count_as_what_is_in_them(
    backend: Disk, simulator: Simulator, count: int, length: int
) -> None:
    """Or else a program of batches would need hours to find out what pays, and one of long ones for ever."""
    async with user_on(backend, simulator, late=1) as user:
        await user.read_batches(count, length, lambda kicks: 4 * pays(kicks))
        await user.read_batches(count, length, lambda kicks: 4 * pays(kicks))
        assert user.share > 0.6


async def test_a_turn_with_kicks_ends_in_time(backend: Disk, simulator: Simulator) -> None:
    """What completes in a kick is woken in the same turn, and submits again: that has to end."""
    async with user_on(backend, simulator, late=1) as user:
        user.core.kicks = True
        async with Others() as others:
            await user.read(2, lambda _: 10 * MICROSECOND)
        assert others.turns > 2 * EPOCH // 100
