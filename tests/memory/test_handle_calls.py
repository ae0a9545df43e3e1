"""Calls of a device from worker threads."""

import pytest

import aioblk
from aioblk._libblkio.handle import Blkio
from aioblk._memory.handle_calls import HandleCalls
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
