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
        chunks = self._chunks
        return b"".join(
            chunks.get(number, _HOLE)[start:stop] for number, start, stop in _by_chunk(offset, length)
        )

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
        for number, start, stop in _by_chunk(offset, length):
            if stop - start == CHUNK:
                self._chunks.pop(number, None)
            elif (chunk := self._chunks.get(number)) is not None:
                self._chunks[number] = chunk[:start] + bytes(stop - start) + chunk[stop:]

    def runs(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """The range as (offset, length, whether it is a hole), as long as can be."""
        at, run = offset, 0
        was_hole: bool | None = None
        for number, start, stop in _by_chunk(offset, length):
            is_hole = number not in self._chunks
            if was_hole not in (None, is_hole):
                yield at, run, bool(was_hole)
                at, run = at + run, 0
            was_hole = is_hole
            run += stop - start
        if was_hole is not None:
            yield at, run, was_hole

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
