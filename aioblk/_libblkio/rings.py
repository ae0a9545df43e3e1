"""The rings of an io_uring device, and how their file is given back with the device.

The kernel takes a closed ring apart later, some 20 to 40 ms: until then the file that libblkio has registered
with it stays in use. It cannot be unmounted or detached meanwhile, and a lock on the caller's descriptor
stays. Taking the file out of the ring before it is closed ends that at once.

libblkio does not hand out its rings' descriptors, but the process's own descriptor table shows them: those
that have come while the device was started. Other rings may come and go in other threads meanwhile, so they
are only taken for ours where there can be no doubt. Elsewhere, closing waits for as long as the kernel needs.
"""

import contextlib
import os
import threading
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from .._native._blkio import lib
from .._sync.clock import now, pause
from .own_descriptors import find_linked

__all__ = [
    "Ring",
    "close_some",
    "find_new",
    "memory_may_come_back",
    "note_end",
    "release_files",
    "still_there",
    "wait_for_the_kernel",
]

T = TypeVar("T")

_TAKING_APART = 0.05  # seconds that the kernel needs for it
_COUNTED_ON = 0.5  # seconds; more than enough

_turn = threading.Lock()  # of whoever has rings made
os.register_at_fork(after_in_child=lambda: _renew_turn())  # another thread may have had it
_last_end = float("-inf")


class Ring(NamedTuple):
    """One of this process's rings."""

    fd: int
    inode: int


def find_new(make: Callable[[], T], count: int) -> tuple[T, frozenset[Ring] | None]:
    """Call *make*, which makes so many rings; its result, and which they are. None: that is not certain."""
    with _turn:
        before = _try_to_find()
        result = make()
        after = _try_to_find()
    if before is None or after is None:
        return result, None
    new = after - before
    certain = len(new) == count == len({ring.inode for ring in new}) and not _share_inodes(new)
    return result, new if certain else None


def _renew_turn() -> None:
    global _turn
    _turn = threading.Lock()


def still_there(rings: frozenset[Ring]) -> frozenset[Ring]:
    """Those that have not been closed meanwhile."""
    return frozenset(ring for ring in rings if _is_there(ring))


def release_files(rings: frozenset[Ring] | None) -> bool:
    """Take the file out of rings that are about to be closed, and have nothing in flight.

    False: it could not be done for each, and :func:`wait_for_the_kernel` once they are closed does it.
    """
    if rings is None:
        return False
    return all(_is_there(ring) and lib.io_uring_unregister_files(ring.fd) == 0 for ring in rings)


def close_some(
    rings: frozenset[Ring] | None, close: Callable[[], object]
) -> tuple[frozenset[Ring] | None, bool]:
    """Call *close*, which closes some of the rings, with nothing in flight, and take the file out of those.

    Which they are is known afterwards only, so each is held open until then. Those that are left, and whether
    it was done for all others; if not, :func:`wait_for_the_kernel` does it.
    """
    if rings is None:
        close()
        return None, False
    with contextlib.ExitStack() as held:
        own: dict[Ring, int] = {}
        with contextlib.suppress(OSError):  # no descriptors are left
            for ring in rings:
                own[ring] = os.dup(ring.fd)
                held.callback(os.close, own[ring])
        close()
        left = still_there(rings)
        done = [ring in own and lib.io_uring_unregister_files(own[ring]) == 0 for ring in rings - left]
        return left, all(done)


def note_end() -> float:
    """Rings have been closed just now; returns when that is."""
    global _last_end
    _last_end = now()
    return _last_end


def wait_for_the_kernel(since: float) -> None:
    """Block until the kernel has had the time to take apart what was closed then."""
    pause(since + _TAKING_APART - now())


def memory_may_come_back() -> bool:
    """Whether the kernel may still count the memory of rings as locked that have been closed."""
    return now() - _last_end < _COUNTED_ON


def _is_there(ring: Ring) -> bool:
    try:
        return os.fstat(ring.fd).st_ino == ring.inode
    except OSError:
        return False


def _try_to_find() -> frozenset[Ring] | None:
    try:
        return _find()
    except OSError:
        return None


def _find() -> frozenset[Ring]:
    found: set[Ring] = set()
    for fd in find_linked("anon_inode:[io_uring]"):
        with contextlib.suppress(OSError):  # closed meanwhile
            found.add(Ring(fd, os.fstat(fd).st_ino))
    return frozenset(found)


def _share_inodes(rings: frozenset[Ring]) -> bool:
    """Whether the kernel is an old one that gives all rings one inode: a number may have changed hands."""
    try:
        event = os.eventfd(0, os.EFD_CLOEXEC)
    except OSError:
        return True  # as far as can be told
    try:
        return os.fstat(event).st_ino in {ring.inode for ring in rings}
    finally:
        os.close(event)
