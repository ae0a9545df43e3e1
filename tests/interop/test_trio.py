"""trio has no loop for devices, and is told so before anything is touched."""

import asyncio
import contextlib
import gc
from collections.abc import Awaitable, Callable

import pytest
import trio

import aioblk
from aioblk.testing import MemoryDevice

from ..support.leaks import Holdings
from ..support.turns import LOOP_FACTORIES
from .operations import OPERATIONS, Ground, Scene
from .operations.made import CHANGES, MADE, REQUESTS
from .operations.scene import NEW, content

SUBJECTS = dict.fromkeys(operation.subject for operation in OPERATIONS.values())
PATIENCE = 60  # seconds


async def refused(call: Callable[[], Awaitable[object]]) -> None:
    with pytest.raises(aioblk.UsageError) as caught:
        await call()
    for word in ("trio is running", "asyncio's event loop", "trio-asyncio", "aio_as_trio()"):
        assert word in str(caught.value)


async def call_and_check(scene: Scene) -> None:
    async with asyncio.timeout(PATIENCE):
        if scene.ends:
            await scene.call()
        await scene.check()


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOP_FACTORIES)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_operation_is_refused_under_trio_and_can_be_made_afterwards(
    subject: str, loop: str, ground: Ground
) -> None:
    for operation in OPERATIONS.values():
        if operation.subject != subject:
            continue
        with asyncio.Runner(loop_factory=LOOP_FACTORIES[loop]) as runner:
            stack = contextlib.AsyncExitStack()
            scene = runner.run(stack.enter_async_context(operation.open(ground)))
            try:
                before = Holdings.now()
                trio.run(refused, scene.call)
                gc.collect()  # the error has frames, and these have the caller's memory
                assert not Holdings.now().added_since(before)
                runner.run(call_and_check(scene))
            except BaseException as error:
                error.add_note(f"in the scene of {operation.name}")
                raise
            finally:
                runner.run(stack.aclose())


@pytest.mark.parametrize("kind", MADE)
def test_what_is_refused_under_trio_was_not_written(kind: str) -> None:
    with asyncio.Runner() as runner:

        async def make() -> tuple[aioblk.BlockDevice, list[MemoryDevice]]:
            device, below = MADE[kind]()
            return device, [*below] or [device]  # type: ignore[list-item]

        device, [base, *_] = runner.run(make())
        for change in CHANGES:
            trio.run(refused, lambda change=change: REQUESTS[change](device, NEW))
        assert base.content() == content()
        assert device.statistics().submitted == 0
        runner.run(device.aclose())
