"""Servers that die with what is in their caches: what was durable stays, and nothing comes out of its order.

Each place of a device has versions, of which a later one is never written before the one before it is done or
given up. So whatever is found there tells what became of all of them.
"""

import asyncio
import contextlib
import random
import struct
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

import aioblk
from aioblk import BlkioError, DeviceLostError
from aioblk.nbd._client import life
from aioblk.nbd._client.life import Unflushed

from . import scripted as s
from .scripted import Command, Export, Session, scripted

PLACES, LENGTH, SECTOR = 12, 1024, 512
DEATHS = 25
FOR = 30.0


class Volatile:
    """A server that writes to a cache, in any order, and loses it when it dies. What it has not done by then
    it does not do any more."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.disk = bytearray(PLACES * LENGTH)
        self.cache: dict[int, bytes] = {}
        self.lives = 0
        self.deaths = 0
        self.sessions: set[Session] = set()

    async def __call__(self, session: Session) -> None:
        self.sessions.add(session)
        lives = self.lives
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    command = await session.command()
                    group.create_task(self.do(session, lives, command))
        except* (EOFError, ConnectionError):
            pass
        finally:
            self.sessions.discard(session)

    async def do(self, session: Session, lives: int, command: Command) -> None:
        await self.hesitate()
        if self.lives != lives:
            return
        data = b""
        if command.kind == s.WRITE:
            self.cache[command.offset] = command.data
            if command.flags & s.FUA:
                self.sync(command.offset)
        elif command.kind == s.FLUSH:
            for offset in tuple(self.cache):
                self.sync(offset)
        elif command.kind == s.READ:
            data = b"".join(map(self.sector, range(command.offset, command.offset + command.length, SECTOR)))
        await self.hesitate()
        if self.lives == lives:
            session.done(command, data)

    def sector(self, offset: int) -> bytes:
        return self.cache.get(offset, bytes(self.disk[offset : offset + SECTOR]))

    def sync(self, offset: int) -> None:
        self.disk[offset : offset + SECTOR] = self.cache.pop(offset)

    async def hesitate(self) -> None:
        for _ in range(self.chance.choice((0, 0, 1, 3, 20))):
            await asyncio.sleep(0)

    def die(self, *, with_cache: bool) -> None:
        self.lives += 1
        if with_cache:
            self.deaths += 1
            self.cache.clear()
        for session in self.sessions:
            session.writer.transport.abort()


class Place:
    """A part of the device, and what is known of its versions."""

    def __init__(self, number: int) -> None:
        self.offset = number * LENGTH
        self.begun = self.done = self.durable = 0
        self.deaths = 0
        """Of the server, before the last write that was done was begun."""


class Writer:
    def __init__(self, chance: random.Random, dev: aioblk.Nbd, server: Volatile) -> None:
        self.chance = chance
        self.dev = dev
        self.server = server
        self.places = [Place(number) for number in range(PLACES)]
        self.is_over = False

    async def succeeds(self, begin: Callable[[], Awaitable[object]]) -> bool:
        """Whether it does; afterwards the device is there again."""
        try:
            await begin()
            return True
        except DeviceLostError:
            while self.dev.lost is not None:
                self.doubt()
                with contextlib.suppress(BlkioError):
                    await self.dev.reconnect()
            return False

    def doubt(self) -> None:
        """What was not flushed may be gone, as this has been told."""
        for place in self.places:
            place.done = place.durable

    async def write(self, place: Place) -> None:
        while not self.is_over:
            place.begun += 1
            version, deaths, through = place.begun, self.server.deaths, self.chance.random() < 0.2
            sector = struct.pack(">Q", version) * (SECTOR // 8)
            write = partial(self.dev.write, place.offset, sector * 2, fua=through)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.chance.choice((None, None, 0, 0.001))):
                    if await self.succeeds(write):
                        place.done, place.deaths = version, deaths
                        if through:
                            place.durable = version
            await self.look(place)

    async def look(self, place: Place) -> None:
        durable, done, deaths = place.durable, place.done, place.deaths
        found = bytearray(LENGTH)
        if await self.succeeds(partial(self.dev.read_into, place.offset, found)):
            least = done if self.server.deaths == deaths else durable
            self.check(found, least, place)

    def check(self, found: bytes | bytearray, least: int, place: Place) -> None:
        for start in range(0, LENGTH, SECTOR):
            numbers = {*struct.unpack(f">{SECTOR // 8}Q", found[start : start + SECTOR])}
            assert len(numbers) == 1
            (number,) = numbers
            assert least <= number <= place.begun, f"{least} <= {number} <= {place.begun}"

    async def flush(self) -> bool:
        before = [place.done for place in self.places]
        try:
            if not await self.succeeds(self.dev.flush):
                return False
        except BlkioError as error:
            if "had been answered and not been flushed" not in str(error):
                raise
            self.doubt()
            return False
        for place, done in zip(self.places, before, strict=True):
            place.durable = max(place.durable, done)
        return True

    async def flush_often(self) -> None:
        while not self.is_over:
            await self.flush()
            for _ in range(self.chance.randrange(40)):
                await asyncio.sleep(0)

    async def use(self) -> None:
        async with asyncio.TaskGroup() as group:
            for place in self.places:
                group.create_task(self.write(place))
            group.create_task(self.flush_often())
            for _ in range(DEATHS):
                await asyncio.sleep(self.chance.random() * 0.01)
                self.server.die(with_cache=self.chance.random() < 0.8)
            self.is_over = True


@pytest.mark.parametrize("has_fua", [True, False], ids=["fua", "flush"])
@pytest.mark.parametrize("unflushed", ["lose", "report"])
async def test_what_was_durable_outlives_every_server_and_nothing_old_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unflushed: Unflushed, *, has_fua: bool
) -> None:
    monkeypatch.setattr(life, "FIRST_DELAY", 0.001)
    monkeypatch.setattr(life, "LONGEST_DELAY", 0.001)
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    server = Volatile(chance)
    flags = s.HAS_FLAGS | s.FLUSH_FLAG | s.MULTI_CONN | (s.FUA_FLAG if has_fua else 0)
    export = Export(size=PLACES * LENGTH, flags=flags, blocks=(SECTOR, SECTOR, SECTOR))
    async with (
        scripted(tmp_path, server, export) as uri,
        aioblk.Nbd(uri, connections=2, depth=4, reconnect_for=FOR, unflushed=unflushed) as dev,
    ):
        writer = Writer(chance, dev, server)
        try:
            await writer.use()
            while not await writer.flush():
                pass
        except BaseExceptionGroup as error:
            raise AssertionError(f"seed {seed}: {error.exceptions}") from error
        server.die(with_cache=True)
        for place in writer.places:
            found = bytes(server.disk[place.offset : place.offset + LENGTH])
            writer.check(found, place.durable, place)
