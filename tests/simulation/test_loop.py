"""The loop of simulated histories: what asyncio promises is kept, the rest comes from the seed."""

import asyncio
import errno
import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import aioblk
from aioblk._sync.blocking import BlockingCall, run_blocking

from .loop import SimulatedLoop, Stuck, simulated_threads

SEEDS = range(30)


@contextmanager
def loop_of(seed: int, **chances: int) -> Iterator[SimulatedLoop]:
    loop = SimulatedLoop(seed, **chances)
    with simulated_threads(loop):
        yield loop
    loop.close()


def run(seed: int, work: Callable[[], Coroutine[Any, Any, Any]], **chances: int) -> Any:
    with loop_of(seed, **chances) as loop:
        return loop.run_until_complete(work())


def test_time_passes_where_nobody_has_anything_to_do() -> None:
    async def wait() -> float:
        begin = asyncio.get_running_loop().time()
        await asyncio.sleep(86_400)
        return asyncio.get_running_loop().time() - begin

    for seed in SEEDS:
        assert 86_400 <= run(seed, wait) < 86_401


def test_timers_come_in_the_order_of_their_time() -> None:
    async def wait() -> list[int]:
        told: list[int] = []
        for number in (3, 1, 2):
            asyncio.get_running_loop().call_later(number, told.append, number)
        await asyncio.sleep(10)
        return told

    for seed in SEEDS:
        assert run(seed, wait) == [1, 2, 3]


def test_callbacks_keep_their_order_and_tasks_need_not() -> None:
    async def mix() -> tuple[list[int], list[int], list[int]]:
        loop = asyncio.get_running_loop()
        callbacks: list[int] = []
        others: list[int] = []
        tasks: list[int] = []

        async def step(number: int) -> None:
            tasks.append(number)

        running = []
        for number in range(5):
            loop.call_soon(callbacks.append, number)
            loop.call_soon_threadsafe(others.append, number)
            running.append(loop.create_task(step(number)))
        await asyncio.wait(running)
        await asyncio.sleep(1)
        return callbacks, others, tasks

    found = [run(seed, mix) for seed in SEEDS]
    assert all(callbacks == others == list(range(5)) for callbacks, others, _ in found)
    assert len({tuple(tasks) for _, _, tasks in found}) > 5
    assert found == [run(seed, mix) for seed in SEEDS]


def test_descriptors_are_found_ready_in_any_order() -> None:
    async def look() -> list[int]:
        loop = asyncio.get_running_loop()
        found: list[int] = []
        fds = [os.eventfd(1, os.EFD_NONBLOCK) for _ in range(4)]

        def take(number: int) -> None:
            loop.remove_reader(fds[number])
            found.append(number)

        for number, fd in enumerate(fds):
            loop.add_reader(fd, take, number)
        while len(found) < len(fds):  # noqa: ASYNC110
            await asyncio.sleep(0)
        for fd in fds:
            os.close(fd)
        return found

    orders = [run(seed, look) for seed in SEEDS]
    assert len(set(map(tuple, orders))) > 5
    assert orders == [run(seed, look) for seed in SEEDS]


def test_a_blocking_call_is_made_at_some_time_by_nobodys_loop() -> None:
    def function() -> int:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        return 7

    async def call() -> tuple[int, float]:
        return await run_blocking(function), asyncio.get_running_loop().time()

    times = [run(seed, call, slow_thread=500) for seed in SEEDS]
    assert all(result == 7 for result, _ in times)
    assert min(time for _, time in times) < 1000.1 < 1010 < max(time for _, time in times)


def test_a_result_that_nobody_waits_for_any_more_is_undone() -> None:
    undone: list[int] = []

    async def leave() -> None:
        call = BlockingCall(lambda: 7, undo=undone.append)
        call.drop()
        await asyncio.sleep(1000)

    for seed in SEEDS:
        run(seed, leave, slow_thread=1000)
    assert undone == [7] * len(SEEDS)


def test_a_thread_may_not_be_had() -> None:
    async def call() -> None:
        with pytest.raises(aioblk.BlkioError, match="the seed gives none") as caught:
            await run_blocking(lambda: None)
        assert caught.value.errno == errno.EAGAIN

    run(1, call, no_thread=1000)


def stuck(work: Callable[[], Coroutine[Any, Any, None]]) -> str:
    """How a loop says that it is."""
    with loop_of(1) as loop:
        task = loop.create_task(work())
        with pytest.raises(Stuck) as caught:
            loop.run_until_complete(task)
        loop.turns = 0
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            loop.run_until_complete(task)
    return str(caught.value)


def test_where_nothing_can_happen_any_more_it_is_said() -> None:
    async def wait() -> None:
        await asyncio.get_running_loop().create_future()

    assert stuck(wait) == "nothing can happen any more, and somebody waits"


def test_going_round_in_circles_ends() -> None:
    async def go_round() -> None:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(0)

    assert stuck(go_round) == "400000 turns, and it is not over"


def test_time_without_end_ends() -> None:
    async def go_on() -> None:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(10_000)

    assert stuck(go_on) == "1e+06 seconds have passed, and it is not over"


def test_a_program_may_keep_the_loop() -> None:
    async def count() -> float:
        begin = asyncio.get_running_loop().time()
        for _ in range(100):
            await asyncio.sleep(0)
        return asyncio.get_running_loop().time() - begin

    assert run(1, count) < 0.1
    assert 100 <= run(1, count, busy=1000) < 110
