"""What a block device that makes its own requests counts."""

import asyncio
from typing import Any, final

from .._queues.statistics import QueueStatistics
from .._sync.scopes import shielded_if_cancelled

__all__ = ["Counts"]


@final
class Counts:
    """Requests that were accepted, and what became of them."""

    def __init__(self) -> None:
        self._submitted = 0
        self._completed = 0
        self._failed = 0
        self._cancelled = 0
        self._bytes_read = 0
        self._bytes_written = 0
        self._in_flight: set[asyncio.Future[Any]] = set()

    def refused(self) -> None:
        """A request that was accepted, and had failed by then."""
        self._submitted += 1
        self._failed += 1

    def add(self, request: "asyncio.Future[Any]", *, read: int = 0, written: int = 0) -> None:
        """A request is under way; so many bytes of it count when it is done."""
        self._submitted += 1
        self._in_flight.add(request)
        request.add_done_callback(lambda request: self._done(request, read, written))

    def _done(self, request: "asyncio.Future[Any]", read: int, written: int) -> None:
        self._in_flight.discard(request)
        if request.cancelled():
            self._cancelled += 1
        elif request._exception is None:  # exception() would count as retrieving it
            self._completed += 1
            self._bytes_read += read
            self._bytes_written += written
        else:
            self._failed += 1

    def snapshot(self) -> QueueStatistics:
        return QueueStatistics(
            submitted=self._submitted,
            completed=self._completed,
            failed=self._failed,
            cancelled=self._cancelled,
            in_flight=len(self._in_flight),
            bytes_read=self._bytes_read,
            bytes_written=self._bytes_written,
        )

    async def finish(self) -> None:
        """Wait for all that are under way."""
        with shielded_if_cancelled():
            while self._in_flight:
                await asyncio.wait(self._in_flight)
