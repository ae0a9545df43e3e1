"""How the NBD server divides its memory: nobody can take it all, nobody waits for a client that keeps it."""

import asyncio
import gc
import random
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import aioblk
from aioblk.nbd._server.clients import Clients, Policy
from aioblk.nbd._server.export import CACHED_AT_ONCE, Export, ServedExport
from aioblk.nbd._server.exports import Exports
from aioblk.nbd._server.memory import GRANULE, Memory, Share

from . import wire

CLIENTS = 8
SIZE = 1 << 20
OWN = SIZE // 2 // CLIENTS
TIME_LIMIT = 20


@pytest.fixture
async def memory() -> AsyncIterator[Memory]:
    async with aioblk.Arena(SIZE) as arena:
        yield Memory(arena, clients=CLIENTS)
        assert arena.statistics().in_use == 0


async def take_all(share: Share) -> list[aioblk.ArenaBuffer]:
    """Pages, until there are no more for this client."""
    buffers: list[aioblk.ArenaBuffer] = []
    while share.reserve(GRANULE):
        share._return(GRANULE)
        buffers.append(await share.take(GRANULE))
    return buffers


def give_all_back(share: Share, buffers: list[aioblk.ArenaBuffer]) -> None:
    for buffer in buffers:
        share.give_back(buffer)


async def test_nobody_gets_more_than_is_left_and_everybody_gets_their_own(memory: Memory) -> None:
    shares = [memory.share() for _ in range(CLIENTS)]
    held = [await take_all(share) for share in shares]
    sizes = [len(buffers) * GRANULE for buffers in held]
    assert sizes[0] == OWN + SIZE // 4
    assert sizes[1] == OWN + SIZE // 8
    assert all(size >= OWN for size in sizes)
    for share, buffers in zip(shares, held, strict=True):
        give_all_back(share, buffers)
    assert memory.left == SIZE // 2


async def test_who_wants_more_than_there_is_gets_what_there_is(memory: Memory) -> None:
    share = memory.share()
    buffer = await share.take(SIZE)
    assert len(buffer) == OWN + SIZE // 4
    waiting = asyncio.create_task(share.take(SIZE))
    await asyncio.sleep(0)
    assert not waiting.done()
    share.give_back(buffer)
    async with asyncio.timeout(TIME_LIMIT):
        share.give_back(await waiting)


async def test_memory_that_is_not_in_a_row_is_had_all_the_same(memory: Memory) -> None:
    """A client that keeps one page in every four does not keep the others from large pieces."""
    one, other = memory.share(), memory.share()
    buffers = await take_all(one)
    kept = buffers[::4]
    give_all_back(one, [buffer for buffer in buffers if buffer not in kept])
    rest = await take_all(memory.share())
    async with asyncio.timeout(TIME_LIMIT):
        piece = await other.take(OWN)
    assert len(piece) >= GRANULE
    other.give_back(piece)
    give_all_back(one, kept)
    for buffer in rest:
        buffer.release()


async def test_no_order_of_events_loses_memory_or_forgets_who_waits(memory: Memory) -> None:
    chance = random.Random(7)

    async def live(share: Share, patient: bool) -> None:
        held: list[aioblk.ArenaBuffer] = []
        try:
            for _ in range(60):
                if held and chance.random() < 0.5:
                    share.give_back(held.pop(chance.randrange(len(held))))
                    continue
                taking = asyncio.create_task(share.take(chance.choice([1, 4096, 5000, OWN, SIZE // 4, SIZE])))
                for _ in range(chance.randrange(3)):
                    await asyncio.sleep(0)
                if held and not taking.done() and not patient:
                    taking.cancel()
                elif not taking.done():
                    give_all_back(share, held)
                    held = []
                await asyncio.wait([taking])
                if not taking.cancelled():
                    held.append(taking.result())
        finally:
            give_all_back(share, held)

    async with asyncio.timeout(TIME_LIMIT):
        await asyncio.gather(*(live(memory.share(), number % 2 == 0) for number in range(CLIENTS)))
    assert memory.left == SIZE // 2


def test_too_little_is_refused() -> None:
    async def make() -> None:
        async with aioblk.Arena(SIZE) as arena:
            Memory(arena, clients=SIZE // GRANULE + 1)

    with pytest.raises(ValueError, match="too little"):
        asyncio.run(make())


# --- of clients ---------------------------------------------------------------------------------------------


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
async def test_who_is_sent_away_while_sending_leaves_no_memory_in_use(image: Path) -> None:
    """There is more than one sending away where the device is lost and comes back."""
    policy = Policy(clients=CLIENTS, patience=TIME_LIMIT, least_rate=1, requests=1, drain=TIME_LIMIT)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with aioblk.IoUring(image) as device, aioblk.Arena(SIZE) as arena:
            exports = Exports()
            exports.add(ServedExport(Export(device), arena.allocate(CACHED_AT_ONCE)))
            clients = Clients(exports, Memory(arena, clients=CLIENTS), policy)
            serving = asyncio.create_task(clients.serve(listener))
            before = arena.statistics().in_use
            client = await asyncio.to_thread(lambda: wire.Client(listener.getsockname()).connect())
            with client:
                client.send(struct.pack(">IHHQQI", 0x25609513, 0, wire.WRITE, 1, 0, SIZE) + b"a beginning")
                async with asyncio.timeout(TIME_LIMIT):
                    while arena.statistics().in_use == before:  # noqa: ASYNC110 (nobody tells)
                        await asyncio.sleep(0.01)  # the kernel brings it
                await clients.send_away("for the test")
                assert arena.statistics().in_use == before
                serving.cancel()
                await asyncio.wait([serving])
