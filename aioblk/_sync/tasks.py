"""Tasks that finish what they have begun.

``asyncio.run()`` ends by cancelling every task there is and waiting for all of them: those that a device has
for itself, too, while the user's tasks still leave their ``async with`` blocks. Mapping memory or closing a
device that stops halfway would leave those waiting for ever.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine
from typing import Any, TypeVar, final

from .loops import running_loop
from .scopes import shielded

__all__ = [
    "SteadfastTasks",
    "carried_through",
    "start_steadfast_task",
    "until_ended",
]

T = TypeVar("T")


@final
class _SteadfastTask(asyncio.Task[T]):
    """A task that cannot be cancelled."""

    on_cancel: Callable[[], object] | None = None

    def cancel(self, msg: Any | None = None) -> bool:
        if self.on_cancel is not None:
            self.on_cancel()
        return False


def start_steadfast_task(
    loop: asyncio.AbstractEventLoop,
    work: Coroutine[Any, Any, T],
    *,
    on_cancel: Callable[[], object] | None = None,
) -> asyncio.Task[T]:
    """Run *work* in a task that cannot be cancelled, only awaited; shield the awaiting. *on_cancel* is called
    when somebody tries to, as the end of ``asyncio.run()`` does."""
    task = _SteadfastTask(work, loop=loop)
    task.on_cancel = on_cancel
    return task


async def until_ended(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Wait for the ends of all tasks, also of those that are added meanwhile, whatever scopes say and however
    often the caller is cancelled: it learns of that then."""
    cancelled: asyncio.CancelledError | None = None
    with shielded():
        while left := [task for task in tasks if not task.done()]:
            try:
                await asyncio.wait(left)
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        try:
            raise cancelled
        finally:
            del cancelled  # which has the error that keeps this frame


async def carried_through(work: Coroutine[Any, Any, T]) -> T:
    """Await work that is carried through when the caller is cancelled, which it is when that has ended."""
    try:
        task = start_steadfast_task(running_loop("begin"), work)
    except BaseException:
        work.close()
        raise
    try:
        await until_ended([task])
    except BaseException:
        if not task.cancelled():
            task.exception()  # nobody will ask for it any more
        raise
    return task.result()


@final
class SteadfastTasks:
    """The steadfast tasks of one owner, which keeps them and can wait for them."""

    def __init__(self, operation: str) -> None:
        """*operation* names what they do, for whoever calls without a loop."""
        self._operation = operation
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = start_steadfast_task(loop, work)
        self._tasks.add(task)
        task.add_done_callback(self._end)
        return task

    def _end(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # who waits is told of it; where nobody does, nobody wants to know

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Await work that goes on when the caller is cancelled."""
        try:
            loop = running_loop(self._operation)
        except BaseException:
            work.close()
            raise
        return await asyncio.shield(self.start(loop, work))

    async def until_done(self) -> None:
        """Wait until there are none, those that begin meanwhile included."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def until_ended(self) -> None:
        """The same, whatever scopes say and however often the caller is cancelled."""
        await until_ended(self._tasks)
