"""Changes that a device has been given, and has not finished."""

import asyncio
import weakref
from collections.abc import Iterator
from typing import Any, TypeAlias, final

from .._native._core import Request, Submitter
from ._begun import Begun

__all__ = ["UnderWay", "end_of"]

REMEMBERED = 64  # changes, before those that are done are forgotten

_Direct: TypeAlias = "tuple[int, int, weakref.ref[Request[Any]]]"
"""From where to where, and a request, which the device keeps alive while it has it. Once done, it is its
caller's alone: it may have an error, which has the frames that have seen it, and these have the caller's
memory."""

Change: TypeAlias = tuple[int, int, Request[Any] | Begun[Any]]
"""From where to where, in bytes, and who makes it."""


@final
class UnderWay:
    """To be looked at by iterating: it gives the changes that are not done, in no certain order.

    A device or queue of aioblk's own knows what it has, and is asked: nothing is kept of each request. It has
    the changes of whoever else uses it as well, and these are given too.
    """

    __slots__ = ("_begun", "_direct", "_forget_at", "_knows")

    def __init__(self, device: object) -> None:
        self._knows = device if isinstance(device, Submitter) else None
        self._direct: list[_Direct] = []  # some may be done, or gone
        self._begun: set[Change] = set()  # the same of a device that gives no requests
        self._forget_at = REMEMBERED

    @property
    def is_known(self) -> bool:
        """Whether the device knows them by itself, so that nothing has to be added."""
        return self._knows is not None

    def add(self, start: int, end: int, request: Request[Any] | Begun[Any]) -> None:
        if self._knows is not None or request.done():
            return
        if isinstance(request, Begun):
            change = start, end, request
            self._begun.add(change)
            request.add_done_callback(lambda _: self._begun.discard(change))
            return
        if len(self._direct) >= self._forget_at:
            self._direct = [(at, to, weakref.ref(work)) for at, to, work in self._requests()]
            self._forget_at = 2 * len(self._direct) + REMEMBERED
        self._direct.append((start, end, weakref.ref(request)))

    def _requests(self) -> Iterator[tuple[int, int, Request[Any]]]:
        for start, end, reference in self._direct:
            request = reference()
            if request is not None and not request.done():
                yield start, end, request

    def __iter__(self) -> Iterator[Change]:
        if self._knows is not None:
            yield from self._knows._changes()
        yield from self._requests()
        yield from [change for change in self._begun if not change[2].done()]

    async def finish(self) -> None:
        """Wait for all that there are now, in turn."""
        for _, _, work in list(self):
            await end_of(work)


async def end_of(work: "Request[Any] | Begun[Any] | asyncio.Future[Any]") -> None:
    """Wait until it is done, however that ends, and leave it alone if the waiting is cancelled."""
    ended = asyncio.Event()
    work.add_done_callback(lambda _: ended.set())
    await ended.wait()
