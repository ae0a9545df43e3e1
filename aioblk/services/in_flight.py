"""InFlight: a limit on how much a service has in flight, for one client or shared by many."""

# What is common and its shares do with each other what users do not see.
# pyright: reportPrivateUsage=false

import sys
import warnings
from collections import deque
from functools import partial
from operator import index
from typing import Self, final

from .._sync.fair_queue import FairQueue, Lane
from .._sync.loops import running_loop
from .._sync.scopes import shielded_if_cancelled
from .._sync.wait_queue import WaitQueue
from ..errors import UsageError

__all__ = ["InFlight", "InFlightShare"]

UNLIMITED = sys.maxsize
LONGEST = 1 << 128  # bytes that a request costs; more is no longer a float for every limit


@final
class InFlight:
    """At most so many requests, and so many bytes of them, at a time.

    A service has one for each client, so that no client can take all of its memory or of the device's time::

        in_flight = aioblk.InFlight(requests=128, bytes=32 << 20)
        while True:
            request = await receive()
            await in_flight.enter(request.length)   # before more is received
            request.on_answered = lambda: in_flight.leave(request.length)
            ...
        await in_flight.drain()

    Or it has one for all that use a device, and gives each client a share, with a part that nobody can take
    away from it::

        in_flight = aioblk.InFlight(requests=128, bytes=32 << 20, kept=0.5)
        with in_flight.share(requests=8, bytes=2 << 20) as client:
            await client.enter(request.length)
            ...

    Who waits enters in the order of arrival; nobody overtakes. Among shares it is by their weights. A request
    of more bytes than the limit is not refused: it enters when no other is in flight, besides those within
    what is kept for shares.

    Belongs to one event loop.
    """

    __slots__ = (
        *("_bytes", "_drainers", "_draining", "_forgotten", "_is_bound", "_kept_bytes", "_kept_requests"),
        *("_lane", "_most_bytes", "_most_requests", "_promised_bytes", "_promised_requests", "_queue"),
        *("_requests", "_room_bytes", "_room_requests", "_shared_bytes", "_shared_requests"),
    )

    def __init__(
        self,
        *,
        requests: int,
        bytes: int = UNLIMITED,  # noqa: A002 (what it is)
        kept: float = 0.0,
    ) -> None:
        """Limits, both at least 1. Without one of bytes, requests alone are limited.

        ``kept``, from 0 to less than 1, is the part of both that is kept for what :meth:`share` promises,
        and never had by anybody else; a request and a byte at least are common.

        Raises:
            ValueError: one of them is out of range.
        """
        requests, bytes = index(requests) + 0, index(bytes) + 0  # noqa: A001 (and of no other type than int)
        for name, limit in (("requests", requests), ("bytes", bytes)):
            if limit < 1:
                raise ValueError(f"{name} must be positive, not {limit}")
        if not 0 <= kept < 1:
            raise ValueError(f"kept must be from 0 to less than 1, not {kept}")
        self._most_requests = requests
        self._most_bytes = bytes
        # What is kept for shares, what of it has been promised, and what shares have in all.
        self._kept_requests = min(round(requests * kept), requests - 1)
        self._kept_bytes = 0 if bytes == UNLIMITED else min(round(bytes * kept), bytes - 1)
        self._promised_requests = 0
        self._promised_bytes = 0
        self._shared_requests = 0
        self._shared_bytes = 0
        # What is common without what shares have of it; what of that is in use.
        self._room_requests = requests - self._kept_requests
        self._room_bytes = bytes - self._kept_bytes
        self._requests = 0
        self._bytes = 0
        self._lane = Lane()
        self._queue = FairQueue()
        self._forgotten: deque[tuple[int, int]] = deque()  # promises of shares that nobody has closed
        self._drainers = WaitQueue()
        self._draining = 0
        self._is_bound = False  # a loop was running at the first request; it is asked for once, not for each

    @property
    def requests(self) -> int:
        """How many have entered and not left, those of shares included."""
        return self._requests + self._shared_requests

    @property
    def bytes(self) -> int:
        """Theirs together."""
        return self._bytes + self._shared_bytes

    async def enter(self, length: int = 0) -> None:
        """Wait until a request of *length* bytes fits, and count it. Does not suspend where it fits at once.

        A task that is cancelled has not entered, and holds nobody up.

        Raises:
            ValueError: *length* is negative.
        """
        if not self._is_bound:
            self._bind()
        if type(length) is not int or length < 0:
            length = _whole(length)
        if (
            self._queue.waiting
            or self._requests >= self._room_requests
            or (self._bytes + length > self._room_bytes and self._is_in_use())
        ):
            await self._queue.wait(self._lane, partial(self._attempt, length), self.leave)
        else:
            self._requests += 1
            self._bytes += length

    def _bind(self) -> None:
        running_loop("enter")
        self._is_bound = True

    def _attempt(self, length: int, in_turn: bool) -> tuple[int, float] | None:
        if not in_turn or not self._has_room(1, length):
            return None
        cost = self._cost(1, length)
        self._requests += 1
        self._bytes += length
        return length, cost

    def _has_room(self, requests: int, length: int) -> bool:
        """In what is common. What is too long for it has room when it is not in use."""
        return self._requests + requests <= self._room_requests and (
            self._bytes + length <= self._room_bytes or not self._is_in_use()
        )

    def _is_in_use(self) -> bool:
        """Anything of what is common."""
        return bool(self._requests or self._bytes) or (self._room_requests, self._room_bytes) != (
            self._most_requests - self._kept_requests,
            self._most_bytes - self._kept_bytes,
        )

    def _cost(self, requests: int, length: int) -> float:
        """The part of the limits that it takes, of that of which it takes more."""
        return max(requests / self._most_requests, min(length, LONGEST) / self._most_bytes)

    def leave(self, length: int = 0) -> None:
        """A request of *length* bytes, which has entered, is over.

        Raises:
            RuntimeError: fewer have entered, or fewer bytes. Nothing is counted.
        """
        if type(length) is not int or self._requests < 1 or not 0 <= length <= self._bytes:
            length = _whole_that_leaves(
                length, self._requests, self._bytes, ", and by the share that it entered by"
            )
        self._requests -= 1
        self._bytes -= length
        if self._queue.waiting:
            self._queue.serve()
        if self._draining:
            self._tell_drainers()

    async def drain(self) -> None:
        """Wait until nothing is in flight, nor anything of a share."""
        running_loop("drain")
        self._draining += 1
        try:
            with shielded_if_cancelled():
                while self.requests:
                    await self._drainers.wait()
        finally:
            self._draining -= 1

    def _tell_drainers(self) -> None:
        if not self.requests:
            self._drainers.notify_all()

    # --- shares ---------------------------------------------------------------------------------------------

    def share(
        self,
        *,
        weight: float = 1.0,
        requests: int = 0,
        bytes: int | None = None,  # noqa: A002 (what it is)
    ) -> "InFlightShare":
        """A share of the limits, for example of one client, to be closed when that is gone.

        It is promised so many *requests* and *bytes* of what is ``kept``; without *bytes*, as large a part of
        those as of the requests, or any number where they are not limited. What it needs beyond is common,
        where it gets *weight* times as much as what has a weight of 1, while both wait.

        Raises:
            UsageError: so much is not left of what is kept.
            ValueError: the weight is not from a millionth to a million, the rest is negative, or *bytes* are
                promised where they are not limited.
        """
        while self._forgotten:
            self._take_back(*self._forgotten.popleft())
        requests = index(requests) + 0
        if self._most_bytes == UNLIMITED:
            if bytes is not None:
                raise ValueError(f"bytes are not limited here: {bytes} of them need not be promised")
            bytes = 0  # noqa: A001
        elif bytes is None:
            bytes = self._kept_bytes * requests // max(self._kept_requests, 1)  # noqa: A001
        bytes = index(bytes) + 0  # noqa: A001
        for name, amount, kept, promised, most in (
            ("requests", requests, self._kept_requests, self._promised_requests, self._most_requests),
            ("bytes", bytes, self._kept_bytes, self._promised_bytes, self._most_bytes),
        ):
            if amount < 0:
                raise ValueError(f"{name} must not be negative, as {amount} is")
            if amount > kept - promised:
                raise UsageError(
                    f"{amount} {name} cannot be promised: {promised} of the {kept} that are kept for shares"
                    f" (of {most}) are promised already; promise less, close other shares, or have more kept"
                    f" by InFlight(kept=...)",
                    operation="share",
                )
        lane = Lane(weight)
        share = InFlightShare(self, lane, requests, UNLIMITED if self._most_bytes == UNLIMITED else bytes)
        self._promised_requests += requests
        self._promised_bytes += bytes
        return share

    def _take_back(self, requests: int, length: int) -> None:
        self._promised_requests -= requests
        self._promised_bytes -= 0 if length == UNLIMITED else length

    def __repr__(self) -> str:
        limit = "" if self._most_bytes == UNLIMITED else f" of {self._most_bytes}"
        return f"<InFlight {self.requests} of {self._most_requests} requests, {self.bytes}{limit} bytes>"


@final
class InFlightShare:
    """A share of an :class:`InFlight`, for one of those who use it; a context manager that closes it.

    Up to what it was promised, its requests enter at once, whatever others have in flight or wait for. Beyond
    that they take what is common, when it is the share's turn. Its own requests never overtake each other.

    So a share that is promised less bytes than its longest request has waits for others with that one, and
    with those behind it.
    """

    __slots__ = (
        *("__weakref__", "_bytes", "_closed", "_drainers", "_draining", "_in_flight", "_lane"),
        *("_promised_bytes", "_promised_requests", "_requests", "_returned"),
    )

    def __init__(self, in_flight: InFlight, lane: Lane, requests: int, length: int) -> None:
        self._in_flight = in_flight
        self._lane = lane
        self._promised_requests = requests
        self._promised_bytes = length
        self._requests = 0
        self._bytes = 0
        self._closed = False
        self._returned = False
        self._drainers = WaitQueue()
        self._draining = 0

    @property
    def requests(self) -> int:
        """How many have entered and not left."""
        return self._requests

    @property
    def bytes(self) -> int:
        """Theirs together."""
        return self._bytes

    @property
    def weight(self) -> float:
        """Beside a share of weight 1, while both wait."""
        return self._lane.weight

    async def enter(self, length: int = 0) -> None:
        """Wait until a request of *length* bytes may enter, and count it. Does not suspend where it may at
        once.

        A task that is cancelled has not entered, and holds nobody up.

        Raises:
            UsageError: the share is closed, or is being closed meanwhile.
            ValueError: *length* is negative.
        """
        if not self.enter_nowait(length):
            length = _whole(length)
            await self._in_flight._queue.wait(self._lane, partial(self._attempt, length), self.leave)

    def enter_nowait(self, length: int = 0) -> bool:
        """Count a request of *length* bytes if it may enter at once: whether it has entered.

        Raises:
            UsageError: the share is closed.
            ValueError: *length* is negative.
        """
        whole = self._in_flight
        if not whole._is_bound:
            whole._bind()
        if type(length) is not int or length < 0:
            length = _whole(length)
        if self._lane.turns:
            return False
        requests, held = self._requests, self._bytes + length
        if held > self._promised_bytes or self._closed:
            return self._attempt(length, not whole._queue.waiting) is not None
        if requests >= self._promised_requests:
            if whole._queue.waiting or not whole._has_room(1, 0):
                return False
            whole._room_requests -= 1
        self._requests = requests + 1
        self._bytes = held
        whole._shared_requests += 1
        whole._shared_bytes += length
        return True

    def _attempt(self, length: int, in_turn: bool) -> tuple[int, float] | None:
        if self._closed:
            raise UsageError("a request cannot enter: the share is closed", operation="enter")
        whole = self._in_flight
        requests, extra = self._beyond(length)
        if not (requests or extra):
            cost = 0.0
        elif in_turn and whole._has_room(requests, extra):
            cost = whole._cost(requests, extra)
            whole._room_requests -= requests
            whole._room_bytes -= extra
        else:
            return None
        self._requests += 1
        self._bytes += length
        whole._shared_requests += 1
        whole._shared_bytes += length
        return length, cost

    def _beyond(self, length: int) -> tuple[int, int]:
        """What of one more request, and of its bytes, is not within the promise."""
        extra = self._bytes + length - self._promised_bytes
        if extra < 0:
            extra = 0
        elif extra > length:
            extra = length
        return int(self._requests >= self._promised_requests), extra

    def leave(self, length: int = 0) -> None:
        """A request of *length* bytes, which has entered, is over.

        Raises:
            RuntimeError: fewer have entered, or fewer bytes. Nothing is counted.
        """
        requests, held, whole = self._requests, self._bytes, self._in_flight
        if type(length) is not int or requests < 1 or not 0 <= length <= held:
            length = _whole_that_leaves(length, requests, held)
        self._requests = requests - 1
        self._bytes = held - length
        whole._shared_requests -= 1
        whole._shared_bytes -= length
        is_for_all = False
        if requests > self._promised_requests:  # what is beyond the promise goes first
            whole._room_requests += 1
            is_for_all = True
        if held > self._promised_bytes:
            whole._room_bytes += min(length, held - self._promised_bytes)
            is_for_all = True
        if self._closed and requests == 1:
            self._return_promise()
        if self._lane.turns or (is_for_all and whole._queue.waiting):
            whole._queue.serve(self._lane)
        if self._draining and not self._requests:
            self._drainers.notify_all()
        if whole._draining:
            whole._tell_drainers()

    async def drain(self) -> None:
        """Wait until nothing of the share is in flight."""
        running_loop("drain")
        self._draining += 1
        try:
            with shielded_if_cancelled():
                while self._requests:
                    await self._drainers.wait()
        finally:
            self._draining -= 1

    def close(self) -> None:
        """Let nobody enter any more, those who wait included; idempotent.

        What is in flight leaves as ever. What the share was promised can be promised again when it has.
        """
        if not self._closed:
            self._closed = True
            self._in_flight._queue.serve(self._lane)
            if not self._requests:
                self._return_promise()

    def _return_promise(self) -> None:
        if not self._returned:
            self._returned = True
            self._in_flight._take_back(self._promised_requests, self._promised_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            if not self._requests:  # else nobody can say any more when they are over
                self._in_flight._forgotten.append((self._promised_requests, self._promised_bytes))

    def __repr__(self) -> str:
        state = " closed" if self._closed else ""
        return (
            f"<InFlightShare{state} {self._requests} requests, {self._promised_requests} promised,"
            f" {self._bytes} bytes, {self._promised_bytes} promised>"
        )


# Numbers of other types than int may overflow, or be none. Whoever calls these has seen that an amount is not
# plain, or not in order: most are, and are not converted.


def _whole(length: int) -> int:
    """What enters, as a plain int."""
    length = index(length) + 0
    if length < 0:
        raise ValueError(f"length must not be negative, as {length} is")
    return length


def _whole_that_leaves(length: int, requests: int, held: int, and_how: str = "") -> int:
    """What leaves, as a plain int: of so many requests, and bytes of them."""
    length = index(length) + 0
    if requests < 1 or not 0 <= length <= held:
        raise RuntimeError(
            f"a request of {length} bytes cannot leave: {requests} are in flight, with"
            f" {held} bytes; whatever has entered leaves once, with the same length{and_how}"
        )
    return length
