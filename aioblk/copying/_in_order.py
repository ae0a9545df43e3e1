"""Several things under way at a time, whose outcomes are had in the order in which they were begun."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from .._sync.scopes import shielded

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
                    yield await under_way[0]
                    _ = under_way.popleft()
        while under_way:
            yield await under_way[0]
            _ = under_way.popleft()
    finally:
        for task in under_way:
            task.cancel()
        if under_way:
            with shielded():
                await asyncio.wait(under_way)
            for task in under_way:
                if not task.cancelled():
                    task.exception()  # one is raised, and nobody asks for the others
