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
    memory is taken for each unit, in pieces of 4096 units of which one at least is marked.
    """

    __slots__ = ("_chunks", "_granularity", "_order", "end")

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
        self._chunks: dict[int, bytes | bytearray] = {}  # by number; a byte is 1 where the unit is marked
        self._order: list[int] = []  # their numbers

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
        if first == last and type(units := self._chunks.get(first // _PER_CHUNK)) is bytearray:
            units[first % _PER_CHUNK] = 1
            return
        for chunk, start, stop in _by_chunk(first, last + 1):
            if chunk not in self._chunks:
                insort(self._order, chunk)
            if stop - start == _PER_CHUNK:
                self._chunks[chunk] = _ALL  # which all whole chunks share
            else:
                self._units(chunk)[start:stop] = _ALL[start:stop]

    def _units(self, chunk: int) -> bytearray:
        """Those of a chunk, to be changed."""
        units = self._chunks.get(chunk, _NONE)
        if not isinstance(units, bytearray):
            units = self._chunks[chunk] = bytearray(units)
        return units

    def clear(self, offset: int, length: int) -> None:
        """Every unit that has no other bytes than these."""
        first, end = -(-offset // self._granularity), (offset + length) // self._granularity
        for chunk in self._order[bisect_left(self._order, first // _PER_CHUNK) :]:
            start, stop = (max(first, chunk * _PER_CHUNK), min(end, (chunk + 1) * _PER_CHUNK))
            if start >= end:
                return
            if stop - start < _PER_CHUNK:
                units = self._units(chunk)
                start, stop = start - chunk * _PER_CHUNK, stop - chunk * _PER_CHUNK
                units[start:stop] = _NONE[start:stop]
                if 1 in units:
                    continue
            del self._chunks[chunk]
            self._order.pop(bisect_left(self._order, chunk))

    def update(self, other: "DirtyBitmap") -> None:
        """Mark what another one has marked."""
        for offset, length in other:
            self.mark(offset, length)

    def take(self) -> "DirtyBitmap":
        """What is marked, as a bitmap of its own; this one has nothing marked afterwards."""
        taken = DirtyBitmap(self._granularity, end=self.end)
        taken._chunks, self._chunks = self._chunks, {}
        taken._order, self._order = self._order, []
        return taken

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
        return self._granularity * sum(units.count(1) for units in self._chunks.values())

    def _is_marked(self, unit: int) -> bool:
        units = self._chunks.get(unit // _PER_CHUNK, _NONE)
        return bool(units[unit % _PER_CHUNK])

    def _next_marked(self, unit: int) -> int | None:
        """The first marked unit from there on."""
        chunk, place = divmod(unit, _PER_CHUNK)
        if (units := self._chunks.get(chunk)) is not None and (found := units.find(1, place)) >= 0:
            return chunk * _PER_CHUNK + found
        place = bisect_right(self._order, chunk)
        if place == len(self._order):
            return None
        later = self._order[place]  # none of those that are kept is without a mark
        return later * _PER_CHUNK + self._chunks[later].find(1)

    def _next_clear(self, unit: int) -> int:
        """The first unit from there on that is not marked."""
        chunk, place = divmod(unit, _PER_CHUNK)
        while (units := self._chunks.get(chunk)) is not None:
            if (found := units.find(0, place)) >= 0:
                return chunk * _PER_CHUNK + found
            chunk, place = chunk + 1, 0
        return chunk * _PER_CHUNK + place

    def __repr__(self) -> str:
        return f"<DirtyBitmap {self.dirty_bytes} bytes in units of {self._granularity}>"


def _unusable(what: str) -> OptionError:
    return OptionError(f"{what}; make a full backup, and begin with an empty one", operation="load")


def _by_chunk(first: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The units from *first* to *end* as (chunk, first and end within it)."""
    while first < end:
        chunk, start = divmod(first, _PER_CHUNK)
        stop = min(end - chunk * _PER_CHUNK, _PER_CHUNK)
        yield chunk, start, stop
        first = chunk * _PER_CHUNK + stop
