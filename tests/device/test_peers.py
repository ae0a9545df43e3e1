"""Which connection is whose, of vhost-user devices that are opened at the same time."""

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import aioblk
from aioblk._device.peer import Search
from aioblk._libblkio import own_descriptors
from aioblk._libblkio.handle import Blkio

from ..support.devices import BLOCK
from ..support.fake_backend import FakeBackend

PATIENCE = 10  # seconds


@pytest.fixture
def silent_socket(tmp_path: Path) -> Iterator[socket.socket]:
    """Somebody listens, with room for one client, and never answers."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "silent"))
        listener.listen(0)
        yield listener


@contextlib.asynccontextmanager
async def opening(path: str) -> AsyncIterator[None]:
    """A device is being opened, in vain."""
    device = aioblk.VirtioBlkVhostUser(path)
    task = asyncio.create_task(device.open())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, aioblk.BlkioError):
            await task


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two threads, neither connects to a device before both have looked at what is connected already, nor
    goes on before both have connected."""
    seen: set[int] = set()
    looked, connected = threading.Event(), threading.Barrier(2)
    find, connect = own_descriptors.find_linked, Blkio.connect

    def look(start: str) -> list[int]:
        found = find(start)
        seen.add(threading.get_ident())
        if len(seen) == 2:
            looked.set()
        return found

    def connect_together(self: Blkio) -> None:
        assert looked.wait(PATIENCE)
        connect(self)
        connected.wait(PATIENCE)

    monkeypatch.setattr("aioblk._device.peer.find_linked", look)
    monkeypatch.setattr(Blkio, "connect", connect_together)


@pytest.mark.usefixtures("together")
async def test_each_device_watches_its_own_connection() -> None:
    with FakeBackend() as one, FakeBackend(beside=one.listener) as other:
        async with contextlib.AsyncExitStack() as stack:
            devices = [aioblk.VirtioBlkVhostUser(one.socket) for _ in range(2)]
            await asyncio.gather(*map(stack.enter_async_context, devices))
            await devices[0].write(0, bytes(BLOCK))
            backend = one if one.carried_out else other
            backend.hang_up()
            async with asyncio.timeout(PATIENCE):
                while devices[0].lost is None:  # noqa: ASYNC110 (there is no event, except that requests fail)
                    await asyncio.sleep(0)
            assert await devices[1].read(0, BLOCK) == bytes(BLOCK)
            assert devices[1].lost is None


async def test_a_backend_that_is_silent_keeps_no_other_from_being_opened(
    silent_socket: socket.socket,
) -> None:
    """Not even while a connection to it waits to be accepted, or for room among those that do."""
    loop = asyncio.get_running_loop()
    path = silent_socket.getsockname()
    with FakeBackend() as backend:
        async with opening(path):
            silent_socket.setblocking(False)
            client, _ = await loop.sock_accept(silent_socket)
            with client:
                async with opening(path), opening(path), opening(path):
                    async with asyncio.timeout(PATIENCE), aioblk.VirtioBlkVhostUser(backend.socket) as device:
                        await device.flush()
                    silent_socket.close()  # which refuses those that wait


async def test_a_backend_that_is_silent_to_one_client_may_serve_another(
    silent_socket: socket.socket,
) -> None:
    loop = asyncio.get_running_loop()
    async with opening(silent_socket.getsockname()):
        silent_socket.setblocking(False)
        client, _ = await loop.sock_accept(silent_socket)
        with client, FakeBackend(beside=silent_socket) as backend:
            async with asyncio.timeout(PATIENCE), aioblk.VirtioBlkVhostUser(backend.socket) as device:
                await device.flush()


def test_a_connection_that_is_watched_is_no_other_one(silent_socket: socket.socket) -> None:
    """Watching takes a descriptor of its own, which may come before the other connection's in the table."""
    silent_socket.listen(2)
    path = silent_socket.getsockname()
    with contextlib.ExitStack() as stack:

        def connection() -> tuple[socket.socket, socket.socket]:
            ours = stack.enter_context(socket.socket(socket.AF_UNIX))
            ours.connect(path)
            return ours, stack.enter_context(silent_socket.accept()[0])

        first = stack.enter_context(Search(path))
        connection()
        places = [os.open(os.devnull, os.O_RDONLY) for _ in range(8)]
        second = stack.enter_context(Search(path))
        _, backend = connection()
        for place in places:
            os.close(place)
        peers = [first.peer(), second.peer()]
        for peer in peers:
            assert peer is not None
            stack.callback(peer.close)
        backend.close()
        assert [peer.has_hung_up() for peer in peers if peer] == [False, True]
