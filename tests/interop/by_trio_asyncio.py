"""Programs of trio's with devices: ``-m tests.interop.by_trio_asyncio ORDER PROGRAM SOCKET PID FILE``.

Each is a process of its own, since trio-asyncio replaces functions of asyncio when it is imported: before
aioblk and anyio's backend, or after, as ORDER says. SOCKET is of a slow device, which PID serves.
"""

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

ORDER, PROGRAM, SOCKET, PID, FILE = sys.argv[1:]
FIRST = ["anyio._backends._asyncio", "aioblk", "trio", "trio_asyncio"]
for name in FIRST if ORDER == "trio_last" else reversed(FIRST):
    importlib.import_module(name)

import pytest  # noqa: E402
import trio  # noqa: E402
import trio_asyncio  # noqa: E402
from trio_asyncio import aio_as_trio  # noqa: E402

import aioblk  # noqa: E402

BLOCK = 4096
TURNS = 50
PATIENCE = 60  # seconds
DATA = bytes(range(256)) * (BLOCK // 256)


def slow_device() -> aioblk.Device:
    return aioblk.VirtioBlkVhostUser(SOCKET)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """No request completes."""
    os.kill(int(PID), signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(int(PID), signal.SIGCONT)


async def refused(call: Callable[[], Awaitable[object]]) -> None:
    with pytest.raises(aioblk.UsageError, match="trio is running here"):
        await call()


async def each_call_by_itself() -> None:
    async with trio_asyncio.open_loop(), aio_as_trio(aioblk.IoUring(FILE)) as device:
        await aio_as_trio(device.write)(0, DATA, fua=True)
        assert await aio_as_trio(device.read)(0, BLOCK) == DATA
        async with aio_as_trio(device.allocate(BLOCK)) as region:
            await aio_as_trio(device.read_into)(0, region)
            assert bytes(region[:]) == DATA
        async with trio.open_nursery() as nursery:
            for block in range(8):
                nursery.start_soon(aio_as_trio(device.read), block * BLOCK, BLOCK)
        extents = [extent async for extent in aio_as_trio(device.extents())]
        assert sum(extent.length for extent in extents) == device.capacity
    assert device.closed


async def functions_of_asyncio() -> None:
    async def use(device: aioblk.Device) -> None:
        async with device, device.allocate(BLOCK) as region, aioblk.Arena(BLOCK) as arena:
            await arena.attach(device)
            with await arena.acquire(BLOCK) as buffer:
                for _ in range(3):
                    await device.read_into(0, region)
                    await device.read_into(0, buffer)
            mirror = aioblk.Mirror(device)
            await mirror.read(0, BLOCK)

    async with trio_asyncio.open_loop():
        await aio_as_trio(use)(slow_device())
        await aio_as_trio(use)(aioblk.IoUring(FILE))


async def what_trio_calls_itself_is_refused() -> None:
    async with trio_asyncio.open_loop():
        device = aioblk.IoUring(FILE)
        await refused(device.open)
        async with aio_as_trio(device):
            await refused(lambda: device.read(0, BLOCK))
            await refused(lambda: device.write(0, DATA))
            await refused(device.aclose)
            assert await aio_as_trio(device.read)(0, BLOCK) == bytes(BLOCK)


async def private_memory_is_left_at_once() -> None:
    async with trio_asyncio.open_loop(), aio_as_trio(slow_device()) as device:
        await aio_as_trio(device.read)(0, BLOCK)
        with held():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(aio_as_trio(device.read), 0, BLOCK)
                await until_in_flight(device)
                nursery.cancel_scope.cancel()
            assert device.statistics().in_flight == 1


async def callers_memory_is_waited_for() -> None:
    async with (
        trio_asyncio.open_loop(),
        aio_as_trio(slow_device()) as device,
        aio_as_trio(device.allocate(BLOCK)) as region,
        trio.open_nursery() as nursery,
    ):
        scope, has_ended = trio.CancelScope(), trio.Event()

        async def read() -> None:
            with scope:
                await aio_as_trio(device.read_into)(0, region)
            has_ended.set()

        with held():
            nursery.start_soon(read)
            await until_in_flight(device)
            scope.cancel()
            for _ in range(TURNS):
                await trio.lowlevel.checkpoint()
            assert not has_ended.is_set()
        await has_ended.wait()
        assert scope.cancelled_caught
        assert not device.statistics().in_flight


async def until_in_flight(device: aioblk.Device) -> None:
    while not device.statistics().in_flight:
        await trio.lowlevel.checkpoint()


async def what_asyncio_has_opened_is_closed_when_trio_cancels() -> None:
    device, entered = slow_device(), trio.Event()

    async def serve() -> None:
        async with device, device.allocate(BLOCK) as region:
            entered.set()
            while True:
                await device.read_into(0, region)

    async with trio_asyncio.open_loop():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(aio_as_trio(serve))
            await entered.wait()
            nursery.cancel_scope.cancel()
        assert device.closed
        async with aio_as_trio(slow_device()) as next_client:
            await aio_as_trio(next_client.read)(0, BLOCK)


async def what_trio_has_opened_needs_a_shield_to_be_closed() -> None:
    """In a scope that is cancelled, trio-asyncio begins nothing."""
    device = aioblk.IoUring(FILE)
    async with trio_asyncio.open_loop():
        with trio.CancelScope() as scope:
            async with aio_as_trio(device):
                scope.cancel()
                await trio.lowlevel.checkpoint()
        assert not device.closed
        with trio.CancelScope() as scope:
            scope.cancel()
            with trio.CancelScope(shield=True):
                await aio_as_trio(device.aclose)()
        assert device.closed


async def main(program: Callable[[], Awaitable[Any]]) -> None:
    with trio.fail_after(PATIENCE):
        await program()


if __name__ == "__main__":
    trio.run(main, globals()[PROGRAM])
