"""Tasks that finish what they have begun.

``asyncio.run()`` ends by cancelling every task there is and waiting for all of them: those that a device has
for itself, too, while the user's tasks still leave their ``async with`` blocks. Mapping memory or closing a
device that stops halfway would leave those waiting for ever.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar, final

__all__ = ["start_steadfast_task"]

T = TypeVar("T")


@final
class _SteadfastTask(asyncio.Task[T]):
    """A task that cannot be cancelled."""

    def cancel(self, msg: Any | None = None) -> bool:
        return False


def start_steadfast_task(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Run *work* in a task that cannot be cancelled, only awaited; shield the awaiting."""
    return _SteadfastTask(work, loop=loop)
