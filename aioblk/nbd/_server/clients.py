"""Clients: admitting them, limiting how many there are, sending away who stalls, and all in the end."""

import asyncio
import itertools
import logging
import socket
from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import replace
from functools import partial
from typing import final

from ..._memory.arena import Arena, ArenaShare
from ...errors import UsageError
from ...layers.throttle import ThrottleGroup
from ...services.in_flight import InFlight, InFlightShare
from ...services.socket_stream import DisconnectedError, SocketStream
from ...services.tls_stream import TlsStream
from .export import ServedExport
from .exports import Exports
from .handshake import Session, Stream, Terms, greet
from .listening import Door, Spare, name_of
from .policy import Policy
from .statistics import Counts
from .tls import Tls
from .transmission import Transmission

log = logging.getLogger("aioblk.nbd")

LOOK_EVERY, LOOK_EVERY_AT_LEAST = 1.0, 0.01  # seconds; where less would keep the loop busy with that alone


@final
class Client:
    """Someone who has connected."""

    def __init__(self, number: int, where: str, stream: SocketStream) -> None:
        self.name = f"client {number}"
        self.where = where
        self.plain = stream
        self.stream: Stream = stream
        self.export: ServedExport | None = None
        """Since it was admitted; and what it was granted then."""
        self.places: InFlightShare | None = None
        self.memory: ArenaShare | None = None
        self.counts = Counts()
        self.rate: ThrottleGroup | None = None
        self.asked = 0
        """Commands, when it was last looked, and since when there are so many."""
        self.asked_since = asyncio.get_running_loop().time()
        self.task: asyncio.Task[None] | None = None

    def __str__(self) -> str:
        return f"{self.name} ({self.where})"


@final
class Clients:
    """Everyone who is connected."""

    def __init__(self, exports: Exports, arena: Arena, policy: Policy) -> None:
        """Their data travel through the arena."""
        self._exports = exports
        self._arena = arena
        self._policy = policy
        self._numbers = itertools.count(1)
        self._shaking_hands: dict[Client, None] = {}  # the one who came first is the first
        self._admitted: dict[Client, None] = {}
        own = policy.own_requests
        kept, common = own * policy.clients, max(1, policy.requests - own)
        self._in_flight = InFlight(requests=kept + common, kept=kept / (kept + common))
        self.door = Door(policy, self.push_out, self._count_as_full)
        self.tls: Tls | None = None
        self.total = 0
        self.refused: Counter[str] = Counter()
        self.handshakes_failed: Counter[str] = Counter()
        self.sent_away: Counter[str] = Counter()

    @property
    def connected(self) -> int:
        return len(self._shaking_hands) + len(self._admitted)

    @property
    def admitted(self) -> int:
        return len(self._admitted)

    async def serve(self, listener: socket.socket, spare: Spare) -> None:
        """Take everyone who connects, until cancelled. They stay. *spare* is for whom there is no room."""
        listener.setblocking(False)
        while True:
            connection = await self.door.accept(listener, spare)
            self.total += 1
            if reason := self.door.refusal(connection):
                self.refused[reason] += 1
                self.door.warn(f"%s is refused, and maybe others, by its {reason}", name_of(connection))
                connection.close()
                continue
            stream = SocketStream(connection, least_rate=self._policy.least_rate)
            client = Client(next(self._numbers), name_of(connection), stream)
            self._shaking_hands[client] = None
            client.task = asyncio.create_task(self._serve(client))
            client.task.add_done_callback(partial(self._forget, client))
            if len(self._shaking_hands) > self._policy.clients:
                self.push_out()

    async def send_away(
        self,
        why: str,
        reason: str,
        exports: Container[ServedExport] | None = None,
        *,
        patience: float | None = None,
    ) -> list[Client]:
        """Receive no more from those who are here, or use one of the *exports*; answer what is in flight, and
        close the connections.

        Who has not taken its answers when the time for it is over is cut off. The devices have *patience* for
        what they have been given, in seconds, or for ever; those clients are returned that still wait then.
        """
        clients = [
            client
            for client in [*self._shaking_hands, *self._admitted]
            if exports is None or (client.export is not None and client.export in exports)
        ]
        for client in clients:
            self.sent_away[reason] += client.export is not None
            _cancel(client)
            if client.rate is not None:
                client.rate.total = None  # or what is in flight would wait for its turn
        if late := await _still_there(clients, self._policy.drain):
            log.warning("%s, and does not wait any longer for %s", why, ", ".join(map(str, late)))
        self._cut_off(late, why)
        return await _still_there(late, patience)

    def cut_off(self, why: str) -> None:
        """Have done with everyone."""
        self._cut_off([*self._shaking_hands, *self._admitted], why)

    def _cut_off(self, clients: Iterable[Client], why: str) -> None:
        for client in clients:
            client.stream.abort(why)
            _cancel(client)

    # --- one client -----------------------------------------------------------------------------------------

    async def _serve(self, client: Client) -> None:
        log.info("%s: connected", client)
        try:
            session = await self._greet(client)
            if session is not None:
                await self._transmit(client, session)
            log.info("%s: goodbye%s", client, _account(client))
        except DisconnectedError as reason:
            log.info("%s: %s%s", client, reason, _account(client))
        except asyncio.CancelledError:
            log.info("%s: sent away%s", client, _account(client))
            raise
        except Exception:
            log.exception("%s: the server failed", client)

    async def _greet(self, client: Client) -> Session | None:
        tls = self.tls
        terms = Terms(
            self._exports,
            partial(self._admit, client),
            None if tls is None else partial(self._start_tls, client, tls),
            tls_required=tls is not None and tls.required,
        )
        try:
            async with asyncio.timeout(self._policy.patience):
                return await greet(client.plain, terms)
        except TimeoutError:
            self.handshakes_failed["late"] += 1
            raise DisconnectedError("the handshake took too long") from None
        except DisconnectedError:
            if client in self._shaking_hands:  # nobody has pushed it out, who has counted that
                self.handshakes_failed["protocol"] += 1
            raise

    async def _start_tls(self, client: Client, tls: Tls) -> TlsStream:
        stream = TlsStream(client.plain, tls.context, server_side=True, least_rate=self._policy.least_rate)
        client.stream = stream
        try:
            await stream.handshake()
        except DisconnectedError:
            self.handshakes_failed["tls"] += 1
            self._shaking_hands.pop(client, None)
            raise
        cipher = stream.tls.cipher()
        log.info("%s: %s", client, "TLS" if cipher is None else f"{stream.tls.version()}, {cipher[0]}")
        return stream

    def _admit(self, client: Client, export: ServedExport) -> str | None:
        """Give a client its place, or say why not."""
        if (refusal := export.refusal) is not None:
            self.refused["lost"] += 1
            return refusal
        policy = self._policy
        try:
            if len(self._admitted) >= policy.clients:
                raise MemoryError
            client.places = self._in_flight.share(requests=policy.own_requests)
            client.memory = self._arena.share(size=policy.own_memory)
        except (MemoryError, UsageError):  # or those who had a place have not given back everything yet
            if client.places is not None:
                client.places.close()
                client.places = None
            refusal = f"the server has {policy.clients} clients and takes no more; come again later"
            self.refused["full"] += 1
            self.door.warn("%s is refused, and maybe others: %s", client, refusal)
            return refusal
        self._shaking_hands.pop(client, None)
        self._admitted[client] = None
        client.export = export
        client.counts = export.counts.begin()
        log.info("%s: uses export %r", client, export.name)
        return None

    async def _transmit(self, client: Client, session: Session) -> None:
        assert client.places is not None
        assert client.memory is not None
        if self._policy.rate is not None:
            client.rate = ThrottleGroup(total=self._policy.rate)
            session = replace(session, export=session.export.limited(client.rate))
        await Transmission(session, client.places, client.memory, client.counts).run()

    def _forget(self, client: Client, _task: object) -> None:
        """A client's end, also when its task was cancelled before it began."""
        client.task = None  # which keeps the frames in which it was cancelled, and memory with them
        client.stream.close()
        for share in client.places, client.memory:
            if share is not None:
                share.close()
        if client.export is not None:
            client.export.counts.end(client.counts)
        self._shaking_hands.pop(client, None)
        self._admitted.pop(client, None)

    def push_out(self) -> bool:
        """Who is the longest at shaking hands, if there is somebody, makes room for who is new."""
        if not self._shaking_hands:
            return False
        client = next(iter(self._shaking_hands))
        del self._shaking_hands[client]
        self.handshakes_failed["crowded"] += 1
        client.stream.abort("too many clients are shaking hands")
        return True

    def _count_as_full(self) -> None:
        """Somebody is refused who has not even been heard."""
        self.total += 1
        self.refused["full"] += 1

    # --- all of them ----------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Send away clients that stall in the middle of something: they hold memory and a place. And those
        that have had nothing to ask for too long."""
        patience, idle = self._policy.patience, self._policy.idle
        while True:
            shortest = patience if idle is None else min(patience, idle)
            await asyncio.sleep(max(LOOK_EVERY_AT_LEAST, min(shortest / 4, LOOK_EVERY)))
            for client in [*self._shaking_hands, *self._admitted]:
                if (seconds := client.stream.stalled()) > patience:
                    log.warning(
                        "%s: stalled: %.1f seconds behind %d bytes per second",
                        *(client, seconds, self._policy.least_rate),
                    )
                    self.sent_away["stalled"] += 1
                    client.stream.abort("the client has stalled")
                elif idle is not None and client.export is not None:
                    self._look_for_idleness(client, idle)

    def _look_for_idleness(self, client: Client, most: float) -> None:
        now, asked = asyncio.get_running_loop().time(), sum(client.counts.commands)
        if asked != client.asked or (client.places is not None and client.places.requests):
            client.asked, client.asked_since = asked, now
        elif now - client.asked_since > most:
            log.info("%s: has asked for nothing for %g seconds", client, most)
            self.sent_away["idle"] += 1
            client.asked_since = now
            _cancel(client)


def _account(client: Client) -> str:
    """What a client has had."""
    return "" if client.export is None else f"; {client.counts}"


def _cancel(client: Client) -> None:
    if client.task is not None:
        client.task.cancel()


async def _still_there(clients: Iterable[Client], seconds: float | None) -> list[Client]:
    """Wait for the clients' ends; those whose end has not come in time."""
    tasks = {client.task: client for client in clients if client.task is not None}
    if not tasks:
        return []
    _, late = await asyncio.wait(tasks, timeout=seconds)
    return [tasks[task] for task in late]
