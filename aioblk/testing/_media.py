"""Media: what a device in memory has on it, of any size, most of which may be holes."""

from collections.abc import Iterator
from typing import final

__all__ = ["Media"]

CHUNK = 4096  # bytes; the chunks are bytes objects, which copies share

_HOLE = bytes(CHUNK)


@final
class Media:
    """Bytes by their offset. What was never written, or was zeroed as a whole, reads as zeroes and takes no
    memory. A copy costs as little as it has chunks."""

    def __init__(self) -> None:
        self._chunks: dict[int, bytes] = {}

    def copy(self) -> "Media":
        other = Media()
        other._chunks = self._chunks.copy()
        return other

    def read(self, offset: int, length: int) -> bytes:
        """MemoryError, at once: there is none for so many."""
        if length <= 0:
            return b""
        first, start = divmod(offset, CHUNK)
        if start + length <= CHUNK:
            return self._chunks.get(first, _HOLE)[start : start + length]
        pieces: list[bytes] = []
        done = offset
        for number in self.chunks(offset, length):
            start, stop = max(number * CHUNK, offset), min((number + 1) * CHUNK, offset + length)
            if done < start:
                pieces.append(bytes(start - done))
            pieces.append(self._chunks[number][start - number * CHUNK : stop - number * CHUNK])
            done = stop
        if not pieces:
            return bytes(length)
        pieces.append(bytes(offset + length - done))
        return b"".join(pieces)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        done = 0
        for number, start, stop in _by_chunk(offset, len(data)):
            piece = bytes(data[done : done + stop - start])
            if stop - start < CHUNK:
                chunk = self._chunks.get(number, _HOLE)
                piece = chunk[:start] + piece + chunk[stop:]
            self._chunks[number] = piece
            done += stop - start

    def zero(self, offset: int, length: int) -> None:
        """As long as there is something to be zeroed takes, however long the range is."""
        first, last = offset // CHUNK, (offset + length - 1) // CHUNK
        for number in self.chunks(offset, length):
            if number not in (first, last):
                del self._chunks[number]
        for number, start, stop in _edges(offset, length):
            if (chunk := self._chunks.get(number)) is not None:
                self._chunks[number] = chunk[:start] + bytes(stop - start) + chunk[stop:]
                if stop - start == CHUNK:
                    del self._chunks[number]

    def chunks(self, offset: int, length: int) -> list[int]:
        """The numbers of those that the range touches and that are no holes, in order."""
        first, last = offset // CHUNK, (offset + length - 1) // CHUNK
        if length <= 0:
            return []
        if last - first < len(self._chunks):
            return [number for number in range(first, last + 1) if number in self._chunks]
        return sorted(number for number in self._chunks if first <= number <= last)

    def runs(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """The range as (offset, length, whether it is a hole), as long as can be."""
        start = at = offset  # data from start to at; holes come before and behind it
        end = offset + length
        for number in self.chunks(offset, length):
            first = max(number * CHUNK, offset)
            if at < first:
                if start < at:
                    yield start, at - start, False
                yield at, first - at, True
                start = first
            at = min((number + 1) * CHUNK, end)
        if start < at:
            yield start, at - start, False
        if at < end:
            yield at, end - at, True

    def __eq__(self, other: object) -> bool:
        """Whether both read as the same."""
        if not isinstance(other, Media):
            return NotImplemented
        numbers = self._chunks.keys() | other._chunks.keys()
        return all(self._chunks.get(number, _HOLE) == other._chunks.get(number, _HOLE) for number in numbers)

    __hash__ = None  # type: ignore[assignment] # it changes


def _by_chunk(offset: int, length: int) -> Iterator[tuple[int, int, int]]:
    """The range as (chunk, from where to where in it)."""
    end = offset + length
    while offset < end:
        number, start = divmod(offset, CHUNK)
        stop = min(CHUNK, start + end - offset)
        yield number, start, stop
        offset += stop - start


def _edges(offset: int, length: int) -> Iterator[tuple[int, int, int]]:
    """The first and the last chunk of the range, as :func:`_by_chunk`."""
    end = offset + length
    if length > 0:
        number, start = divmod(offset, CHUNK)
        stop = min(CHUNK, start + length)
        yield number, start, stop
        if (last := (end - 1) // CHUNK) != number:
            yield last, 0, end - last * CHUNK
