"""A disk that is here before its contents are:

    python examples/lazy_disk.py https://host/disk.img kept.img blk.sock

A virtual machine may boot from blk.sock at once. What it reads is fetched when it is first touched, by HTTP
ranges or, where the first argument is no URL, from any device by its address; all else follows meanwhile.
What was fetched is kept in the file, and so is what the machine writes: once all is there, the file is it.
"""

import asyncio
import contextlib
import sys
from collections.abc import Awaitable
from functools import partial
from pathlib import Path
from typing import Protocol
from urllib.request import Request, urlopen

import aioblk
from aioblk.export import VhostUser

CHUNK = 1 << 20  # bytes that are fetched together


class Source(Protocol):
    """Where it comes from."""

    @property
    def capacity(self) -> int: ...
    def read(self, offset: int, length: int) -> Awaitable[bytes]: ...


class HttpSource:
    """A file on a server that knows ranges."""

    def __init__(self, url: str) -> None:
        self._url = url
        with urlopen(Request(url, method="HEAD")) as answer:
            self.capacity = int(answer.headers["Content-Length"])

    async def read(self, offset: int, length: int) -> bytes:
        return await asyncio.to_thread(self._get, offset, length)

    def _get(self, offset: int, length: int) -> bytes:
        wanted = {"Range": f"bytes={offset}-{offset + length - 1}"}
        with urlopen(Request(self._url, headers=wanted)) as answer:
            if answer.status != 206:
                raise OSError(f"{self._url} gives no ranges")
            data: bytes = answer.read()
            return data


class LazyDisk:
    """What is kept, and fetched into that chunk by chunk. Which chunks are there is kept beside it."""

    def __init__(self, source: Source, kept: aioblk.BlockDevice, account: Path) -> None:
        self.capacity = source.capacity // 512 * 512
        self._source, self._kept, self._account = source, kept, account
        chunks = -(-self.capacity // CHUNK)
        self._here = bytearray(account.read_bytes() if account.exists() else chunks)
        self._fetching: dict[int, asyncio.Task[None]] = {}

    async def _fetch(self, chunk: int) -> None:
        offset = chunk * CHUNK
        data = await self._source.read(offset, min(CHUNK, self.capacity - offset))
        await self._kept.write(offset, data)
        self._here[chunk] = True

    async def _have(self, offset: int, length: int) -> None:
        """Whoever needs a chunk that is being fetched waits for that; one that could not be is tried anew."""
        for chunk in range(offset // CHUNK, -(-(offset + length) // CHUNK)):
            if not self._here[chunk]:
                if chunk not in self._fetching:
                    self._fetching[chunk] = asyncio.create_task(self._fetch(chunk))
                    self._fetching[chunk].add_done_callback(partial(self._forget, chunk))
                await asyncio.shield(self._fetching[chunk])

    def _forget(self, chunk: int, _task: object) -> None:
        del self._fetching[chunk]

    async def read(self, offset: int, length: int) -> bytes:
        await self._have(offset, length)
        return await self._kept.read(offset, length)

    async def write(self, offset: int, data: memoryview) -> None:
        await self._have(offset, len(data))  # what is beside the data in its chunks
        await self._kept.write(offset, data)

    async def flush(self) -> None:
        """What is durable is kept account of then, and not before."""
        here = bytes(self._here)
        await self._kept.flush()
        await asyncio.to_thread(self._keep_account, here)

    def _keep_account(self, here: bytes) -> None:
        new = self._account.with_suffix(".new")
        new.write_bytes(here)
        new.replace(self._account)

    async def fetch_all(self) -> None:
        for offset in range(0, self.capacity, CHUNK):
            await self._have(offset, 1)
        await self.flush()


def is_new(path: str) -> bool:
    return not Path(path).exists()


async def main(where: str, kept: str, path: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        is_url = where.startswith(("http://", "https://"))
        source = (
            HttpSource(where)
            if is_url
            else await stack.enter_async_context(aioblk.open(where, read_only=True))
        )
        new = source.capacity if is_new(kept) else None
        disk = await stack.enter_async_context(aioblk.IoUring(kept, create=new))
        lazy = LazyDisk(source, disk, Path(f"{kept}.chunks"))
        export = await stack.enter_async_context(VhostUser(lazy, path))
        print(f"{lazy.capacity} bytes at {path}", flush=True)
        await asyncio.gather(lazy.fetch_all(), export.served())


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:]))
