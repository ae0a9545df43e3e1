"""Errors go with who has caught them: nothing of aioblk keeps them, so that they need no collector, and they
keep nobody's memory."""

import asyncio
import errno
import gc
import weakref
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import pytest

import aioblk

from .devices import BLOCK, device_on, until, until_held
from .library import Disk, Simulator

MANY = 20  # requests, of which some complete as they are submitted, and some do not

Call = Callable[[aioblk.ByteView, bytearray], Awaitable[object]]

CALLS: dict[str, Call] = {
    "read": lambda view, _: view.read(3, 5),
    "readv": lambda view, memory: view.readv(3, [memory]),
    "read_into": lambda view, memory: view.read_into(3, memory),
    "read_many": lambda view, _: view.read_many([(3, 5), (0, BLOCK)]),
    "read_into_many": lambda view, memory: view.read_into_many([(3, memory)]),
    "write": lambda view, memory: view.write(3, memory),
    "writev": lambda view, memory: view.writev(3, [memory]),
    "write_many": lambda view, memory: view.write_many([(3, memory), (4 * BLOCK, memory)]),
    "write_zeroes": lambda view, _: view.write_zeroes(3, 5),
    "write_zeroes, blocks": lambda view, _: view.write_zeroes(3, 4 * BLOCK),
    "write, a block": lambda view, memory: view.write(0, memory),
    "writev, a block": lambda view, memory: view.writev(0, [memory]),
    "write_many, a block": lambda view, memory: view.write_many([(0, memory)]),
    "write_zeroes, a block": lambda view, _: view.write_zeroes(0, BLOCK),
}
"""Of parts of blocks, but where it says so."""

Errors = list["weakref.ref[BaseException]"]


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(params=CALLS)
def call(request: pytest.FixtureRequest) -> Call:
    return CALLS[request.param]


@pytest.fixture(params=["awaited", "in a task"])
def wait(request: pytest.FixtureRequest) -> Callable[[Awaitable[object]], Awaitable[object]]:
    if request.param == "awaited":
        return lambda request: request
    return lambda request: asyncio.get_running_loop().create_task(request)  # type: ignore[arg-type]


async def caught(work: Awaitable[object]) -> "weakref.ref[BaseException]":
    """What it raises, for as long as somebody has it."""
    waiting = [work]
    del work
    try:
        await waiting.pop()
    except (aioblk.BlkioError, asyncio.CancelledError) as error:
        return weakref.ref(error)
    raise AssertionError("it has not failed")


async def all_go(errors: Errors) -> None:
    """Who has told of them may take a turn to be through. An eager task that fails in its first step keeps
    the frames of who has made it, as the interpreter has it (f_back), and with them what that has begun."""
    eager = asyncio.get_running_loop().get_task_factory() is not None

    def are_gone() -> bool:
        if eager:
            _ = gc.collect()
        return not any(error() is not None for error in errors)

    await until(are_gone)


async def test_of_requests(
    backend: Disk, simulator: Simulator, call: Call, wait: Callable[[Awaitable[object]], Awaitable[object]]
) -> None:
    async with device_on(backend) as device:
        view = aioblk.ByteView(device)
        simulator.configure(fail=1000)
        memory = bytearray(BLOCK)
        await all_go([await caught(wait(call(view, memory))) for _ in range(MANY)])


async def test_of_requests_that_are_cancelled(backend: Disk, simulator: Simulator, call: Call) -> None:
    async with device_on(backend) as device:
        view = aioblk.ByteView(device)
        simulator.configure(hold=1)
        waiter = asyncio.get_running_loop().create_task(caught(call(view, bytearray(BLOCK))))
        await asyncio.sleep(0)
        await until_held(simulator, 1)
        waiter.cancel()
        await asyncio.sleep(0)
        simulator.configure(hold=0)
        simulator.complete()
        await all_go([await waiter])


@pytest.mark.parametrize("offset", [0, 3])
async def test_an_error_keeps_no_memory_of_a_change(backend: Disk, simulator: Simulator, offset: int) -> None:
    """Whoever has it can resize or close what was to be written."""
    async with device_on(backend) as device:
        view = aioblk.ByteView(device)
        simulator.configure(fail=1000)
        memory = bytearray(BLOCK)
        for write in (view.write, lambda offset, data: view.writev(offset, [data])):
            earlier = asyncio.ensure_future(view.write(3, b"x"))
            with pytest.raises(aioblk.BlkioError) as failed:
                await write(offset, memory)
            with pytest.raises(aioblk.BlkioError):
                await earlier
            memory.extend(b"x")
            del memory[BLOCK:], failed


async def test_of_registrations(backend: Disk, simulator: Simulator) -> None:
    async with device_on(backend) as device:
        simulator.fail("map", errno.EINVAL)
        await all_go([await caught(device.allocate(BLOCK).__aenter__())])


async def test_of_calls_that_are_given_up(backend: Disk, simulator: Simulator) -> None:
    async with device_on(backend) as device:
        with simulator.blocking("map"):
            entering = asyncio.get_running_loop().create_task(caught(device.allocate(BLOCK).__aenter__()))
            await until(partial(simulator.blocked, "map"))
            device.abandon()
            errors = [await entering]
        await all_go(errors)


async def test_of_coming_back(backend: Disk, simulator: Simulator) -> None:
    async with device_on(backend) as device:
        device.abandon()
        simulator.fail("connect", errno.ECONNREFUSED)
        await all_go([await caught(device.reconnect())])
