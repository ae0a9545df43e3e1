"""A random program, by seed: it writes, and knows of each sector what it was promised, and by when.

Every sector that it writes says which write it is of, so that the log can be read: writes are of an odd
number of sectors, zeroes and discards of an even number.
"""

import asyncio
import random
import struct
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import aioblk

from .daemon import LoggedDaemon
from .replay import ZEROES, Replay
from .write_log import SECTOR

__all__ = ["END", "SIZE", "Found", "Kept", "Position", "Workload", "lost"]

SIZE = 128 << 10  # bytes
WORKERS = 4
OPERATIONS = 20  # of each worker, on average
STAMP = struct.Struct("<QQ")
Position = tuple[int, int]
END: Position = (1 << 62, 0)


class Log(Protocol):
    def position(self) -> Position:
        """How far it has come."""
        ...


def stamped(sector: int, number: int) -> bytes:
    return STAMP.pack(sector + 1, number) * (SECTOR // STAMP.size)


def number_of(sector: int, data: bytes) -> int:
    """Of the write that a sector is of; 0: of none."""
    if data == ZEROES:
        return 0
    where, number = STAMP.unpack_from(data)
    assert data == stamped(sector, number), (
        f"sector {sector} holds what was never written there ({where}, {number})"
    )
    return int(number)


@dataclass(slots=True)
class History:
    """What a sector was given, in order, as numbers; what it holds is one of them."""

    versions: list[int] = field(default_factory=lambda: [0])
    done: int = 0
    """The place of the last one that was acknowledged; not of a discard, which promises nothing."""


@dataclass(frozen=True, slots=True)
class Promise:
    """From this position in the log on, each sector holds the version at this place, or a later one."""

    position: Position
    places: dict[int, int]
    words: str


@dataclass(frozen=True, slots=True)
class Found:
    sector: int
    words: str

    def __str__(self) -> str:
        return f"sector {self.sector}: {self.words}"


class Workload:
    """*kill* is called now and then, in a thread."""

    def __init__(
        self,
        seed: int,
        device: aioblk.BlockDevice,
        log: Log,
        *,
        kill: Callable[[], None] | None = None,
        operations: int = OPERATIONS,
    ) -> None:
        self._chance = random.Random(seed)
        self._device, self._log, self._kill, self._operations = device, log, kill, operations
        self._numbers = 0
        self.sectors = [History() for _ in range(SIZE // SECTOR)]
        self.promises: list[Promise] = []

    async def run(self) -> None:
        workers = [asyncio.create_task(self._work(number)) for number in range(WORKERS)]
        if self._kill is not None:
            for _ in range(self._chance.choice((1, 1, 2, 3))):
                await asyncio.sleep(self._chance.random() * 0.02)
                await asyncio.to_thread(self._kill)
        await asyncio.gather(*workers)
        await self._device.read(0, SECTOR)  # it is back, if its daemon was killed in the end
        if self._chance.random() < 0.7:
            await self._flush()

    async def _work(self, worker: int) -> None:
        own = len(self.sectors) // WORKERS
        for _ in range(self._chance.randrange(2 * self._operations)):
            step = self._chance.choice((self._write,) * 4 + (self._zero, self._discard, self._several))
            if self._chance.random() < 0.25:
                await self._flush()
            await step(worker * own, own)
            if self._chance.random() < 0.3:
                await asyncio.sleep(self._chance.random() * 0.005)

    def _range(self, first: int, count: int, lengths: tuple[int, ...]) -> range:
        length = self._chance.choice(lengths)
        start = first + self._chance.randrange(count - length + 1)
        return range(start, start + length)

    # --- changes --------------------------------------------------------------------------------------------

    async def _write(self, first: int, count: int) -> None:
        sectors = self._range(first, count, (1, 1, 3, 7, 15))
        number, data = self._stamped(sectors)
        fua = self._chance.random() < 0.25
        parts = self._chance.choice((1, 1, 1, len(sectors)))
        size = len(data) // parts
        buffers = [data[at : at + size] for at in range(0, len(data), size)]

        def begin() -> Awaitable[object]:
            if parts > 1:
                return self._device.writev(sectors[0] * SECTOR, buffers, fua=fua)
            return self._device.write(sectors[0] * SECTOR, data, fua=fua)

        await self._change(sectors, number, begin, fua=fua, words=f"write {number}")

    async def _several(self, first: int, count: int) -> None:
        """A batch, or single requests that are in flight together: of every other quarter, so that none are
        side by side, which go to the device as one."""
        quarter = count // 4
        await asyncio.gather(*(self._write(first + at * quarter, quarter - 1) for at in range(4)))

    async def _zero(self, first: int, count: int) -> None:
        sectors = self._range(first, count, (2, 4, 8))
        fua, no_unmap = self._chance.random() < 0.25, self._chance.random() < 0.5

        def begin() -> Awaitable[object]:
            offset, length = sectors[0] * SECTOR, len(sectors) * SECTOR
            return self._device.write_zeroes(offset, length, fua=fua, no_unmap=no_unmap)

        await self._change(sectors, 0, begin, fua=fua, words="zeroes")

    async def _discard(self, first: int, count: int) -> None:
        sectors = self._range(first, count, (2, 4, 8))

        def begin() -> Awaitable[object]:
            return self._device.discard(sectors[0] * SECTOR, len(sectors) * SECTOR)

        await self._change(sectors, 0, begin, promises=False)

    def _stamped(self, sectors: range) -> tuple[int, bytes]:
        self._numbers += 1
        return self._numbers, b"".join(stamped(sector, self._numbers) for sector in sectors)

    async def _change(
        self,
        sectors: range,
        number: int,
        begin: Callable[[], Awaitable[object]],
        *,
        fua: bool = False,
        promises: bool = True,
        words: str = "",
    ) -> None:
        places = {}
        for sector in sectors:
            self.sectors[sector].versions.append(number)
            places[sector] = len(self.sectors[sector].versions) - 1
        if not await self._is_made(begin) or not promises:
            return
        for sector, place in places.items():
            self.sectors[sector].done = max(place, self.sectors[sector].done)
        if fua:
            self._promise(places, f"{words} with FUA")

    async def _is_made(self, begin: Callable[[], Awaitable[object]]) -> bool:
        """Now and then it is cancelled: then it may be made, or not."""
        made = asyncio.ensure_future(begin())
        if self._chance.random() < 0.08:
            asyncio.get_running_loop().call_later(self._chance.random() * 0.002, made.cancel)
            await asyncio.wait([made])
            return not made.cancelled()
        await made
        return True

    async def _flush(self) -> None:
        done = {sector: history.done for sector, history in enumerate(self.sectors) if history.done}
        await self._device.flush()
        self._promise(done, f"flush {len(self.promises)}")

    def _promise(self, places: dict[int, int], words: str) -> None:
        self.promises.append(Promise(self._log.position(), places, words))


class Kept:
    """What was promised by some moment, as the log goes on."""

    def __init__(self, workload: Workload) -> None:
        self._sectors = workload.sectors
        self._promises = sorted(workload.promises, key=lambda promise: promise.position)
        self._floor = [0] * len(workload.sectors)
        self._by_whom = ["nothing"] * len(workload.sectors)

    def until(self, position: Position) -> set[int]:
        """The sectors of which more is promised from there on."""
        more: set[int] = set()
        while self._promises and self._promises[0].position <= position:
            promise = self._promises.pop(0)
            for sector, place in promise.places.items():
                if place > self._floor[sector]:
                    self._floor[sector], self._by_whom[sector] = place, promise.words
                    more.add(sector)
        return more

    def wrong(self, sector: int, data: bytes) -> Found | None:
        """What is wrong with that for a sector to hold."""
        versions = self._sectors[sector].versions
        number = number_of(sector, data)
        if number in versions[self._floor[sector] :]:
            return None
        return Found(sector, f"holds {number}, though {self._by_whom[sector]} was done; {versions} in order")


def lost(workload: Workload, daemon: LoggedDaemon) -> list[Found]:
    """Of every state that a power failure may leave, what was promised before and is not in it."""
    replay, kept = Replay(stamped=True), Kept(workload)
    found: dict[int, Found] = {}

    def look(sectors: Iterable[int]) -> None:
        for sector in sectors:
            for data in replay.possible(sector):
                if wrong := kept.wrong(sector, data):
                    found.setdefault(sector, wrong)

    for position, entry in daemon.logged(stamped=True):
        changed = set(replay.add(entry))
        look(changed | kept.until(position))
    kept.until(END)
    look(range(len(workload.sectors)))
    return list(found.values())
