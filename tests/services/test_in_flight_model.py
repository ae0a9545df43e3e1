"""An InFlight and its shares, entered and left in any order: all is counted, and nobody waits in vain.

Beside the state machine of shares: here requests enter without a share as well, and without waiting, leave
in the turn in which they enter or in callbacks of others' ends, and shares are closed while they hold and
wait.
"""

import asyncio
import random
from dataclasses import dataclass, field

import pytest

import aioblk

from ..support.turns import turns

SETTINGS = [
    (1, 1, 0.0),
    (2, 10, 0.3),
    (8, 80, 0.5),
    (20, 1000, 0.9),
    (8, 1 << 60, 0.5),
]  # requests, bytes, kept
LENGTHS = [0, 1, 1, 5, 10, 40, 200, 10**6]


@dataclass
class Entering:
    length: int
    task: asyncio.Task[None]


@dataclass
class Client:
    """A share, or who has none, and what it should be like."""

    door: aioblk.InFlight | aioblk.InFlightShare
    requests: int = 0
    bytes: int = 0
    inside: list[int] = field(default_factory=list)  # lengths
    waiting: list[Entering] = field(default_factory=list)
    closed: bool = False

    def beyond(self) -> tuple[int, int]:
        return max(0, len(self.inside) - self.requests), max(0, sum(self.inside) - self.bytes)

    def is_promised(self, length: int) -> bool:
        return len(self.inside) < self.requests and sum(self.inside) + length <= self.bytes

    def leave(self, place: int) -> None:
        self.door.leave(self.inside.pop(place))


class Service:
    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        requests, size, kept = SETTINGS[seed % len(SETTINGS)]
        self.whole = aioblk.InFlight(requests=requests, bytes=size, kept=kept)
        self.clients = [Client(self.whole)]
        self.common = self.whole._room_requests, self.whole._room_bytes

    @property
    def shares(self) -> list[Client]:
        return self.clients[1:]

    def step(self) -> None:
        act = self.chance.choices(
            [self.open, self.enter, self.leave, self.cancel, self.close], [1, 6, 5, 1, 1]
        )
        act[0]()

    def open(self) -> None:
        whole, chance = self.whole, self.chance
        requests = chance.randint(0, whole._kept_requests - whole._promised_requests)
        size = chance.randint(0, whole._kept_bytes - whole._promised_bytes)
        weight = chance.choice([1e-6, 0.01, 1, 3, 1e6])
        self.clients = [self.clients[0], *(each for each in self.shares if not each.closed or each.inside)]
        self.clients.append(Client(whole.share(requests=requests, bytes=size, weight=weight), requests, size))

    def enter(self) -> None:
        client, length = self.chance.choice(self.clients), self.chance.choice(LENGTHS)
        door = client.door
        if isinstance(door, aioblk.InFlightShare) and not client.closed and self.chance.random() < 0.2:
            if door.enter_nowait(length):
                client.inside.append(length)
            return
        task = asyncio.create_task(self._enter(client, length, stays=self.chance.random() < 0.8))
        client.waiting.append(Entering(length, task))
        if self.chance.random() < 0.1:
            task.add_done_callback(lambda _: self.leave())

    async def _enter(self, client: Client, length: int, *, stays: bool) -> None:
        try:
            await client.door.enter(length)
        except aioblk.UsageError:
            assert client.closed
            return
        client.inside.append(length)
        if not stays:
            client.leave(-1)

    def leave(self) -> None:
        for client in self.chance.sample(self.clients, len(self.clients)):
            if client.inside and self.chance.random() < 0.7:
                client.leave(self.chance.randrange(len(client.inside)))
        if self.chance.random() < 0.3:  # in the turn in which they may enter
            self.cancel()

    def cancel(self) -> None:
        for client in self.clients:
            for entering in client.waiting[: self.chance.randint(0, 2)]:
                entering.task.cancel()

    def close(self) -> None:
        if self.shares:
            client = self.chance.choice(self.shares)
            assert isinstance(client.door, aioblk.InFlightShare)
            client.door.close()
            client.closed = True

    def look(self) -> None:
        whole = self.whole
        for client in self.clients:
            client.waiting = [each for each in client.waiting if not each.task.done()]
            assert not (client.closed and client.waiting)
            if client.waiting:
                assert not client.is_promised(client.waiting[0].length)
        for share in self.shares:
            assert (share.door.requests, share.door.bytes) == (len(share.inside), sum(share.inside))
        assert whole.requests == sum(len(client.inside) for client in self.clients)
        assert whole.bytes == sum(sum(client.inside) for client in self.clients)
        beyond = [share.beyond() for share in self.shares]
        assert whole._room_requests == self.common[0] - sum(requests for requests, _ in beyond)
        assert whole._room_bytes == self.common[1] - sum(size for _, size in beyond)
        assert whole._requests <= whole._room_requests
        assert whole._queue.waiting == sum(len(client.waiting) for client in self.clients)
        if whole._queue.waiting:  # whoever is next cannot enter
            head = next(iter(whole._queue._order[0][2].turns))
            assert head.attempt(True) is None

    async def settle(self) -> None:
        """Until nobody enters any more."""
        before = None
        while before != (now := (self.whole._queue.waiting, self.whole.requests, self.whole.bytes)):
            before = now
            await turns(8)
        self.look()

    async def end(self) -> None:
        while any(client.inside for client in self.clients):
            for client in self.clients:
                while client.inside:
                    client.leave(-1)
            await self.settle()
        assert not any(client.waiting for client in self.clients)
        for client in self.shares:
            assert isinstance(client.door, aioblk.InFlightShare)
            client.door.close()
        await self.whole.drain()
        assert (self.whole.requests, self.whole.bytes) == (0, 0)
        assert (self.whole._promised_requests, self.whole._promised_bytes) == (0, 0)


@pytest.mark.parametrize("seed", range(15))
async def test_places_are_conserved_and_nobody_waits_in_vain(seed: int) -> None:
    service = Service(seed)
    for _ in range(80):
        service.step()
        if service.chance.random() < 0.7:
            await service.settle()
    await service.settle()
    await service.end()
