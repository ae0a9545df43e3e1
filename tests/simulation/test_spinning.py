"""A queue that was told nothing looks again by itself where that pays, and holds nobody up meanwhile."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

import pytest

import aioblk

from ..support.leaks import Holdings, join_threads
from .devices import BLOCK, device_on, until_held
from .library import Disk, Place, Simulator

AUTOMATIC = 100e-6


@pytest.fixture
async def dev(backend: Disk, simulator: Simulator) -> AsyncGenerator[aioblk.Device]:
    """A device that has been used, in a time that passes with each look at it."""
    before = Holdings.now()
    async with device_on(backend) as dev:
        await dev.read(0, BLOCK)  # has bounce memory mapped, in a thread
        join_threads(before)  # one that waits for the interpreter reads the clock all the while
        simulator.clock(5)
        dev.queue().spin = None  # what it has learnt until now was learnt in the machine's time
        yield dev
        simulator.clock(None)


async def test_what_comes_soon_is_looked_for_again_and_again(
    dev: aioblk.Device, simulator: Simulator
) -> None:
    simulator.configure(late=10)
    for _ in range(50):
        await dev.read(0, BLOCK)
        assert dev.queue().spin == AUTOMATIC


async def test_who_wants_to_sleep_does(dev: aioblk.Device, simulator: Simulator) -> None:
    simulator.configure(hold=1)
    dev.queue().spin = 0
    before = dev.statistics().do_io_calls
    read = dev.read(0, BLOCK)
    for _ in range(50):
        await asyncio.sleep(0)
    assert dev.statistics().do_io_calls - before <= 2
    simulator.configure(hold=0)
    simulator.complete()
    await read


async def test_what_takes_long_is_looked_for_less_and_less(dev: aioblk.Device, simulator: Simulator) -> None:
    looks: list[int] = []
    for _ in range(20):
        simulator.configure(hold=1)
        before = dev.statistics().do_io_calls
        read = dev.read(0, BLOCK)
        for _ in range(200):
            await asyncio.sleep(0)
        looks.append(dev.statistics().do_io_calls - before)
        simulator.configure(hold=0)
        simulator.complete()
        await read
    assert dev.queue().spin == 0
    assert looks[0] > 20
    assert sum(look > 5 for look in looks) < 6
    assert looks[-1] <= 2


async def test_it_ends_when_its_time_is_over(dev: aioblk.Device, simulator: Simulator) -> None:
    simulator.configure(hold=1)
    read = dev.read(0, BLOCK)
    flushes = -1
    while flushes != (flushes := dev.statistics().flushes):
        for _ in range(3):
            await asyncio.sleep(0)
    simulator.configure(hold=0)
    simulator.complete()
    await read


async def test_while_others_are_ready_it_only_looks_once_a_turn(
    dev: aioblk.Device, simulator: Simulator
) -> None:
    loop = asyncio.get_running_loop()
    if not hasattr(loop, "_ready"):  # of others, only their turns are known: a moment in each is ours
        return
    turns = 0
    handle: asyncio.Handle

    def again() -> None:
        nonlocal turns, handle
        turns += 1
        handle = loop.call_soon(again)

    handle = loop.call_soon(again)
    simulator.configure(hold=1)
    before = dev.statistics().do_io_calls
    read = dev.read(0, BLOCK)
    for _ in range(60):
        await asyncio.sleep(0)
    assert dev.statistics().do_io_calls - before <= turns + 1
    handle.cancel()
    simulator.configure(hold=0)
    simulator.complete()
    await read


async def test_what_an_event_brings_meanwhile_ends_it(dev: aioblk.Device, simulator: Simulator) -> None:
    simulator.configure(hold=1)
    read = dev.read(0, BLOCK)
    await until_held(simulator, 1)
    simulator.complete()
    await read
    flushes = dev.statistics().flushes
    for _ in range(50):
        await asyncio.sleep(0)
    assert dev.statistics().flushes - flushes <= 1


async def test_it_is_set_and_left_to_the_queue_again(dev: aioblk.Device) -> None:
    queue = dev.queue()
    assert queue.spin == AUTOMATIC
    queue.spin = 0
    assert queue.spin == 0
    queue.spin = 5e-5
    assert queue.spin == pytest.approx(5e-5)
    queue.spin = None
    assert queue.spin == AUTOMATIC
    for wrong in (-1.0, 0.002):
        with pytest.raises(aioblk.OptionError, match="or None"):
            queue.spin = wrong
    assert queue.spin == AUTOMATIC


async def test_who_decides_need_not_wait_for_what_was_in_vain_before(
    dev: aioblk.Device, simulator: Simulator
) -> None:
    queue, core = dev.queue(), dev.queue()._compiled
    simulator.configure(hold=1)
    read = dev.read(0, BLOCK)
    await until_held(simulator, 1)
    while core.spin_penalty < 7:
        core.flush()
    queue.spin = 5e-5
    before = dev.statistics().do_io_calls
    core.flush()
    assert dev.statistics().do_io_calls - before > 2
    queue.spin = None
    assert queue.spin == AUTOMATIC
    simulator.configure(hold=0)
    simulator.complete()
    await read


@pytest.mark.parametrize("tasks", [5, 8])
@pytest.mark.parametrize("kicks", [False, True])
async def test_looking_again_does_not_take_many_for_one(
    dev: aioblk.Device, simulator: Simulator, tasks: int, kicks: bool
) -> None:
    """The first of those who are woken together is not sent ahead of the others."""
    dev.queue()._compiled.kicks = kicks
    simulator.configure(hold=1)
    with_the_device: list[int] = []

    async def some() -> None:
        for _ in range(4):
            await dev.read(0, BLOCK)
            with_the_device.append(sum(each.place is Place.AT_DEVICE for each in simulator.requests()))

    reading = asyncio.gather(*(some() for _ in range(tasks)))
    for _ in range(4):
        await until_held(simulator, tasks)
        for _ in range(5):
            await asyncio.sleep(0)
        simulator.complete()
    await reading
    assert 1 not in with_the_device


async def test_ctrl_c_while_the_loop_is_asked_for_others_is_not_lost(
    dev: aioblk.Device, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ready(deque[asyncio.Handle]):
        def __len__(self) -> int:
            raise KeyboardInterrupt

    loop = asyncio.get_running_loop()
    if not hasattr(loop, "_ready"):
        return
    simulator.configure(hold=1)
    read = dev.read(0, BLOCK)
    await until_held(simulator, 1)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_ready", Ready())
        with pytest.raises(KeyboardInterrupt):
            dev.queue()._compiled.flush()
    simulator.configure(hold=0)
    simulator.complete()
    await read
