"""Queues of tasks, limits of what is in flight, and streams of messages."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import aioblk

from ...support.certificates import Authority
from .scene import Ground, Scene, Scenery, at_once, operation


@operation("WaitQueue.wait")
async def wait(ground: Ground) -> AsyncIterator[Scene]:
    queue = aioblk.WaitQueue()
    loop = asyncio.get_running_loop()
    is_held = False

    def hold() -> None:
        nonlocal is_held
        is_held = True

    async def notified() -> None:
        if not is_held:
            loop.call_soon(queue.notify)
        await queue.wait()

    async def check() -> None:
        assert queue.statistics() == aioblk.WaitQueueStatistics(tasks_waiting=0, tasks_woken=0)

    yield Scene(notified, hold, queue.notify_all, check)


@operation("InFlight.enter")
async def enter(ground: Ground) -> AsyncIterator[Scene]:
    in_flight = aioblk.InFlight(requests=1)

    async def enter_and_leave() -> None:
        await in_flight.enter()
        in_flight.leave()

    async def check() -> None:
        assert not in_flight.requests
        at_once(in_flight.enter())  # who was given up holds nobody up
        in_flight.leave()

    yield Scene(enter_and_leave, lambda: at_once(in_flight.enter()), in_flight.leave, check)


@operation("InFlight.drain", closes=True)
async def drain(ground: Ground) -> AsyncIterator[Scene]:
    in_flight = aioblk.InFlight(requests=1)

    async def check() -> None:
        at_once(in_flight.drain())

    yield Scene(in_flight.drain, lambda: at_once(in_flight.enter()), in_flight.leave, check)


@operation("InFlightShare.enter")
async def enter_by_a_share(ground: Ground) -> AsyncIterator[Scene]:
    in_flight = aioblk.InFlight(requests=2, kept=0.5)
    with in_flight.share(requests=1) as share, in_flight.share() as other:

        async def enter_and_leave() -> None:
            await other.enter()
            other.leave()

        async def check() -> None:
            assert not in_flight.requests
            at_once(share.enter())
            at_once(other.enter())
            share.leave()
            other.leave()

        yield Scene(enter_and_leave, lambda: at_once(in_flight.enter()), in_flight.leave, check)


@operation("InFlightShare.drain", closes=True)
async def drain_a_share(ground: Ground) -> AsyncIterator[Scene]:
    with aioblk.InFlight(requests=1).share() as share:

        async def check() -> None:
            at_once(share.drain())

        yield Scene(share.drain, lambda: at_once(share.enter()), share.leave, check)


# --- streams ------------------------------------------------------------------------------------------------

MESSAGE = bytes(range(8))

Stream: TypeAlias = aioblk.SocketStream | aioblk.TlsStream
Connect: TypeAlias = Callable[[], AbstractAsyncContextManager[tuple[Stream, Callable[[bytes], object]]]]
"""Connects a stream, and gives with it how its peer sends."""


@asynccontextmanager
async def _plain() -> AsyncIterator[tuple[Stream, Callable[[bytes], object]]]:
    ours, theirs = socket.socketpair()
    stream = aioblk.SocketStream(ours)
    yield stream, theirs.send
    stream.close()
    theirs.close()


@cache
def _contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Of a server, and of a client that trusts it."""
    with TemporaryDirectory() as directory:
        authority = Authority(Path(directory))
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(authority.server / "server-cert.pem", authority.server / "server-key.pem")
        return server, authority.context()


@asynccontextmanager
async def _strangers() -> AsyncIterator[tuple[aioblk.TlsStream, aioblk.TlsStream]]:
    """A server and a client that have not shaken hands."""
    ours, theirs = map(aioblk.SocketStream, socket.socketpair())
    of_server, of_client = _contexts()
    server = aioblk.TlsStream(ours, of_server, server_side=True)
    client = aioblk.TlsStream(theirs, of_client, server_side=False, server_hostname="localhost")
    yield server, client
    server.close()
    client.close()


@asynccontextmanager
async def _tls() -> AsyncIterator[tuple[Stream, Callable[[bytes], object]]]:
    async with _strangers() as (server, client):
        await asyncio.gather(server.handshake(), client.handshake())
        yield server, client.send


Receive: TypeAlias = Callable[[Any], Awaitable[object]]

RECEIVING: dict[str, Receive] = {
    "read": lambda stream: stream.read(8),
    "unpack": lambda stream: stream.unpack(struct.Struct("8s")),
    "unpack_while": lambda stream: stream.unpack_while(struct.Struct("8s"), lambda message: False),
    "read_into": lambda stream: stream.read_into(bytearray(8)),
    "skip": lambda stream: stream.skip(8),
}


def _receiving(connect: Connect, call: Receive, *, before: int = 3) -> Scenery:
    """Of which so many bytes are there *before*."""

    async def scene(ground: Ground) -> AsyncIterator[Scene]:
        async with connect() as (stream, send_it):
            send_it(MESSAGE[:before])
            sent = False

            def send() -> None:
                nonlocal sent
                if not sent:
                    send_it(MESSAGE[before:])
                    sent = True

            is_held = False

            def hold() -> None:
                nonlocal is_held
                is_held = True

            async def receive() -> None:
                if not is_held:
                    send()
                await call(stream)

            async def check() -> None:
                send()
                send_it(b"end")
                rest = bytes(await stream.read(3))
                if rest != b"end":  # it was given up, and receives the same again
                    assert rest == MESSAGE[:3]
                    assert bytes(await stream.read(8)) == MESSAGE[3:] + b"end"

            yield Scene(receive, hold, send, check)

    return scene


for name, receive in RECEIVING.items():
    operation(f"SocketStream.{name}")(_receiving(_plain, receive))
    operation(f"TlsStream.{name}")(_receiving(_tls, receive))
operation("SocketStream.read_some")(_receiving(_plain, lambda stream: stream.read_some(), before=0))


@operation("TlsStream.handshake")
async def handshake(ground: Ground) -> AsyncIterator[Scene]:
    async with _strangers() as (server, client):
        loop = asyncio.get_running_loop()
        answers: list[asyncio.Task[None]] = []
        is_held = False

        def hold() -> None:
            nonlocal is_held
            is_held = True

        def answer() -> None:
            if not answers:
                answers.append(loop.create_task(client.handshake()))

        async def shake_hands() -> None:
            if not is_held:
                answer()
            await server.handshake()

        async def check() -> None:
            answer()
            await asyncio.gather(server.handshake(), *answers)  # it was given up, and goes on
            client.send(MESSAGE)
            assert bytes(await server.read(8)) == MESSAGE

        yield Scene(shake_hands, hold, answer, check)
