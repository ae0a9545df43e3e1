"""How long things took: a histogram that one can ask percentiles of, in the buckets of the compiled core."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self, final

__all__ = ["LatencyBucket", "LatencyHistogram", "LatencyRecorder"]

BITS = 5
"""Each doubling has so many bits' worth of buckets, all of one width: as in the compiled core."""
LINEAR = 1 << BITS
NANOSECOND = 1e-9


class LatencyBucket(NamedTuple):
    """Requests that took from *start* to less than *end* seconds."""

    start: float
    """The least that they took, in seconds."""
    end: float
    """What they took less than, in seconds."""
    requests: int
    """How many."""


@final
@dataclass(frozen=True, slots=True, repr=False)
class LatencyHistogram:
    """How long things took, in seconds: as ``latency`` of an operation, its requests, from being handed to
    the device until that was seen to be done; as ``bounce_wait`` of a queue, waiting for bounce memory.

    In ``latency`` a batch counts as its items, each of which took as long as the batch. Buckets are
    logarithmic, with 32 in each doubling: what is asked of them is right to 3 %, from nanoseconds to
    centuries. Histograms of several queues, or devices, add up; that of an interval is the later one less the
    earlier.
    """

    # In nanoseconds, and whole numbers: sums of them are the same in any order, and never fall.
    _least: int = 0
    _most: int = 0
    _total: int = 0
    _counts: tuple[tuple[int, int], ...] = ()
    """(bucket, how many), in order, of those that have any."""

    @classmethod
    def of(cls, least: int, most: int, total: int, counts: Mapping[int, int]) -> Self:
        """What the compiled core has counted, in nanoseconds."""
        return cls(least, most, total, tuple(sorted(counts.items())))

    @property
    def min(self) -> float:
        """Of the shortest, exactly; 0 where there is none. Of a difference, the start of its first bucket."""
        return self._least * NANOSECOND

    @property
    def max(self) -> float:
        """Of the longest, exactly. Of a difference, the end of its last bucket."""
        return self._most * NANOSECOND

    @property
    def sum(self) -> float:
        """Of all of them. As many seconds a second is how many were in flight on average."""
        return self._total * NANOSECOND

    @property
    def count(self) -> int:
        """How many requests there are."""
        return sum(count for _, count in self._counts)

    @property
    def mean(self) -> float:
        """Seconds, on average; 0 where there is none."""
        return self.sum / max(self.count, 1)

    def percentile(self, percent: float) -> float:
        """Seconds that *percent* of the requests did not exceed; 0 where there is none.

        Raises:
            ValueError: *percent* is not from 0 to 100.
        """
        if not 0 <= percent <= 100:
            raise ValueError(f"percent must be from 0 to 100, not {percent}")
        rank = max(math.ceil(self.count * percent / 100), 1)
        for _, end, count in self:
            rank -= count
            if rank <= 0:
                return max(min(end, self.max), self.min)
        return 0.0

    def count_up_to(self, seconds: float) -> int:
        """How many took no longer than that, as far as the buckets tell: those in the one of *seconds* itself
        are not among them. So it never falls as others are added."""
        return sum(count for _, end, count in self if end <= seconds)

    def __repr__(self) -> str:
        took = f", from {self.min:.3g} to {self.max:.3g} s" if self._counts else ""
        return f"<LatencyHistogram of {self.count}{took}>"

    def __iter__(self) -> Iterator[LatencyBucket]:
        """The buckets that are not empty, from the shortest."""
        for index, count in self._counts:
            start, end = _bounds(index)
            yield LatencyBucket(start * NANOSECOND, end * NANOSECOND, count)

    def __add__(self, other: "LatencyHistogram") -> "LatencyHistogram":
        if not self._counts or not other._counts:
            return self if self._counts else other
        counts = _merge(self._counts, other._counts, 1)
        least, most = min(self._least, other._least), max(self._most, other._most)
        return LatencyHistogram(least, most, self._total + other._total, counts)

    def __sub__(self, earlier: "LatencyHistogram") -> "LatencyHistogram":
        """Those since an earlier histogram of the same.

        Raises:
            ValueError: *earlier* has what this one has not, so it is none.
        """
        if not earlier._counts:
            return self
        has = dict(self._counts)
        if any(count > has.get(index, 0) for index, count in earlier._counts):
            raise ValueError(
                f"{self!r} is no later one of what {earlier!r} is of; subtract the earlier from the later, of"
                " the same device"
            )
        counts = _merge(self._counts, earlier._counts, -1)
        if not counts:
            return LatencyHistogram()
        least = max(_bounds(counts[0][0])[0], self._least)
        most = min(_bounds(counts[-1][0])[1], self._most)
        return LatencyHistogram(least, most, max(self._total - earlier._total, 0), counts)


@final
class LatencyRecorder:
    """Counts as the compiled core does, what it does not see. Any thread may ask."""

    def __init__(self) -> None:
        self._least = 0
        self._most = 0
        self._total = 0
        self._counts: dict[int, int] = {}

    def add(self, seconds: float) -> None:
        nanoseconds = max(round(seconds / NANOSECOND), 0)
        self._least = min(self._least, nanoseconds) if self._counts else nanoseconds
        self._most = max(self._most, nanoseconds)
        self._total += nanoseconds
        index = _bucket(nanoseconds)
        self._counts[index] = self._counts.get(index, 0) + 1

    def histogram(self) -> LatencyHistogram:
        """Of all so far."""
        return LatencyHistogram.of(self._least, self._most, self._total, self._counts.copy())


def _bucket(nanoseconds: int) -> int:
    """See latency_bucket() in core.h, which looks at halves of nanoseconds as well."""
    halves = 2 * nanoseconds + 1
    doubling = halves.bit_length() - 1
    return (doubling << BITS) + (halves << BITS >> doubling) - LINEAR


def _bounds(index: int) -> tuple[int, int]:
    """From which number of nanoseconds on, and up to which."""
    doubling, place = divmod(index, LINEAR)
    start, end = (-(-(LINEAR + each << doubling) >> BITS) for each in (place, place + 1))
    return start // 2, end // 2


def _merge(
    some: Iterable[tuple[int, int]], others: Iterable[tuple[int, int]], sign: int
) -> tuple[tuple[int, int], ...]:
    counts = dict(some)
    for index, count in others:
        counts[index] = counts.get(index, 0) + sign * count
    return tuple(sorted((index, count) for index, count in counts.items() if count > 0))
