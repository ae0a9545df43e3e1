"""How much a second those who share a gate may ask of their devices, and who comes next."""

import asyncio
import math
from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush, heapreplace
from typing import Any, Literal, TypeAlias, final

from .._sync.loops import running_loop
from ..errors import OptionError
from ._later import Later

__all__ = ["Direction", "Flow", "Gate", "Limited", "Rate", "Share", "ThrottleStatistics"]

Direction: TypeAlias = Literal["read", "write"]
Limited: TypeAlias = Literal["total", "read", "write"]

BURST = 0.1  # seconds' worth that may go at once, where nothing else is said
FORGOTTEN = 64  # requests that wait, before those are looked for that were given up
SOON = 1e-3  # seconds: loops round to that, and one that rounds down would ask again and again


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What may be done in a second, on average. None: as much as one likes.

    After a while of less, so much more may be done at once as the bursts say: a tenth of a second's worth
    where they say nothing. A request of more bytes than that is not refused: those after it wait for longer.
    """

    operations: float | None = None
    """A second."""
    bytes: float | None = None
    """A second."""
    burst_operations: float | None = None
    """So many at once, after a while of less."""
    burst_bytes: float | None = None
    """So many at once, after a while of less."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise OptionError(
                    f"{name} must be positive, not {value}", driver="throttle", operation="open"
                )
        if self.burst_operations is not None and self.operations is None:
            raise OptionError("burst_operations needs operations", driver="throttle", operation="open")
        if self.burst_bytes is not None and self.bytes is None:
            raise OptionError("burst_bytes needs bytes", driver="throttle", operation="open")


@final
@dataclass(frozen=True, slots=True)
class ThrottleStatistics:
    """What a group has done since it was made."""

    passed: int
    """Requests that did not have to wait; a batch counts as one."""
    delayed: int
    """Requests that had to, and have begun since."""
    waiting: int
    """Requests that wait now."""
    seconds_waited: float
    """By those that have begun, in all."""


@final
class Gate:
    """What requests go through: at once while there is room and nobody waits, else in their turn."""

    def __init__(self, total: Rate, reads: Rate, writes: Rate) -> None:
        self.rates: dict[Limited, Rate] = {"total": total, "read": reads, "write": writes}
        self._of = {name: _buckets(rate) for name, rate in self.rates.items()}
        self._buckets: dict[Direction, list[_Bucket]] = {}
        self.is_open = False
        """Whether nothing is limited."""
        self._order: dict[Direction, list[_Place]] = {"read": [], "write": []}  # heaps: who is next
        self._places = 0
        self._is_serving = False
        self._timer: asyncio.TimerHandle | None = None
        self._clock = 0.0  # of shares: how far the flow was that was served last
        self._latest = 0.0  # of the share that was served most
        self._passed = 0
        self._delayed = 0
        self._seconds_waited = 0.0
        self._fill_buckets()

    def set_rate(self, name: Limited, rate: Rate) -> None:
        """Only of that one; what was taken too much, or may be, is so still."""
        self._of[name] = [
            bucket.after(
                next((one for one in self._of[name] if one.counts_bytes is bucket.counts_bytes), None)
            )
            for bucket in _buckets(rate)
        ]
        self.rates[name] = rate
        self._fill_buckets()
        if self._is_waited_for:
            self._serve()

    def _fill_buckets(self) -> None:
        self._buckets = {
            "read": [*self._of["total"], *self._of["read"]],
            "write": [*self._of["total"], *self._of["write"]],
        }
        self.is_open = not any(self._buckets.values())

    @property
    def waiting(self) -> int:
        flows = [place[2] for order in self._order.values() for place in order]
        return sum(request.is_waiting for flow in flows for _, _, request in flow.waiting)

    def statistics(self) -> ThrottleStatistics:
        return ThrottleStatistics(self._passed, self._delayed, self.waiting, self._seconds_waited)

    def passes(self, direction: Direction, operations: int, length: int) -> bool:
        """Whether one request may begin at once; it counts then."""
        buckets = self._buckets[direction]
        if buckets and self._is_waited_for:
            return False
        now = running_loop("throttle").time()
        if not all(bucket.has_room(now) for bucket in buckets):
            return False
        for bucket in buckets:
            bucket.take(operations, length)
        self._passed += 1
        return True

    def passes_at_once(self, direction: Direction, operations: int, length: int) -> bool:
        """The same of many together, which pass only if there is room for all."""
        buckets = self._buckets[direction]
        if buckets:
            now = running_loop("throttle").time()
            if self._is_waited_for or not all(
                bucket.has_room_for(operations, length, now) for bucket in buckets
            ):
                return False
        return self.passes(direction, operations, length)

    def wait(self, flow: "Flow", length: int, request: Later[Any]) -> None:
        """Begin the request when it is its turn, now if it is."""
        now = running_loop("throttle").time()
        if not flow.is_in_order:
            flow.share.clock = max(flow.share.clock, self._clock)
            flow.is_in_order = True
            heappush(self._order[flow.direction], self._place_of(flow))
        elif len(flow.waiting) >= flow.forget_at:
            flow.forget_given_up()
        flow.waiting.append((now, length, request))
        self._serve()

    def _place_of(self, flow: "Flow") -> "_Place":
        self._places += 1
        return flow.share.clock, self._places, flow

    def _serve(self) -> None:
        """Begin whatever may begin, and see to it that this is called again when more may."""
        if self._is_serving:  # a request that begins asks for another: who is serving goes on
            return
        self._is_serving = True
        loop = running_loop("throttle")
        try:
            while (flow := self._next(loop.time())) is not None:
                self._begin_one(flow, loop.time())
        finally:
            self._is_serving = False
            self._call_again(loop)

    def _call_again(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._is_waited_for:
            self._clock = self._latest  # nobody owes anything any more
        else:
            seconds = min(self._seconds_to_wait(each) for each, order in self._order.items() if order)
            self._timer = loop.call_later(seconds, self._serve)

    @property
    def _is_waited_for(self) -> bool:
        return any(self._order.values())

    def _next(self, now: float) -> "Flow | None":
        """Of the flows whose requests may begin, the one whose share is behind."""
        able = [
            place
            for direction, buckets in self._buckets.items()
            if (place := self._first(direction)) is not None and all(each.has_room(now) for each in buckets)
        ]
        return min(able)[2] if able else None

    def _first(self, direction: Direction) -> "_Place | None":
        """The place of the flow that is next in a direction, be there room or not."""
        order = self._order[direction]
        while order:
            clock, _, flow = order[0]
            while flow.waiting and not flow.waiting[0][2].is_waiting:
                flow.waiting.popleft()
            if not flow.waiting:
                flow.is_in_order = False
                heappop(order)
            elif clock < flow.share.clock:  # it has been served since, in one direction or the other
                heapreplace(order, self._place_of(flow))
            else:
                return order[0]
        return None

    def _begin_one(self, flow: "Flow", now: float) -> None:
        since, length, request = flow.waiting.popleft()
        buckets = self._buckets[flow.direction]
        share = flow.share
        self._clock = max(self._clock, share.clock)  # one that its own limits held back is behind
        share.clock += max((bucket.seconds(1, length) for bucket in buckets), default=0.0) / share.weight
        self._latest = max(self._latest, share.clock)
        for bucket in buckets:
            bucket.take(1, length)
        self._delayed += 1
        self._seconds_waited += now - since
        request.begin()

    def _seconds_to_wait(self, direction: Direction) -> float:
        return max((bucket.seconds_until_room() for bucket in self._buckets[direction]), default=0.0)


@final
class Share:
    """Of one layer."""

    __slots__ = ("clock", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.clock = 0.0
        """Seconds of the group that it has used, by its weight, while others waited as well."""


@final
class Flow:
    """The requests of one layer in one direction."""

    __slots__ = ("direction", "forget_at", "is_in_order", "share", "waiting")

    def __init__(self, direction: Direction, share: Share) -> None:
        self.direction: Direction = direction
        self.share = share
        self.waiting: deque[tuple[float, int, Later[Any]]] = deque()
        """Since when, how many bytes, and which; some may have been given up."""
        self.forget_at = FORGOTTEN
        """So many, and those that were are looked for."""
        self.is_in_order = False
        """Of the gate, among those of which a request waits."""

    def forget_given_up(self) -> None:
        self.waiting = deque(each for each in self.waiting if each[2].is_waiting)
        self.forget_at = 2 * len(self.waiting) + FORGOTTEN


_Place: TypeAlias = tuple[float, int, Flow]
"""The clock of its share, as it was; a number of its own; and the flow."""


@final
class _Bucket:
    """So much a second, of operations or of bytes. Who finds anything left may take more than that: the next
    one waits until the debt is paid."""

    __slots__ = ("_burst", "_left", "_rate", "_since", "counts_bytes")

    def __init__(self, rate: float, burst: float | None, *, counts_bytes: bool) -> None:
        self._rate = rate
        self._burst = max(rate * BURST if burst is None else burst, 1.0)
        self.counts_bytes = counts_bytes
        self._left = self._burst
        self._since = -math.inf

    def has_room(self, now: float) -> bool:
        self._left = min(self._burst, self._left + (now - self._since) * self._rate)
        self._since = now
        return self._left >= 1

    def after(self, other: "_Bucket | None") -> "_Bucket":
        """In the place of another one, with its debt, or with no more at once than it had."""
        if other is not None:
            other.has_room(running_loop("throttle").time())
            self._left, self._since = min(other._left, self._burst), other._since
        return self

    def has_room_for(self, operations: int, length: int, now: float) -> bool:
        return self.has_room(now) and self._left >= self._amount(operations, length)

    def take(self, operations: int, length: int) -> None:
        self._left -= self._amount(operations, length)

    def seconds(self, operations: int, length: int) -> float:
        """How long that is worth."""
        return self._amount(operations, length) / self._rate

    def seconds_until_room(self) -> float:
        return max((1 - self._left) / self._rate, SOON)

    def _amount(self, operations: int, length: int) -> int:
        return length if self.counts_bytes else operations


def _buckets(rate: Rate) -> list[_Bucket]:
    found: list[_Bucket] = []
    if rate.operations is not None:
        found.append(_Bucket(rate.operations, rate.burst_operations, counts_bytes=False))
    if rate.bytes is not None:
        found.append(_Bucket(rate.bytes, rate.burst_bytes, counts_bytes=True))
    return found
