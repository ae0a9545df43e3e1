"""An NBD server within the test's own process, of any block device."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import aioblk
from aioblk.nbd._server.clients import Clients, Policy
from aioblk.nbd._server.export import CACHED_AT_ONCE, Export, ServedExport
from aioblk.nbd._server.exports import Exports
from aioblk.nbd._server.memory import Memory
from aioblk.nbd._server.unix_socket import listen_at

CLIENTS, MEMORY = 8, 8 << 20


@contextlib.asynccontextmanager
async def serving(
    device: aioblk.BlockDevice, where: Path, *names: str, clients: int = CLIENTS
) -> AsyncIterator[str]:
    """Serve it at a Unix socket, under each of the names, or under none; the address of the first."""
    names = names or ("",)
    policy = Policy(clients=clients, patience=30.0, least_rate=4096, requests=64, drain=10.0)
    async with aioblk.Arena(MEMORY + CACHED_AT_ONCE) as arena:
        if isinstance(device, aioblk.MapsMemory):
            await arena.attach(device)
        nowhere = arena.allocate(CACHED_AT_ONCE)
        exports = Exports()
        for name in names:
            exports.add(ServedExport(Export(device, name), nowhere))
        everyone = Clients(exports, Memory(arena, clients=clients), policy)
        with listen_at(str(where), CLIENTS) as listener:
            task = asyncio.create_task(everyone.serve(listener))
            try:
                yield f"nbd+unix:///{quote(names[0])}?socket={quote(str(where))}"
            finally:
                task.cancel()
                await asyncio.wait([task])
        nowhere.release()
