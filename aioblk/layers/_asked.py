"""What a block device refuses by the call, in the words and with the errors of libblkio's drivers."""

import errno
from collections.abc import Callable, Iterable
from operator import index
from typing import final

from .._libblkio.limits import Limits
from .._libblkio.refusals import Refusals
from .._native.buffers import BytesLike, length_of
from .._sync.loops import running_loop
from ..errors import BlkioError, OptionError

__all__ = ["Asked", "end_of_stretch"]

_LARGEST_OFFSET = (1 << 63) - 1


@final
class Asked:
    """Checks what a block device that is not libblkio's is asked for, before anything of it begins.

    Each check gives the range that was asked for: offset and length in bytes, as integers. UsageError: no
    loop is running here.
    """

    def __init__(
        self,
        name: str,
        limits: Limits,
        capacity: Callable[[], int],
        read_only: Callable[[], bool],
        *,
        filename: str | None = None,
    ) -> None:
        """*name* stands where a driver's would in errors, and *filename* where its path would."""
        self._refusal = Refusals(name, limits, filename, capacity)
        self._name = name
        self._limits = limits
        self._capacity = capacity
        self._read_only = read_only

    def to_read(self, offset: int, length: int) -> tuple[int, int]:
        return self._range("read", offset, length, 0, self._limits.request_alignment, "alignment")

    def to_fill(self, offset: int, buffers: Iterable[BytesLike]) -> tuple[int, int]:
        return self.to_read(offset, length_of(buffers, writable=True))

    def to_write(self, offset: int, buffers: Iterable[BytesLike]) -> tuple[int, int]:
        return self.to_change("write", offset, length_of(buffers, contiguous=True))

    def to_change(self, operation: str, offset: int, length: int) -> tuple[int, int]:
        asked = self._range(operation, offset, length, 0, self._limits.request_alignment, "alignment")
        if self._read_only():
            raise self._refusal("read-only", operation, *asked)
        return asked

    def to_discard(self, offset: int, length: int) -> tuple[int, int]:
        limits = self._limits
        asked = self.to_change("discard", offset, length)
        return self._range(
            "discard",
            *asked,
            limits.discard_alignment_offset,
            max(limits.discard_alignment, 1),
            "discard-alignment",
        )

    def to_flush(self) -> None:
        running_loop("flush", self._name)

    def _range(
        self, operation: str, offset: int, length: int, first: int, alignment: int, reason: str
    ) -> tuple[int, int]:
        running_loop(operation, self._name)
        offset, length = index(offset), index(length)
        if not (offset >= 0 and length >= 0 and offset + length <= _LARGEST_OFFSET):
            raise self._refusal("range", operation, offset, length)
        if offset < first or (offset - first) % alignment or length % alignment:
            raise self._refusal(reason, operation, offset, length)
        return offset, length

    def beyond_the_end(self, operation: str, offset: int, length: int) -> BlkioError | None:
        """What becomes of a request that ends beyond the capacity of a device that does not grow."""
        if offset + length <= self._capacity():
            return None
        number = errno.EINVAL if operation == "read" else errno.ENOSPC
        return self._refusal.failed(operation, number, None, offset, length)


def end_of_stretch(
    name: str, capacity: int, offset: int, length: int | None, operation: str = "extents"
) -> int:
    """The end of a range that must be within a device; without *length* it goes to the device's end."""
    end = capacity if length is None else offset + length
    if not 0 <= offset <= end <= capacity:
        raise OptionError(
            f"the range is not within the {capacity} bytes of the device",
            driver=None if name == operation else name,
            operation=operation,
            offset=offset,
            length=length,
        )
    return end
