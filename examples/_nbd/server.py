"""Clients: accepting them, limiting how many there are, sending away who stalls, saying goodbye to all."""

import asyncio
import contextlib
import logging
import socket
from dataclasses import dataclass, field
from typing import final

from .export import Export
from .handshake import greet
from .stream import DisconnectedError, Stream
from .transmission import ClientLimits, Transmission

__all__ = ["Policy", "Server"]

log = logging.getLogger("nbd")


@final
@dataclass(frozen=True, slots=True)
class Policy:
    """What clients are granted."""

    clients: int = 100
    """At a time; more wait in the listening socket's backlog."""
    patience: float = 30.0
    """Seconds for the whole handshake, and for each message that has begun, either way, to come through."""
    limits: ClientLimits = field(default_factory=ClientLimits)


@final
class Server:
    """Serves one export to everyone who connects to the listening socket, while its block lasts::

        async with Server(export, listener, policy):
            await something

    Leaving the block refuses new clients and commands, waits until what is in flight is done and answered,
    and closes the connections. The listening socket remains the caller's.
    """

    def __init__(self, export: Export, listener: socket.socket, policy: Policy) -> None:
        listener.setblocking(False)
        self._export = export
        self._listener = listener
        self._policy = policy
        self._places = asyncio.Semaphore(policy.clients)
        self._clients: dict[asyncio.Task[None], Stream] = {}
        self._served = 0

    async def __aenter__(self) -> "Server":
        self._accepting = asyncio.create_task(self._accept())
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        await _end(self._accepting)
        for task in self._clients:
            task.cancel()
        if self._clients:
            log.info("waiting for %d clients", len(self._clients))
            await asyncio.wait(self._clients)
        await _end(self._watching)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._places.acquire()
            connection = await self._accept_one(loop)
            self._served += 1
            stream = Stream(connection)
            client = loop.create_task(self._serve(stream, self._served))
            self._clients[client] = stream
            client.add_done_callback(self._forget)

    async def _accept_one(self, loop: asyncio.AbstractEventLoop) -> socket.socket:
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # too many descriptors, as a rule: wait until there are fewer
                log.warning("cannot accept a client: %s", error)
                await asyncio.sleep(0.1)
            else:
                if connection.family == socket.AF_UNIX:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
                else:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return connection

    def _forget(self, client: asyncio.Task[None]) -> None:
        del self._clients[client]
        self._places.release()
        if not client.cancelled() and (error := client.exception()) is not None:
            log.error("a client's task failed", exc_info=error)

    async def _serve(self, stream: Stream, number: int) -> None:
        log.info("client %d: connected", number)
        try:
            async with asyncio.timeout(self._policy.patience):
                session = await greet(stream, self._export)
            if session is not None:
                await self._transmit(stream, Transmission(stream, self._export, session, self._policy.limits))
            log.info("client %d: goodbye", number)
        except (DisconnectedError, TimeoutError) as reason:
            log.info("client %d: %s", number, reason or "the handshake took too long")
        finally:
            stream.close()

    async def _transmit(self, stream: Stream, transmission: Transmission) -> None:
        try:
            await transmission.run()
        finally:
            await transmission.drain()

    async def _watch(self) -> None:
        """Send away clients that stall in the middle of something: they hold memory that others wait for."""
        while True:
            await asyncio.sleep(min(self._policy.patience / 4, 1.0))
            for stream in list(self._clients.values()):
                stream.check(self._policy.patience)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
