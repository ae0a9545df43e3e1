"""Devices of libblkio's drivers, and their queues."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

import aioblk
from aioblk._sync.threads import dismiss

from ...support.devices import BLOCK
from ...support.leaks import Holdings, join_threads
from .made import IN_PLACE, PRIVATE, REQUESTS
from .scene import NEW, SIZE, Ground, Scene, Scenery, Wait, check_content, first, leave, operation

# --- requests -----------------------------------------------------------------------------------------------


def _request(of: str, request: str, *, mapped: bool) -> Scenery:
    """On memory that the device reaches, or that bounces."""

    async def scene(ground: Ground) -> AsyncIterator[Scene]:
        async with AsyncExitStack() as stack:
            device = await stack.enter_async_context(aioblk.VirtioBlkVhostUser(ground.daemon.socket))
            memory: Any = bytearray(NEW)
            if mapped:
                memory = await stack.enter_async_context(device.allocate(BLOCK))
                memory[:] = NEW
            await device.read(0, BLOCK)  # there is a bounce pool
            who = device.queue() if of == "Queue" else device

            async def check() -> None:
                await device.queue().drain()
                assert not device.statistics().in_flight
                await check_content(device)

            yield Scene(
                lambda: REQUESTS[request](who, memory), ground.hold_daemon, ground.release_daemon, check
            )

    return scene


for who in ("Device", "Queue"):
    for request in PRIVATE:
        operation(f"{who}.{request}")(_request(who, request, mapped=False))
    for request in IN_PLACE:
        operation(f"{who}.{request}", Wait.FINISHED)(_request(who, request, mapped=True))
        operation(f"{who}.{request}, bounced")(_request(who, request, mapped=False))


@operation("Request.__await__", Wait.FINISHED)
async def await_request(ground: Ground) -> AsyncIterator[Scene]:
    """That was made before."""
    async with aioblk.VirtioBlkVhostUser(ground.daemon.socket) as device, device.allocate(BLOCK) as region:
        made: list[aioblk.Request[None]] = []

        def hold() -> None:
            ground.hold_daemon()
            made.append(device.read_into(0, region))

        async def await_it() -> None:
            await (made[-1] if made else device.read_into(0, region))

        async def check() -> None:
            assert not device.statistics().in_flight
            await device.read_into(0, region)

        yield Scene(await_it, hold, ground.release_daemon, check)


# --- opening and closing ------------------------------------------------------------------------------------


def _opening(how: Callable[[aioblk.Device], Awaitable[object]]) -> Scenery:
    async def scene(ground: Ground) -> AsyncIterator[Scene]:
        device = aioblk.IoUring(ground.file())
        threads = ground.threads()

        async def check() -> None:
            if not device.closed:
                await check_content(device)
            else:  # a device can be opened once
                with pytest.raises(aioblk.UsageError):
                    await device.open()
            await device.aclose()

        yield Scene(lambda: how(device), threads.hold, threads.release, check)
        await device.aclose()

    return scene


operation("Device.open")(_opening(lambda device: device.open()))
operation("Device.__aenter__")(_opening(lambda device: device.__aenter__()))


@operation("Device.open, a new file")
async def create(ground: Ground) -> AsyncIterator[Scene]:
    path = ground.folder / "new.img"
    device = aioblk.IoUring(path, create=SIZE)
    threads = ground.threads()
    dismiss()  # or one of before would do it
    before = Holdings.now()

    async def check() -> None:
        join_threads(before)  # the one that makes it gives it back
        assert path.exists() is not device.closed
        await device.aclose()

    yield Scene(device.open, threads.hold, threads.release, check)
    await device.aclose()


CLOSING: dict[str, Callable[[aioblk.Device], Awaitable[object]]] = {
    "Device.aclose": lambda device: device.aclose(),
    "Device.__aexit__": leave,
    "Device.detach": lambda device: device.detach(),
    "Queue.drain": lambda device: device.queue().drain(),
    "Queue.aclose": lambda device: device.queue().aclose(),
    "Queue.__aexit__": lambda device: leave(device.queue()),
}


def _closing(name: str) -> Scenery:
    async def scene(ground: Ground) -> AsyncIterator[Scene]:
        device = aioblk.VirtioBlkVhostUser(ground.daemon.socket)
        await device.open()
        requests: list[aioblk.Request[None]] = []

        def hold() -> None:
            ground.hold_daemon()
            requests.append(device.write_zeroes(0, BLOCK))

        async def check() -> None:
            await device.aclose()
            assert all(request.done() and request.exception() is None for request in requests)

        yield Scene(lambda: CLOSING[name](device), hold, ground.release_daemon, check)
        await device.aclose()

    return scene


for name in CLOSING:
    operation(name, Wait.FINISHED if "__aexit__" in name else Wait.LEFT, closes=True)(_closing(name))


@operation("Device.attach", Wait.NONE)
async def attach(ground: Ground) -> AsyncIterator[Scene]:
    async with aioblk.IoUring(ground.file()) as device:
        await device.detach()
        yield Scene(device.attach, check=lambda: check_content(device))


@operation("Queue.__aenter__", Wait.NONE)
async def enter_queue(ground: Ground) -> AsyncIterator[Scene]:
    async with aioblk.IoUring(ground.file(), num_queues=2) as device:
        queue = device.queue(1)
        yield Scene(queue.__aenter__, check=lambda: check_content(queue))
        await queue.aclose()


# --- calls in threads ---------------------------------------------------------------------------------------


def _in_thread(
    call: Callable[[aioblk.Device], Awaitable[object]], check: Callable[[aioblk.Device], Awaitable[None]]
) -> Scenery:
    """Of a file."""

    async def scene(ground: Ground) -> AsyncIterator[Scene]:
        async with aioblk.IoUring(ground.file()) as device:
            threads = ground.threads()
            yield Scene(lambda: call(device), threads.hold, threads.release, lambda: check(device))

    return scene


async def _longer(device: aioblk.Device) -> None:
    """It is made all the same, or was never begun."""
    await device.truncate(3 * SIZE)
    assert device.capacity == 3 * SIZE
    await check_content(device)


async def _with_queues(device: aioblk.Device) -> None:
    index = await device.add_queue()
    async with device.queue(index) as queue:
        await check_content(queue)


operation("Device.truncate")(_in_thread(lambda device: device.truncate(2 * SIZE), _longer))
operation("Device.extents")(_in_thread(lambda device: first(device.extents()), check_content))
operation("Device.add_queue")(_in_thread(lambda device: device.add_queue(), _with_queues))


@operation("Device.remove_queue")
async def remove_queue(ground: Ground) -> AsyncIterator[Scene]:
    async with aioblk.IoUring(ground.file(), num_queues=2) as device:
        threads = ground.threads()
        yield Scene(
            lambda: device.remove_queue(1), threads.hold, threads.release, lambda: _with_queues(device)
        )


@operation("Device.refresh_capacity")
async def refresh_capacity(ground: Ground) -> AsyncIterator[Scene]:
    async with aioblk.VirtioBlkVhostUser(ground.daemon.socket) as device:
        threads = ground.threads()

        async def check() -> None:
            assert await device.refresh_capacity() == SIZE
            await check_content(device)

        yield Scene(device.refresh_capacity, threads.hold, threads.release, check)


@operation("Device.reconnect")
async def reconnect(ground: Ground) -> AsyncIterator[Scene]:
    async with aioblk.IoUring(ground.file()) as device:
        device.abandon()
        threads = ground.threads()

        async def check() -> None:
            if device.lost is not None:
                await device.reconnect()
            await check_content(device)

        yield Scene(device.reconnect, threads.hold, threads.release, check)


# --- events -------------------------------------------------------------------------------------------------


@operation("Device.events")
async def events(ground: Ground) -> AsyncIterator[Scene]:
    path = ground.file()
    async with aioblk.IoUring(path) as device:
        is_held = False

        def hold() -> None:
            nonlocal is_held
            is_held = True

        async def listen() -> None:
            events = device.events()
            if not is_held:
                with path.open("ab") as file:
                    file.truncate(2 * SIZE)
                await device.refresh_capacity()
            await first(events)

        yield Scene(listen, hold, device.abandon)
