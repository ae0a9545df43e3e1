"""The NBD server: devices come and go with memory of its own, of which they are told in threads."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aioblk
from aioblk.nbd import Export, Policy, Server

from .scene import Ground, Scene, Scenery, Wait, check_content, gate, leave, operation

SMALL = Policy(clients=4, memory=1 << 20)


@operation("Server.__aenter__", Wait.FINISHED)
async def enter(ground: Ground) -> AsyncIterator[Scene]:
    async with aioblk.VirtioBlkVhostUser(ground.daemon.socket) as device:
        server = Server([Export(device)], policy=SMALL)
        threads = ground.threads()

        async def check() -> None:
            await leave(server)
            async with Server([Export(device)], policy=SMALL) as other:
                assert other.exports == ("",)
            await check_content(device)

        yield Scene(server.__aenter__, threads.hold, threads.release, check)
        await leave(server)


def _of_a_server(
    call: Callable[[Server, Export], Awaitable[object]],
    check: Callable[[Server, Export], Awaitable[None]],
    *,
    has_it: bool = True,
) -> Scenery:
    """That has an export, or is to get it."""

    async def scene(ground: Ground) -> AsyncIterator[Scene]:
        async with aioblk.VirtioBlkVhostUser(ground.daemon.socket) as device:
            export = Export(device, "disk")
            async with Server([export] if has_it else [], policy=SMALL) as server:
                threads = ground.threads()
                yield Scene(
                    lambda: call(server, export), threads.hold, threads.release, lambda: check(server, export)
                )
                threads.release()
            await check_content(device)

    return scene


async def _is_removed(server: Server, export: Export) -> None:
    """Whatever was begun is finished first."""
    await server.add(export)
    assert server.exports == ("disk",)


async def _is_added(server: Server, export: Export) -> None:
    await server.remove("disk")
    assert server.exports == ()


async def _is_left(server: Server, export: Export) -> None:
    await leave(server)
    async with Server([export], policy=SMALL) as other:
        assert other.exports == ("disk",)


operation("Server.add")(_of_a_server(lambda server, export: server.add(export), _is_added, has_it=False))
operation("Server.remove", closes=True)(
    _of_a_server(lambda server, export: server.remove("disk"), _is_removed)
)
operation("Server.__aexit__", Wait.FINISHED, closes=True)(
    _of_a_server(lambda server, export: leave(server), _is_left)
)


@operation("Server.listen")
async def listen(ground: Ground) -> AsyncIterator[Scene]:
    """Names of hosts are looked up."""
    loop = asyncio.get_running_loop()
    look_up, known = loop.getaddrinfo, asyncio.Event()
    known.set()

    async def look_up_later(*arguments: Any, **options: Any) -> Any:
        await known.wait()
        return await look_up(*arguments, **options)

    ground.patch.setattr(loop, "getaddrinfo", look_up_later)
    async with Server(policy=SMALL) as server:

        async def check() -> None:
            before = len(server.sockets)
            await server.listen(port=0)
            assert len(server.sockets) == before + 1

        yield Scene(lambda: server.listen(port=0), known.clear, known.set, check)


@operation("Server.serve")
async def serve(ground: Ground) -> AsyncIterator[Scene]:
    async with Server([Export(gate())], policy=SMALL) as server:
        server.listen_at_path(ground.folder / "nbd.sock")

        async def check() -> None:
            again = asyncio.create_task(server.serve())
            await asyncio.sleep(0)
            again.cancel()
            await asyncio.wait([again])
            assert again.cancelled()
            assert not server.sockets

        yield Scene(server.serve, check=check, ends=False)
