"""What a block device that makes its own requests counts."""

import asyncio
from collections import Counter
from typing import Any, Literal, TypeAlias, final, get_args

from .._queues.statistics import OperationStatistics, QueueStatistics
from .._sync.scopes import shielded_if_cancelled

__all__ = ["OPERATIONS", "Counts", "Operation"]

Operation: TypeAlias = Literal["read", "write", "write_zeroes", "discard", "flush"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)


@final
class Counts:
    """Requests that were accepted, and what became of them."""

    def __init__(self) -> None:
        self._submitted = 0
        self._cancelled = 0
        self._completed = Counter[Operation]()
        self._bytes = Counter[Operation]()
        self._errors: dict[Operation, Counter[int]] = {}
        self._in_flight: set[asyncio.Future[Any]] = set()

    def refused(self, operation: Operation, error: BaseException) -> None:
        """A request that was accepted, and had failed by then."""
        self._submitted += 1
        self._fail(operation, error)

    def add(self, request: "asyncio.Future[Any]", operation: Operation, length: int) -> None:
        """A request is under way; so many bytes of it count when it is done."""
        request.add_done_callback(lambda request: self._done(request, operation, length))
        self._in_flight.add(request)
        self._submitted += 1

    def _done(self, request: "asyncio.Future[Any]", operation: Operation, length: int) -> None:
        self._in_flight.discard(request)
        if request.cancelled():
            self._cancelled += 1
        elif request._exception is not None:  # exception() would count as retrieving it
            self._fail(operation, request._exception)
        else:
            self._completed[operation] += 1
            self._bytes[operation] += length

    def _fail(self, operation: Operation, error: BaseException) -> None:
        number = error.errno if isinstance(error, OSError) else None
        self._errors.setdefault(operation, Counter())[number or 0] += 1

    def _of(self, operation: Operation) -> OperationStatistics:
        errors = self._errors.get(operation, Counter[int]())
        return OperationStatistics(
            self._completed[operation], errors.total(), self._bytes[operation], dict(errors)
        )

    def snapshot(self) -> QueueStatistics:
        """For any thread."""
        by_operation: dict[str, Any] = {name: self._of(name) for name in OPERATIONS}
        return QueueStatistics(
            submitted=self._submitted,
            completed=self._completed.total(),
            failed=sum(errors.total() for errors in list(self._errors.values())),
            cancelled=self._cancelled,
            in_flight=len(self._in_flight),
            bytes_read=self._bytes["read"],
            bytes_written=self._bytes["write"],
            **by_operation,
        )

    async def finish(self) -> None:
        """Wait for all that are under way."""
        with shielded_if_cancelled():
            while self._in_flight:
                await asyncio.wait(self._in_flight)
