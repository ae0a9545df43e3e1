"""What a call has begun, made a task that is cancelled before its first step."""

import asyncio
import gc
from typing import Any

import anyio
import pytest

from aioblk.layers._begun import Begun, Followed


def begin_lazily(work: Begun[Any]) -> asyncio.Task[Any]:
    """A task without its first step, also on a loop whose tasks are eager."""
    return asyncio.Task(work, loop=asyncio.get_running_loop())


async def test_it_is_cancelled_although_what_it_began_is_too_far_for_that() -> None:
    request: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    together = asyncio.gather(request, return_exceptions=True)
    request.set_result(1)
    assert not together.done()  # until its turn
    task = begin_lazily(Begun(together))
    task.cancel("why")
    await asyncio.wait([task])
    assert task.cancelled()
    assert [*together.result()] == [1]


async def test_it_waits_for_what_it_began_although_it_is_cancelled_again() -> None:
    loop = asyncio.get_running_loop()

    class Slow(asyncio.Future[None]):
        def cancel(self, msg: Any = None) -> bool:
            return True

    request = Slow(loop=loop)
    task = begin_lazily(Begun(request))
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
    request.set_exception(OSError("nobody is told"))
    await asyncio.wait([task])
    assert task.cancelled()


async def test_an_error_that_it_has_met_by_then_is_not_told_to_anybody() -> None:
    told: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context))
    request: asyncio.Future[None] = loop.create_future()
    request.set_exception(OSError())
    task = begin_lazily(Begun(request))
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    del request, task
    gc.collect()
    assert told == []


async def test_who_is_cancelled_in_the_very_turn_of_the_end_hears_of_it() -> None:
    loop = asyncio.get_running_loop()
    for outcome in (None, OSError("nobody is told")):
        request: asyncio.Future[None] = loop.create_future()

        async def wait(request: "asyncio.Future[None]" = request) -> None:
            await Begun(request)

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        if outcome is None:
            request.set_result(None)
        else:
            request.set_exception(outcome)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


async def test_who_is_cancelled_cancels_at_once_what_it_waits_for() -> None:
    """Whatever is asked for in the same turn comes after a change that is given up, not beside it."""
    for uses_anyio in (False, True):
        request: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def wait(request: "asyncio.Future[None]" = request) -> None:
            await Begun(request)

        if uses_anyio:
            with anyio.CancelScope():
                await asyncio.sleep(0)
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel("why")
        assert request.cancelled()
        with pytest.raises(asyncio.CancelledError, match="why"):
            await task


async def test_whoever_fails_to_learn_of_an_end_leaves_nobody_waiting() -> None:
    """As where there is no memory to note down that a change is done."""

    def fail(_: BaseException | None) -> None:
        raise MemoryError

    for outcome in (None, OSError("lost"), asyncio.CancelledError()):
        request: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        followed = Followed(request, fail)
        if outcome is None:
            request.set_result(None)
        elif isinstance(outcome, OSError):
            request.set_exception(outcome)
        else:
            request.cancel()
        await asyncio.wait([followed], timeout=10)
        assert isinstance(followed.exception(), MemoryError)
