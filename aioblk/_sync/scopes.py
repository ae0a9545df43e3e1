"""anyio's cancel scopes, where anyio is in use.

asyncio cancels a task once. A cancelled scope of anyio cancels its tasks again, whatever they await next and
in every turn of the loop, until they have left it; except in a shielded scope. So what has to wait all the
same enters one: closing in a ``finally`` would end at once otherwise, and a request that waits for its device
would keep the loop busy until the device is done.

Who does not use anyio pays for nothing but the question.
"""

import asyncio
import contextlib
import math
import sys
from collections.abc import Generator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import anyio

from .loops import in_trio_run, running_loop

__all__ = ["AsyncClosing", "enter", "leave", "outcome_of", "shielded", "shielded_if_cancelled"]

T = TypeVar("T")

_USED_BY = "anyio._backends._asyncio"  # who uses anyio on asyncio has imported this


def shielded() -> AbstractContextManager[object]:
    """Inside, the scopes outside cancel nothing."""
    if _are_used() and asyncio.current_task() is not None:
        return anyio.CancelScope(shield=True)
    return contextlib.nullcontext()


def shielded_if_cancelled() -> AbstractContextManager[object]:
    """The same, if one of the scopes outside has been cancelled before; what is cancelled later is.

    So cancellation by anyio counts once for who closes something, as cancellation by asyncio does.
    """
    return shielded() if _is_cancelled() else contextlib.nullcontext()


class AsyncClosing:
    """What is closed when an ``async with`` block is left, and waits for that whatever scopes say."""

    __slots__ = ()

    async def aclose(self) -> None:
        raise NotImplementedError

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        running_loop("close")
        with shielded():
            await self.aclose()


def _is_cancelled() -> bool:
    """Whether a scope of the running task has been cancelled, and goes on cancelling."""
    return _are_used() and anyio.current_effective_deadline() == -math.inf


def _are_used() -> bool:
    """Whether there may be scopes of anyio's for asyncio. In a loop of trio-asyncio's, anyio may take trio to
    be running, whose scopes are not for tasks of asyncio's."""
    return _USED_BY in sys.modules and not in_trio_run()


def outcome_of(task: asyncio.Future[T]) -> Generator[Any, None, T]:
    """Await what may go on for long after it was cancelled; cancelling who awaits it cancels it."""
    if _are_used() and not task.done():
        return _shielded_outcome(task).__await__()
    return task.__await__()


class _End(asyncio.Future[None]):
    """Of a task. To cancel it is to cancel the task, at once, and not to wait for its end."""

    def __init__(self, task: asyncio.Future[Any]) -> None:
        super().__init__(loop=task.get_loop())
        self._task = task
        task.add_done_callback(self._come)

    def _come(self, _task: object) -> None:
        if not self.done():
            self.set_result(None)

    def cancel(self, msg: Any | None = None) -> bool:
        if self.done():
            return False
        self._task.cancel(msg)
        return super().cancel(msg)


async def _shielded_outcome(task: asyncio.Future[T]) -> T:
    try:
        try:
            await _End(task)
        except asyncio.CancelledError:
            if task.done():  # there is nobody left to hand this on to
                if not task.cancelled():
                    task.exception()  # nobody will ask for it any more
                raise
        if task.done():
            return task.result()
        with shielded():
            return await task
    finally:
        del task  # which has the error that keeps this frame


# --- for the compiled core ----------------------------------------------------------------------------------

# By who waits in one. In quotes: anyio imports what it has when that is named.
_entered: "WeakKeyDictionary[asyncio.Task[Any], anyio.CancelScope]" = WeakKeyDictionary()


def enter() -> None:
    """The running task is about to wait for the device."""
    task = asyncio.current_task()
    if task is not None and task not in _entered and _is_cancelled():
        _entered[task] = anyio.CancelScope(shield=True).__enter__()


def leave() -> None:
    """The running task waits no longer."""
    task = asyncio.current_task()
    scope = None if task is None else _entered.pop(task, None)
    if scope is not None:
        scope.__exit__(None, None, None)
