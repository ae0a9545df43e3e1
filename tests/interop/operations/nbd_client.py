"""The NBD client, of a server whose device can be held."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, final

import pytest

import aioblk
import aioblk.nbd
from aioblk.nbd import Export, Policy, Server

from ...support.devices import BLOCK
from ...support.gate import Gate
from .made import REQUESTS
from .scene import (
    NEW,
    Ground,
    Scene,
    Scenery,
    Wait,
    check_content,
    check_memory,
    first,
    gate,
    leave,
    operation,
)

SMALL = Policy(clients=4, memory=1 << 20)


@final
class Service:
    """A server that listens, and answers from when it is started."""

    def __init__(self, server: Server, device: Gate, uri: str) -> None:
        self.device = device
        self.uri = uri
        self.is_held = False
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._serving: asyncio.Task[None] | None = None

    def hold(self) -> None:
        self.is_held = True

    def start(self) -> None:
        if self._serving is None:
            self._serving = self._loop.create_task(self._server.serve())

    async def end(self) -> None:
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.wait([self._serving])


@asynccontextmanager
async def _service(ground: Ground) -> AsyncGenerator[Service]:
    device, path = gate(), ground.folder / "nbd.sock"
    async with Server([Export(device)], policy=SMALL) as server:
        server.listen_at_path(path)
        service = Service(server, device, f"nbd+unix:///?socket={path}")
        yield service
        await service.end()
    await device.aclose()


# --- requests -----------------------------------------------------------------------------------------------


def _request(request: str) -> Scenery:
    async def scene(ground: Ground) -> AsyncIterator[Scene]:
        async with _service(ground) as service:
            service.start()
            memory = bytearray(NEW)
            async with aioblk.Nbd(service.uri) as device:

                async def check() -> None:
                    await check_content(device)
                    await device.aclose()
                    check_memory(memory)

                below = service.device
                yield Scene(lambda: REQUESTS[request](device, memory), below.hold, below.release, check)

    return scene


for request in REQUESTS:
    operation(f"Nbd.{request}")(_request(request))


@operation("Nbd.extents", Wait.NONE)
async def extents(ground: Ground) -> AsyncIterator[Scene]:
    async with _service(ground) as service:
        service.start()
        async with aioblk.Nbd(service.uri) as device:
            yield Scene(lambda: first(device.extents()), check=lambda: check_content(device))


@operation("Nbd.block_status", Wait.NONE)
async def block_status(ground: Ground) -> AsyncIterator[Scene]:
    async with _service(ground) as service:
        service.start()
        async with aioblk.Nbd(service.uri) as device:
            yield Scene(
                lambda: first(device.block_status("base:allocation")), check=lambda: check_content(device)
            )


# --- life ---------------------------------------------------------------------------------------------------


def _opening(how: Callable[[aioblk.Nbd], Awaitable[object]]) -> Scenery:
    async def scene(ground: Ground) -> AsyncIterator[Scene]:
        async with _service(ground) as service:
            device = aioblk.Nbd(service.uri)

            async def open_it() -> None:
                if not service.is_held:
                    service.start()
                await how(device)

            async def check() -> None:
                service.start()
                if not device.closed:
                    await check_content(device)
                else:  # a device can be opened once
                    with pytest.raises(aioblk.UsageError):
                        await device.open()

            yield Scene(open_it, service.hold, service.start, check)
            await device.aclose()

    return scene


operation("Nbd.open")(_opening(lambda device: device.open()))
operation("Nbd.__aenter__")(_opening(lambda device: device.__aenter__()))


def _closing(how: Callable[[Any], Awaitable[object]]) -> Scenery:
    async def scene(ground: Ground) -> AsyncIterator[Scene]:
        async with _service(ground) as service:
            service.start()
            device = aioblk.Nbd(service.uri)
            await device.open()
            writing: list[Awaitable[None]] = []

            def hold() -> None:
                service.device.hold()
                writing.append(device.write_zeroes(0, BLOCK))

            async def check() -> None:
                await device.aclose()
                for each in writing:
                    await each

            yield Scene(lambda: how(device), hold, service.device.release, check)
            await device.aclose()

    return scene


operation("Nbd.aclose", closes=True)(_closing(lambda device: device.aclose()))
operation("Nbd.__aexit__", Wait.FINISHED, closes=True)(_closing(leave))


@operation("Nbd.reconnect", Wait.NONE)
async def reconnect(ground: Ground) -> AsyncIterator[Scene]:
    async with _service(ground) as service:
        service.start()
        async with aioblk.Nbd(service.uri) as device:
            device.abandon()

            async def check() -> None:
                if device.lost is not None:
                    await device.reconnect()
                await check_content(device)

            yield Scene(device.reconnect, check=check)


@operation("Nbd.events")
async def events(ground: Ground) -> AsyncIterator[Scene]:
    async with _service(ground) as service:
        service.start()
        async with aioblk.Nbd(service.uri) as device:

            async def listen() -> None:
                events = device.events()
                if not service.is_held:
                    device.abandon()
                await first(events)

            yield Scene(listen, service.hold, device.abandon)


@operation("list_exports")
async def list_exports(ground: Ground) -> AsyncIterator[Scene]:
    async with _service(ground) as service:

        async def ask() -> object:
            if not service.is_held:
                service.start()
            return await aioblk.nbd.list_exports(service.uri)

        async def check() -> None:
            service.start()
            assert len(await aioblk.nbd.list_exports(service.uri)) == 1

        yield Scene(ask, service.hold, service.start, check)
