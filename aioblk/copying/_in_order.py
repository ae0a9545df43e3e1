"""Several things under way at a time, whose outcomes are had in the order in which they were begun."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from .._sync.tasks import until_ended

__all__ = ["in_order"]

T = TypeVar("T")


async def in_order(work: AsyncGenerator[Coroutine[Any, Any, T]], depth: int) -> AsyncGenerator[T]:
    """What the coroutines return, *depth* of them under way. The first error, in their order, is raised; the
    others are cancelled then, and waited for, as they are when the generator is closed."""
    under_way: deque[asyncio.Task[T]] = deque()
    try:
        async with aclosing(work):
            async for each in work:
                under_way.append(asyncio.create_task(each))
                if len(under_way) >= depth:
                    yield await _outcome(under_way[0])
                    _ = under_way.popleft()
        while under_way:
            yield await _outcome(under_way[0])
            _ = under_way.popleft()
    finally:
        for task in under_way:
            task.cancel()
        try:
            await until_ended(under_way)
        finally:
            for task in under_way:
                if not task.cancelled():
                    task.exception()  # one is raised, and nobody asks for the others


async def _outcome(task: asyncio.Task[T]) -> T:
    """Who waits for it may be cancelled again and again, while the task waits for its device."""
    await asyncio.wait([task])
    return task.result()
