"""WaitQueue: order, places that are kept, and wake-ups that are never lost."""

import asyncio
from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aioblk._sync.wait_queue import WaitQueue

from ..support.turns import DrivenLoop, turns


async def waiting_tasks(queue: WaitQueue, names: str, log: list[str]) -> list["asyncio.Task[None]"]:
    async def wait(name: str) -> None:
        await queue.wait()
        log.append(name)

    tasks = [asyncio.create_task(wait(name)) for name in names]
    await turns()
    return tasks


# --- order --------------------------------------------------------------------------------------------------


async def test_wakes_in_the_order_of_arrival() -> None:
    queue, log = WaitQueue(), list[str]()
    tasks = await waiting_tasks(queue, "abcd", log)
    assert queue.notify() == 1
    await turns()
    assert log == ["a"]
    assert queue.notify(2) == 2
    await turns()
    assert log == ["a", "b", "c"]
    assert queue.notify_all() == 1
    await asyncio.gather(*tasks)
    assert log == ["a", "b", "c", "d"]


async def test_notify_without_waiters_is_forgotten() -> None:
    queue, log = WaitQueue(), list[str]()
    assert queue.notify() == 0
    assert queue.notify(-1) == 0
    [task] = await waiting_tasks(queue, "a", log)
    assert not task.done()
    queue.notify()
    await task


async def test_front_is_ahead_of_everybody() -> None:
    queue, log = WaitQueue(), list[str]()

    async def wait_twice() -> None:
        await queue.wait()
        await queue.wait(front=True)
        log.append("head")

    tasks = [asyncio.create_task(wait_twice()), *await waiting_tasks(queue, "bc", log)]
    queue.notify()
    await turns()
    assert log == []
    queue.notify()
    await turns()
    assert log == ["head"]
    queue.notify_all()
    await asyncio.gather(*tasks)
    assert log == ["head", "b", "c"]


async def test_a_woken_task_holds_its_place_until_it_runs() -> None:
    queue, log = WaitQueue(), list[str]()
    [task] = await waiting_tasks(queue, "a", log)
    queue.notify()
    assert len(queue) == 1
    assert queue
    assert (queue.statistics().tasks_waiting, queue.statistics().tasks_woken) == (0, 1)
    await task
    assert len(queue) == 0
    assert not queue


async def test_notify_head_wakes_one_at_a_time() -> None:
    queue, log = WaitQueue(), list[str]()
    tasks = await waiting_tasks(queue, "ab", log)
    assert queue.notify_head()
    assert not queue.notify_head()
    await turns()
    assert log == ["a"]
    assert queue.notify_head()
    await asyncio.gather(*tasks)
    assert not queue.notify_head()


# --- cancellation -------------------------------------------------------------------------------------------


async def test_a_cancelled_task_leaves_at_once() -> None:
    queue, log = WaitQueue(), list[str]()
    first, second = await waiting_tasks(queue, "ab", log)
    first.cancel()
    assert len(queue) == 1  # although the task has not run yet
    queue.notify()
    await second
    assert log == ["b"]
    assert first.cancelled()


async def test_a_woken_and_cancelled_task_passes_its_wake_up_on() -> None:
    queue, log = WaitQueue(), list[str]()
    first, second = await waiting_tasks(queue, "ab", log)
    queue.notify()
    first.cancel()
    await second
    assert log == ["b"]
    assert first.cancelled()
    assert len(queue) == 0


async def test_a_wake_up_passes_through_any_number_of_cancelled_tasks() -> None:
    queue, log = WaitQueue(), list[str]()
    *cancelled, last = await waiting_tasks(queue, "abcdefgh", log)
    queue.notify()
    for task in cancelled:
        task.cancel()
    await last
    assert log == ["h"]


async def test_timeout_while_waiting() -> None:
    queue = WaitQueue()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await queue.wait()
    assert len(queue) == 0


# --- loops --------------------------------------------------------------------------------------------------


async def test_is_bound_to_one_loop_while_in_use() -> None:
    queue, log = WaitQueue(), list[str]()
    tasks = await waiting_tasks(queue, "a", log)
    with pytest.raises(RuntimeError, match="another event loop"):
        await asyncio.to_thread(lambda: asyncio.run(queue.wait()))
    queue.notify()
    await asyncio.gather(*tasks)


async def test_repr_tells_the_state() -> None:
    assert repr(WaitQueue()) == "<WaitQueue waiting=0 woken=0>"


# --- the documented use -------------------------------------------------------------------------------------


class Stock:
    """What the documentation of WaitQueue shows."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.queue = WaitQueue()

    async def take(self, amount: int) -> None:
        try:
            if self.queue or self.free < amount:
                await self.queue.wait()
                while self.free < amount:
                    await self.queue.wait(front=True)
            self.free -= amount
        finally:
            self.queue.notify_head()

    def give(self, amount: int) -> None:
        self.free += amount
        self.queue.notify_head()


async def test_ten_thousand_tasks_are_served_in_order() -> None:
    stock, served = Stock(64), list[int]()

    async def customer(number: int) -> None:
        amount = 1 + number * 7 % 64
        await stock.take(amount)
        served.append(number)
        await asyncio.sleep(0)
        stock.give(amount)

    async with asyncio.TaskGroup() as group:
        for number in range(10_000):
            group.create_task(customer(number))
    assert served == list(range(10_000))
    assert stock.free == 64
    assert len(stock.queue) == 0


async def test_two_gifts_in_one_turn_do_not_let_the_second_task_overtake_the_first() -> None:
    stock, served = Stock(0), list[str]()

    async def customer(name: str, amount: int) -> None:
        await stock.take(amount)
        served.append(name)

    async with asyncio.TaskGroup() as group:
        group.create_task(customer("large", 3))
        group.create_task(customer("small", 1))
        await turns()
        stock.give(1)
        stock.give(1)
        await turns()
        assert served == []
        stock.give(2)
    assert served == ["large", "small"]


async def test_a_large_need_is_not_starved_by_small_ones() -> None:
    stock, served = Stock(4), list[str]()
    for _ in range(4):
        await stock.take(1)

    async def customer(name: str, amount: int) -> None:
        await stock.take(amount)
        served.append(name)
        stock.give(amount)

    async with asyncio.TaskGroup() as group:
        group.create_task(customer("large", 4))
        for _ in range(10):
            group.create_task(customer("small", 1))
        await turns()
        for _ in range(4):
            assert served == []
            stock.give(1)
            await turns()
    assert served == ["large", *["small"] * 10]


async def test_giving_up_at_the_head_lets_the_next_one_try() -> None:
    stock = Stock(1)
    large = asyncio.create_task(stock.take(2))
    await turns()
    small = asyncio.create_task(stock.take(1))
    await turns()
    assert not small.done()
    large.cancel()
    await small
    assert stock.free == 0


# --- against a model ----------------------------------------------------------------------------------------


class WaitQueueMachine(RuleBasedStateMachine):
    """Tasks wait, are woken and are cancelled in every order; between the turns of the loop everything is
    checked.

    The model keeps what asyncio keeps: the tasks that are ready to run, in order. Each runs to its next wait.
    """

    loop_name = "asyncio"

    def __init__(self) -> None:
        super().__init__()
        self.driven = DrivenLoop(self.loop_name)
        self.queue = WaitQueue()
        self.tasks: list[asyncio.Task[None]] = []
        self.log: list[int] = []
        self.expected_log: list[int] = []
        # the model
        self.ready: deque[int] = deque()
        self.starting: dict[int, bool] = {}  # task -> front
        self.waiting: deque[int] = deque()
        self.woken: set[int] = set()
        self.cancelled: set[int] = set()

    def teardown(self) -> None:
        self.driven.close()

    @initialize()
    def nothing(self) -> None:
        assert len(self.queue) == 0

    @rule(front=st.booleans())
    def join(self, front: bool) -> None:
        number = len(self.tasks)

        async def wait() -> None:
            await self.queue.wait(front)
            self.log.append(number)

        self.tasks.append(self.driven.loop.create_task(wait()))
        self.starting[number] = front
        self.ready.append(number)

    @rule(n=st.integers(0, 3))
    def notify(self, n: int) -> None:
        assert self.queue.notify(n) == min(n, len(self.waiting))
        self.model_notify(n)

    def model_notify(self, n: int) -> None:
        for _ in range(min(n, len(self.waiting))):
            number = self.waiting.popleft()
            self.woken.add(number)
            self.ready.append(number)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.tasks) - 1))
        if self.tasks[number].cancel():
            self.cancelled.add(number)
            if number in self.waiting:
                self.waiting.remove(number)
                self.ready.append(number)

    @rule()
    def turn(self) -> None:
        self.driven.settle()
        while self.ready:
            number = self.ready.popleft()
            if number in self.starting:
                front = self.starting.pop(number)
                if number not in self.cancelled:
                    (self.waiting.appendleft if front else self.waiting.append)(number)
            elif number in self.woken:
                self.woken.remove(number)
                if number in self.cancelled:
                    self.model_notify(1)
                else:
                    self.expected_log.append(number)
        self.driven.settle(len(self.tasks))

    @invariant()
    def agrees_with_the_model(self) -> None:
        statistics = self.queue.statistics()
        assert statistics.tasks_waiting == len(self.waiting)
        assert statistics.tasks_woken == len(self.woken)
        assert len(self.queue) == len(self.waiting) + len(self.woken)
        assert self.log == self.expected_log


class UvloopWaitQueueMachine(WaitQueueMachine):
    loop_name = "uvloop"


TestWaitQueueOnAsyncio = WaitQueueMachine.TestCase
TestWaitQueueOnUvloop = UvloopWaitQueueMachine.TestCase
TestWaitQueueOnAsyncio.settings = TestWaitQueueOnUvloop.settings = settings(
    max_examples=50, stateful_step_count=30, deadline=None
)
