"""A turn goes on with what it has itself brought about, and no longer than others can wait."""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

import pytest

import aioblk

from ..support.turns import Others
from .devices import BLOCK, device_on, pattern, until_held
from .library import Disk, Simulator

TASKS = 8
READS = 40
MICROSECOND = 1e-6


@pytest.fixture
async def dev(backend: Disk, simulator: Simulator) -> AsyncGenerator[aioblk.Device]:
    """A device that has been used, whose requests are done within the call that submits them, in no time."""
    async with device_on(backend) as dev:
        await dev.write(0, pattern(1))  # has bounce memory mapped, in a thread
        simulator.configure(late=0, record=0)
        simulator.clock(5)
        yield dev
        simulator.clock(None)


class Turns:
    """Of the loop: asyncio's asks its selector in each; uvloop's finds one descriptor readable."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._reader, writer = os.pipe()
        os.write(writer, b"x")
        os.close(writer)
        loop = asyncio.get_running_loop()
        selector = getattr(loop, "_selector", None)
        if selector is None:
            loop.add_reader(self._reader, self._next)
        else:
            select = selector.select

            def count_and_select(timeout: float | None) -> Any:
                self._next()
                return select(timeout)

            monkeypatch.setattr(selector, "select", count_and_select)

    def _next(self) -> None:
        self.count += 1

    def end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._reader)
        os.close(self._reader)


@pytest.fixture
async def turns(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Turns]:
    turns = Turns(monkeypatch)
    yield turns
    turns.end()


Some = Callable[[int], Coroutine[Any, Any, None]]
"""What one of the tasks does, whose number it is given; it begins with a request."""


async def together(dev: aioblk.Device, simulator: Simulator, some: Some, tasks: int = TASKS) -> list[Any]:
    """The outcomes of tasks whose first requests complete at once: none of them is ever alone."""
    simulator.configure(hold=1)
    begun = [asyncio.ensure_future(some(number)) for number in range(tasks)]
    await until_held(simulator, tasks)
    simulator.configure(hold=0)
    simulator.complete()
    async with asyncio.timeout(20):
        return await asyncio.gather(*begun, return_exceptions=True)


def reading(dev: aioblk.Device) -> Some:
    async def some(_: int) -> None:
        for _ in range(READS):
            assert await dev.read(0, BLOCK) == pattern(1)

    return some


def rounds(dev: aioblk.Device, on: bool) -> None:
    dev.queue()._compiled.rounds = on


async def test_what_those_submit_who_were_woken_is_done_in_the_same_turn(
    dev: aioblk.Device, simulator: Simulator, turns: Turns
) -> None:
    async def turns_of_reading() -> int:
        before = turns.count
        assert await together(dev, simulator, reading(dev)) == [None] * TASKS
        return turns.count - before

    rounds(dev, False)
    one_by_one = await turns_of_reading()
    rounds(dev, True)
    in_rounds = await turns_of_reading()
    assert one_by_one >= READS - 2
    assert in_rounds < one_by_one / 4


async def test_a_descriptor_has_its_turn_after_250_microseconds(
    dev: aioblk.Device, simulator: Simulator, turns: Turns
) -> None:
    now, done = 5.0, 0

    async def some(_: int) -> None:
        nonlocal now, done
        for _ in range(READS):
            await dev.read(0, BLOCK)
            now += 10 * MICROSECOND
            done += 1
            simulator.clock(now)

    before = turns.count
    await together(dev, simulator, some)
    in_one = 250 / 10 + 2 * TASKS  # the first round is not timed, and a round that has begun ends
    assert turns.count - before >= done / in_one


async def test_a_descriptor_has_its_turn_where_the_clock_stands_still(
    dev: aioblk.Device, simulator: Simulator, turns: Turns
) -> None:
    async def until_there_were_turns(_: int) -> None:
        await dev.read(0, BLOCK)
        while turns.count < 20:
            await dev.read(0, BLOCK)

    assert await together(dev, simulator, until_there_were_turns, 2) == [None] * 2


async def test_others_have_their_turn_after_each_round(dev: aioblk.Device, simulator: Simulator) -> None:
    async with Others() as others:
        await together(dev, simulator, reading(dev))
    if type(asyncio.get_running_loop()).__module__.startswith("asyncio"):  # uvloop does not tell of others
        assert others.turns >= READS - 2
    assert others.turns >= 2


async def test_who_waits_for_bounce_memory_gets_it_in_a_round(
    virtio_disk: Disk, simulator: Simulator
) -> None:
    async with device_on(virtio_disk, bounce_pool_size=65536) as dev:
        await dev.write(0, pattern(1))
        simulator.configure(late=0, record=0)
        length = 32768

        async def some(number: int) -> None:
            for again in range(READS):
                offset = length * (number + TASKS * (again % 2))
                await dev.write(offset, pattern(number, length))
                assert await dev.read(offset, length) == pattern(number, length)

        assert await together(dev, simulator, some, 2) == [None] * 2


async def test_batches_go_on_in_rounds_as_well(dev: aioblk.Device, simulator: Simulator) -> None:
    ranges = [(0, BLOCK)] * 4

    async def some(_: int) -> None:
        await dev.read(0, BLOCK)
        for _ in range(READS):
            assert await dev.read_many(ranges) == [pattern(1)] * 4

    assert await together(dev, simulator, some) == [None] * TASKS


async def test_what_is_cancelled_in_a_round_is_over(dev: aioblk.Device, simulator: Simulator) -> None:
    """By a task that the same round has woken, while what it cancels has been submitted in it."""
    victims: list[asyncio.Task[None] | None] = [None] * TASKS

    async def some(number: int) -> None:
        victims[number] = asyncio.current_task()
        for again in range(READS):
            await dev.read(0, BLOCK)
            if number == 4 and again == 10:
                for each in victims[:4] + victims[5:]:
                    assert each is not None
                    each.cancel()

    outcomes = await together(dev, simulator, some)
    assert outcomes[4] is None
    assert all(isinstance(each, asyncio.CancelledError) for each in outcomes[:4] + outcomes[5:])
    await dev.read(0, BLOCK)


async def test_a_device_that_is_closed_in_a_round(backend: Disk, simulator: Simulator) -> None:
    async with device_on(backend) as dev:
        await dev.write(0, pattern(1))
        simulator.configure(late=0, record=0)

        async def some(number: int) -> None:
            for again in range(READS):
                if number == 3 and again == 10:
                    await dev.aclose()
                    return
                await dev.read(0, BLOCK)

        outcomes = await together(dev, simulator, some)
        assert outcomes[3] is None
        assert all(isinstance(each, aioblk.DeviceClosedError) for each in outcomes[:3] + outcomes[4:])


async def test_what_completes_late_is_told_by_an_event(dev: aioblk.Device, simulator: Simulator) -> None:
    """The event of what a round has taken is read at its end, that of what comes after is not lost."""
    dev.queue().spin = 0
    for _ in range(20):
        assert await together(dev, simulator, reading(dev)) == [None] * TASKS


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit])
def test_what_was_submitted_before_ctrl_c_arrives_in_a_round_is_not_forgotten(
    backend: Disk, simulator: Simulator, raised: type[BaseException]
) -> None:
    loop = asyncio.new_event_loop()

    async def some(number: int) -> None:
        for again in range(READS):
            await dev.read(0, BLOCK)
            if number == 3 and again == 5:
                raise raised

    async def begin() -> list[asyncio.Task[None]]:
        await dev.open()
        await dev.write(0, pattern(1))
        simulator.configure(late=0, record=0, hold=1)
        tasks = [loop.create_task(some(number)) for number in range(TASKS)]
        await until_held(simulator, TASKS)
        return tasks

    async def finish() -> None:
        async with asyncio.timeout(20):
            await asyncio.wait(tasks)
        await dev.aclose()

    dev = device_on(backend)
    tasks = loop.run_until_complete(begin())
    simulator.configure(hold=0)
    simulator.complete()
    with pytest.raises(raised):
        loop.run_forever()
    assert isinstance(tasks.pop(3).exception(), raised)
    loop.run_until_complete(finish())
    assert not any(task.exception() for task in tasks)
    loop.close()


Ending = Callable[[], Coroutine[Any, Any, None]]


async def begin_a_round_that_ends(
    dev: aioblk.Device, simulator: Simulator, ending: Ending
) -> tuple[list[asyncio.Task[None]], aioblk.Request[bytes]]:
    """Two tasks, and a request. The first task begins a round, in which the second is woken; that has the
    request complete, which the round has not seen yet, and does the *ending*."""
    dev.queue().spin = 0
    simulator.configure(hold=1, late=0, record=0)
    first, second, third = (dev.read(at * BLOCK, BLOCK) for at in range(3))
    held = {request.start: request for request in await until_held(simulator, 3)}

    async def begins_a_round() -> None:
        await first
        simulator.complete(held[BLOCK])
        await dev.read(3 * BLOCK, BLOCK)

    async def ends_it() -> None:
        await second
        simulator.complete()
        await ending()

    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(each()) for each in (begins_a_round, ends_it)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    simulator.complete(held[0])
    return tasks, third


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit])
def test_an_exit_is_not_lost_beside_what_completes_meanwhile(
    backend: Disk, simulator: Simulator, raised: type[BaseException]
) -> None:
    """A task of a round raises it, and the hook of who drains the queue is called for what has completed."""
    loop, unhandled = asyncio.new_event_loop(), list[dict[str, Any]]()
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    dev, begun = device_on(backend), list[asyncio.Task[None]]()

    async def raises() -> None:
        raise raised

    async def begin() -> None:
        await dev.open()
        await dev.write(0, pattern(1))
        tasks, third = await begin_a_round_that_ends(dev, simulator, raises)
        begun.extend((*tasks, loop.create_task(dev.queue().drain())))
        assert not third.done()

    def run() -> None:
        loop.run_until_complete(begin())
        loop.run_forever()

    with pytest.raises(raised):
        run()
    simulator.configure(hold=0)
    simulator.complete()

    async def finish() -> None:
        async with asyncio.timeout(20):
            await asyncio.wait(begun)
        await dev.aclose()

    loop.run_until_complete(finish())
    assert isinstance(begun[1].exception(), raised)
    assert [begun[0].exception(), begun[2].exception(), *unhandled] == [None, None]
    loop.close()


async def test_what_completes_as_rounds_end_is_found(backend: Disk, simulator: Simulator) -> None:
    """Its event is read with that of what the last round has taken, and nothing else happens on the queue."""

    async def nothing() -> None:
        pass

    async with device_on(backend) as dev:
        await dev.write(0, pattern(1))
        tasks, third = await begin_a_round_that_ends(dev, simulator, nothing)
        async with asyncio.timeout(20):
            await asyncio.gather(third, *tasks)


@pytest.mark.parametrize("on", [False, True])
async def test_who_waits_for_bounce_memory_is_told_of_what_the_end_of_a_round_finds(
    virtio_disk: Disk, simulator: Simulator, on: bool
) -> None:
    async with device_on(virtio_disk, bounce_pool_size=65536) as dev:
        await dev.write(0, pattern(1))
        dev.queue().spin = 0
        rounds(dev, on)
        simulator.configure(hold=1, late=0, record=0)
        large = asyncio.ensure_future(dev.write(0, pattern(2, 256 << 10)))  # 64 KiB at a time
        first, second = dev.flush(), dev.flush()
        held = [each for each in await until_held(simulator, 3) if each.operation == "flush"]

        async def begins_a_round() -> None:
            await first
            simulator.complete(held[1])
            dev.flush().cancel()

        async def ends_it() -> None:
            await second
            simulator.configure(hold=0)
            simulator.complete()  # of the large write, a part: found at the end of the round

        tasks = [asyncio.ensure_future(each()) for each in (begins_a_round, ends_it)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        simulator.complete(held[0])
        async with asyncio.timeout(20):
            await asyncio.gather(large, *tasks)


@pytest.mark.parametrize("kicks", [False, True])
async def test_a_poll_queue_goes_on_with_a_batch_that_waits_for_bounce_memory(
    virtio_disk: Disk, simulator: Simulator, kicks: bool
) -> None:
    """What was admitted in a task has been handed over whole, and no event will tell of it."""
    options = {"num_queues": 1, "num_poll_queues": 1, "bounce_pool_size": 64 << 10}
    async with device_on(virtio_disk, **options) as dev, dev.poll_queue(0) as queue:
        queue._compiled.kicks = kicks
        pairs = [(at * 16384, pattern(at, 16384)) for at in range(12)]
        async with asyncio.timeout(20):
            await queue.write_many(pairs)
            assert await queue.read_many([(at, 16384) for at, _ in pairs]) == [data for _, data in pairs]
