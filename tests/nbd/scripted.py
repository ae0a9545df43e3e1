"""An NBD server that does what it is told to, right or wrong. It shares no code with the client."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

EXPORT_NAME, ABORT, LIST, STARTTLS = 1, 2, 3, 5
GO, STRUCTURED_REPLY, LIST_META_CONTEXT, SET_META_CONTEXT, EXTENDED_HEADERS = 7, 8, 9, 10, 11
ACK, SERVER, INFO, META_CONTEXT = 1, 2, 3, 4
ERR_UNSUP, ERR_POLICY, ERR_UNKNOWN = (0x80000000 + n for n in (1, 2, 6))

HAS_FLAGS, READ_ONLY, FLUSH_FLAG, FUA_FLAG = 1, 2, 4, 8
TRIM_FLAG, ZEROES_FLAG, MULTI_CONN, FAST_ZERO_FLAG = 32, 64, 256, 2048
ALL = HAS_FLAGS | FLUSH_FLAG | FUA_FLAG | TRIM_FLAG | ZEROES_FLAG

READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, BLOCK_STATUS = range(8)
FUA, NO_HOLE, FAST_ZERO = 1, 2, 16

SIMPLE, STRUCTURED, EXTENDED = range(3)
NOTHING, DATA, HOLE, STATUS, STATUS_EXTENDED, ERROR = 0, 1, 2, 5, 6, 0x8001
SIZE = 1 << 20


class Command(NamedTuple):
    kind: int
    flags: int
    cookie: int
    offset: int
    length: int
    data: bytes = b""


@dataclass
class Export:
    size: int = SIZE
    flags: int = ALL
    dialect: int = STRUCTURED
    blocks: tuple[int, int, int] | None = None
    contexts: tuple[str, ...] = ("base:allocation",)


class Session:
    """A connection of a client."""

    def __init__(
        self, number: int, export: Export, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.number = number
        """From 0 on, in the order in which they came."""
        self.export = export
        self.reader = reader
        self.writer = writer

    async def receive(self, size: int) -> bytes:
        return await self.reader.readexactly(size)

    def send(self, *data: bytes) -> None:
        self.writer.write(b"".join(data))

    # --- handshake ------------------------------------------------------------------------------------------

    async def greet(self) -> None:
        self.send(b"NBDMAGICIHAVEOPT", struct.pack(">H", 3))
        assert struct.unpack(">I", await self.receive(4)) == (3,)

    async def option(self) -> tuple[int, bytes]:
        magic, option, length = struct.unpack(">8sII", await self.receive(16))
        assert magic == b"IHAVEOPT"
        return option, await self.receive(length)

    def answer(self, option: int, kind: int, data: bytes = b"") -> None:
        self.send(struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)), data)

    async def haggle(self) -> None:
        """All of the handshake, as the export has it."""
        await self.greet()
        wanted = {EXTENDED_HEADERS: EXTENDED, STRUCTURED_REPLY: STRUCTURED}
        while True:
            option, _ = await self.option()
            if option in wanted:
                self.answer(option, ACK if self.export.dialect == wanted[option] else ERR_UNSUP)
            elif option == SET_META_CONTEXT:
                for number, name in enumerate(self.export.contexts, 7 + 10 * self.number):
                    self.answer(option, META_CONTEXT, struct.pack(">I", number) + name.encode())
                self.answer(option, ACK)
            elif option == GO:
                self.go()
                return
            else:
                self.answer(option, ERR_UNSUP)

    def go(self) -> None:
        export = self.export
        self.answer(GO, INFO, struct.pack(">HQH", 0, export.size, export.flags))
        if export.blocks:
            self.answer(GO, INFO, struct.pack(">HIII", 3, *export.blocks))
        self.answer(GO, ACK)

    # --- transmission ---------------------------------------------------------------------------------------

    async def command(self) -> Command:
        """The next one; EOFError: the client has taken leave."""
        if self.export.dialect == EXTENDED:
            layout, magic = struct.Struct(">IHHQQQ"), 0x21E41C71
        else:
            layout, magic = struct.Struct(">IHHQQI"), 0x25609513
        began, *fields = layout.unpack(await self.receive(layout.size))
        assert began == magic
        flags, kind, cookie, offset, length = fields
        if kind == DISC:
            raise EOFError
        data = await self.receive(length) if kind == WRITE else b""
        return Command(kind, flags, cookie, offset, length, data)

    async def commands(self, count: int) -> list[Command]:
        return [await self.command() for _ in range(count)]

    def chunk(self, command: Command, kind: int, body: bytes = b"", *, last: bool = True) -> None:
        if self.export.dialect == EXTENDED:
            head = struct.pack(">IHHQQQ", 0x6E8A278C, last, kind, command.cookie, command.offset, len(body))
        else:
            head = struct.pack(">IHHQI", 0x668E33EF, last, kind, command.cookie, len(body))
        self.send(head, body)

    def chunks(self, command: Command, *parts: tuple[int, bytes]) -> None:
        """Kinds and bodies; the last of them is the last."""
        for number, (kind, body) in enumerate(parts, 1):
            self.chunk(command, kind, body, last=number == len(parts))

    def simple(self, cookie: int, error: int = 0, data: bytes = b"") -> None:
        self.send(struct.pack(">IIQ", 0x67446698, error, cookie), data)

    def done(self, command: Command, data: bytes = b"") -> None:
        """As the export's dialect has it."""
        if self.export.dialect == SIMPLE:
            self.simple(command.cookie, 0, data)
        elif command.kind == READ:
            self.chunk(command, DATA, struct.pack(">Q", command.offset) + data)
        else:
            self.chunk(command, NOTHING)

    def fail(self, command: Command, error: int, words: bytes = b"") -> None:
        if self.export.dialect == SIMPLE:
            self.simple(command.cookie, error)
        else:
            self.chunk(command, ERROR, struct.pack(">IH", error, len(words)) + words)

    async def serve(self, memory: bytearray, log: list[Command] | None = None) -> None:
        """As a good server does, until the client takes leave."""
        while True:
            command = await self.command()
            if log is not None:
                log.append(command)
            place = slice(command.offset, command.offset + command.length)
            if command.kind == WRITE:
                memory[place] = command.data
            elif command.kind in (ZEROES, TRIM):
                memory[place] = bytes(command.length)
            self.done(command, bytes(memory[place]) if command.kind == READ else b"")


Script = Callable[[Session], Awaitable[Any]]


@contextlib.asynccontextmanager
async def scripted(where: Path | None, script: Script, export: Export | None = None) -> AsyncIterator[str]:
    """A server at a Unix socket in that directory, or at a port of this machine, which does *script* with
    each connection, after the handshake if there is an *export*; its URI. What the script raises is raised in
    the end, but for the ends of connections."""
    sessions: set[asyncio.Task[None]] = set()
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        session = Session(count, export or Export(), reader, writer)
        count += 1
        try:
            if export is not None:
                await session.haggle()
            await script(session)
        except (EOFError, ConnectionError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = asyncio.get_running_loop().create_task(serve(reader, writer))
        session.add_done_callback(lambda _: writer.close())  # it may have been cancelled before it began
        sessions.add(session)

    if where is None:
        server = await asyncio.start_server(begin, "127.0.0.1", 0)
        uri = f"nbd://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    else:
        path = where / "nbd.sock"
        server = await asyncio.start_unix_server(begin, path)
        uri = f"nbd+unix:///?socket={path}"
    try:
        yield uri
    finally:
        server.close()
        for session in sessions:
            session.cancel()
        outcomes = await asyncio.gather(*sessions, return_exceptions=True)
        await asyncio.sleep(0)
        errors = [each for each in outcomes if isinstance(each, Exception)]
    if errors:
        raise errors[0]
