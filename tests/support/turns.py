"""An event loop that a synchronous test drives turn by turn: state machines need the moments in between."""

import asyncio
from collections.abc import Callable
from typing import Self

import uvloop

LOOP_FACTORIES: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
}


async def turns(count: int = 3) -> None:
    """Let the loop take so many."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(happened: Callable[[], object]) -> None:
    """Let it take turns until something is so that tells nobody."""
    while not happened():  # noqa: ASYNC110
        await asyncio.sleep(0)


class Others:
    """Within the block, a task that is always ready for its turn, and counts them."""

    def __init__(self) -> None:
        self.turns = 0

    async def _take_turns(self) -> None:
        while True:
            await asyncio.sleep(0)
            self.turns += 1

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._take_turns())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


class DrivenLoop:
    """Owns a loop and the tasks made on it; nothing runs except inside :meth:`settle` and :meth:`run`."""

    def __init__(self, name: str) -> None:
        self.loop = LOOP_FACTORIES[name]()
        self.errors: list[dict[str, object]] = []
        self.loop.set_exception_handler(lambda _, context: self.errors.append(context))

    def settle(self, turns: int = 4) -> None:
        """Run what is ready now and what becomes ready by it."""
        for _ in range(turns):
            self.loop.run_until_complete(asyncio.sleep(0))

    def close(self) -> None:
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self.loop.run_until_complete(asyncio.wait(tasks))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()
        assert not self.errors
