"""Programs whose tasks run the loop that runs them: ``-m tests.interop.nested_loops PATCH PROGRAM PATH``.

Each is a process of its own, since PATCH (nest_asyncio or its successor) changes asyncio for good. PATH is a
file of zeroes; in the cache, so that requests are finished by the loop's next flush, all of a turn together.
"""

import asyncio
import importlib
import sys
from collections.abc import Coroutine
from typing import Any

import pytest

import aioblk

BLOCK = 4096
ZEROES = bytes(BLOCK)

PATCH, PROGRAM, PATH = sys.argv[1:]


def patch() -> None:
    importlib.import_module(PATCH).apply()


def run_here(work: "Coroutine[Any, Any, Any] | asyncio.Task[Any]") -> Any:
    """Run the running loop from within one of its tasks, until *work* is done."""
    return asyncio.get_running_loop().run_until_complete(work)


def begin(device: aioblk.Device) -> aioblk.Request[bytes]:
    """A request that the next flush will finish; one before it may be done at once."""
    _first, request = device.read(0, BLOCK), device.read(0, BLOCK)
    assert not request.done()
    return request


async def read(device: aioblk.Device, times: int = 3) -> None:
    for _ in range(times):
        assert await begin(device) == ZEROES


async def be_woken_directly(device: aioblk.Device) -> None:
    before = device.statistics().direct_wakes
    await read(device, 1)
    assert device.statistics().direct_wakes > before


async def patched_after_a_direct_wake() -> None:
    async with aioblk.IoUring(PATH) as device:
        beside = asyncio.create_task(read(device, 100))
        await be_woken_directly(device)
        patch()
        for _ in range(10):
            run_here(read(device))
            asyncio.run(read(device))
        await beside


async def patched_at_first() -> None:
    patch()
    async with aioblk.IoUring(PATH) as device:
        beside = asyncio.create_task(read(device, 100))
        for _ in range(10):
            await read(device)
            asyncio.run(read(device))
        await beside


async def patched_within_a_turn() -> None:
    """What is submitted before or after it, in the same step, is done although that turn has not ended."""
    async with aioblk.IoUring(PATH) as device:
        await be_woken_directly(device)
        before = begin(device)
        patch()
        assert run_here(wait_for(before)) == ZEROES
        assert run_here(wait_for(begin(device))) == ZEROES


async def patched_before_it_submits() -> None:
    async with aioblk.IoUring(PATH) as device:
        await be_woken_directly(device)
        patch()
        assert run_here(wait_for(begin(device))) == ZEROES


async def wait_for(request: aioblk.Request[bytes]) -> bytes:
    return await request


async def nested_in_nested() -> None:
    async def deeper(device: aioblk.Device, depth: int) -> None:
        await read(device)
        if depth:
            run_here(deeper(device, depth - 1))
            await read(device)

    async with aioblk.IoUring(PATH) as device:
        await be_woken_directly(device)
        patch()
        run_here(deeper(device, 5))
        await deeper(device, 5)


async def waiting_for_the_next_to_be_woken() -> None:
    """Two requests finish together, and who waits for the first one waits for who waits for the second."""
    async with aioblk.IoUring(PATH) as device:
        tasks: list[asyncio.Task[bytes]] = []

        async def run_the_other() -> bytes:
            await begin(device)
            assert not device.statistics().in_flight
            assert not tasks[1].done()
            return bytes(run_here(tasks[1]))

        async def be_the_other() -> bytes:
            return await device.read(0, BLOCK)

        tasks += [asyncio.create_task(run_the_other()), asyncio.create_task(be_the_other())]
        patch()  # the tasks that there are stay asyncio's own
        assert await tasks[0] == ZEROES


async def another_loop_within() -> None:
    """A device belongs to its loop also while a task that it has woken runs another one."""
    other = asyncio.new_event_loop()

    async def use(device: aioblk.Device) -> None:
        with pytest.raises(aioblk.UsageError, match="another event loop"):
            device.read(0, BLOCK)
        async with aioblk.IoUring(PATH) as own:
            await read(own)

    async with aioblk.IoUring(PATH) as device:
        await be_woken_directly(device)
        patch()
        other.run_until_complete(use(device))
        await read(device)
    other.close()


if __name__ == "__main__":
    asyncio.run(globals()[PROGRAM]())
