"""Clients: accepting them, limiting how many there are, sending away who stalls, and all in the end."""

import asyncio
import itertools
import logging
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import final

from ...services.in_flight import InFlight
from ...services.socket_stream import DisconnectedError, SocketStream
from .export import ServedExport
from .exports import Exports
from .handshake import greet
from .memory import Memory
from .transmission import Transmission

log = logging.getLogger("nbd")

SAY_EVERY = 60.0  # seconds
PROBES = 3  # of a peer that is silent, before it is dead
LONGEST_PROBING = 32767  # seconds, which is as long as the kernel can wait for one


@dataclass(frozen=True, slots=True)
class Policy:
    """What clients are granted."""

    clients: int
    """At a time. As many again may be shaking hands."""
    patience: float
    """Seconds for the whole handshake; that a client may be behind the least rate; that a dead one is one."""
    least_rate: int
    """Bytes per second that a client sends or takes when it is in the middle of something."""
    requests: int
    """In flight at a time, of one client that is alone. One in eight of them each client has for itself, at
    least one; the others, at least one, are for all, in turns."""
    drain: float
    """Seconds in which, in the end, what is in flight is finished and answered."""


@final
class _Client:
    def __init__(self, name: str, stream: SocketStream) -> None:
        self.name = name
        self.stream = stream
        self.admitted = False
        self.task: asyncio.Task[None] | None = None


@final
class Clients:
    """Everyone who is connected to a listening socket."""

    def __init__(self, exports: Exports, memory: Memory, policy: Policy) -> None:
        self._exports = exports
        self._memory = memory
        self._policy = policy
        self._shaking_hands: dict[_Client, None] = {}  # the one who came first is the first
        self._admitted: dict[_Client, None] = {}
        self._own = max(1, policy.requests // 8)
        kept, common = self._own * policy.clients, max(1, policy.requests - self._own)
        self._in_flight = InFlight(requests=kept + common, kept=kept / (kept + common))
        self._said: dict[str, float] = {}  # when, what strangers can bring about as often as they like
        self.refusal: str | None = None
        """Why nobody is admitted, if that is so."""

    async def serve(self, listener: socket.socket) -> None:
        """Serve everyone who connects, until cancelled. Then send everyone away."""
        listener.setblocking(False)
        watching = asyncio.create_task(self._watch())
        try:
            for number in itertools.count(1):
                stream = SocketStream(await self._accept(listener), least_rate=self._policy.least_rate)
                client = _Client(f"client {number}", stream)
                self._shaking_hands[client] = None
                client.task = asyncio.create_task(self._serve(client))
                client.task.add_done_callback(partial(self._forget, client))
                if len(self._shaking_hands) > self._policy.clients:
                    self._push_out()
        finally:
            await self.send_away("the server ends")
            watching.cancel()

    async def send_away(self, why: str) -> None:
        """Receive no more from those who are here, answer what is in flight, and close the connections.

        Who has not taken its answers when the time for it is over is cut off.
        """
        clients = [*self._shaking_hands, *self._admitted]
        for client in clients:
            _cancel(client)
        if late := await _still_there(clients, self._policy.drain):
            log.warning("%s, and does not wait any longer for %s", why, ", ".join(c.name for c in late))
        for client in late:
            client.stream.abort(why)
            _cancel(client)
        await _still_there(late, None)

    # --- one client -----------------------------------------------------------------------------------------

    async def _serve(self, client: _Client) -> None:
        log.info("%s: connected", client.name)
        try:
            async with asyncio.timeout(self._policy.patience):
                session = await greet(client.stream, self._exports, partial(self._admit, client))
            if session is not None:
                with self._in_flight.share(requests=self._own) as places:
                    await Transmission(client.stream, session, places, self._memory.share()).run()
            log.info("%s: goodbye", client.name)
        except TimeoutError:
            log.info("%s: the handshake took too long", client.name)
        except DisconnectedError as reason:
            log.info("%s: %s", client.name, reason)
        except Exception:
            log.exception("%s: the server failed", client.name)

    def _admit(self, client: _Client, _export: ServedExport) -> str | None:
        """Give a client its place, or say why not."""
        refusal = self.refusal
        if refusal is None and len(self._admitted) >= self._policy.clients:
            refusal = f"the server has {self._policy.clients} clients and takes no more; come again later"
            self._warn("%s is refused, and maybe others: %s", client.name, refusal)
        if refusal is None:
            self._shaking_hands.pop(client, None)
            self._admitted[client] = None
        return refusal

    def _forget(self, client: _Client, _task: object) -> None:
        """A client's end, also when its task was cancelled before it began."""
        client.task = None  # which keeps the frames in which it was cancelled, and memory with them
        client.stream.close()
        self._shaking_hands.pop(client, None)
        self._admitted.pop(client, None)

    def _push_out(self) -> None:
        """Who is the longest at shaking hands makes room for who is new."""
        if self._shaking_hands:
            client = next(iter(self._shaking_hands))
            del self._shaking_hands[client]
            client.stream.abort("too many clients are shaking hands")

    # --- all of them ----------------------------------------------------------------------------------------

    async def _accept(self, listener: socket.socket) -> socket.socket:
        while True:
            try:
                await _readable(listener)
                connection, _ = listener.accept()
                connection.setblocking(False)
            except BlockingIOError:  # the client is gone already
                continue
            except OSError as error:  # too many descriptors, as a rule: wait until there are fewer
                self._warn("cannot accept clients: %s", error)
                self._push_out()
                await asyncio.sleep(0.1)
                continue
            try:
                self._prepare(connection)
            except OSError:  # the client is gone already
                connection.close()
            else:
                return connection

    def _warn(self, message: str, *arguments: object) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._said.get(message, -SAY_EVERY) >= SAY_EVERY:
            self._said[message] = now
            log.warning(message, *arguments)

    def _prepare(self, connection: socket.socket) -> None:
        if connection.family == socket.AF_UNIX:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            return
        patience = self._policy.patience
        for option, value in (
            (socket.TCP_NODELAY, 1),
            # A peer that is gone without a word owes nothing, so nothing else would tell.
            (socket.TCP_KEEPIDLE, min(LONGEST_PROBING, max(1, round(patience)))),
            (socket.TCP_KEEPINTVL, min(LONGEST_PROBING, max(1, round(patience / PROBES)))),
            (socket.TCP_KEEPCNT, PROBES),
            (socket.TCP_USER_TIMEOUT, max(1000, round(patience * 1000))),
        ):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    async def _watch(self) -> None:
        """Send away clients that stall in the middle of something: they hold memory and a place."""
        patience = self._policy.patience
        while True:
            await asyncio.sleep(min(patience / 4, 1.0))
            for client in [*self._shaking_hands, *self._admitted]:
                if (seconds := client.stream.stalled()) > patience:
                    log.warning(
                        "%s: stalled: %.1f seconds behind %d bytes per second",
                        *(client.name, seconds, self._policy.least_rate),
                    )
                    client.stream.abort("the client has stalled")


def _cancel(client: _Client) -> None:
    if client.task is not None:
        client.task.cancel()


async def _still_there(clients: Iterable[_Client], seconds: float | None) -> list[_Client]:
    """Wait for the clients' ends; those whose end has not come in time."""
    tasks = {client.task: client for client in clients if client.task is not None}
    if not tasks:
        return []
    _, late = await asyncio.wait(tasks, timeout=seconds)
    return [tasks[task] for task in late]


async def _readable(listener: socket.socket) -> None:
    """Until a client waits. The loop's sock_accept() may be cancelled in the turn in which it accepts one,
    who is nobody's then."""
    loop = asyncio.get_running_loop()
    comes = loop.create_future()

    def tell() -> None:
        if not comes.done():
            comes.set_result(None)

    loop.add_reader(listener, tell)
    try:
        await comes
    finally:
        loop.remove_reader(listener)
