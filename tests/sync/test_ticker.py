"""A ticker ticks on its loop until it is stopped, and keeps nothing then."""

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import Any, cast

import pytest

from aioblk._sync.ticker import Ticker

from ..conftest import LoopError

SOON = 0.001  # seconds
NEVER = 3600.0
PATIENCE = 15


class Watch:
    """Is called by a ticker of its own, as those are that have one."""

    def __init__(self, every: float, *, until: int = 1) -> None:
        self.ticks = 0
        self.done = asyncio.Event()
        self.until = until
        self.ticker = Ticker(asyncio.get_running_loop(), every, self.tick)

    def tick(self) -> None:
        self.ticks += 1
        if self.ticks == self.until:
            self.done.set()

    async def until_done(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.done.wait()


async def test_it_ticks_until_it_is_stopped() -> None:
    stopped, other = Watch(SOON, until=3), Watch(SOON)
    await stopped.until_done()
    assert stopped.ticker.is_running
    stopped.ticker.stop()
    assert not stopped.ticker.is_running
    ticks, other.until = stopped.ticks, other.ticks + 5
    other.done.clear()
    await other.until_done()
    other.ticker.stop()
    assert stopped.ticks == ticks


async def test_the_first_tick_comes_after_the_time_and_not_at_once() -> None:
    watch = Watch(NEVER)
    await asyncio.sleep(0)
    assert (watch.ticks, watch.ticker.is_running) == (0, True)
    watch.ticker.stop()
    watch.ticker.stop()  # idempotent


async def test_a_tick_may_stop_it() -> None:
    ticks = 0
    later = Watch(NEVER)

    def tick() -> None:
        nonlocal ticks
        ticks += 1
        ticker.stop()
        later.ticker.stop()
        later.ticker = Ticker(asyncio.get_running_loop(), SOON, later.tick)  # due when the next one would be

    ticker = Ticker(asyncio.get_running_loop(), SOON, tick)
    later.until = 2
    await later.until_done()
    later.ticker.stop()
    assert (ticks, ticker.is_running) == (1, False)


async def test_a_tick_that_raises_is_told_to_the_loop_and_the_next_one_comes(
    loop_errors: list[LoopError],
) -> None:
    ended = asyncio.Event()

    def tick() -> None:
        if len(loop_errors) == 2:
            ended.set()
            return
        raise ValueError("of this tick")

    ticker = Ticker(asyncio.get_running_loop(), SOON, tick)
    async with asyncio.timeout(PATIENCE):
        await ended.wait()
    ticker.stop()
    assert [str(error["exception"]) for error in loop_errors] == ["of this tick"] * 2
    loop_errors.clear()


@pytest.mark.parametrize("every", [SOON, NEVER], ids=["has ticked", "has not"])
async def test_who_stopped_his_ticker_is_in_no_circle_with_it(every: float) -> None:
    watch = Watch(every)
    if every == SOON:
        await watch.until_done()
    watch.ticker.stop()
    gone = weakref.ref(watch)
    gc.disable()
    try:
        del watch
        assert gone() is None
    finally:
        gc.enable()


def test_ticks_that_could_not_come_are_not_made_up_for() -> None:
    """Each asks for the next one only, from when it comes."""
    asked: list[tuple[float, Callable[[], None]]] = []

    class Loop:
        def call_later(self, delay: float, callback: Callable[..., None], *arguments: Any) -> object:
            asked.append((delay, lambda: callback(*arguments)))
            return None

    ticks: list[int] = []
    Ticker(cast(asyncio.AbstractEventLoop, Loop()), 2.5, lambda: ticks.append(len(asked)))
    for turn in range(3):
        delay, run = asked[turn]
        assert (len(asked), delay) == (turn + 1, 2.5)
        run()
    assert ticks == [2, 3, 4], "the next one is asked for before what may raise is called"
