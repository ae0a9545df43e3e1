"""What each sector may hold, judged by what callers have seen, and by nothing that the device knows.

A sector is a register. What it may hold is told by *knowledge*: at some moment it held a certain content,
because a change was acknowledged or a read has seen it. From then on it holds that, or what a change wrote
that had not ended by then. A change ends when it is acknowledged, fails, is cancelled (what meets its range
from then on waits for it, while the device lives), or when its device is certain not to do anything any more.
What began before a read ended, and had not ended before it began, may be seen by it or not; that is all that
concurrency allows.

A power failure leaves less to know: only what a flush that was begun after the acknowledgement, or FUA, has
made durable still counts.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import final

__all__ = ["SECTOR", "Change", "Flush", "Oracle", "Reading", "Wrong", "content_of"]

SECTOR = 512
NEVER = 1 << 62


class Wrong(AssertionError):  # noqa: N818 (a verdict)
    """Something was seen that cannot be."""


def content_of(change: int, sector: int) -> bytes:
    """Eight bytes that no other change writes, and not even this one elsewhere."""
    return (change << 20 | sector).to_bytes(8, "little")


ZEROES = bytes(8)


@final
@dataclass(eq=False, slots=True)
class Change:
    """A write, or zeroes, of some sectors."""

    number: int
    first: int
    count: int
    zeroes: bool
    begun: int
    ended: int = NEVER
    acknowledged: bool = False
    durable: bool = False

    def content(self, sector: int) -> bytes:
        return ZEROES if self.zeroes else content_of(self.number, sector)

    def data(self) -> bytes:
        return b"".join(self.content(sector) * (SECTOR // 8) for sector in self.sectors)

    @property
    def sectors(self) -> range:
        return range(self.first, self.first + self.count)

    def __str__(self) -> str:
        end = "still under way" if self.ended == NEVER else f"ended at {self.ended}"
        how = "acknowledged" if self.acknowledged else "not acknowledged"
        return f"#{self.number} ({'zeroes' if self.zeroes else 'data'}, begun at {self.begun}, {end}, {how})"


@final
@dataclass(eq=False, slots=True)
class Reading:
    """A read under way, and what was possible when it began."""

    first: int
    count: int
    begun: int
    possible: list[tuple[Change, ...]]
    changes: list[int]
    """Of each sector, how many changes had begun."""


@final
@dataclass(eq=False, slots=True)
class Flush:
    """A flush under way, and what it covers."""

    begun: int
    changes: list[Change]


@final
@dataclass(slots=True)
class _Sector:
    possible: tuple[Change, ...]
    """What it may hold."""
    lasting: tuple[Change, ...]
    """And may hold when the power fails now."""
    begun: list[Change] = field(default_factory=list[Change])


@final
class Oracle:
    """The sectors of one disk. Moments are numbered in the order in which they are told."""

    def __init__(self, sectors: int, *, repeats: bool) -> None:
        """*repeats*: requests in flight are made again at another backend when theirs has died."""
        self._moment = 0
        self._repeats = repeats
        initial = Change(0, 0, sectors, zeroes=True, begun=0, ended=0, acknowledged=True)
        self._initial = initial
        self._sectors = [_Sector((initial,), (initial,)) for _ in range(sectors)]
        self._failure = 0  # when the power failed last
        self._failures: list[tuple[int, list[tuple[Change, ...]]]] = []  # and what may have been left
        self._not_durable: dict[Change, None] = {}
        self.changes = 0
        self.reads = 0

    def _next(self) -> int:
        self._moment += 1
        return self._moment

    # --- changes --------------------------------------------------------------------------------------------

    def begin(self, first: int, count: int, *, zeroes: bool) -> Change:
        """Before the request is made."""
        self.changes += 1
        change = Change(self.changes, first, count, zeroes, self._next())
        for number in change.sectors:
            sector = self._sectors[number]
            sector.possible += (change,)
            sector.lasting += (change,)
            sector.begun.append(change)
        return change

    def acknowledge(self, change: Change, *, durable: bool) -> None:
        """The request has succeeded."""
        change.ended = self._next()
        change.acknowledged = True
        if durable:
            self._persist(change)
        elif change.begun < self._failure:
            return  # the power has failed since, perhaps between its being done and its being told
        else:
            self._not_durable[change] = None
        for number in change.sectors:
            sector = self._sectors[number]
            sector.possible = _known(sector.possible, change.content(number), number, change.begun)

    def end(self, change: Change) -> None:
        """It has failed, or does nothing after what begins from now on. Nobody knows what it has done."""
        if change.ended == NEVER:
            change.ended = self._next()

    def reopen(self, change: Change) -> None:
        """It was taken for ended, and may do something yet."""
        if change.ended == NEVER or change.acknowledged:
            return
        change.ended = NEVER
        for number in change.sectors:
            sector = self._sectors[number]
            sector.possible += (change,) if change not in sector.possible else ()
            sector.lasting += (change,) if change not in sector.lasting else ()

    def withdraw(self, change: Change) -> None:
        """The request was refused: it has never begun."""
        for number in change.sectors:
            sector = self._sectors[number]
            sector.possible = tuple(each for each in sector.possible if each is not change)
            sector.lasting = tuple(each for each in sector.lasting if each is not change)
            sector.begun.remove(change)

    # --- durability -----------------------------------------------------------------------------------------

    def begin_flush(self) -> Flush:
        return Flush(self._next(), list(self._not_durable))

    def end_flush(self, flush: Flush) -> None:
        """It has succeeded."""
        if self._repeats and flush.begun < self._failure:
            return  # perhaps at another backend, after the failure: of what it covers, nothing may be left
        for change in flush.changes:
            if not change.durable:
                self._persist(change)

    def _persist(self, change: Change) -> None:
        self._not_durable.pop(change, None)
        change.durable = True
        for number in change.sectors:
            sector = self._sectors[number]
            sector.lasting = _known(sector.lasting, change.content(number), number, change.begun)
            if change.begun < self._failure:
                sector.possible = _known(sector.possible, change.content(number), number, change.begun)

    def power_failure(self) -> None:
        """Of what is not durable, anything may be left, and only that counts as known."""
        self._failure = self._next()
        self._failures.append((self._failure, [sector.lasting for sector in self._sectors]))
        self._not_durable.clear()
        for sector in self._sectors:
            sector.possible = sector.lasting

    # --- reads ----------------------------------------------------------------------------------------------

    def begin_read(self, first: int, count: int) -> Reading:
        sectors = self._sectors[first : first + count]
        return Reading(
            first,
            count,
            self._next(),
            [sector.possible for sector in sectors],
            [len(sector.begun) for sector in sectors],
        )

    def end_read(self, reading: Reading, data: bytes | bytearray | memoryview) -> None:
        """It has succeeded, with this.

        Raises Wrong: it cannot have seen that.
        """
        self.reads += 1
        self._next()
        data = bytes(data)
        if len(data) != reading.count * SECTOR:
            raise Wrong(f"a read of {reading.count * SECTOR} bytes gave {len(data)}")
        for index in range(reading.count):
            number = reading.first + index
            seen = data[index * SECTOR : index * SECTOR + 8]
            if data[index * SECTOR : (index + 1) * SECTOR] != seen * (SECTOR // 8):
                raise Wrong(f"sector {number} is torn: {self._describe(data, index)}")
            sector = self._sectors[number]
            later = sector.begun[reading.changes[index] :]
            candidates = (*reading.possible[index], *later)
            for moment, left in self._failures:  # another backend may have been asked after one of them
                if moment > reading.begun:
                    candidates += left[number]
            if not any(change.content(number) == seen for change in candidates):
                raise Wrong(self._tell(number, seen, candidates, reading))
            if reading.begun > self._failure:
                sector.possible = _known(sector.possible, seen, number, reading.begun)

    def _describe(self, data: bytes, index: int) -> str:
        words = {data[at : at + 8] for at in range(index * SECTOR, (index + 1) * SECTOR, 8)}
        return ", ".join(sorted(self._name(word) for word in words))

    def _name(self, word: bytes) -> str:
        value = int.from_bytes(word, "little")
        return "zeroes" if not value else f"#{value >> 20} of sector {value & 0xFFFFF}"

    def _tell(self, number: int, seen: bytes, candidates: Iterable[Change], reading: Reading) -> str:
        could = "; ".join(map(str, candidates))
        known = {change.number: change for change in self._sectors[number].begun}
        was = known.get(int.from_bytes(seen, "little") >> 20)
        name = str(was) if was is not None else self._name(seen)
        return f"sector {number} was read as {name}, from {reading.begun} on; it could hold only: {could}"


def _known(possible: tuple[Change, ...], content: bytes, sector: int, since: int) -> tuple[Change, ...]:
    """At some moment from *since* on, the sector held *content*."""
    if len(possible) == 1:
        return possible
    return tuple(change for change in possible if change.ended > since or change.content(sector) == content)
