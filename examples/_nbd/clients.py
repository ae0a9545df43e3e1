"""Clients: accepting them, limiting how many there are, sending away who stalls."""

import asyncio
import itertools
import logging
import socket
from dataclasses import dataclass
from functools import partial

import aioblk

from .export import Export
from .handshake import greet
from .transmission import Transmission

log = logging.getLogger("nbd")


@dataclass(frozen=True, slots=True)
class Policy:
    """What clients are granted."""

    clients: int
    """At a time; more wait in the listening socket's backlog."""
    patience: float
    """Seconds for the whole handshake, and for each message that has begun, either way, to come through."""
    requests: int
    """Of one client in flight at a time."""
    bytes: int
    """Of data of one client in flight at a time; a larger command has to be alone."""


async def serve_clients(export: Export, listener: socket.socket, policy: Policy) -> None:
    """Serve everyone who connects, until cancelled.

    Then nobody new comes in, what is in flight is finished and answered, and the connections are closed.
    """
    listener.setblocking(False)
    places = asyncio.Semaphore(policy.clients)
    streams: set[aioblk.SocketStream] = set()
    watching = asyncio.create_task(_watch(streams, policy.patience))
    try:
        async with asyncio.TaskGroup() as clients:
            for number in itertools.count(1):
                await places.acquire()
                stream = aioblk.SocketStream(await _accept(listener))
                streams.add(stream)
                client = clients.create_task(_serve(stream, export, policy, f"client {number}"))
                client.add_done_callback(partial(_forget, stream, streams, places))
    finally:
        watching.cancel()


def _forget(
    stream: aioblk.SocketStream, streams: set[aioblk.SocketStream], places: asyncio.Semaphore, _task: object
) -> None:
    """A client's end, also when its task was cancelled before it began."""
    stream.close()
    streams.discard(stream)
    places.release()


async def _accept(listener: socket.socket) -> socket.socket:
    while True:
        try:
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)
        except OSError as error:  # too many descriptors, as a rule: wait until there are fewer
            log.warning("cannot accept a client: %s", error)
            await asyncio.sleep(0.1)
        else:
            if connection.family == socket.AF_UNIX:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            else:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection


async def _serve(stream: aioblk.SocketStream, export: Export, policy: Policy, name: str) -> None:
    log.info("%s: connected", name)
    in_flight = aioblk.InFlight(requests=policy.requests, bytes=policy.bytes)
    try:
        async with asyncio.timeout(policy.patience):
            session = await greet(stream, export)
        if session is not None:
            await Transmission(stream, export, session, in_flight).run()
        log.info("%s: goodbye", name)
    except (aioblk.DisconnectedError, TimeoutError) as reason:
        log.info("%s: %s", name, reason or "the handshake took too long")
    except Exception:
        log.exception("%s: the server failed", name)


async def _watch(streams: set[aioblk.SocketStream], patience: float) -> None:
    """Send away clients that stall in the middle of something: they hold memory that others wait for."""
    while True:
        await asyncio.sleep(min(patience / 4, 1.0))
        for stream in list(streams):
            if stream.stalled() > patience:
                stream.abort("the client has stalled")
