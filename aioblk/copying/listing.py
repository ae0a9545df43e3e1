"""Where a device has data and holes, in as few stretches as can be."""

from collections import deque
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeAlias

from .._device.extents import Extent, ExtentKind
from .._native._core import View, zero_runs
from .._sync.loops import running_loop
from ..errors import OptionError
from ..layers._asked import end_of_stretch
from ..layers.block_device import BlockDevice, require_block_device
from ._in_order import in_order
from ._memory import shared_buffers
from ._pieces import Piece, any_bytes, pieces_of, sizes_for, stretches

__all__ = ["map_extents"]

_Runs: TypeAlias = list[tuple[int, int, bool]]


def map_extents(
    device: BlockDevice, offset: int = 0, length: int | None = None, *, detect_zeroes: int = 0
) -> AsyncGenerator[Extent]:
    """What an open device has from *offset* on, for *length* bytes or up to the end: data and holes in turn.

    Any block device will do: one that does not know where its holes are (:class:`KnowsExtents`) is data. With
    *detect_zeroes*, data are read, and so many zero bytes or more in a row, told apart in units of so many,
    count as a hole. Close it (``contextlib.aclosing()``) if you leave it early.

    Raises at the call:
        OptionError: the range is not one of the device, or the number is negative.
    """
    running_loop("map_extents")
    require_block_device(device)
    end = end_of_stretch("extents", device.capacity, offset, length, operation="extents")
    if detect_zeroes < 0:
        raise OptionError(f"detect_zeroes must not be negative, as {detect_zeroes} is", operation="extents")
    if detect_zeroes:
        return _joined(_looked_at(device, offset, end, detect_zeroes))
    return _joined(stretches(device, offset, end))


async def _joined(found: AsyncGenerator[Piece]) -> AsyncGenerator[Extent]:
    """Those of a kind that lie side by side as one."""
    last: Piece | None = None
    async with aclosing(found):
        async for piece in found:
            if last is not None and piece.is_hole is last.is_hole:
                last = last._replace(length=last.length + piece.length)
                continue
            if last is not None:
                yield _extent(last)
            last = piece
    if last is not None:
        yield _extent(last)


def _extent(piece: Piece) -> Extent:
    return Extent(piece.offset, piece.length, ExtentKind.HOLE if piece.is_hole else ExtentKind.DATA)


async def _looked_at(device: BlockDevice, start: int, end: int, unit: int) -> AsyncGenerator[Piece]:
    sizes = sizes_for(device.limits, operation="extents")
    sizes = sizes._replace(
        request=max(sizes.request // unit, 1) * unit if unit < sizes.request else sizes.request
    )
    view = any_bytes(device, start, end)
    async with shared_buffers([device], sizes.depth, sizes.request) as buffers:
        free = deque(buffers)

        async def look(piece: Piece) -> tuple[Piece, _Runs]:
            if piece.is_hole:
                return piece, [(0, piece.length, True)]
            buffer: View = free.popleft()
            await view.read_into(piece.offset, buffer[: piece.length])
            runs = zero_runs(buffer[: piece.length], unit)
            free.append(buffer)
            return piece, runs

        async def plan() -> AsyncGenerator[Coroutine[Any, Any, tuple[Piece, _Runs]]]:
            async with aclosing(stretches(device, start, end, alignment=sizes.alignment)) as found:
                async for stretch in found:
                    for piece in pieces_of(stretch, sizes):
                        yield look(piece)

        async with aclosing(in_order(plan(), sizes.depth)) as outcomes:
            async for piece, runs in outcomes:
                for first, last, is_zero in runs:
                    yield Piece(piece.offset + first, last - first, is_zero)
