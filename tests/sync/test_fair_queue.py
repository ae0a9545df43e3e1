"""FairQueue: lanes, weights, what is a lane's own, and grants that are never lost."""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aioblk._sync.fair_queue import UNIT, FairQueue, Lane

from ..support.turns import DrivenLoop, turns


class Stock:
    """Amounts of something, of which lanes may have some for themselves."""

    def __init__(self, free: int, own: dict[Lane, int] | None = None) -> None:
        self.queue = FairQueue()
        self.free = free
        self.own = own or {}
        self.served: list[str] = []

    async def take(self, lane: Lane, amount: int, name: str = "") -> None:
        await self.queue.wait(lane, partial(self.attempt, lane, amount), self.give)
        self.served.append(name)

    def attempt(self, lane: Lane, amount: int, in_turn: bool) -> tuple[int, float] | None:
        if self.own.get(lane, 0) >= amount:
            self.own[lane] -= amount
            return 0, 0
        if not in_turn or self.free < amount:
            return None
        self.free -= amount
        return amount, amount

    def give(self, amount: int) -> None:
        self.free += amount
        self.queue.serve()


async def begin(stock: Stock, lane: Lane, amount: int, *names: str) -> list["asyncio.Task[None]"]:
    tasks = [asyncio.create_task(stock.take(lane, amount, name)) for name in names]
    await turns()
    return tasks


# --- order --------------------------------------------------------------------------------------------------


async def test_what_is_there_is_had_at_once() -> None:
    stock, lane = Stock(2), Lane()
    task = asyncio.create_task(stock.take(lane, 2))
    await asyncio.sleep(0)
    assert task.done()
    assert (stock.free, stock.queue.waiting) == (0, 0)


async def test_lanes_take_turns_and_each_is_in_order() -> None:
    stock, one, other = Stock(0), Lane(), Lane()
    tasks = await begin(stock, one, 1, "a", "b", "c") + await begin(stock, other, 1, "x", "y")
    for _ in tasks:
        stock.give(1)
    await asyncio.gather(*tasks)
    assert stock.served == ["a", "x", "b", "y", "c"]


async def test_who_begins_to_wait_has_saved_up_nothing() -> None:
    stock, busy, idle = Stock(0), Lane(), Lane()
    tasks = await begin(stock, busy, 1, *"abcdef")
    for _ in "abc":
        stock.give(1)
    tasks += await begin(stock, idle, 1, *"xyz")
    for _ in tasks[3:]:
        stock.give(1)
    await asyncio.gather(*tasks)
    assert stock.served == [*"abcxdyezf"]


async def test_nobody_overtakes_who_needs_much_in_any_lane() -> None:
    stock, one, other = Stock(0), Lane(), Lane()
    tasks = await begin(stock, one, 4, "large") + await begin(stock, other, 1, "small")
    stock.give(3)
    await turns()
    assert stock.served == []
    stock.give(1)
    await tasks[0]
    stock.give(4)
    await tasks[1]


async def test_what_is_a_lanes_own_stands_in_no_order_but_the_lanes() -> None:
    own, other = Lane(), Lane()
    stock = Stock(0, {own: 0})
    tasks = await begin(stock, other, 1, "other") + await begin(stock, own, 1, "a", "b")
    stock.own[own] = 3
    stock.queue.serve(own)
    await turns()
    assert stock.served == ["a", "b"]
    stock.give(1)
    await tasks[0]
    assert own.clock == 0 < other.clock


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), 1e-7, 1e7])
def test_weights_have_a_range(weight: float) -> None:
    with pytest.raises(ValueError, match="weight must be from 1e-06 to 1e"):
        Lane(weight)


@given(st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=4), st.integers(1, 200))
@settings(max_examples=50, deadline=None)
def test_lanes_that_always_wait_get_what_their_weights_say(weights: list[float], grants: int) -> None:
    """To a grant: no lane's clock is ever further from another's than the larger of their steps."""

    async def run() -> None:
        stock, lanes, counts = Stock(0), [Lane(weight) for weight in weights], [0] * len(weights)

        async def keep_asking(number: int) -> None:
            while True:
                await stock.take(lanes[number], 1)
                counts[number] += 1

        tasks = [asyncio.create_task(keep_asking(number)) for number in range(len(lanes)) for _ in "ab"]
        await turns()
        for _ in range(grants):
            stock.give(1)
            await turns(2)
            steps = [int(UNIT / weight) for weight in weights]
            clocks = [count * step for count, step in zip(counts, steps, strict=True)]
            assert max(clocks) - min(clocks) <= max(steps)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert sum(counts) == grants

    with asyncio.Runner() as runner:
        runner.run(run())


async def test_a_small_cost_counts_after_any_number_of_large_ones() -> None:
    stock, heavy, light = Stock(0), Lane(1e6), Lane(1e-6)
    tasks = await begin(stock, light, 1, "a", "b")
    stock.give(1)
    before = heavy.clock = stock.queue._clock = light.clock  # far ahead
    tasks += await begin(stock, heavy, 1, "x", "y")
    for _ in range(3):
        stock.give(1)
    await asyncio.gather(*tasks)
    assert heavy.clock - before == 2 * int(UNIT / 1e6)


async def test_where_nobody_waits_any_more_nobody_owes_anything() -> None:
    stock, light, other = Stock(0), Lane(1e-6), Lane()
    tasks = await begin(stock, light, 1, "a")
    stock.give(1)
    await asyncio.gather(*tasks)
    tasks = await begin(stock, light, 1, "b") + await begin(stock, other, 1, *"vwxyz")
    stock.give(1)
    await turns()
    assert stock.served == ["a", "b"], "it came first, and has nothing to make good for"
    for _ in range(5):
        stock.give(1)
    await asyncio.gather(*tasks)


# --- cancellation and errors --------------------------------------------------------------------------------


async def test_a_cancelled_task_leaves_at_once_and_its_lane_with_it() -> None:
    stock, one, other = Stock(0), Lane(), Lane()
    [first] = await begin(stock, one, 1, "first")
    [second] = await begin(stock, other, 1, "second")
    first.cancel()
    assert stock.queue.waiting == 1
    stock.give(1)
    await second
    assert first.cancelled()


async def test_what_was_granted_to_a_cancelled_task_goes_to_the_next_ones() -> None:
    stock, lane = Stock(0), Lane()
    *cancelled, last = await begin(stock, lane, 1, *"abcdefgh")
    stock.give(1)
    for task in cancelled:
        task.cancel()
    await last
    assert stock.served == ["h"]
    assert stock.free == 0


async def test_a_cancelled_head_lets_those_behind_it_have_what_is_there() -> None:
    stock, lane = Stock(1), Lane()
    [large] = await begin(stock, lane, 2, "large")
    [small] = await begin(stock, lane, 1, "small")
    large.cancel()
    await small
    assert stock.served == ["small"]


async def test_an_error_of_an_attempt_is_its_tasks_alone() -> None:
    stock, lane, fails = Stock(1), Lane(), True

    def attempt(in_turn: bool) -> tuple[int, float] | None:
        if fails:
            raise MemoryError("never")
        return None

    fails = False
    bad = asyncio.create_task(stock.queue.wait(lane, attempt, stock.give))
    await turns()
    [good] = await begin(stock, lane, 1, "good")
    fails = True
    stock.queue.serve()
    with pytest.raises(MemoryError, match="never"):
        await bad
    await good
    assert stock.queue.waiting == 0


async def test_an_error_for_a_task_that_is_cancelled_meanwhile_is_forgotten() -> None:
    stock, lane, fails = Stock(1), Lane(), False

    def attempt(in_turn: bool) -> tuple[int, float] | None:
        if fails:
            raise MemoryError("never")
        return None

    task = asyncio.create_task(stock.queue.wait(lane, attempt, stock.give))
    await turns()
    fails = True
    stock.queue.serve()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_what_an_attempt_gives_back_is_served_when_it_is_through() -> None:
    stock, lane, depth = Stock(0), Lane(), 0

    def attempt(in_turn: bool) -> tuple[int, float] | None:
        nonlocal depth
        depth += 1
        assert depth == 1
        if stock.free == 0:
            stock.give(1)
        depth -= 1
        return stock.attempt(lane, 2, in_turn)

    task = asyncio.create_task(stock.queue.wait(lane, attempt, stock.give))
    await turns()
    assert not task.done()
    stock.give(1)
    await task
    assert stock.free == 0


@pytest.mark.parametrize("succeeds", [False, True])
async def test_an_attempt_that_cancels_its_own_task_takes_nothing(succeeds: bool) -> None:
    stock, lane, ready = Stock(0), Lane(), False

    def attempt(in_turn: bool) -> tuple[int, float] | None:
        if not ready:
            return None
        task.cancel()
        if not succeeds:
            raise MemoryError("never")
        return stock.attempt(lane, 1, in_turn=True)

    task = asyncio.create_task(stock.queue.wait(lane, attempt, stock.give))
    await turns()
    [other] = await begin(stock, lane, 1, "other")
    ready = True
    stock.give(1)
    await other
    assert task.cancelled()
    assert (stock.free, stock.queue.waiting) == (0, 0)


async def test_is_bound_to_one_loop_while_in_use() -> None:
    stock, lane = Stock(0), Lane()
    [task] = await begin(stock, lane, 1, "a")
    with pytest.raises(RuntimeError, match="<FairQueue waiting=1 lanes=1> is in use on another event loop"):
        await asyncio.to_thread(lambda: asyncio.run(stock.take(lane, 1)))
    stock.give(1)
    await task
    await asyncio.to_thread(lambda: asyncio.run(asyncio.wait_for(Stock(1).take(Lane(), 1), None)))


# --- against a model ----------------------------------------------------------------------------------------


@dataclass
class ModelLane:
    weight: float
    own: int
    clock: float = 0.0
    since: int = 0
    waiting: deque[tuple[int, int]] = field(default_factory=deque)  # number and amount


class FairQueueMachine(RuleBasedStateMachine):
    """Tasks of three lanes take from a stock and from what is their lane's own, give back and are cancelled,
    in every order and in the turn in which they are granted something.

    The model has floats for clocks, with weights and costs that are powers of two, and looks at every lane.
    """

    loop_name = "asyncio"
    total = 8

    def __init__(self) -> None:
        super().__init__()
        self.driven = DrivenLoop(self.loop_name)
        self.queue = FairQueue()
        self.lanes = [Lane(weight) for weight in (1.0, 2.0, 0.25)]
        self.free = self.total
        self.own = [0, 1, 2]
        self.tasks: list[asyncio.Task[None]] = []
        self.has: dict[int, tuple[int, int]] = {}  # task -> lane, amount, of which it has run
        # the model
        self.model = [ModelLane(lane.weight, own) for lane, own in zip(self.lanes, self.own, strict=True)]
        self.left = self.total
        self.clock = 0.0
        self.places = 0
        self.granted: dict[int, tuple[int, int, int]] = {}  # task -> lane, from its own, from the stock
        self.fresh: list[int] = []  # granted, and not run since
        self.gone: set[int] = set()

    def teardown(self) -> None:
        self.driven.close()

    # --- what is tested

    async def take(self, number: int, lane: int, amount: int) -> None:
        give = partial(self.give, lane)
        await self.queue.wait(self.lanes[lane], partial(self.attempt, lane, amount), give)
        self.has[number] = lane, amount

    def attempt(self, lane: int, amount: int, in_turn: bool) -> tuple[tuple[int, int], float] | None:
        mine = min(amount, self.own[lane])
        rest = amount - mine
        if rest and (not in_turn or self.free < rest):
            return None
        self.own[lane] -= mine
        self.free -= rest
        return (mine, rest), rest / self.total

    def give(self, lane: int, parts: tuple[int, int]) -> None:
        self.own[lane] += parts[0]
        self.free += parts[1]
        self.queue.serve(self.lanes[lane])

    # --- the model

    def fits(self, lane: ModelLane, in_turn: bool) -> bool:
        rest = lane.waiting[0][1] - lane.own
        return rest <= 0 or (in_turn and rest <= self.left)

    def grant(self, index: int) -> None:
        lane = self.model[index]
        number, amount = lane.waiting.popleft()
        mine = min(amount, lane.own)
        lane.own -= mine
        self.left -= amount - mine
        if amount > mine:
            self.clock = max(self.clock, lane.clock)
            lane.clock += (amount - mine) / self.total / lane.weight
            self.places += 1
            lane.since = self.places
        self.granted[number] = index, mine, amount - mine
        self.fresh.append(number)
        self.forget_debts()

    def forget_debts(self) -> None:
        """Where nobody waits any more."""
        if not any(lane.waiting for lane in self.model):
            self.clock = max(self.clock, *(lane.clock for lane in self.model))

    def serve(self) -> None:
        while True:
            waiting = [index for index, lane in enumerate(self.model) if lane.waiting]
            own = [index for index in waiting if self.fits(self.model[index], in_turn=False)]
            first = min(waiting, key=lambda i: (self.model[i].clock, self.model[i].since), default=None)
            if own:
                self.grant(own[0])
            elif first is not None and self.fits(self.model[first], in_turn=True):
                self.grant(first)
            else:
                return

    def model_give(self, number: int) -> None:
        index, mine, rest = self.granted.pop(number)
        self.model[index].own += mine
        self.left += rest
        self.serve()

    # --- rules

    @rule(lane=st.integers(0, 2), amount=st.sampled_from([0, 1, 2, 4, 8]))
    def join(self, lane: int, amount: int) -> None:
        number = len(self.tasks)
        self.tasks.append(self.driven.loop.create_task(self.take(number, lane, amount)))
        self.driven.settle(1)
        self.run()
        model = self.model[lane]
        if not model.waiting:
            model.clock = max(model.clock, self.clock)
            self.places += 1
            model.since = self.places
        model.waiting.append((number, amount))
        self.serve()
        self.driven.settle(1)
        self.run()

    @precondition(lambda self: self.has)
    @rule(data=st.data(), cancel=st.sets(st.integers(0, 7)))
    def give_back(self, data: st.DataObject, cancel: set[int]) -> None:
        """And cancel some of those who are granted something by that, before they run."""
        number = data.draw(st.sampled_from(sorted(self.has)))
        lane, _ = self.has.pop(number)
        parts = self.granted[number][1:]
        self.give(lane, parts)
        self.model_give(number)
        for index in sorted(cancel):
            if index < len(self.fresh):
                self.cancel_number(self.fresh[index])
        self.driven.settle(len(self.tasks) + 2)
        self.finish_cancelled()
        self.run()

    @precondition(lambda self: any(lane.waiting for lane in self.model))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        waiting = [number for lane in self.model for number, _ in lane.waiting]
        self.cancel_number(data.draw(st.sampled_from(waiting)))
        assert self.queue.waiting == sum(len(lane.waiting) for lane in self.model)  # before it runs
        self.driven.settle(len(self.tasks) + 2)
        self.serve()
        self.run()

    def cancel_number(self, number: int) -> None:
        assert self.tasks[number].cancel()
        self.gone.add(number)
        for lane in self.model:
            lane.waiting = deque(each for each in lane.waiting if each[0] != number)
        self.forget_debts()

    def finish_cancelled(self) -> None:
        """In the order in which they run, those that were cancelled give back what they were granted."""
        index = 0
        while index < len(self.fresh):
            number = self.fresh[index]
            index += 1
            if number in self.gone:
                self.model_give(number)
        self.fresh = [number for number in self.fresh if number not in self.gone]

    def run(self) -> None:
        self.driven.settle(2)
        self.fresh.clear()

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert self.queue.waiting == sum(len(lane.waiting) for lane in self.model)
        assert self.free == self.left >= 0
        assert self.own == [lane.own for lane in self.model]
        assert set(self.has) == set(self.granted)
        assert [task.cancelled() for task in self.tasks] == [n in self.gone for n in range(len(self.tasks))]
        assert len(self.queue._order) == sum(bool(lane.waiting) for lane in self.model)


class UvloopFairQueueMachine(FairQueueMachine):
    loop_name = "uvloop"


TestFairQueueOnAsyncio = FairQueueMachine.TestCase
TestFairQueueOnUvloop = UvloopFairQueueMachine.TestCase
TestFairQueueOnAsyncio.settings = TestFairQueueOnUvloop.settings = settings(
    max_examples=50, stateful_step_count=30, deadline=None
)
