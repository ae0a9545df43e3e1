"""Comparing what two devices read as."""

from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import Any, NamedTuple, TypeAlias, final

from .._device.extents import Extent
from .._native._core import View, differing_runs, zero_runs
from .._sync.loops import running_loop
from ..errors import OptionError
from ..layers._asked import end_of_stretch
from ..layers._begun import begin_all
from ..layers.block_device import BlockDevice, require_block_device
from ._in_order import in_order
from ._memory import shared_buffers
from ._pieces import Foreseen, Piece, Sizes, any_bytes, pieces_of, sizes_for, stretches

__all__ = ["Comparison", "compare"]

Progress: TypeAlias = Callable[[int, int], object]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What :func:`compare` has found; bytes."""

    same: bool
    """No difference was found; with *strict*, none of the sizes either."""
    compared: int
    """How far it has come, from where it began."""
    sizes: tuple[int, int]
    """The capacities of both."""
    first: int | None
    """The offset of the first byte that differs."""
    ranges: tuple[Extent, ...]
    """What differs, in units, if all of it was wanted; up to the first such unit otherwise."""


class _Found(NamedTuple):
    """Of one piece."""

    end: int
    ranges: list[tuple[int, int]]
    first: int | None
    buffers: list[View]


async def compare(
    one: BlockDevice,
    other: BlockDevice,
    *,
    offset: int = 0,
    length: int | None = None,
    find_all: bool = False,
    strict: bool = False,
    unit: int = 512,
    request_size: int | None = None,
    depth: int | None = None,
    on_progress: Progress | None = None,
) -> Comparison:
    """Whether two open devices read as the same, from *offset* on, for *length* bytes or up to the end.

    A hole on both sides is not read. Without *length*, what the longer one has more must be zeroes or, with
    *strict*, must not be there. It ends with the first difference, or with *find_all* at the end, and tells
    what differs in units of *unit* bytes. *on_progress* is called with what is done, and how much there is.

    Raises:
        OptionError: the range is not one of both devices, or a number is not positive.
        BlkioError: a device cannot be read.
    """
    running_loop("compare")
    require_block_device(one)
    require_block_device(other)
    if unit < 1:
        raise OptionError(f"unit must be positive, not {unit}", operation="compare")
    capacities = one.capacity, other.capacity
    sizes = sizes_for(one.limits, other.limits, request_size=request_size, depth=depth, operation="compare")
    if length is not None:
        common = end = end_of_stretch("compare", min(capacities), offset, length, operation="compare")
    else:
        common, end = min(capacities), max(capacities)
        end_of_stretch("compare", common, min(offset, common), None, operation="compare")
        if strict and common < end:
            end = common
    work = _Work(one, other, min(offset, end), common, end, sizes, unit)
    same, first, ranges, position = True, None, list[Extent](), offset
    async with aclosing(work.found()) as found:
        async for piece in found:
            position = piece.end
            if on_progress is not None:
                on_progress(position - offset, end - offset)
            if piece.first is None:
                continue
            same = False
            first = piece.first if first is None else first
            _append(ranges, piece.ranges)
            if not find_all:
                break
    if strict and length is None and capacities[0] != capacities[1]:
        same = False
        first = common if first is None else first
    return Comparison(
        same=same, compared=position - offset, sizes=capacities, first=first, ranges=tuple(ranges)
    )


def _append(ranges: list[Extent], found: list[tuple[int, int]]) -> None:
    """Those that lie side by side as one."""
    for start, end in found:
        if ranges and ranges[-1].end == start:
            ranges[-1] = Extent(ranges[-1].offset, end - ranges[-1].offset)
        else:
            ranges.append(Extent(start, end - start))


@final
class _Work:
    def __init__(
        self,
        one: BlockDevice,
        other: BlockDevice,
        start: int,
        common: int,
        end: int,
        sizes: Sizes,
        unit: int,
    ) -> None:
        """From *start*: both up to *common*, then the longer one up to *end*."""
        self._devices = (one, other)
        self._to = [any_bytes(one, start, common, end), any_bytes(other, start, common, end)]
        self._start, self._common, self._end = start, max(common, start), end
        self._sizes = sizes
        self._unit = unit
        self._free: deque[View] = deque()

    async def found(self) -> AsyncGenerator[_Found]:
        count = self._sizes.depth
        async with shared_buffers(self._devices, 2 * count, self._sizes.request) as buffers:
            self._free.extend(buffers)
            async with aclosing(in_order(self._plan(), count)) as outcomes:
                async for outcome in outcomes:
                    self._free.extend(outcome.buffers)
                    yield outcome

    async def _plan(self) -> AsyncGenerator[Coroutine[Any, Any, _Found]]:
        alignment = self._sizes.alignment
        one, other = self._devices
        async with AsyncExitStack() as resources:
            known = Foreseen(other, self._start, alignment=alignment)
            resources.push_async_callback(known.aclose)
            both = stretches(one, self._start, self._common, alignment=alignment)
            async for stretch in await resources.enter_async_context(aclosing(both)):
                for piece in pieces_of(stretch, self._sizes):
                    for place in await known.between(piece.offset, piece.end):
                        are_read = not piece.is_hole, not place.is_hole
                        for part in self._parts(place, any(are_read)):
                            yield self._compare(part, are_read)
            is_first = one.capacity > other.capacity
            longer = one if is_first else other
            rest = stretches(longer, self._common, self._end, alignment=alignment)
            async for stretch in await resources.enter_async_context(aclosing(rest)):
                for piece in pieces_of(stretch, self._sizes):
                    is_read = not piece.is_hole
                    yield self._compare(piece, (is_read and is_first, is_read and not is_first))

    def _parts(self, place: Piece, is_read: bool) -> list[Piece]:
        """What is read is no longer than a buffer."""
        return list(pieces_of(place._replace(is_hole=False), self._sizes)) if is_read else [place]

    async def _compare(self, piece: Piece, are_read: tuple[bool, bool]) -> _Found:
        """What is not read is zeroes."""
        devices = list(compress(self._to, are_read))
        buffers = [self._free.popleft() for _ in devices]
        views = [buffer[: piece.length] for buffer in buffers]
        reads = [
            partial(device.read_into, piece.offset, view) for device, view in zip(devices, views, strict=True)
        ]
        await begin_all(reads, results=False, return_exceptions=False)
        if len(views) == 2:
            runs = differing_runs(views[0], views[1], self._unit)
        elif views:
            runs = [(start, end) for start, end, is_zero in zero_runs(views[0], self._unit) if not is_zero]
        else:
            runs = []
        first = None
        if runs:
            start, end = runs[0][0], min(runs[0][0] + self._unit, piece.length)
            against = views[1][start:end] if len(views) == 2 else bytes(end - start)
            first = piece.offset + start + differing_runs(views[0][start:end], against, 1)[0][0]
        ranges = [(piece.offset + start, piece.offset + end) for start, end in runs]
        return _Found(piece.end, ranges, first, buffers)
