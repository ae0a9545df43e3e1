"""Requests of a mirror: reads that go on to another leg, and changes that go to all."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, NoReturn, TypeAlias, TypeVar, final

from .._sync.loops import running_loop
from ..errors import UnsupportedError
from ._begun import future_of
from ._legs import Legs, Member, Outcome, Outcomes
from .block_device import BlockDevice

__all__ = ["Call", "Change", "Read"]

T = TypeVar("T")

Call: TypeAlias = Callable[[BlockDevice], Awaitable[T]]
"""Makes the request of one leg."""


@final
class Read(asyncio.Future[T]):
    """Of one leg or, should that fail, of the next. To cancel it is to cancel what the leg is doing."""

    def __init__(
        self,
        legs: Legs,
        call: Call[T],
        *,
        is_changing: Callable[[], bool],
        ends: Callable[[Outcomes], object],
    ) -> None:
        """*is_changing*: whether any of it is being changed; *ends* is called where some legs cannot read
        what another one can."""
        super().__init__(loop=running_loop("request"))
        self._legs = legs
        self._call: Call[T] | None = call
        self._is_changing = is_changing
        self._ends = ends
        self._failures: list[Outcome] = []
        self._request: asyncio.Future[T] | None = None
        self._given_up: tuple[Any] | None = None  # with what message
        self._try_next()

    def cancel(self, msg: Any | None = None) -> bool:
        if self.done():
            return False
        self._given_up = (msg,)
        if self._request is not None:
            self._request.cancel(msg)
        return True

    def _try_next(self) -> None:
        """There always is a leg to begin with."""
        tried = [failure.member for failure in self._failures]
        while (member := self._legs.to_read(tried, self._is_changing())) is not None:
            assert self._call is not None
            generation = member.generation
            try:
                self._request = future_of(self._call(member.device))
            except Exception as refusal:
                self._failures.append(Outcome(member, generation, refusal))
                tried.append(member)
                continue
            member.reads += 1
            self._request.add_done_callback(partial(self._settle, member, generation))
            return
        self._end(None)

    def _settle(self, member: Member, generation: int, request: "asyncio.Future[T]") -> None:
        member.reads -= 1
        self._request = None
        error = asyncio.CancelledError() if request.cancelled() else request.exception()
        if self._given_up is None and error is not None:
            self._failures.append(Outcome(member, generation, error))
            self._try_next()
            return
        if error is None and self._failures:
            self._ends([*self._failures, Outcome(member, generation, None)])
        self._end(request)

    def _end(self, request: "asyncio.Future[T] | None") -> None:
        failures, self._failures = self._failures, []  # errors keep frames, and they the memory
        self._call = None
        if self._given_up is not None:
            super().cancel(*self._given_up)
        elif request is not None:
            self.set_result(request.result())
        elif isinstance(error := failures[0].error, asyncio.CancelledError):
            super().cancel(*error.args)
        else:
            assert error is not None
            self.set_exception(error)
        failures.clear()


@final
class Change(asyncio.Future[None]):
    """Of all legs: over when all are through with it.

    One that has begun is carried through, and ends as cancelled if it was: were it given up, each leg might
    be left with something else.
    """

    def __init__(
        self,
        legs: Legs,
        call: Call[None],
        *,
        begins: Callable[[], object],
        ends: Callable[[Outcomes], BaseException | None],
        instead: Call[None] | None = None,
    ) -> None:
        """*instead* is what legs do that cannot do it, if others can."""
        super().__init__(loop=running_loop("request"))
        self._legs = legs
        self._call: Call[None] | None = call
        self._begins = begins
        self._ends = ends
        self._instead = instead
        self._given_up: tuple[Any] | None = None  # with what message
        self._on_end: Callable[[], object] | None = None

    def cancel(self, msg: Any | None = None) -> bool:
        if self.done():
            return False
        self._given_up = (msg,)
        return True if self._on_end is not None else super().cancel(msg)

    def begin(self, on_end: Callable[[], object]) -> None:
        """Have the legs do it, and call *on_end* when they are through. Raises nothing: others wait."""
        if self.done():  # cancelled while it waited
            on_end()
            return
        self._on_end = on_end
        assert self._call is not None
        try:
            self._begins()
            members = self._legs.present()
            asked = [_of(member, self._call) for member in members]
        except Exception as error:  # there is no memory to note it down
            self._end(error)
            return
        refusals = [outcome for outcome in asked if isinstance(outcome, BaseException)]
        if len(refusals) == len(asked):  # nothing has begun anywhere
            self._end(refusals[0])
        else:
            try:
                self._wait_for(members, asked, [])
            except MemoryError:  # legs have begun, and nobody else may until they are through
                running_loop("request").call_soon(self._wait_for, members, asked, ())

    def fail(self, error: BaseException) -> None:
        """It did not come to begin. The error is for who has called."""
        if not self.done():
            self._call = self._instead = None
            self.set_exception(error if isinstance(error, Exception) else InterruptedError(repr(error)))
            self.exception()

    def _wait_for(
        self,
        members: Sequence[Member],
        asked: Sequence["asyncio.Future[None] | BaseException"],
        others: Sequence[Outcome],
    ) -> None:
        outcomes = [Outcome(member, member.generation, None) for member in members]
        requests = [_refused(each) if isinstance(each, BaseException) else each for each in asked]
        together = asyncio.gather(*requests, return_exceptions=True)
        together.add_done_callback(lambda together: self._settle(outcomes, together, others))

    def _settle(
        self,
        asked: Sequence[Outcome],
        together: "asyncio.Future[list[BaseException | None]]",
        others: Sequence[Outcome],
    ) -> None:
        found = [
            outcome._replace(error=error) for outcome, error in zip(asked, together.result(), strict=True)
        ]
        unable = [outcome.member for outcome in found if isinstance(outcome.error, UnsupportedError)]
        if unable and len(unable) < len(found) and self._instead is not None:
            instead, self._instead = self._instead, None
            able = [outcome for outcome in found if outcome.member not in unable]
            self._wait_for(unable, [_of(member, instead) for member in unable], [*others, *able])
        else:
            self._end(self._ends([*others, *found]))

    def _end(self, error: BaseException | None) -> None:
        on_end, self._call, self._instead = self._on_end, None, None
        if self._given_up is not None:
            super().cancel(*self._given_up)
        elif error is None:
            self.set_result(None)
        elif isinstance(error, asyncio.CancelledError):
            super().cancel(*error.args)
        else:
            self.set_exception(error)
        assert on_end is not None
        on_end()


def _of(member: Member, call: Call[None]) -> "asyncio.Future[None] | BaseException":
    """What the leg's call has begun; its refusal is an outcome, since other legs may have begun. What is no
    error but an order is the loop's."""
    try:
        return future_of(call(member.device))
    except (Exception, asyncio.CancelledError) as refusal:
        return refusal.with_traceback(None)
    except BaseException as order:
        running_loop("request").call_soon(_obey, order)
        return InterruptedError(f"the leg's call was interrupted: {order!r}")


def _obey(order: BaseException) -> NoReturn:
    raise order


def _refused(refusal: BaseException) -> "asyncio.Future[None]":
    future: asyncio.Future[None] = running_loop("request").create_future()
    if isinstance(refusal, asyncio.CancelledError):
        future.cancel()
    else:
        future.set_exception(refusal)
    return future
