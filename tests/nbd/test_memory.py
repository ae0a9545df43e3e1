"""How the NBD server divides its memory: nobody can take it all, and all of it comes back."""

import asyncio
import gc
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import aioblk
from aioblk.nbd import Export, Policy, Server

from . import wire

CLIENTS = 8
SIZE = 1 << 20
TIME_LIMIT = 20

ANNOUNCEMENT = struct.pack(">IHHQQI", 0x25609513, 0, wire.WRITE, 1, 0, 8 * SIZE)


@pytest.mark.parametrize("clients", [1, 7, 100, 128])
async def test_every_client_that_is_let_in_has_its_own_memory(image: Path, clients: int) -> None:
    """As many as the policy lets in, whatever the division leaves over."""
    policy = Policy(clients=clients, memory=SIZE)
    async with aioblk.IoUring(image) as device, Server([Export(device)], policy=policy) as server:
        await server.listen(port=0)
        serving = asyncio.create_task(server.serve())
        address = server.sockets[0].getsockname()

        def connect_all() -> None:
            with ExitStack() as stack:
                for _ in range(clients):
                    client = stack.enter_context(wire.Client(address).connect())
                    client.send(ANNOUNCEMENT + b"a beginning")  # and hold what there is
                with wire.Client(address) as another:
                    another.greet()
                    assert another.go()[-1].kind == wire.ERR_POLICY

        await asyncio.to_thread(connect_all)
        serving.cancel()
        await asyncio.wait([serving])


def test_too_little_memory_is_refused() -> None:
    with pytest.raises(aioblk.OptionError, match="memory must be at least"):
        Policy(clients=1000, memory=SIZE)


# --- of clients ---------------------------------------------------------------------------------------------


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
async def test_who_is_sent_away_while_sending_leaves_no_memory_in_use(image: Path) -> None:
    """Not even what the frames of its task would keep."""
    policy = Policy(
        clients=CLIENTS, patience=TIME_LIMIT, least_rate=1, requests=1, drain=TIME_LIMIT, memory=SIZE
    )
    async with aioblk.IoUring(image) as device, Server([Export(device)], policy=policy) as server:
        await server.listen(port=0)
        serving = asyncio.create_task(server.serve())
        address = server.sockets[0].getsockname()
        arena = server._arena
        before = arena.statistics().in_use
        client = await asyncio.to_thread(lambda: wire.Client(address).connect())
        with client:
            promised = arena.statistics().in_use
            client.send(ANNOUNCEMENT + b"a beginning")
            async with asyncio.timeout(TIME_LIMIT):
                while arena.statistics().in_use == promised:  # noqa: ASYNC110 (nobody tells)
                    await asyncio.sleep(0.01)  # the kernel brings it
            await server.remove("")
            assert arena.statistics().in_use == before
            serving.cancel()
            await asyncio.wait([serving])
