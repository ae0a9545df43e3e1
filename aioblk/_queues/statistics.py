"""What queues, and other block devices, count."""

from dataclasses import dataclass, fields
from typing import Self, final

from .._native._core import QueueCore

__all__ = ["QueueStatistics"]


@final
@dataclass(frozen=True, slots=True)
class QueueStatistics:
    """What a queue, or all queues of a device, have done since they were opened.

    Other block devices count in it as well, and leave at 0 what they know nothing of.
    """

    submitted: int = 0
    """Requests accepted; a batch counts as its items."""
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    in_flight: int = 0
    """Requests that the device has not finished, cancelled ones included."""
    bytes_read: int = 0
    bytes_written: int = 0
    parts: int = 0
    """libblkio requests completed; more than requests where they had to be split, fewer where items
    of a batch lie side by side and were merged."""
    bounced_bytes: int = 0
    """Bytes that were copied because the device could not reach the caller's memory."""
    inline_completions: int = 0
    """Requests that had completed by the time their method returned."""
    flushes: int = 0
    """Times that was submitted what had been collected, or was looked again: in a turn of the loop, and in
    each round of one. A batch that finds the queue idle takes none."""
    do_io_calls: int = 0
    """Calls of libblkio that submit, and look for what is done: those of kicks and of spinning too."""
    events: int = 0
    """Times the loop found the completion descriptor readable."""
    empty_events: int = 0
    """Times that the descriptor had no event when it was read, or an event came to nothing: harmless."""
    direct_wakes: int = 0
    """Tasks that were resumed without a detour through the loop."""

    @classmethod
    def of(cls, core: QueueCore) -> Self:
        return cls(**core.statistics())

    @classmethod
    def none(cls) -> Self:
        """Of no queue at all."""
        return cls()

    def __add__(self, other: "QueueStatistics") -> "QueueStatistics":
        return QueueStatistics(
            *(getattr(self, field.name) + getattr(other, field.name) for field in fields(QueueStatistics))
        )
