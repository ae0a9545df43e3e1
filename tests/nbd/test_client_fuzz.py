"""Servers that do anything, by seed: in the handshake, in each reply, when they are there again.

Whatever they do, everything ends in time, with an error that is one, and touches nothing but what was lent.
`./run campaign nbd-client` goes on with other seeds.
"""

import asyncio
import contextlib
import itertools
import random
import struct
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import aioblk
from aioblk import BlkioError
from aioblk.nbd import list_exports
from aioblk.nbd._client import life

from ..conftest import LoopError
from . import scripted as s
from .scripted import Command, Export, Session, scripted

LIVES, LIVES_SECONDS = 60, 30.0  # of servers, whichever is over first
LIMIT = 20.0  # seconds for what may take 2
GUARD = b"g" * 64
SIZE = 1 << 20
EXTREMES = (0, 1, 7, 511, 512, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 62, 1 << 63, (1 << 64) - 1)
SIZES = (0, 1, 1001, 4096, (1 << 63) - 512, 1 << 63, (1 << 64) - 1)
BLOCKS = ((512, 4096, 65536), (1, 512, 512), (4096, 4096, 4096), (65536, 1 << 25, 0xFFFFFFFF), (3, 512, 9))
CONTEXTS = ((), ("x:y",), ("x:y", "base:allocation"), ("base:allocation",) * 2)


def content(offset: int, length: int) -> bytes:
    """What is everywhere, and stays: it is what is written, too."""
    start = offset % 251
    return (bytes(range(251)) * (length // 251 + 2))[start : start + length]


class Hostile:
    """A server that is good but for what it does now and then."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.how_often = chance.choice((0.0, 0.001, 0.003, 0.01, 0.03))
        """It does what it should not."""
        self.may_forge = chance.random() < 0.6
        """Whether it says what is wrong, and not only too little, too late, or in an odd order."""
        is_odd = chance.random() < 0.2
        self.export = Export(
            size=chance.choice(SIZES) if is_odd else SIZE,
            flags=chance.choice((s.ALL, s.HAS_FLAGS, 0xFFFF, 0))
            if is_odd
            else s.ALL | chance.choice((0, s.MULTI_CONN, s.FAST_ZERO_FLAG)),
            dialect=chance.choice((s.SIMPLE, s.STRUCTURED, s.EXTENDED)),
            blocks=chance.choice((None, *BLOCKS)) if is_odd else chance.choice((None, *BLOCKS[:3])),
            contexts=chance.choice(CONTEXTS) if is_odd else ("base:allocation",),
        )

    async def __call__(self, session: Session) -> None:
        chance = self.chance
        session.export = self.export
        write = session.writer.write
        is_haggling = chance.random() < 0.8  # in peace

        def say(said: bytes) -> None:
            if not is_haggling and chance.random() < self.how_often:
                said = self.damaged(session, said)
            for piece in self.pieces(said):
                if not session.writer.is_closing():
                    write(piece)

        session.writer.write = say  # type: ignore[method-assign, assignment]
        if chance.random() < 0.05:
            self.export = Export(size=SIZE, dialect=self.export.dialect)  # it is another one from now on
        with contextlib.suppress(AssertionError, struct.error):  # what the client says is another test's
            await session.haggle()
            is_haggling = False
            await self.serve(session)
        session.writer.transport.abort()

    def pieces(self, said: bytes) -> list[bytes]:
        size = self.chance.choice((len(said), len(said), len(said), 1000, 100, 1))
        if len(said) > 2000 * max(size, 1):
            return [said]
        return [said[start : start + size] for start in range(0, len(said), size or 1)]

    def damaged(self, session: Session, said: bytes) -> bytes:
        chance = self.chance
        place = chance.randrange(min(len(said), chance.choice((4, 32, 1 << 20))) or 1)
        what = chance.randrange(8 if self.may_forge else 3)
        match what:
            case 0:
                session.writer.transport.abort()
                return b""
            case 1 | 2:
                if what == 1:
                    asyncio.get_running_loop().call_soon(session.writer.transport.abort)
                session.writer.write = lambda _: None  # type: ignore[method-assign, assignment]
                return said[:place]
            case 3:
                return said[:place] + chance.randbytes(chance.randrange(1, 40)) + said[place:]
            case 4:
                return said[:place] + said[place + chance.randrange(1, 40) :]
            case 5:
                return said * 2
            case 6:
                size = chance.choice((2, 4, 8))
                number = chance.choice(EXTREMES) % (1 << 8 * size)
                return said[:place] + number.to_bytes(size, "big") + said[place + size :]
            case _:
                return said[:place] + bytes([said[place] ^ 1 << chance.randrange(8)]) + said[place + 1 :]

    async def serve(self, session: Session) -> None:
        chance = self.chance
        waiting: list[Command] = []
        while True:
            try:
                async with asyncio.timeout(chance.choice((0.0, 0.001, 0.003))):
                    waiting.append(await session.command())
                if chance.random() < 0.8 and len(waiting) < 30:
                    continue
            except TimeoutError:
                pass
            if not waiting:
                waiting.append(await session.command())
            if chance.random() < 0.7:
                chance.shuffle(waiting)
            for command in waiting:
                self.answer(session, command)
            waiting.clear()
            await session.writer.drain()

    def answer(self, session: Session, command: Command) -> None:
        chance = self.chance
        is_simple = self.export.dialect == s.SIMPLE
        if self.may_forge and chance.random() < self.how_often:
            command = self.forged(command)
        if command.kind == s.BLOCK_STATUS:
            self.tell_status(session, command)
        elif chance.random() < 0.05:
            words = chance.choice((b"", b"no", b"\xff\xfe\0\x1b[2J", b"x" * 4096, b"x" * 4097))
            session.fail(command, chance.choice((1, 5, 28, 95, 108, 77, 0xFFFFFFFF)), words)
        elif command.kind != s.READ or is_simple:
            session.done(command, self.data_of(command))
        else:
            self.read_in_pieces(session, command)

    def data_of(self, command: Command) -> bytes:
        return content(command.offset, command.length) if command.kind == s.READ else b""

    def forged(self, command: Command) -> Command:
        chance = self.chance
        match chance.randrange(4):
            case 0:
                return command._replace(cookie=command.cookie + chance.choice((-1, 1, 1 << 32)))
            case 1:
                return command._replace(kind=chance.randrange(8), length=min(command.length, 1 << 16))
            case 2:
                return command._replace(offset=(command.offset + chance.choice((1, -1, 512))) % (1 << 63))
            case _:
                return command._replace(length=max(0, min(command.length + chance.choice((1, -1)), 1 << 22)))

    def read_in_pieces(self, session: Session, command: Command) -> None:
        chance, end = self.chance, command.offset + command.length
        cuts = {chance.randrange(command.offset, end) for _ in range(chance.choice((0, 0, 1, 5)))}
        places = sorted({command.offset, *cuts, end} if command.length else {command.offset})
        pieces = list(itertools.pairwise(places))
        chance.shuffle(pieces)
        for number, (start, behind) in enumerate(pieces, 1):
            is_last = number == len(pieces)
            session.chunk(
                command, s.DATA, struct.pack(">Q", start) + content(start, behind - start), last=is_last
            )
        if not pieces:
            session.chunk(command, s.NOTHING)

    def tell_status(self, session: Session, command: Command) -> None:
        chance = self.chance
        is_extended = self.export.dialect == s.EXTENDED
        numbers = [number + 10 * session.number for number in range(7, 7 + len(self.export.contexts))]
        if self.may_forge and chance.random() < 0.1:
            numbers.append(chance.choice((7, 8, 99)))
        for number in numbers:
            lengths = [chance.choice((512, 4096, 65536)) for _ in range(chance.randrange(1, 5))]
            if self.may_forge and chance.random() < 0.1:
                lengths.append(chance.choice(EXTREMES) % (1 << 32))
            lengths.append((1 << 32) - 65536)
            if is_extended:
                body = struct.pack(">II", number, len(lengths))
                body += b"".join(struct.pack(">QQ", each, chance.randrange(4)) for each in lengths)
            else:
                body = struct.pack(">I", number)
                body += b"".join(struct.pack(">II", each, chance.randrange(4)) for each in lengths)
            session.chunk(
                command,
                s.STATUS_EXTENDED if is_extended else s.STATUS,
                body,
                last=number == numbers[-1],
            )
        if not numbers:
            session.chunk(command, s.NOTHING)


@contextlib.contextmanager
def telling_errors() -> Iterator[None]:
    """Those of devices, fit to be shown; others are raised."""
    errors: list[BlkioError] = []
    try:
        yield
    except BlkioError as error:
        errors.append(error)
    assert all(str(error).isprintable() for error in errors), errors


class User:
    """Somebody who asks for anything, and looks at what comes of it."""

    def __init__(self, chance: random.Random, dev: aioblk.Nbd, *, may_be_deceived: bool) -> None:
        self.chance = chance
        self.dev = dev
        self.may_be_deceived = may_be_deceived
        self.block = dev.limits.request_alignment
        self.room = min(dev.capacity, SIZE)

    async def use(self) -> None:
        for _ in range(5):
            await self.use_together()

    async def use_together(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self.chance.randrange(1, 24)):
                task = group.create_task(self.tolerant(self.chance.choice(self.deeds())))
                if self.chance.random() < 0.2:
                    asyncio.get_running_loop().call_later(self.chance.random() * 0.02, task.cancel)
                if self.chance.random() < 0.3:
                    await asyncio.sleep(0)

    def deeds(self) -> list[Callable[[], Awaitable[None]]]:
        rare = [self.abandon, self.reconnect, self.reconnect] if self.chance.random() < 0.02 else []
        return [
            self.read,
            self.read,
            self.read_into,
            self.read_into,
            self.write,
            self.change,
            self.look,
            *rare,
        ]

    async def tolerant(self, deed: Callable[[], Awaitable[None]]) -> None:
        with telling_errors():
            await deed()

    def place(self) -> tuple[int, int]:
        blocks = self.room // self.block
        first = self.chance.randrange(blocks) if blocks else 0
        size = min(self.chance.choice((512, 4096, 1 << 17)), 8 * self.dev.limits.max_transfer)
        most = max(1, size // self.block)
        count = self.chance.randint(1, min(most, blocks - first)) if blocks else 0
        return first * self.block, count * self.block

    async def read(self) -> None:
        offset, length = self.place()
        data = await self.dev.read(offset, length)
        assert len(data) == length
        assert self.may_be_deceived or data == content(offset, length)

    async def read_into(self) -> None:
        offset, length = self.place()
        memory = bytearray(GUARD + b"?" * length + GUARD)
        cut = self.chance.randrange(length + 1)
        whole = memoryview(memory)
        views = [whole[64 : 64 + cut], whole[64 + cut : 64 + length]]
        try:
            await self.dev.readv(offset, views)
            assert self.may_be_deceived or memory[64 : 64 + length] == content(offset, length)
        finally:
            for view in (*views, whole):
                view.release()
            memory.append(0)  # BufferError: somebody still refers to it
            assert memory.startswith(GUARD)
            assert memory[:-1].endswith(GUARD)

    async def write(self) -> None:
        offset, length = self.place()
        memory = bytearray(content(offset, length))
        try:
            await self.dev.write(offset, memory, fua=self.chance.random() < 0.3)
        finally:
            memory.append(0)

    async def change(self) -> None:
        offset, length = self.place()
        flags = {"no_fallback": self.chance.random() < 0.5, "fua": self.chance.random() < 0.5}
        await self.chance.choice(
            (
                self.dev.flush,
                lambda: self.dev.discard(offset, length),
                lambda: self.dev.write_zeroes(offset, length, **flags),
            )
        )()

    async def look(self) -> None:
        offset, length = self.place()
        ways: list[Callable[[int, int], AsyncGenerator[Any]]] = [
            self.dev.extents,
            *(partial(self.dev.block_status, name) for name in self.dev.contexts),
        ]
        at = offset
        async with contextlib.aclosing(self.chance.choice(ways)(offset, length)) as stretches:
            async for stretch in stretches:
                assert stretch.offset == at
                assert stretch.length > 0
                at += stretch.length
        assert at == offset + length

    async def abandon(self) -> None:
        self.dev.abandon("enough")

    async def reconnect(self) -> None:
        await self.dev.reconnect()


async def live(where: Path, chance: random.Random) -> None:
    server = Hostile(chance)
    options: dict[str, Any] = {
        "connections": chance.choice((1, 1, 2, 3)),
        "depth": chance.choice((1, 2, 8, 64)),
        "connect_timeout": 0.2,
        "lost_after": 0.1,
        "reconnect_for": chance.choice((None, 0.1, 0.3)),
        "unflushed": chance.choice(life.UNFLUSHED),
        "contexts": tuple(name for name in server.export.contexts if name == "x:y"),
        "read_only": chance.random() < 0.1,
    }
    async with scripted(where, server) as uri:
        with telling_errors():
            if chance.random() < 0.1:
                await list_exports(uri, connect_timeout=0.2)
        dev = aioblk.Nbd(uri, **options)
        with telling_errors():
            await dev.open()
        if dev.closed:
            return
        await User(chance, dev, may_be_deceived=server.may_forge).use()
        if chance.random() < 0.3:
            dev.abandon()
        await dev.aclose()
        counts = dev.statistics()
        assert counts.in_flight == 0
        assert counts.submitted == counts.completed + counts.failed + counts.cancelled
        assert dev.connections == 0


async def test_whatever_a_server_does_everything_ends_as_it_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop_errors: list[LoopError]
) -> None:
    monkeypatch.setattr(life, "FIRST_DELAY", 0.005)
    seed = random.randrange(2**32)
    over = time.monotonic() + LIVES_SECONDS
    for number in range(LIVES):
        task = asyncio.create_task(live(tmp_path, random.Random(f"{seed} {number}")))
        done, _ = await asyncio.wait([task], timeout=LIMIT)
        where = f"random.Random('{seed} {number}')"
        assert done, f"{where}: {task.get_stack()}"
        assert task.exception() is None, f"{where}: {task.exception()!r}"
        assert not loop_errors, f"{where}: {loop_errors}"
        if time.monotonic() > over:
            break
