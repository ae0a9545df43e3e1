"""Calls of a device from worker threads."""

import asyncio
import random
import threading
from collections.abc import Callable

import pytest

import aioblk
from aioblk._libblkio.handle import Blkio
from aioblk._memory.handle_calls import HandleCalls
from aioblk._sync import blocking
from aioblk._sync.blocking import BlockingCall


async def test_what_a_lost_device_gave_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is lost when the outcome has been delivered: whoever comes back with it has freed that since."""
    take = BlockingCall.take
    with Blkio("io_uring") as handle:
        calls = HandleCalls(handle)

        def lose_and_take(call: BlockingCall[str]) -> str:
            calls.lose(aioblk.DeviceLostError("gone"))
            return take(call)

        monkeypatch.setattr(BlockingCall, "take", lose_and_take)
        with pytest.raises(aioblk.DeviceLostError):
            await calls.make("register", lambda: "memory")


@pytest.mark.parametrize("seed", range(8))
async def test_calls_are_made_in_the_order_in_which_they_were_asked_for(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Whichever thread comes first, one at a time; also those whose task was cancelled."""
    waiting: list[Callable[[], object]] = []
    monkeypatch.setattr(blocking, "call_in_thread", waiting.append)
    made: list[int] = []
    with Blkio("io_uring") as handle:
        calls = HandleCalls(handle)
        tasks = [asyncio.create_task(calls.make("truncate", lambda n=n: made.append(n))) for n in range(5)]  # type: ignore[misc]
        await asyncio.sleep(0)
        tasks[1].cancel()
        random.Random(seed).shuffle(waiting)
        for call in waiting:
            thread = threading.Thread(target=call)
            thread.start()
            thread.join()
        await asyncio.wait(tasks)
    assert made == list(range(5))
