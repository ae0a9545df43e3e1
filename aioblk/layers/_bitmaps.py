"""The bitmaps of a device that lie below layers, as seen from above."""

from collections.abc import Callable, Iterator
from typing import TypeAlias, cast

from .block_device import BlockDevice
from .byte_view import ByteView
from .layer import Layer
from .slice import Slice
from .tracked import Tracked
from .tracked_bitmap import TrackedBitmap

__all__ = ["Runs", "bitmaps_of"]

Runs: TypeAlias = Callable[[int, int], Iterator[tuple[int, int, bool]]]
"""A range as (offset, length, whether it is marked), as of :meth:`DirtyBitmap.runs`. UsageError: the bitmap
is gone."""


def bitmaps_of(device: BlockDevice) -> dict[str, Runs]:
    """What the bitmaps of :class:`Tracked` layers show, by name; of two of one name, the upper one.

    A layer that has bytes elsewhere than its device tells extents of its own: nothing is known beneath it,
    but where a :class:`Slice` has them.
    """
    if not isinstance(device, (ByteView, Layer)):
        return {}
    layer = cast("ByteView[BlockDevice] | Layer[BlockDevice]", device)
    if isinstance(layer, Tracked):
        return bitmaps_of(layer.device) | {name: _shown(bitmap) for name, bitmap in layer.bitmaps.items()}
    if isinstance(layer, Slice):
        return {name: _moved(runs, layer.offset) for name, runs in bitmaps_of(layer.device).items()}
    if isinstance(layer, ByteView) or type(layer).extents is Layer.extents:
        return bitmaps_of(layer.device)
    return {}


def _shown(bitmap: TrackedBitmap) -> Runs:
    return lambda offset, length: bitmap.shown.runs(offset, length)


def _moved(runs: Runs, start: int) -> Runs:
    def moved(offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        return ((at - start, size, marked) for at, size, marked in runs(start + offset, length))

    return moved
