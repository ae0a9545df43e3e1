"""InFlight: a limit on how much a service has in flight for somebody."""

import sys
from typing import final

from .._sync.loops import running_loop
from .._sync.scopes import shielded_if_cancelled
from .._sync.wait_queue import WaitQueue

__all__ = ["InFlight"]


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

    Who waits enters in the order of arrival; nobody overtakes. A request of more bytes than the limit is not
    refused: it enters alone.

    Belongs to one event loop.
    """

    __slots__ = (
        *("_bytes", "_drainers", "_draining", "_most_bytes", "_most_requests"),
        *("_queue", "_requests", "_waiting"),
    )

    def __init__(self, *, requests: int, bytes: int = sys.maxsize) -> None:  # noqa: A002 (what it is)
        """Limits, both at least 1. Without one of bytes, requests alone are limited.

        Raises:
            ValueError: one of them is not positive.
        """
        for name, limit in (("requests", requests), ("bytes", bytes)):
            if limit < 1:
                raise ValueError(f"{name} must be positive, not {limit}")
        self._most_requests = requests
        self._most_bytes = bytes
        self._requests = 0
        self._bytes = 0
        self._queue = WaitQueue()
        self._waiting = 0  # tasks that are in the queue or on their way to it
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

    async def enter(self, length: int = 0) -> None:
        """Wait until a request of *length* bytes fits, and count it. Does not suspend where it fits at once.

        A task that is cancelled has not entered, and holds nobody up.

        Raises:
            ValueError: *length* is negative.
        """
        running_loop("enter")
        if length < 0:
            raise ValueError(f"length must not be negative, as {length} is")
        if self._waiting or (
            self._requests
            and (self._requests >= self._most_requests or self._bytes + length > self._most_bytes)
        ):
            await self._enter_later(length)
        else:
            self._requests += 1
            self._bytes += length

    async def _enter_later(self, length: int) -> None:
        self._waiting += 1
        try:
            await self._queue.wait()
            while self._requests and (
                self._requests >= self._most_requests or self._bytes + length > self._most_bytes
            ):
                await self._queue.wait(front=True)
            self._requests += 1
            self._bytes += length
        finally:
            self._waiting -= 1
            self._queue.notify_head()  # what is left may suit the next one

    def leave(self, length: int = 0) -> None:
        """A request of *length* bytes, which has entered, is over.

        Raises:
            RuntimeError: fewer have entered, or fewer bytes. Nothing is counted.
        """
        if self._requests < 1 or not 0 <= length <= self._bytes:
            raise RuntimeError(
                f"a request of {length} bytes cannot leave: {self._requests} are in flight, with"
                f" {self._bytes} bytes; whatever has entered leaves once, with the same length"
            )
        self._requests -= 1
        self._bytes -= length
        if self._waiting:
            self._queue.notify_head()
        if self._draining and not self._requests:
            self._drainers.notify_all()

    async def drain(self) -> None:
        """Wait until nothing is in flight."""
        running_loop("drain")
        self._draining += 1
        try:
            with shielded_if_cancelled():
                while self._requests:
                    await self._drainers.wait()
        finally:
            self._draining -= 1

    def __repr__(self) -> str:
        limit = "" if self._most_bytes == sys.maxsize else f" of {self._most_bytes}"
        return f"<InFlight {self._requests} of {self._most_requests} requests, {self._bytes}{limit} bytes>"
