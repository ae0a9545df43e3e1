"""A queue of waiting tasks in lanes, which take turns by their weights."""

import asyncio
import bisect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeAlias, TypeVar, final

from .loops import running_loop

__all__ = ["FairQueue", "Lane"]

T = TypeVar("T")

Attempt: TypeAlias = Callable[[bool], "tuple[T, float] | None"]
"""Takes what its task waits for, and says what that costs, or None where it cannot be had now.

Called with False, it takes only what is the lane's own and stands in nobody's order, at no cost. An exception
is its task's.
"""

LEAST_WEIGHT, MOST_WEIGHT = 1e-6, 1e6
UNIT = 1 << 64  # of the clocks, for a cost of 1: integers never become too large for a small cost to count


@final
class Lane:
    """Those who wait one after the other, for example the requests of one client."""

    __slots__ = ("clock", "place", "turns", "weight")

    def __init__(self, weight: float = 1.0) -> None:
        """Beside a lane of weight 1 it gets *weight* times as much, while both wait.

        Raises:
            ValueError: the weight is not from a millionth to a million.
        """
        if not LEAST_WEIGHT <= weight <= MOST_WEIGHT:
            raise ValueError(f"weight must be from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}, not {weight}")
        self.weight: float = float(weight)
        self.clock: int = 0
        """What it has been granted, by its weight, while others waited as well."""
        self.turns: OrderedDict[_Turn[Any], None] = OrderedDict()
        self.place: tuple[int, int, Lane] | None = None
        """In the order of the lanes, while anybody waits in it."""


class _Turn(asyncio.Future[T], Generic[T]):
    """Of a waiting task. It leaves the queue in the moment it is cancelled, long before its task runs."""

    __slots__ = ("attempt", "give_back", "lane", "queue")

    queue: "FairQueue"
    lane: Lane
    attempt: "Attempt[T]"
    give_back: Callable[[T], object]

    def cancel(self, msg: Any | None = None) -> bool:
        self.queue._leave(self)  # pyright: ignore[reportPrivateUsage]
        return super().cancel(msg)


@final
class FairQueue:
    """Tasks waiting in lanes: in each in the order of their arrival, and among lanes by weight.

    The queue knows nothing of what is waited for. Whoever owns that tries for the waiting tasks::

        async def take(lane, amount):
            return await queue.wait(lane, partial(attempt, amount), give)

        def attempt(amount, in_turn):
            global free
            if not in_turn or free < amount:
                return None
            free -= amount
            return amount, amount

        def give(amount):
            global free
            free += amount
            if queue.waiting:
                queue.serve()

    A lane's clock advances by cost / weight with each grant, and the lane whose clock is behind is next
    (start-time fair queueing). A lane that begins to wait sets its clock to that of the grant before: it has
    saved up nothing. Where nobody waits any more, nobody owes anything either. Owners that grant without the
    queue while nobody waits charge nothing for it.

    *   **Nobody overtakes**: where the next one cannot have what it waits for, all lanes wait, so that it is
        there for it in the end. Only what is a lane's own stands in no order but the lane's.
    *   A task is **granted** what it waits for when it is there, and not woken to try: nobody takes it away
        before the task runs.
    *   **Nothing is lost**: what was granted to a task that is cancelled before it runs is given back.

    Belongs to the event loop of those who wait; not safe to use from several threads.
    """

    __slots__ = ("_again", "_clock", "_due", "_latest", "_loop", "_order", "_places", "_serving", "waiting")

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self.waiting: int = 0
        """Tasks that have not been granted what they wait for. While there are any, a newcomer that needs
        what is common waits too."""
        self._order: list[tuple[int, int, Lane]] = []  # lanes in which somebody waits, the next one first
        self._places = 0
        self._clock = 0  # of the lane that was granted something last, before that
        self._latest = 0  # of the lane that has been granted most
        self._due: list[Lane] = []  # those that may be granted what is their own
        self._serving = False
        self._again = False

    async def wait(self, lane: Lane, attempt: "Attempt[T]", give_back: Callable[[T], object]) -> T:
        """Wait behind those in the lane until the attempt succeeds, at once if it can; what it took.

        *give_back* is called with that if the task is cancelled before it has it, and serves the queue.

        Raises:
            RuntimeError: the queue is in use on another event loop.
            Exception: what the attempt raised.
        """
        turn: _Turn[T] = _Turn(loop=self._bind())
        turn.queue, turn.lane, turn.attempt, turn.give_back = self, lane, attempt, give_back
        is_first = not lane.turns
        self._join(turn)
        try:
            if is_first:
                self.serve(lane)
            return await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                if turn.exception() is None:
                    give_back(turn.result())
            else:
                self._leave(turn)
                self.serve(lane)  # who was behind it may have what it could not
            raise
        finally:
            del turn  # an error that it was given refers to this frame

    def serve(self, lane: Lane | None = None) -> None:
        """Grant what can be granted: to *lane* what is its own, and to whoever is next what is common."""
        if lane is not None and not self._is_next(lane):  # else it has its own with its turn
            self._due.append(lane)
        self._again = True
        if self._serving:  # an attempt has had something given back: who is serving goes on
            return
        self._serving = True
        order = self._order
        try:
            while self._again:
                self._again = False
                while self._due:
                    self._grant_own(self._due.pop())
                while order and self._grant(first := order[0][2], in_turn=True):
                    if not self._is_next(first):
                        self._grant_own(first)
        finally:
            self._serving = False

    def _is_next(self, lane: Lane) -> bool:
        """Whether it has its turn now: what is its own it gets with that."""
        return bool(self._order) and self._order[0][2] is lane

    def _grant_own(self, lane: Lane) -> None:
        while self._grant(lane, in_turn=False):
            pass

    def _grant(self, lane: Lane, *, in_turn: bool) -> bool:
        """Whether the first of the lane waits no longer."""
        if not lane.turns:
            return False
        turn = next(iter(lane.turns))
        try:
            granted = turn.attempt(in_turn)
        except Exception as error:
            if not turn.done():
                self._leave(turn)
                turn.set_exception(error)
            del turn  # the error refers to this frame
            return True
        if granted is None:
            return False
        result, cost = granted
        if turn.done():  # cancelled by what the attempt had run, as the collector may
            turn.give_back(result)
            return True
        if cost:
            self._clock = max(self._clock, lane.clock)
            lane.clock += max(1, int(cost / lane.weight * UNIT))
            self._latest = max(self._latest, lane.clock)
            self._put_into_order(lane)
        self._leave(turn)
        try:
            turn.set_result(result)
        except RuntimeError:  # its loop is closed: nobody is there to have it
            turn.give_back(result)
        return True

    def _join(self, turn: "_Turn[Any]") -> None:
        lane = turn.lane
        if not lane.turns:
            lane.clock = max(lane.clock, self._clock)
            self._put_into_order(lane)
        lane.turns[turn] = None
        self.waiting += 1

    def _leave(self, turn: "_Turn[Any]") -> None:
        lane = turn.lane
        if turn in lane.turns:
            del lane.turns[turn]
            self.waiting -= 1
            if not lane.turns:
                self._take_from_order(lane)
            if not self.waiting:
                self._clock = self._latest  # nobody owes anything any more

    def _put_into_order(self, lane: Lane) -> None:
        order = self._order
        self._places += 1
        place = lane.clock, self._places, lane
        if len(order) == 1 and lane.place is order[0]:
            order[0] = place
        else:
            self._take_from_order(lane)
            bisect.insort(order, place)
        lane.place = place

    def _take_from_order(self, lane: Lane) -> None:
        if lane.place is not None:
            del self._order[bisect.bisect_left(self._order, lane.place)]
            lane.place = None

    def __repr__(self) -> str:
        return f"<{type(self).__qualname__} waiting={self.waiting} lanes={len(self._order)}>"

    def _bind(self) -> asyncio.AbstractEventLoop:
        loop = running_loop("wait")
        if self._loop is not loop:
            if self.waiting:
                raise RuntimeError(f"{self!r} is in use on another event loop")
            self._loop = loop
        return loop
