"""A command on its way, and what is known of its reply."""

from bisect import bisect_left, bisect_right
from io import BytesIO
from itertools import accumulate
from typing import Any, Protocol, final

from .. import protocol

__all__ = ["CHANGES", "Carrier", "Command", "Coverage", "NewBytes", "Views"]

CHANGES = frozenset({protocol.WRITE, protocol.WRITE_ZEROES, protocol.TRIM})
MOST_PIECES = 16384  # of a reply that have not met: of 32 MiB, pieces of 4 KiB in any order are fewer


class Carrier(Protocol):
    """A connection."""

    def give_up(self, command: "Command", /) -> bool:
        """Nobody wants its reply, nor may its memory be used any more. False: nothing of it was sent."""
        ...


@final
class Command:
    """One command. Lengths are in bytes."""

    __slots__ = (
        *("connection", "cookie", "coverage", "data", "end", "error", "errors", "flags", "is_sent"),
        *("kind", "length", "offset", "position", "request", "status", "tick", "views", "words"),
    )

    def __init__(
        self,
        kind: int,
        flags: int,
        offset: int,
        length: int,
        request: Any,
        views: "list[memoryview] | Views | NewBytes | None" = None,
        position: int = 0,
    ) -> None:
        self.kind = kind
        self.flags = flags
        self.offset = offset
        self.length = length
        self.end = offset + length
        self.request = request
        """Whose it is, a request; None: it was given up, and its reply is for nobody."""
        self.views = views
        """What is written; where to what is read goes, which may be made when it comes."""
        self.position = position
        """Among the commands of the request, from 1 on; 0: there are no others."""
        self.cookie = 0
        self.connection: Carrier | None = None
        """On which it is in flight, or is to be sent."""
        self.is_sent = False
        """Whether the kernel may have been given some of it."""
        self.tick = 0
        """When it was given to the connection."""
        # of the reply
        self.error = 0
        self.words = b""
        self.errors = 0  # how many there were: a reply may have several, and only the first counts
        self.data: bytes | None = None
        """All that was read, if it came in one piece."""
        self.coverage: Coverage | None = None
        self.status: dict[str, bytes] | None = None
        """What has come of each metadata context, by its name: its number is the connection's."""

    @property
    def is_change(self) -> bool:
        return self.kind in CHANGES

    @property
    def may_be_lost(self) -> bool:
        """Of one that is answered: whether what it has changed may be gone with a cache of the server's."""
        return self.is_change and not self.flags & protocol.FUA and not self.error

    def overlaps(self, other: "Command") -> bool:
        return self.offset < other.end and other.offset < self.end

    def renew(self) -> None:
        """It is to be sent again: nothing is known of its reply."""
        self.connection = None
        self.is_sent = False
        self.error = self.errors = 0
        self.words = b""
        self.data = self.coverage = None
        if self.status is not None:
            for context in self.status:
                self.status[context] = b""

    def targets(self, start: int, length: int) -> list[memoryview]:
        """Where a part of what is read goes."""
        assert isinstance(self.views, (NewBytes, Views))
        return self.views.stretch(start, length)


@final
class NewBytes:
    """Bytes that are received where they stay: what is read and becomes an object of its own."""

    __slots__ = ("_buffer", "_start", "_whole")

    def __init__(self, length: int) -> None:
        """Memory is taken when the first of them come."""
        self._whole: list[Any] = [length, None]  # shared by all parts
        self._start = 0
        self._buffer: memoryview | None = None

    def part(self, start: int) -> "NewBytes":
        """The same from *start* on."""
        part = NewBytes(0)
        part._whole, part._start = self._whole, self._start + start
        return part

    def stretch(self, start: int, length: int) -> list[memoryview]:
        whole = self._whole
        if whole[1] is None:
            whole[1] = BytesIO(bytes(whole[0]))  # which it takes over, as nobody else has it
        start += self._start
        return [whole[1].getbuffer()[start : start + length]]

    @property
    def are_zeroes(self) -> bool:
        """Nothing has come yet."""
        return self._whole[1] is None

    def take(self) -> bytes:
        """All of them. No view is there any more."""
        length, buffer = self._whole
        if buffer is None:
            return bytes(length)
        value: bytes = buffer.getvalue()
        return value


@final
class Views:
    """Memory in pieces, one after the other. A stretch of it is found at once, however many there are."""

    __slots__ = ("_ends", "_start", "_views")

    def __init__(self, views: list[memoryview]) -> None:
        self._views = views
        self._ends = list(accumulate(map(len, views)))
        self._start = 0

    def part(self, start: int) -> "Views":
        """The same from *start* on."""
        part = Views.__new__(Views)
        part._views, part._ends, part._start = self._views, self._ends, self._start + start
        return part

    def stretch(self, start: int, length: int) -> list[memoryview]:
        start += self._start
        views, ends = self._views, self._ends
        if len(views) == 1:
            return [views[0][start : start + length]]
        place = bisect_right(ends, start)
        if place:
            start -= ends[place - 1]
        found: list[memoryview] = []
        while length:
            piece = views[place][start : start + length]
            found.append(piece)
            length -= len(piece)
            start = 0
            place += 1
        return found


@final
class Coverage:
    """Which parts of what is read have come. They may come in any order, and none of them twice."""

    __slots__ = ("_ends", "_starts", "length")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.length = 0

    def add(self, start: int, end: int) -> bool:
        """False: a part of it has come already, or there are too many pieces."""
        starts, ends = self._starts, self._ends
        place = bisect_left(starts, start)
        if (place and ends[place - 1] > start) or (place < len(starts) and starts[place] < end):
            return False
        meets_before = place > 0 and ends[place - 1] == start
        meets_behind = place < len(starts) and starts[place] == end
        if meets_before and meets_behind:
            ends[place - 1] = ends[place]
            del starts[place], ends[place]
        elif meets_before:
            ends[place - 1] = end
        elif meets_behind:
            starts[place] = start
        elif len(starts) >= MOST_PIECES:
            return False
        else:
            starts.insert(place, start)
            ends.insert(place, end)
        self.length += end - start
        return True
