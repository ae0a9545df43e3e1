"""What to say when a request is refused before it is submitted: the value, the rule, and the remedy; and when
the device has failed it.

The compiled request path only notices *that* something is wrong; this cold path finds the words.
"""

import errno
from collections.abc import Callable
from typing import final

from .._sync.loops import is_any_running, no_loop
from ..errors import (
    AlignmentError,
    BlkioError,
    DeviceClosedError,
    DeviceLostError,
    OptionError,
    UsageError,
    request_error,
)
from .limits import Limits

__all__ = ["Refusals"]

_LARGEST_OFFSET = (1 << 63) - 1


@final
class Refusals:
    """Makes the exception for a reason that the request path gives, or for the errno of a failed request."""

    def __init__(
        self,
        driver: str,
        limits: Limits,
        filename: str | None = None,
        capacity: Callable[[], int | None] = lambda: None,
    ) -> None:
        """*filename* names the device; *capacity* tells its size in bytes, or None if that is no limit."""
        self._driver = driver
        self._limits = limits
        self._filename = filename
        self._capacity = capacity
        self.lost: str | None = None
        """Why the device is lost, when it is."""
        self.closed = False
        """Whether the device is closed, or being closed. While it is not, what is closed is a queue."""

    def failed(
        self, operation: str, number: int, message: str | None, offset: int | None, length: int | None
    ) -> BlkioError:
        """The exception for a request that the device, or libblkio, has failed."""
        beyond = self._beyond(offset, length)
        error = request_error(
            self._driver, operation, number, message, offset, length, filename=self._filename
        )
        if beyond is not None:
            error.message = beyond if error.message is None else f"{error.message}; {beyond}"
        return error

    def _beyond(self, offset: int | None, length: int | None) -> str | None:
        capacity = self._capacity()
        if offset is None or length is None or capacity is None or offset + length <= capacity:
            return None
        return f"the request ends at {offset + length}, beyond the device's capacity of {capacity} bytes"

    def __call__(self, reason: str, operation: str, offset: int | None, length: int | None) -> BlkioError:
        kind, text = self._explain(reason, offset, length)
        number = errno.EBADF if reason == "read-only" else None  # what libblkio would have said
        return kind(
            text,
            errno=number,
            driver=self._driver,
            operation=operation,
            offset=offset,
            length=length,
            filename=self._filename,
        )

    def _explain(self, reason: str, offset: int | None, length: int | None) -> tuple[type[BlkioError], str]:
        match reason:
            case "alignment":
                required = self._limits.request_alignment
                return AlignmentError, (
                    f"{_misaligned(required, 0, offset, length)} not a multiple of {required} bytes, the"
                    " device's request-alignment; align it, or use aioblk.ByteView"
                )
            case "discard-alignment":
                required, first = self._limits.discard_alignment, self._limits.discard_alignment_offset
                counted = f", counted from {first}" if first else ""
                return AlignmentError, (
                    f"{_misaligned(required, first, offset, length)} not a multiple of {required} bytes, the"
                    f" device's discard-alignment{counted}; discard the whole blocks inside"
                )
            case "range":
                return (
                    OptionError,
                    f"{_given(offset, length)}; both lie between 0 and {_LARGEST_OFFSET}, and so must their"
                    " sum",
                )
            case "too-many-parts":
                return (
                    OptionError,
                    "the device takes so little at a time that this is over a million requests; divide it",
                )
            case "bounce-cap":
                return OptionError, "not even one block of it fits the bounce pool; raise bounce_pool_size"
            case "read-only":
                return (
                    BlkioError,
                    "the device is open for reading only; open it with read_only=False, or its descriptor for"
                    " writing",
                )
            case "lost":
                why = "the device is lost" if self.lost is None else f"the device is lost: {self.lost}"
                return DeviceLostError, f"{why}; close it and open it again, or reconnect() it"
            case "thread":
                return (
                    UsageError,
                    "the queue belongs to another thread; use a queue that was bound in this one",
                )
            case "no-loop":
                return UsageError, "a blocking queue has no event loop; use its wait()"
            case "loop" if not is_any_running():
                return UsageError, no_loop()
            case "loop":
                return (
                    UsageError,
                    "the queue belongs to another event loop, which is not the one running here",
                )
            case "fork":
                return (
                    UsageError,
                    "the device was opened before fork(); only the parent can use it, open it anew here",
                )
            case _:
                return DeviceClosedError, f"the {'device' if self.closed else 'queue'} is closed"


def _given(offset: int | None, length: int | None) -> str:
    values = [("offset", offset), ("length", length)]
    return " and ".join(f"{name} is {value}" for name, value in values if value is not None)


def _misaligned(required: int, first: int, offset: int | None, length: int | None) -> str:
    values: list[str] = []
    if offset is not None and (offset < first or (offset - first) % required):
        values.append(f"offset {offset}")
    if length is not None and length % required:
        values.append(f"length {length}")
    return f"{' and '.join(values)} {'are' if len(values) > 1 else 'is'}"
