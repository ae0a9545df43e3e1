"""What is gone through piece by piece: stretches of data and holes, in pieces that suit the devices."""

import sys
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import NamedTuple, final

from .._device.extents import ExtentKind
from .._libblkio.limits import Limits
from ..errors import OptionError
from ..layers.block_device import BlockDevice
from ..layers.byte_view import ByteView
from ..layers.layer import extents_of

__all__ = [
    "HOLE_AT_ONCE",
    "LEAST_HOLE",
    "Foreseen",
    "Piece",
    "Sizes",
    "any_bytes",
    "pieces_of",
    "sizes_for",
    "stretches",
]

REQUEST_SIZE = 1 << 20  # bytes: as fast as half of it, for two thirds of the CPU time
IN_FLIGHT = 8 << 20  # bytes, if the depth is not given
LEAST_DEPTH, MOST_DEPTH = 4, 64
HOLE_AT_ONCE = 64 << 20  # bytes of a hole that are one piece: progress is shown, and a slow request is short
MOST_OF_A_HOLE = 4096  # pieces: of an exbibyte of nothing, all are longer
LEAST_HOLE = 64 << 10  # bytes; a shorter one is read along, rather than dividing what is around it


@final
class Sizes(NamedTuple):
    """How a range is divided among requests; bytes."""

    request: int
    depth: int
    alignment: int
    """Requests begin and end at multiples of it, but for the end of the range."""


def sizes_for(
    *limits: Limits, request_size: int | None = None, depth: int | None = None, operation: str
) -> Sizes:
    """What suits all devices with these limits.

    Raises:
        OptionError: a size or depth that was asked for is not positive.
    """
    for name, value in (("request_size", request_size), ("depth", depth)):
        if value is not None and value < 1:
            raise OptionError(f"{name} must be positive, not {value}", operation=operation)
    alignment = max(each.request_alignment for each in limits)
    best = max(alignment, *(each.optimal_io_alignment for each in limits))
    length = min(
        [REQUEST_SIZE if request_size is None else request_size]
        + [each.max_transfer for each in limits if each.max_transfer]
    )
    unit = best if best <= length else alignment
    length = max(length // unit * unit, unit)
    if depth is None:
        depth = min(max(IN_FLIGHT // length, LEAST_DEPTH), MOST_DEPTH)
    return Sizes(length, depth, alignment)


@final
class Piece(NamedTuple):
    """A stretch, and whether it is a hole."""

    offset: int
    length: int
    is_hole: bool

    @property
    def end(self) -> int:
        return self.offset + self.length


def any_bytes(device: BlockDevice, *bounds: int) -> BlockDevice:
    """The same, or what takes these bounds of a range though they lie within blocks."""
    alignment = device.limits.request_alignment
    return ByteView[BlockDevice](device) if any(bound % alignment for bound in bounds) else device


async def stretches(
    device: BlockDevice, start: int, end: int, *, alignment: int = 1, least: int = 1
) -> AsyncGenerator[Piece]:
    """Data and holes of a device between two offsets, in order and without gaps.

    A hole begins and ends at multiples of *alignment*, but for the end; what is shorter than *least* bytes
    counts as data.
    """
    position = start
    async with aclosing(_holes(device, start, end)) as holes:
        async for first, last in holes:
            first += -first % alignment
            last -= 0 if last == end else last % alignment
            if last - first < least:
                continue
            if position < first:
                yield Piece(position, first - position, False)
            yield Piece(first, last - first, True)
            position = last
    if position < end:
        yield Piece(position, end - position, False)


async def _holes(device: BlockDevice, start: int, end: int) -> AsyncGenerator[tuple[int, int]]:
    """Those that lie side by side as one."""
    first = last = start
    async with aclosing(extents_of(device, start, end - start)) as extents:
        async for extent in extents:
            if extent.kind is ExtentKind.HOLE:
                if extent.offset > last:
                    first = extent.offset
                last = extent.end
            elif first < last:
                yield first, last
                first = last
    if first < last:
        yield first, last


def pieces_of(stretch: Piece, sizes: Sizes, hole_at_once: int | None = None) -> Iterator[Piece]:
    """The same in pieces of one request each. They end at multiples of its length. Of a hole it is what suits
    whoever only has it skipped or made zeroes, if nothing else is said."""
    if stretch.is_hole:
        length = hole_at_once or max(stretch.length // MOST_OF_A_HOLE // HOLE_AT_ONCE, 1) * HOLE_AT_ONCE
    else:
        length = sizes.request
    position = stretch.offset
    while position < stretch.end:
        end = min(position - position % length + length, stretch.end)
        yield Piece(position, end - position, stretch.is_hole)
        position = end


@final
class Foreseen:
    """Where a device has holes, for who goes over it in order: nothing is asked for again, or before it is
    needed."""

    def __init__(self, device: BlockDevice, start: int, *, alignment: int) -> None:
        """What lies beyond the capacity counts as a hole: it is nothing, until a device has grown."""
        self._end = max(device.capacity, start)
        self._coming = stretches(device, start, self._end, alignment=alignment)
        self._known: deque[Piece] = deque()
        self._known_to = start

    async def between(self, start: int, end: int) -> list[Piece]:
        """In order, and without gaps. *start* must not be before that of an earlier call."""
        while self._known_to < end:
            piece = await anext(self._coming, None)
            if piece is None:
                piece = Piece(self._known_to, sys.maxsize - self._known_to, True)
            self._known.append(piece)
            self._known_to = piece.end
        while self._known[0].end <= start:
            self._known.popleft()
        found: list[Piece] = []
        for piece in self._known:
            if piece.offset >= end:
                break
            first = max(piece.offset, start)
            found.append(Piece(first, min(piece.end, end) - first, piece.is_hole))
        return found

    async def aclose(self) -> None:
        await self._coming.aclose()
