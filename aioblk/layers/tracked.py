"""Tracked: a device that remembers what was changed since it was asked last."""

# The layer and its bitmaps do with each other what users do not see.
# pyright: reportPrivateUsage=false

import errno
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from operator import index
from types import MappingProxyType
from typing import Any, final

from typing_extensions import Buffer, TypeVar

from .._native.buffers import length_of
from ..errors import OptionError, UsageError
from ._begun import begun
from ._plain import PLAIN
from .block_device import BlockDevice
from .dirty_bitmap import DirtyBitmap
from .layer import Layer
from .tracked_bitmap import TrackedBitmap

__all__ = ["Tracked"]

_LONGEST_NAME = 1023  # bytes, as of QEMU's bitmaps
_EVERYTHING = (1 << 64) - 1  # where a change ends of which that is not known: of zones

_TUPLES: frozenset[type] = frozenset({tuple})

D_co = TypeVar("D_co", bound=BlockDevice, default=BlockDevice, covariant=True)


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

    Several who make backups have a bitmap each, by name: :meth:`add_bitmap`.

    Nothing is kept when the program ends, unless it is saved: ``tracked.dirty.save()`` in the end, and
    ``tracked.put_back(DirtyBitmap.load(saved))`` at the beginning. Forget what was saved before anything is
    changed; where a program has ended without saving, begin again with a full backup.
    """

    def __init__(self, device: D_co, *, granularity: int = 1 << 16) -> None:
        """``granularity``: the size in bytes of the units that are marked; a byte of memory is taken for each
        that is, and for those around it."""
        super().__init__(device)
        self._has_missed = False  # a change may have begun that is not marked: there was no memory for that
        self._own = self._new_bitmap("", granularity)
        self._dirty = self._own.dirty
        self._bitmaps: dict[str, TrackedBitmap] = {}
        self._others: tuple[DirtyBitmap, ...] = ()  # those of the bitmaps by name

    def _new_bitmap(self, name: str, granularity: int) -> TrackedBitmap:
        return TrackedBitmap(
            name, granularity, end=self._end, in_flight=self._in_flight, catch_up=self._mark_missed
        )

    # --- several of them ------------------------------------------------------------------------------------

    @property
    def bitmaps(self) -> Mapping[str, TrackedBitmap]:
        """Those of :meth:`add_bitmap`, by name; it goes on changing."""
        return MappingProxyType(self._bitmaps)

    def add_bitmap(self, name: str, *, granularity: int = 1 << 16) -> TrackedBitmap:
        """Mark changes in another bitmap as well, from now on. An NBD server offers it to clients, as
        ``qemu:dirty-bitmap:NAME``.

        ``name`` has from 1 to 1023 bytes of UTF-8; ``granularity`` is in bytes, a power of two.

        Raises:
            OptionError: one of them is not so.
            UsageError: the name is in use.
        """
        if not 1 <= len(name.encode(errors="replace")) <= _LONGEST_NAME or not name.isprintable():
            raise OptionError(
                f"a bitmap's name has from 1 to {_LONGEST_NAME} bytes of printable UTF-8, unlike {name!r}",
                operation="add_bitmap",
            )
        if granularity < 1 or granularity & (granularity - 1):
            raise OptionError(
                f"granularity must be a power of two, not {granularity}", operation="add_bitmap"
            )
        if name in self._bitmaps:
            raise UsageError(
                f"there is a bitmap {name!r} already; remove it first, or choose another name",
                errno=errno.EEXIST,
                operation="add_bitmap",
            )
        bitmap = self._new_bitmap(name, granularity)
        self._bitmaps[name] = bitmap
        self._others = (*self._others, bitmap.dirty)
        return bitmap

    def remove_bitmap(self, name: str) -> None:
        """Mark nothing in it any more. Clients that were offered it are told that it is gone.

        Raises:
            UsageError: there is none of that name.
        """
        bitmap = self._bitmaps.pop(name, None)
        if bitmap is None:
            raise UsageError(f"there is no bitmap {name!r}", errno=errno.ENOENT, operation="remove_bitmap")
        self._others = tuple(other for other in self._others if other is not bitmap.dirty)
        bitmap._forget()

    def _end(self) -> int | None:
        """Where there is nothing to be read any more."""
        return None if self._device.limits.can_grow else self._device.capacity

    def _in_flight(self) -> Iterator[tuple[int, int]]:
        for start, end, _ in self._under_way:
            yield start, min(end, self._device.capacity if end >= _EVERYTHING else end) - start

    # --- the one that has no name ---------------------------------------------------------------------------

    @property
    def dirty(self) -> DirtyBitmap:
        """What was changed since :meth:`take`: the very bitmap, which goes on changing."""
        return self._own.dirty

    def take(self) -> DirtyBitmap:
        """What was changed since the last time, or since the layer was made; from here on it begins anew.

        What is read after this is as new as the bitmap says: changes that are in flight are in this one, and
        in the next as well, since a read may be done before them. One that was cancelled is in this one: what
        is read later comes after it.
        """
        return self._own.take()

    def taking(self) -> AbstractContextManager[DirtyBitmap]:
        """:meth:`take`, and :meth:`put_back` if the block is left by an exception of any kind.

        Raises:
            UsageError: another block is in the middle of it.
        """
        return self._own.taking()

    def put_back(self, taken: DirtyBitmap) -> None:
        """What was taken is dirty still."""
        self._own.put_back(taken)

    # --- changes --------------------------------------------------------------------------------------------

    def write(self, offset: int, data: Buffer, *, fua: bool = False) -> Awaitable[None]:
        offset = index(offset)
        try:
            request = self._below.write(offset, data, fua=fua)
            length = len(data) if type(data) in PLAIN else memoryview(data).nbytes  # type: ignore[arg-type]
            self._dirty.mark(offset, length)
            for other in self._others:
                other.mark(offset, length)
            return request if self._are_known else self._change(request, offset, offset + length)
        except BaseException as error:
            self._miss(error)
            raise

    def writev(self, offset: int, buffers: Sequence[Buffer], *, fua: bool = False) -> Awaitable[None]:
        offset, buffers = index(offset), tuple(buffers)
        length = length_of(buffers)
        return self._marked(offset, length, lambda: self._below.writev(offset, buffers, fua=fua))

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
        how = {"fua": fua, "no_unmap": no_unmap, "no_fallback": no_fallback}
        return self._marked(offset, length, lambda: self._below.write_zeroes(offset, length, **how))

    def discard(self, offset: int, length: int) -> Awaitable[None]:
        offset, length = index(offset), index(length)
        return self._marked(offset, length, lambda: self._below.discard(offset, length))

    def write_many(
        self, requests: Iterable[tuple[int, Buffer]], *, fua: bool = False, return_exceptions: bool = False
    ) -> Awaitable[Any]:
        items = [_looked_at(pair) for pair in requests]
        if return_exceptions:  # each is known to be refused or not only if it is made by itself
            return BlockDevice.write_many(self, items, fua=fua, return_exceptions=True)
        try:
            change = begun(self._below.write_many(items, fua=fua))
            mark = self._dirty.mark
            for offset, data in items:
                length = len(data) if type(data) in PLAIN else memoryview(data).nbytes
                mark(offset, length)
                for other in self._others:
                    other.mark(offset, length)
                self._under_way.add(offset, offset + length, change)
        except BaseException as error:
            self._miss(error)
            raise
        return change

    def _marked(self, offset: int, length: int, call: Callable[[], Awaitable[None]]) -> Awaitable[None]:
        try:
            change = self._change(call(), offset, offset + length)
            self._dirty.mark(offset, length)
            for other in self._others:
                other.mark(offset, length)
        except BaseException as error:
            self._miss(error)
            raise
        return change

    def _miss(self, error: BaseException) -> None:
        """A change has ended in this way in the midst of beginning. It is unknown how far it has come, unless
        it was refused; there may be no memory to remember which one it was."""
        if not isinstance(error, Exception) or isinstance(error, (MemoryError, SystemError)):
            self._has_missed = True

    def _mark_missed(self) -> bool:
        """Have everything marked, if any change may have been missed; whether it was so."""
        if not self._has_missed:
            return False
        for bitmap in (self._dirty, *self._others):
            bitmap.mark(0, self._device.capacity)
        self._has_missed = False
        return True


def _looked_at(pair: Any) -> Any:
    """The same for whoever looks at it later: what is no tuple may give other values the second time, or
    none, and what was written would not be marked. What is no pair is for the device to refuse."""
    if type(pair) in _TUPLES and len(pair) == 2 and type(pair[0]) is int:
        return pair
    try:
        values = tuple[Any, ...](pair)
    except TypeError:
        return pair
    if len(values) == 2 and hasattr(values[0], "__index__"):
        return index(values[0]), values[1]
    return values
