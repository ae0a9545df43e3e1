"""A server's life: entered once, left while it serves, asked for things while it ends."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import aioblk
from aioblk.nbd import Export, Policy, Server

from . import wire
from .test_server import Held, away, connected, disk, serving


async def test_whoever_leaves_while_it_serves_ends_that() -> None:
    """Clients are answered and sent away before the server's memory is gone, and serve() returns."""
    held = Held(await disk(b"x" * 512))
    async with asyncio.timeout(wire.TIME_LIMIT):
        async with Server([Export(held)]) as server:
            await server.listen(port=0)
            serving = asyncio.create_task(server.serve())
            client = await away(connected, server)
            client.send_command(wire.READ, 0, 512)
            await held.asked.wait()
            asyncio.get_running_loop().call_soon(held.released.set)
        with client:
            assert (await away(client.receive_reply, 512)).data == b"x" * 512
            assert await away(client.is_closed_by_server)
        await serving
    assert server.statistics().clients == 0


@pytest.mark.parametrize("step", range(1, 12))
async def test_leaving_may_be_cancelled_in_any_turn(step: int) -> None:
    """Nobody is waited for then, and nothing is left."""
    device = await disk()

    async def live() -> None:
        async with Server([Export(device)], policy=Policy(drain=3600)) as server:
            await server.listen(port=0)
            tasks.append(asyncio.create_task(server.serve()))
            clients.append(await away(connected, server))
            deaf = clients[0]
            deaf.send_command(wire.READ, 0, 512)
            leaves.set()

    tasks: list[asyncio.Task[None]] = []
    clients: list[wire.Client] = []
    leaves = asyncio.Event()
    living = asyncio.create_task(live())
    async with asyncio.timeout(wire.TIME_LIMIT):
        await leaves.wait()
        for _ in range(step):
            await asyncio.sleep(0)
        living.cancel()
        await asyncio.wait([living, *tasks])
        assert not tasks[0].cancelled()
        with clients[0] as client, contextlib.suppress(ConnectionResetError):
            while await away(client.socket.recv, 4096):
                pass
    await device.aclose()


def _calls(server: Server) -> list[Callable[[], Coroutine[Any, Any, None]]]:
    async def at_a_path() -> None:
        server.listen_at_path("nowhere/nbd.sock")

    async def on_a_socket() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server.listen_on(listener)

    async def add() -> None:
        await server.add(Export(await disk(), "late"))

    return [lambda: server.listen(port=0), at_a_path, on_a_socket, add, server.serve]


async def test_what_takes_an_open_server_is_refused_before_and_after() -> None:
    server = Server()
    for call in _calls(server):
        with pytest.raises(aioblk.UsageError, match=r"not open yet; enter it first: async with Server\(\)"):
            await call()
    async with server:
        pass
    for call in _calls(server):
        with pytest.raises(aioblk.UsageError, match="the server is closed; make another one"):
            await call()
    with pytest.raises(aioblk.UsageError, match="a server is entered once"):
        await server.__aenter__()


async def test_a_server_that_ends_takes_nobody_any_more() -> None:
    held = Held(await disk())
    async with Server([Export(held, "1")]) as server, serving(server) as task:
        with await away(connected, server, b"1") as client:
            client.send_command(wire.READ, 0, 512)
            await held.asked.wait()
            task.cancel()
            while server.sockets:  # noqa: ASYNC110 (it is a turn)
                await asyncio.sleep(0)
            for call in _calls(server)[:3]:
                with pytest.raises(aioblk.UsageError, match="takes nobody any more: it ends"):
                    await call()
            assert server.sockets == ()
            before = asyncio.all_tasks()
            await server.add(Export(await disk(), "2"))
            assert asyncio.all_tasks() <= before  # nobody looks after it, who would stay
            held.released.set()
            await asyncio.wait([task])


async def test_sockets_that_do_not_listen_are_refused_and_stay_the_callers() -> None:
    one, other = socket.socketpair()
    with (
        one,
        other,
        socket.socket() as idle,
        socket.socket(type=socket.SOCK_DGRAM) as datagrams,
    ):
        async with Server() as server:
            for wrong in one, idle, datagrams:
                with pytest.raises(aioblk.UsageError, match="clients are taken at TCP and Unix sockets that"):
                    server.listen_on(wrong)
                assert wrong.fileno() >= 0
            assert server.sockets == ()


async def test_a_device_that_hangs_holds_up_nobody_who_adds_and_removes_others() -> None:
    held = Held(await disk())
    async with (
        Server([Export(held, "1"), Export(await disk(), "2")], policy=Policy(drain=0.0)) as server,
        serving(server),
    ):
        with await away(connected, server, b"1") as client:
            client.send_command(wire.READ, 0, 512)
            await held.asked.wait()
            removing = asyncio.create_task(server.remove("1"))
            await asyncio.sleep(0)
            await server.add(Export(await disk(), "3"))
            await server.remove("2")
            await server.add(Export(held, "1"))  # the name is free, and the device is still the server's
            assert server.exports == ("3", "1")
            assert not removing.done()
            held.released.set()
            await removing
        with await away(connected, server, b"1") as client:
            assert (await away(client.call, wire.READ, 0, 512)).error == 0
