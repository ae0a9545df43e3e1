"""Later: a request that is made when its turn comes, and then is the device's."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar, final

from .._queues.statistics import QueueStatistics
from .._sync.loops import running_loop
from ._begun import future_of

__all__ = ["Later", "Waiting"]

T = TypeVar("T")


@final
class Later(asyncio.Future[T]):
    """Cancelled before it is made, it never is; afterwards it ends as the device's own does."""

    def __init__(self, call: Callable[[], Awaitable[T]], then: Callable[[T], T] | None = None) -> None:
        """*call* makes it; *then* has the last word on what it gives, and may raise."""
        super().__init__(loop=running_loop("request"))
        self._call: Callable[[], Awaitable[T]] | None = call
        self._then = then
        self._request: asyncio.Future[T] | None = None
        self._message: Any = None  # of who has cancelled it, by which anyio knows its own

    @property
    def is_waiting(self) -> bool:
        """Whether its turn has not come."""
        return self._call is not None

    @property
    def was_made(self) -> bool:
        return self._request is not None

    def begin(self) -> bool:
        """Make it; False: it was given up, or has failed."""
        if self._call is None:
            return False
        call, self._call = self._call, None
        try:
            self._request = future_of(call())
        except Exception as refusal:  # the device was closed meanwhile
            self.set_exception(refusal)
        except BaseException as order:  # which is the loop's, and nobody is left waiting
            self.set_exception(InterruptedError(f"the device's call was interrupted: {order!r}"))
            raise
        else:
            self._request.add_done_callback(self._settle)
        return True

    def cancel(self, msg: Any | None = None) -> bool:
        self._message = msg
        if self._request is not None:
            return self._request.cancel(msg)
        self._call = self._then = None  # which have the caller's memory; a timer may keep this one for long
        return super().cancel(msg)

    def fail(self, error: BaseException) -> None:
        """Instead of making it, if it was not made."""
        if self._call is not None:
            self._call = self._then = None
            self.set_exception(error)

    def _settle(self, request: "asyncio.Future[T]") -> None:
        if request.cancelled():
            super().cancel(self._message)
            return
        then, self._then = self._then, None
        try:
            result = request.result()
            self.set_result(result if then is None else then(result))
        except Exception as error:
            self.set_exception(error)
        finally:
            del request  # which has the error that keeps this frame


@final
class Waiting:
    """The requests of a layer that are made later, as its statistics have them."""

    def __init__(self) -> None:
        self._requests: set[Later[Any]] = set()  # that are not done
        self._cancelled = self._failed = 0  # and never made
        self._told = QueueStatistics()

    def add(self, request: Later[Any]) -> None:
        request.add_done_callback(self._done)
        self._requests.add(request)

    def _done(self, request: Any) -> None:
        self._requests.discard(request)
        if not request.was_made:
            self._cancelled += request.cancelled()
            self._failed += not request.cancelled()

    def __iter__(self) -> Iterator[Later[Any]]:
        return iter(tuple(self._requests))

    def added_to(self, counted: QueueStatistics) -> QueueStatistics:
        """What the device below counts, with what it has not been asked for. For any thread: no number
        falls, though a request that is being made, or is over, may be looked at in the midst of that."""
        waiting, cancelled, failed = 0, self._cancelled, self._failed
        for request in self._requests.copy():
            if request.was_made:
                continue
            if not request.done():
                waiting += 1
            elif request.cancelled():
                cancelled += 1
            else:
                failed += 1
        told = self._told
        self._told = replace(
            counted,
            submitted=max(counted.submitted + waiting + cancelled + failed, told.submitted),
            cancelled=max(counted.cancelled + cancelled, told.cancelled),
            failed=max(counted.failed + failed, told.failed),
            in_flight=counted.in_flight + waiting,
        )
        return self._told

    async def finish(self) -> None:
        while self._requests:
            await asyncio.wait(self._requests)
