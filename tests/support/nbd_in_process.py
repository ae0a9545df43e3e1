"""An NBD server within the test's own process, of any block device."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import aioblk
from aioblk.nbd import Export, Policy, Server

CLIENTS, MEMORY = 8, 8 << 20


@contextlib.asynccontextmanager
async def serving(
    device: aioblk.BlockDevice, where: Path, *names: str, clients: int = CLIENTS
) -> AsyncIterator[str]:
    """Serve it at a Unix socket, under each of the names, or under none; the address of the first."""
    names = names or ("",)
    policy = Policy(clients=clients, requests=64, memory=MEMORY)
    async with Server([Export(device, name) for name in names], policy=policy) as server:
        server.listen_at_path(where)
        task = asyncio.create_task(server.serve())
        try:
            [uri] = server.uris(names[0])
            yield uri
        finally:
            task.cancel()
            await asyncio.wait([task])
