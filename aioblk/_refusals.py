"""What to say when a request is refused before it is submitted: the value, the rule, and the remedy.

The compiled request path only notices *that* something is wrong; this cold path finds the words.
"""

import errno
from typing import final

from .errors import AlignmentError, BlkioError, DeviceClosedError, DeviceLostError, OptionError, UsageError
from .limits import Limits

__all__ = ["Refusals"]

_LARGEST_OFFSET = (1 << 63) - 1


@final
class Refusals:
    """Makes the exception for a reason that the request path gives."""

    def __init__(self, driver: str, limits: Limits) -> None:
        self._driver = driver
        self._limits = limits

    def __call__(self, reason: str, operation: str, offset: int | None, length: int | None) -> BlkioError:
        kind, text = self._explain(reason, offset, length)
        number = errno.EBADF if reason == "read-only" else None  # what libblkio would have said
        return kind(
            text, errno=number, driver=self._driver, operation=operation, offset=offset, length=length
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
                    f"offset and length lie between 0 and {_LARGEST_OFFSET}, and so must their sum",
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
                return DeviceLostError, "the device is lost; close it and open it again, or reconnect() it"
            case "thread":
                return (
                    UsageError,
                    "the queue belongs to another thread; use a queue that was bound in this one",
                )
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
                return DeviceClosedError, "the device is closed"


def _misaligned(required: int, first: int, offset: int | None, length: int | None) -> str:
    values: list[str] = []
    if offset is not None and (offset < first or (offset - first) % required):
        values.append(f"offset {offset}")
    if length is not None and length % required:
        values.append(f"length {length}")
    return f"{' and '.join(values)} {'are' if len(values) > 1 else 'is'}"
