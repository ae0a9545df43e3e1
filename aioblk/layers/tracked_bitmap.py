"""TrackedBitmap: what was changed since it was asked last, for one of those who ask."""

import contextlib
import errno
from collections.abc import Callable, Generator, Iterator
from typing import final

from ..errors import UsageError
from .dirty_bitmap import DirtyBitmap

__all__ = ["TrackedBitmap"]


@final
class TrackedBitmap:
    """A bitmap of a :class:`Tracked` device that is marked by each change. :meth:`Tracked.add_bitmap` makes
    it. One for each chain of backups: what one has taken the others still have.

    Belongs to the event loop of its device.
    """

    __slots__ = ("_being_taken", "_catch_up", "_end", "_in_flight", "_is_kept", "_marked", "name")

    def __init__(
        self,
        name: str,
        granularity: int,
        *,
        end: Callable[[], int | None],
        in_flight: Callable[[], Iterator[tuple[int, int]]],
        catch_up: Callable[[], bool],
    ) -> None:
        """*end* tells where the device ends, *in_flight* gives (offset, length) pairs of changes that are
        not done, *catch_up* marks everything if changes may have been missed, and tells whether it did."""
        self.name: str = name
        self._marked = DirtyBitmap(granularity)  # of a device that may grow; the same one as long as this is
        self._end = end
        self._in_flight = in_flight
        self._catch_up = catch_up
        self._being_taken: DirtyBitmap | None = None
        self._is_kept = True
        self._mark_in_flight()

    @property
    def granularity(self) -> int:
        """The size of a unit in bytes."""
        return self._marked.granularity

    @property
    def dirty(self) -> DirtyBitmap:
        """What was changed since :meth:`take`: the very bitmap, which goes on changing."""
        self._catch_up()
        return self._up_to_the_end

    @property
    def _up_to_the_end(self) -> DirtyBitmap:
        self._marked.end = self._end()
        return self._marked

    @property
    def shown(self) -> DirtyBitmap:
        """What is to be copied: within :meth:`taking` what was taken, which stays as it is, else
        :attr:`dirty`. Clients of an export see this one.

        Raises:
            UsageError: the bitmap was removed, so what it has is not all.
        """
        if not self._is_kept:
            raise UsageError(f"the bitmap {self.name!r} was removed", errno=errno.ENOENT, operation="extents")
        return self.dirty if self._being_taken is None else self._being_taken

    def take(self) -> DirtyBitmap:
        """What was changed since the last time, or since the bitmap was made; from here on it begins anew.

        What is read after this is as new as the bitmap says: changes that are in flight are in this one, and
        in the next as well, since a read may be done before them. One that was cancelled is in this one: what
        is read later comes after it.
        """
        has_missed = self._catch_up()
        taken = self._up_to_the_end.take()
        self._mark_in_flight()
        if has_missed:  # what was missed may be in flight
            self._marked.update(taken)
        return taken

    @contextlib.contextmanager
    def taking(self) -> Generator[DirtyBitmap]:
        """:meth:`take`, and :meth:`put_back` if the block is left by an exception of any kind.

        Raises:
            UsageError: another block is in the middle of it.
        """
        if self._being_taken is not None:
            raise UsageError(
                "what was changed is being taken already; wait until that backup has ended, or have a bitmap"
                " for each: Tracked.add_bitmap()",
                errno=errno.EBUSY,
                operation="take",
            )
        taken = self._being_taken = self.take()
        try:
            yield taken
        except BaseException:
            self.put_back(taken)
            raise
        finally:
            self._being_taken = None

    def put_back(self, taken: DirtyBitmap) -> None:
        """What was taken is dirty still."""
        self._marked.update(taken)

    def _mark_in_flight(self) -> None:
        for offset, length in self._in_flight():
            self._marked.mark(offset, length)

    def _forget(self) -> None:
        """It is marked no more."""
        self._is_kept = False

    def __repr__(self) -> str:
        return f"<TrackedBitmap {self.name!r} {self.dirty.dirty_bytes} bytes in units of {self.granularity}>"
