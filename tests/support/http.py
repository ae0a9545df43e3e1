"""HTTP/1.1 by hand, so that a test decides about every byte."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

TIME_LIMIT = 30


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(
        self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> Answer:
        self.begin(method, path, {**({"Content-Length": str(len(body))} if body else {}), **(headers or {})})
        self.writer.write(body)
        return await self.answer(has_body=method != "HEAD")

    def begin(self, method: str, path: str, headers: dict[str, str]) -> None:
        lines = [
            f"{method} {path} HTTP/1.1",
            "Host: gateway",
            *(f"{name}: {headers[name]}" for name in headers),
        ]
        self.writer.write("".join(f"{line}\r\n" for line in [*lines, ""]).encode())

    async def answer(self, *, has_body: bool = True) -> Answer:
        """Raises IncompleteReadError where it is cut short."""
        async with asyncio.timeout(TIME_LIMIT):
            status, headers = await self.head()
            body = b""
            if has_body and headers.get("transfer-encoding") == "chunked":
                while length := int(await self.reader.readuntil(b"\r\n"), 16):
                    body += await self.reader.readexactly(length)
                    await self.reader.readuntil(b"\r\n")
                await self.reader.readuntil(b"\r\n")
            elif has_body:
                body = await self.reader.readexactly(int(headers.get("content-length", 0)))
            return Answer(status, headers, body)

    async def head(self) -> tuple[int, dict[str, str]]:
        async with asyncio.timeout(TIME_LIMIT):
            status, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        pairs = (line.partition(":") for line in lines if line)
        return int(status.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}

    async def is_sent_away(self) -> bool:
        """Waits until the server closes the connection."""
        async with asyncio.timeout(TIME_LIMIT):
            with suppress(ConnectionError):
                while await self.reader.read(1 << 16):
                    pass
        return True


@asynccontextmanager
async def connected(port: int, *, source: str = "127.0.0.1", limit: int = 1 << 16) -> AsyncGenerator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0), limit=limit)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()
