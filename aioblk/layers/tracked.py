"""Tracked: a device that remembers what was changed since it was asked last."""

from collections.abc import Awaitable, Iterable, Sequence
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

D_co = TypeVar("D_co", bound=BlockDevice, default=Device, covariant=True)


@final
class Tracked(Layer[D_co]):
    """A device whose changes are marked in a bitmap: for incremental backup, and for bringing a copy up to
    date. ::

        tracked = aioblk.Tracked(dev)
        await copy_all(tracked)                       # a full backup
        ...
        changed = tracked.take()                      # what was changed since, or may have been
        for offset, length in changed:
            await copy(tracked, offset, length)

    A change is marked when it begins, however it ends: one that failed or was cancelled may have been made in
    part. What is changed by another way than this layer is not marked. Where the backup fails,
    :meth:`put_back` makes the next one have it all again.

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
        self._dirty.end = self._device.capacity
        return self._dirty

    def take(self) -> DirtyBitmap:
        """What was changed since the last time, or since the layer was made; from here on it begins anew.

        What is read after this is as new as the bitmap says: changes that are in flight are in this one, and
        in the next as well, since a read may be done before them. One that was cancelled is in this one: what
        is read later comes after it.
        """
        taken = self.dirty.take()
        for start, end, _ in self._under_way:
            self._dirty.mark(start, end - start)
        return taken

    def put_back(self, taken: DirtyBitmap) -> None:
        """What was taken is dirty still."""
        self._dirty.update(taken)

    # --- changes --------------------------------------------------------------------------------------------

    def write(self, offset: int, data: Buffer, *, fua: bool = False) -> Awaitable[None]:
        request = self._below.write(offset, data, fua=fua)
        self._dirty.mark(offset, len(data) if type(data) in PLAIN else memoryview(data).nbytes)  # type: ignore[arg-type]
        return request if self._are_known else self._change(request, offset, offset + length_of([data]))

    def writev(self, offset: int, buffers: Sequence[Buffer], *, fua: bool = False) -> Awaitable[None]:
        buffers = tuple(buffers)
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
        return self._marked(
            offset,
            length,
            self._below.write_zeroes(offset, length, fua=fua, no_unmap=no_unmap, no_fallback=no_fallback),
        )

    def discard(self, offset: int, length: int) -> Awaitable[None]:
        return self._marked(offset, length, self._below.discard(offset, length))

    def write_many(
        self, requests: Iterable[tuple[int, Buffer]], *, fua: bool = False, return_exceptions: bool = False
    ) -> Awaitable[Any]:
        items = list(requests)
        if return_exceptions:  # each is known to be refused or not only if it is made by itself
            return BlockDevice.write_many(self, items, fua=fua, return_exceptions=True)
        change = begun(self._below.write_many(items, fua=fua))
        mark = self._dirty.mark
        for offset, data in items:
            length = len(data) if type(data) in PLAIN else memoryview(data).nbytes  # type: ignore[arg-type]
            mark(offset, length)
            self._under_way.add(offset, offset + length, change)
        return change

    def _marked(self, offset: int, length: int, request: Awaitable[None]) -> Awaitable[None]:
        change = self._change(request, offset, offset + length)
        self._dirty.mark(offset, length)
        return change
