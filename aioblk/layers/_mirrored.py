"""Requests of a mirror: reads that go on to another leg, and changes that go to all."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias, TypeVar, final

from ..errors import UnsupportedError
from ._begun import future_of
from ._legs import Legs, Member, Outcomes
from .block_device import BlockDevice

__all__ = ["Call", "Change", "Read"]

T = TypeVar("T")

Call: TypeAlias = Callable[[BlockDevice], Awaitable[T]]
"""Makes the request of one leg."""


@final
class Read(asyncio.Future[T]):
    """Of one leg or, should that fail, of the next. To cancel it is to cancel what the leg is doing."""

    def __init__(self, legs: Legs, call: Call[T]) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self._legs = legs
        self._call: Call[T] | None = call
        self._failures: list[tuple[Member, BaseException]] = []
        self._request: asyncio.Future[T] | None = None
        self._is_given_up = False
        self._try_next()

    def cancel(self, msg: Any | None = None) -> bool:
        if self.done():
            return False
        self._is_given_up = True
        if self._request is not None:
            self._request.cancel(msg)
        return True

    def _try_next(self) -> None:
        """There always is a leg to begin with."""
        while (member := self._legs.to_read([member for member, _ in self._failures])) is not None:
            assert self._call is not None
            try:
                self._request = future_of(self._call(member.device))
            except Exception as refusal:
                self._failures.append((member, refusal))
                continue
            member.reads += 1
            self._request.add_done_callback(partial(self._settle, member))
            return
        self._end(None)

    def _settle(self, member: Member, request: "asyncio.Future[T]") -> None:
        member.reads -= 1
        self._request = None
        if request.cancelled():
            self._end(request)
        elif (error := request.exception()) is None:
            for other, failure in self._failures:  # it can be read, but not from there
                if other in self._legs.in_sync() and len(self._legs.in_sync()) > 1:
                    self._legs.drop(other, failure)
            self._end(request)
        elif self._is_given_up:
            self._end(request)
        else:
            self._failures.append((member, error))
            self._try_next()

    def _end(self, request: "asyncio.Future[T] | None") -> None:
        failures, self._failures, self._call = (
            self._failures,
            [],
            None,
        )  # errors keep frames, and they the memory
        if request is None:
            self.set_exception(failures[0][1])
        elif self._is_given_up or request.cancelled():
            super().cancel()
        else:
            self.set_result(request.result())
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
        optional: bool = False,
    ) -> None:
        """*instead* is what legs do that cannot do it, if others can; an *optional* change they leave out."""
        super().__init__(loop=asyncio.get_running_loop())
        self._legs = legs
        self._call: Call[None] | None = call
        self._begins = begins
        self._ends = ends
        self._instead = instead
        self._optional = optional
        self._has_begun = False
        self._is_given_up = False
        self._on_end: Callable[[], object] | None = None

    def cancel(self, msg: Any | None = None) -> bool:
        if self.done():
            return False
        self._is_given_up = True
        return True if self._has_begun else super().cancel(msg)

    def begin(self, on_end: Callable[[], object]) -> None:
        """Have the legs do it, and call *on_end* when they are through."""
        if self.done():  # cancelled while it waited
            on_end()
            return
        self._has_begun = True
        self._on_end = on_end
        self._begins()
        assert self._call is not None
        self._ask(self._legs.present(), self._call, [])

    def _ask(
        self, members: list[Member], call: Call[None], others: list[tuple[Member, BaseException | None]]
    ) -> None:
        requests = [_of(member, call) for member in members]
        together = asyncio.gather(*requests, return_exceptions=True)
        together.add_done_callback(lambda together: self._settle(members, together, others))

    def _settle(
        self,
        members: list[Member],
        together: "asyncio.Future[list[BaseException | None]]",
        others: list[tuple[Member, BaseException | None]],
    ) -> None:
        outcomes = [*others, *zip(members, together.result(), strict=True)]
        unable = [member for member, error in outcomes if isinstance(error, UnsupportedError)]
        if unable and len(unable) < len(outcomes) and (self._optional or self._instead is not None):
            others = [(member, None if member in unable else error) for member, error in outcomes]
            if self._instead is not None:
                instead, self._instead = self._instead, None
                self._ask(unable, instead, [other for other in others if other[0] not in unable])
                return
            outcomes = others
        self._end(self._ends(outcomes))

    def _end(self, error: BaseException | None) -> None:
        on_end, self._on_end, self._call, self._instead = self._on_end, None, None, None
        if self._is_given_up:
            super().cancel()
        elif error is None:
            self.set_result(None)
        elif isinstance(error, asyncio.CancelledError):
            super().cancel(*error.args)
        else:
            self.set_exception(error)
        assert on_end is not None
        on_end()


def _of(member: Member, call: Call[None]) -> "asyncio.Future[None]":
    """What the leg's call has begun; its refusal is the outcome, since other legs may have begun."""
    try:
        return future_of(call(member.device))
    except Exception as refusal:
        refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        refused.set_exception(refusal)
        return refused
