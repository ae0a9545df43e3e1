"""Who uses the gateway, and how much of it each may."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus

import aioblk

from .problems import RETRY_AFTER, ProblemError

PIECE = 256 << 10
"""What is read or written at once, and the memory that it takes."""

KEPT = 0.5
"""Of memory and of what is in flight, for what clients are promised; the rest is for all, in turns."""


@dataclass
class Client:
    """One of those who are here: what it was promised of both, and how many requests it has under way."""

    places: aioblk.InFlightShare
    memory: aioblk.ArenaShare
    requests: int = 0


class Clients:
    """A client is an address: who opens many connections has one share all the same."""

    def __init__(self, arena: aioblk.Arena, memory: int, *, clients: int, requests: int) -> None:
        """For so many *clients* at a time, each with so many *requests* at a time."""
        self._arena = arena
        self._memory = int(memory * KEPT) // clients
        self._places = 2 * self._memory // PIECE  # of which half is promised, as of the memory
        self._in_flight = aioblk.InFlight(
            requests=self._places * clients, bytes=self._places * clients * PIECE, kept=KEPT
        )
        self._most_requests = requests
        self._clients: dict[str, Client] = {}

    @contextmanager
    def request(self, address: str) -> Generator[Client]:
        """For as long as the request takes.

        Raises:
            ProblemError: 429, this client has enough of them under way; 503, too many others are here.
        """
        client = self._clients.get(address) or self._let_in(address)
        if client.requests >= self._most_requests:
            raise ProblemError(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"{client.requests} requests at a time are the most that a client may make",
                headers=RETRY_AFTER,
            )
        client.requests += 1
        try:
            yield client
        finally:
            client.requests -= 1
            if not client.requests:
                del self._clients[address]
                client.places.close()
                client.memory.close()

    def _let_in(self, address: str) -> Client:
        try:
            places = self._in_flight.share(requests=self._places // 2)
            try:
                memory = self._arena.share(size=self._memory)
            except BaseException:
                places.close()
                raise
        except (aioblk.UsageError, MemoryError):
            detail = f"{len(self._clients)} clients are here, and no more can be served at a time"
            raise ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers=RETRY_AFTER) from None
        client = self._clients[address] = Client(places, memory)
        return client
