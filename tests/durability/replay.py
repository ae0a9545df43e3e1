"""The states of a disk that a power failure may leave: at the end of each entry of a log of writes.

What a completed flush has covered is there. Of what came later each sector may be there or not, in any order;
a sector of 512 bytes is whole.
"""

import random
from collections.abc import Iterable, Iterator, Sequence

from .write_log import DISCARD, FLUSH, FUA, MARK, SECTOR, Entry

__all__ = ["ZEROES", "Replay"]

ZEROES = bytes(SECTOR)


class Replay:
    """What each sector may hold, as the log goes on."""

    def __init__(self, *, stamped: bool = False) -> None:
        """*stamped*: what is written is of an odd number of sectors, none of which is of zeroes. So one that
        is in the log as zeroes was not logged before its daemon was killed, nor acknowledged.
        """
        self._stamped = stamped
        self.durable: dict[int, bytes] = {}
        """Of those that are not what they were at first."""
        self.since: dict[int, list[bytes]] = {}
        """Of each sector, what it was given since it was last durable, in order."""

    def add(self, entry: Entry) -> Iterable[int]:
        """The sectors of which it says more, or less, than was known."""
        if entry.flags & MARK:
            return ()
        touched: set[int] = set()
        if entry.flags & FLUSH:
            touched.update(self.since)
            self._settle(self.since)
        touched.update(self._write(entry))
        if entry.flags & FUA:
            self._settle(touched & self.since.keys())
        return touched

    def _write(self, entry: Entry) -> Iterator[int]:
        for number in range(entry.count):
            data = ZEROES
            if entry.data is not None and not entry.flags & DISCARD:
                data = entry.data[number * SECTOR :][:SECTOR]
            if data == ZEROES and self._stamped and entry.count % 2:
                continue
            self.since.setdefault(entry.sector + number, []).append(data)
            yield entry.sector + number

    def _settle(self, sectors: Iterable[int]) -> None:
        for sector in list(sectors):
            self.durable[sector] = self.since.pop(sector)[-1]

    def possible(self, sector: int) -> Sequence[bytes]:
        """What it may hold after a power failure."""
        return [self.durable.get(sector, ZEROES), *self.since.get(sector, [])]

    def state(self, chance: random.Random) -> dict[int, bytes]:
        """One of those that a power failure may leave: the sectors that are not what they were at first. How
        much of it all was written is chosen before."""
        share = chance.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        state = self.durable.copy()
        for sector, versions in self.since.items():
            if chance.random() < share:
                state[sector] = chance.choice((versions[-1], chance.choice(versions)))
        return state
