"""Tracked: a device that remembers what was changed since it was asked last."""

import contextlib
from collections.abc import Awaitable, Generator, Iterable, Sequence
from operator import index
from typing import Any, final

from typing_extensions import Buffer, TypeVar

from .._device.device import Device
from .._native.buffers import length_of
from ._begun import begun
from ._plain import PLAIN
from .block_device import BlockDevice
from .dirty_bitmap import DirtyBitmap
from .layer import Layer

__all__ = ["Tracked"]

_EVERYTHING = (1 << 64) - 1  # where a change ends of which that is not known: of zones

D_co = TypeVar("D_co", bound=BlockDevice, default=Device, covariant=True)


@final
class Tracked(Layer[D_co]):
    """A device whose changes are marked in a bitmap: for incremental backup, and for bringing a copy up to
    date. ::

        tracked = aioblk.Tracked(dev)
        await copy_all(tracked)                       # a full backup
        ...
        with tracked.taking() as changed:             # what was changed since, or may have been
            for offset, length in changed:
                await copy(tracked, offset, length)

    A change is marked when it begins, however it ends: one that failed or was cancelled may have been made in
    part. What is changed by another way than this layer is not marked. However the block is left but by its
    end, a cancelled task included, what was taken is put back: the next backup has it all again.

    Nothing is kept when the program ends: begin again with a full backup.
    """

    def __init__(self, device: D_co, *, granularity: int = 1 << 16) -> None:
        """``granularity``: the size in bytes of the units that are marked; a byte of memory is taken for each
        that is, and for those around it."""
        super().__init__(device)
        self._dirty = DirtyBitmap(granularity)  # of a device that may grow

    @property
    def dirty(self) -> DirtyBitmap:
        """What was changed since :meth:`take`: the very bitmap, which goes on changing."""
        self._dirty.end = self._end()
        return self._dirty

    def _end(self) -> int | None:
        """Where there is nothing to be read any more."""
        return None if self._device.limits.can_grow else self._device.capacity

    def take(self) -> DirtyBitmap:
        """What was changed since the last time, or since the layer was made; from here on it begins anew.

        What is read after this is as new as the bitmap says: changes that are in flight are in this one, and
        in the next as well, since a read may be done before them. One that was cancelled is in this one: what
        is read later comes after it.
        """
        taken = self.dirty.take()
        for start, end, _ in self._under_way:
            self._dirty.mark(start, min(end, self._device.capacity if end >= _EVERYTHING else end) - start)
        return taken

    @contextlib.contextmanager
    def taking(self) -> Generator[DirtyBitmap]:
        """:meth:`take`, and :meth:`put_back` if the block is left by an exception of any kind."""
        taken = self.take()
        try:
            yield taken
        except BaseException:
            self.put_back(taken)
            raise

    def put_back(self, taken: DirtyBitmap) -> None:
        """What was taken is dirty still."""
        self._dirty.update(taken)

    # --- changes --------------------------------------------------------------------------------------------

    def write(self, offset: int, data: Buffer, *, fua: bool = False) -> Awaitable[None]:
        offset = index(offset)
        request = self._below.write(offset, data, fua=fua)
        self._dirty.mark(offset, len(data) if type(data) in PLAIN else memoryview(data).nbytes)  # type: ignore[arg-type]
        return request if self._are_known else self._change(request, offset, offset + length_of([data]))

    def writev(self, offset: int, buffers: Sequence[Buffer], *, fua: bool = False) -> Awaitable[None]:
        offset, buffers = index(offset), tuple(buffers)
        return self._marked(offset, length_of(buffers), self._below.writev(offset, buffers, fua=fua))

    def write_zeroes(
        self,
        offset: int,
        length: int,
        *,
        fua: bool = False,
        no_unmap: bool = False,
        no_fallback: bool = False,
    ) -> Awaitable[None]:
        offset, length = index(offset), index(length)
        return self._marked(
            offset,
            length,
            self._below.write_zeroes(offset, length, fua=fua, no_unmap=no_unmap, no_fallback=no_fallback),
        )

    def discard(self, offset: int, length: int) -> Awaitable[None]:
        offset, length = index(offset), index(length)
        return self._marked(offset, length, self._below.discard(offset, length))

    def write_many(
        self, requests: Iterable[tuple[int, Buffer]], *, fua: bool = False, return_exceptions: bool = False
    ) -> Awaitable[Any]:
        items = list(requests)
        if return_exceptions:  # each is known to be refused or not only if it is made by itself
            return BlockDevice.write_many(self, items, fua=fua, return_exceptions=True)
        change = begun(self._below.write_many(items, fua=fua))
        mark = self._dirty.mark
        for place, data in items:
            offset = index(place)
            length = len(data) if type(data) in PLAIN else memoryview(data).nbytes  # type: ignore[arg-type]
            mark(offset, length)
            self._under_way.add(offset, offset + length, change)
        return change

    def _marked(self, offset: int, length: int, request: Awaitable[None]) -> Awaitable[None]:
        change = self._change(request, offset, offset + length)
        self._dirty.mark(offset, length)
        return change
