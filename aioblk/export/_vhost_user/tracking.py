"""What is in flight, in memory that the client keeps: whoever serves it next finds there what to do again."""

import fcntl
import mmap
import os
from typing import final

from ..._native._core import Memory, View
from .descriptors import cannot_shrink, is_file
from .lent import RefusedError

HEAD = 16  # bytes before the states
STATE = 16  # bytes of each
UNIT = 64  # what each queue has is a multiple of it


def _length_of(size: int) -> int:
    """Of what a queue of that size has."""
    return -(-(HEAD + STATE * size) // UNIT) * UNIT


@final
class Tracking:
    """The region of all queues of a client."""

    def __init__(
        self, descriptor: int, length: int, offset: int, queues: int, size: int, *, only_sealed: bool
    ) -> None:
        """What a client has kept; the descriptor is needed for no longer than this.

        Raises:
            RefusedError: it is not such a region.
        """
        self._queues = queues
        self._size = size
        try:
            if not is_file(descriptor):
                raise RefusedError("what is in flight is kept in files only")
            if not cannot_shrink(descriptor) and only_sealed:
                raise RefusedError("what is in flight is kept in memory that can be taken away")
            if not queues or length < queues * _length_of(size) or offset % mmap.ALLOCATIONGRANULARITY:
                raise RefusedError(f"{length} bytes from {offset} on do not keep {queues} queues of {size}")
            if length > os.fstat(descriptor).st_size - offset:
                raise RefusedError(f"there are not {length} bytes from {offset} on in the file")
            mapped = mmap.mmap(descriptor, length, offset=offset)
        except (OSError, ValueError, OverflowError) as error:
            raise RefusedError(f"what is in flight cannot be mapped: {error}") from None
        self._memory = Memory.from_buffer(mapped)

    def of(self, queue: int) -> View | None:
        """What one of them has."""
        length = _length_of(self._size)
        return View(self._memory, queue * length, length) if queue < self._queues else None

    def close(self) -> None:
        self._memory.close()


def new_region(queues: int, size: int) -> tuple[int, int]:
    """A descriptor of an empty one, and its length."""
    length = queues * _length_of(size)
    descriptor = os.memfd_create("aioblk-in-flight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, length)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, length
