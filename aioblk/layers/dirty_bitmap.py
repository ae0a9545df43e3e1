"""DirtyBitmap: which parts of a device were changed."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from struct import Struct
from typing import Self, final
from zlib import crc32

from typing_extensions import Buffer

from ..errors import OptionError

__all__ = ["DirtyBitmap"]

_PER_CHUNK = 4096  # units; what was never marked takes no memory
_MAGIC, _VERSION = b"aioblkDB", 1
_HEAD = Struct("<8sQQQQ")  # magic, version, granularity, end, number of ranges
_RANGE = Struct("<QQ")  # offset, length
_SUM = Struct("<I")  # CRC-32 of all before
_UNKNOWN = (1 << 64) - 1  # an end that is not known
_ALL, _NONE = b"\1" * _PER_CHUNK, bytes(_PER_CHUNK)


@final
class DirtyBitmap:
    """A set of bytes of a device, kept in units of ``granularity`` bytes: what is marked is marked with all
    of the units that it is in.

    To look at it is to iterate: it gives (offset, length) pairs, in order, of which no two touch. A byte of
    memory is taken for each unit, in pieces of 4096 units of which some are marked and some are not. Where
    all are, it takes none: a whole device is marked as fast as a unit.
    """

    __slots__ = ("_chunks", "_ends", "_granularity", "_order", "_starts", "end")

    def __init__(self, granularity: int = 1 << 16, *, end: int | None = None) -> None:
        """With nothing marked. ``granularity`` is in bytes. Of units that reach beyond *end*, ranges have
        what lies before it.

        Raises:
            OptionError: it is not positive.
        """
        if granularity < 1:
            raise OptionError(f"granularity must be positive, not {granularity}", operation="open")
        self._granularity = granularity
        self.end: int | None = end
        """Where the device ends, in bytes; None: that is not known."""
        self._chunks: dict[int, bytearray] = {}  # by number; a byte is 1 where the unit is marked, as one is
        self._order: list[int] = []  # their numbers
        # Runs of other chunks, all of whose units are marked: where they begin and end. No two touch.
        self._starts: list[int] = []
        self._ends: list[int] = []

    @property
    def granularity(self) -> int:
        """The size of a unit in bytes."""
        return self._granularity

    # --- changing -------------------------------------------------------------------------------------------

    def mark(self, offset: int, length: int) -> None:
        """Every unit that has one of the bytes. Nothing, where there are none."""
        if length <= 0:
            return
        first, last = offset // self._granularity, (offset + length - 1) // self._granularity
        if first == last and (units := self._chunks.get(first // _PER_CHUNK)) is not None:
            units[first % _PER_CHUNK] = 1
            return
        edges, start, end = _by_chunk(first, last + 1)
        for edge in edges:
            self._mark_in(*edge)
        if start < end:
            self._mark_whole(start, end)

    def _mark_in(self, chunk: int, start: int, stop: int) -> None:
        units = self._chunks.get(chunk)
        if units is None:
            if self._run_of(chunk) is not None:
                return
            units = self._keep(chunk, bytearray(_PER_CHUNK))
        units[start:stop] = _ALL[start:stop]
        if stop == _PER_CHUNK and 0 not in units:  # as after writing on and on
            self._mark_whole(chunk, chunk + 1)

    def _mark_whole(self, start: int, end: int) -> None:
        self._drop(start, end)
        first, after = bisect_left(self._ends, start), bisect_right(self._starts, end)  # what it touches
        if first < after:
            start, end = min(start, self._starts[first]), max(end, self._ends[after - 1])
        self._starts[first:after] = [start]
        self._ends[first:after] = [end]

    def clear(self, offset: int, length: int) -> None:
        """Every unit that has no other bytes than these."""
        first, last = -(-offset // self._granularity), (offset + length) // self._granularity
        if first >= last:
            return
        edges, start, end = _by_chunk(first, last)
        for edge in edges:
            self._clear_in(*edge)
        if start < end:
            self._clear_whole(start, end)

    def _clear_in(self, chunk: int, start: int, stop: int) -> None:
        units = self._chunks.get(chunk)
        if units is None:
            if self._run_of(chunk) is None:
                return
            units = self._divide(chunk)
        units[start:stop] = _NONE[start:stop]
        if 1 not in units:
            self._drop(chunk, chunk + 1)

    def _clear_whole(self, start: int, end: int) -> None:
        self._drop(start, end)
        first, after = bisect_right(self._ends, start), bisect_left(self._starts, end)  # those that it meets
        left: list[tuple[int, int]] = []
        if first < after:
            left = [(self._starts[first], start), (end, self._ends[after - 1])]
        left = [run for run in left if run[0] < run[1]]
        self._starts[first:after] = [run[0] for run in left]
        self._ends[first:after] = [run[1] for run in left]

    def _keep(self, chunk: int, units: bytearray) -> bytearray:
        """Have units for a chunk that has none."""
        insort(self._order, chunk)
        self._chunks[chunk] = units
        return units

    def _divide(self, chunk: int) -> bytearray:
        """Have units for one of a run."""
        units = bytearray(_ALL)
        self._clear_whole(chunk, chunk + 1)
        return self._keep(chunk, units)

    def _drop(self, start: int, end: int) -> None:
        """Have none for these chunks."""
        first, after = bisect_left(self._order, start), bisect_left(self._order, end)
        for chunk in self._order[first:after]:
            del self._chunks[chunk]
        del self._order[first:after]

    def update(self, other: "DirtyBitmap") -> None:
        """Mark what another one has marked."""
        for offset, length in other:
            self.mark(offset, length)

    def take(self) -> "DirtyBitmap":
        """What is marked, as a bitmap of its own; this one has nothing marked afterwards."""
        taken = DirtyBitmap(self._granularity, end=self.end)
        taken._chunks, self._chunks = self._chunks, {}
        taken._order, self._order = self._order, []
        taken._starts, self._starts = self._starts, []
        taken._ends, self._ends = self._ends, []
        return taken

    def _copy(self) -> "DirtyBitmap":
        """The same as a bitmap of its own, however many ranges it has."""
        copy = DirtyBitmap(self._granularity, end=self.end)
        copy._chunks = {chunk: units.copy() for chunk, units in self._chunks.items()}
        copy._order = self._order.copy()
        copy._starts, copy._ends = self._starts.copy(), self._ends.copy()
        return copy

    def _clear_all_of(self, other: "DirtyBitmap") -> None:
        """What another one of the same granularity has marked, however many ranges that are."""
        assert other._granularity == self._granularity
        for start, end in zip(other._starts, other._ends, strict=True):
            self.clear(start * _PER_CHUNK * self._granularity, (end - start) * _PER_CHUNK * self._granularity)
        for chunk, units in other._chunks.items():
            if self._run_of(chunk) is not None:
                self._divide(chunk)
            if (own := self._chunks.get(chunk)) is None:
                continue
            left = int.from_bytes(own, "little") & ~int.from_bytes(units, "little")
            own[:] = left.to_bytes(_PER_CHUNK, "little")
            if 1 not in own:
                self._drop(chunk, chunk + 1)

    # --- across restarts ------------------------------------------------------------------------------------

    def save(self) -> bytes:
        """What is marked before :attr:`end`, with a checksum, for :meth:`load`: 44 bytes, and 16 for each
        range."""
        ranges = list(self)
        head = _HEAD.pack(
            _MAGIC, _VERSION, self._granularity, _UNKNOWN if self.end is None else self.end, len(ranges)
        )
        saved = b"".join([head, *(_RANGE.pack(*each) for each in ranges)])
        return saved + _SUM.pack(crc32(saved))

    @classmethod
    def load(cls, saved: Buffer) -> Self:
        """A bitmap as it was saved.

        Raises:
            OptionError: it is something else, of a later version, or damaged.
        """
        data = bytes(saved)
        if not data.startswith(_MAGIC):
            raise _unusable(f"{len(data)} bytes are no bitmap that DirtyBitmap.save() has given")
        if len(data) < _HEAD.size + _SUM.size or _SUM.pack(crc32(data[: -_SUM.size])) != data[-_SUM.size :]:
            raise _unusable("a saved bitmap is damaged: its checksum is another")
        _, version, granularity, end, count = _HEAD.unpack_from(data)
        if version != _VERSION:
            raise _unusable(f"a saved bitmap is of version {version}, and this one reads {_VERSION}")
        if len(data) != _HEAD.size + count * _RANGE.size + _SUM.size:
            raise _unusable(f"a saved bitmap of {count} ranges cannot have {len(data)} bytes")
        bitmap = cls(granularity, end=None if end == _UNKNOWN else end)
        for offset, length in _RANGE.iter_unpack(data[_HEAD.size : -_SUM.size]):
            bitmap.mark(offset, length)
        return bitmap

    # --- looking --------------------------------------------------------------------------------------------

    def __bool__(self) -> bool:
        """Whether anything is marked."""
        return next(iter(self), None) is not None

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The (offset, length) pairs, also of what is marked behind the place that iterating has reached."""
        unit = 0
        while (first := self._next_marked(unit)) is not None:
            unit = self._next_clear(first)
            start, stop = first * self._granularity, unit * self._granularity
            if self.end is not None and stop > self.end:
                if start < self.end:
                    yield start, self.end - start
                return
            yield start, stop - start

    def runs(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """The range as (offset, length, whether it is marked), in order, as long as can be."""
        end = offset + length
        while offset < end:
            unit = offset // self._granularity
            marked = self._is_marked(unit)
            after = self._next_clear(unit) if marked else self._next_marked(unit)
            stop = end if after is None else min(after * self._granularity, end)
            yield offset, stop - offset, marked
            offset = stop

    def overlaps(self, offset: int, length: int) -> bool:
        """Whether any of the bytes is marked."""
        return any(marked for _, _, marked in self.runs(offset, length))

    @property
    def dirty_bytes(self) -> int:
        """How many bytes are marked, in whole units."""
        units = sum(units.count(1) for units in self._chunks.values())
        return self._granularity * (units + _PER_CHUNK * (sum(self._ends) - sum(self._starts)))

    def _run_of(self, chunk: int) -> int | None:
        """Which run it is in."""
        run = bisect_right(self._starts, chunk) - 1
        return run if run >= 0 and chunk < self._ends[run] else None

    def _is_marked(self, unit: int) -> bool:
        chunk, place = divmod(unit, _PER_CHUNK)
        units = self._chunks.get(chunk)
        return self._run_of(chunk) is not None if units is None else bool(units[place])

    def _next_marked(self, unit: int) -> int | None:
        """The first marked unit from there on."""
        chunk, place = divmod(unit, _PER_CHUNK)
        if (units := self._chunks.get(chunk)) is not None:
            if (found := units.find(1, place)) >= 0:
                return chunk * _PER_CHUNK + found
        elif self._run_of(chunk) is not None:
            return unit
        later: list[int] = []
        if (number := bisect_right(self._order, chunk)) < len(self._order):
            chunk_with_units = self._order[number]
            later.append(chunk_with_units * _PER_CHUNK + self._chunks[chunk_with_units].find(1))
        if (run := bisect_right(self._starts, chunk)) < len(self._starts):
            later.append(self._starts[run] * _PER_CHUNK)
        return min(later, default=None)

    def _next_clear(self, unit: int) -> int:
        """The first unit from there on that is not marked."""
        chunk, place = divmod(unit, _PER_CHUNK)
        while True:
            if (units := self._chunks.get(chunk)) is not None:
                if (found := units.find(0, place)) >= 0:
                    return chunk * _PER_CHUNK + found
                chunk, place = chunk + 1, 0
            elif (run := self._run_of(chunk)) is not None:
                chunk, place = self._ends[run], 0
            else:
                return chunk * _PER_CHUNK + place

    def __repr__(self) -> str:
        return f"<DirtyBitmap {self.dirty_bytes} bytes in units of {self._granularity}>"


def _unusable(what: str) -> OptionError:
    return OptionError(f"{what}; make a full backup, and begin with an empty one", operation="load")


def _by_chunk(first: int, end: int) -> tuple[list[tuple[int, int, int]], int, int]:
    """The units from *first* to *end*: parts of chunks, as (chunk, first and end within it), and where the
    whole chunks between them begin and end."""
    start, head = divmod(first, _PER_CHUNK)
    stop, tail = divmod(end, _PER_CHUNK)
    if start == stop:
        return [(start, head, tail)], start, start
    edges: list[tuple[int, int, int]] = []
    if head:
        edges.append((start, head, _PER_CHUNK))
        start += 1
    if tail:
        edges.append((stop, 0, tail))
    return edges, start, stop
