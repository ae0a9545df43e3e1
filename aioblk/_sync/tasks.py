"""Tasks that finish what they have begun.

``asyncio.run()`` ends by cancelling every task there is and waiting for all of them: those that a device has
for itself, too, while the user's tasks still leave their ``async with`` blocks. Mapping memory or closing a
device that stops halfway would leave those waiting for ever.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar, final

from .loops import running_loop

__all__ = ["SteadfastTasks", "start_steadfast_task"]

T = TypeVar("T")


@final
class _SteadfastTask(asyncio.Task[T]):
    """A task that cannot be cancelled."""

    def cancel(self, msg: Any | None = None) -> bool:
        return False


def start_steadfast_task(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Run *work* in a task that cannot be cancelled, only awaited; shield the awaiting."""
    return _SteadfastTask(work, loop=loop)


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
