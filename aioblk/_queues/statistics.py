"""What queues, and other block devices, count."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self, final

from .._native._core import QueueCore
from .._native.latency import LatencyHistogram

__all__ = ["OperationStatistics", "QueueStatistics"]


@final
@dataclass(frozen=True, slots=True)
class OperationStatistics:
    """What became of the requests of one operation. Cancelled ones are not among them."""

    completed: int = 0
    """Requests that were done; a batch counts as its items."""
    failed: int = 0
    """Requests that were not."""
    bytes: int = 0
    """Read, written, zeroed or discarded, also by requests of which another part has failed."""
    errors: Mapping[int, int] = field(default_factory=dict[int, int])
    """How many failed with which ``errno``; 0: with none, or one that Linux does not know of."""
    latency: LatencyHistogram = LatencyHistogram()  # noqa: RUF009 (it cannot be changed)
    """How long those took, failed ones included, that were submitted while the device was ``measuring``."""

    def __add__(self, other: "OperationStatistics") -> "OperationStatistics":
        return OperationStatistics(
            self.completed + other.completed,
            self.failed + other.failed,
            self.bytes + other.bytes,
            _merge(self.errors, other.errors, 1),
            self.latency + other.latency,
        )

    def __sub__(self, earlier: "OperationStatistics") -> "OperationStatistics":
        """What was done since. ValueError: *earlier* is later, or of another device."""
        _refuse_unless_later(self, earlier, "completed", "failed", "bytes")
        return OperationStatistics(
            self.completed - earlier.completed,
            self.failed - earlier.failed,
            self.bytes - earlier.bytes,
            _merge(self.errors, earlier.errors, -1),
            self.latency - earlier.latency,
        )


def _merge(some: Mapping[int, int], others: Mapping[int, int], sign: int) -> dict[int, int]:
    numbers = sorted({*some, *others})
    counts = {number: some.get(number, 0) + sign * others.get(number, 0) for number in numbers}
    return {number: count for number, count in counts.items() if count}


@final
@dataclass(frozen=True, slots=True)
class QueueStatistics:
    """What a queue has done, or all that a device has had. No number falls, but for ``in_flight``.

    Other block devices count in it as well, and leave at 0 what they know nothing of. What was done in an
    interval is the later one less the earlier: ``(after - before).read.latency.percentile(99)``.
    """

    submitted: int = 0
    """Requests accepted; a batch counts as its items."""
    completed: int = 0
    """Requests that were done."""
    failed: int = 0
    """Requests that ended with an error."""
    cancelled: int = 0
    """Requests that were cancelled."""
    in_flight: int = 0
    """Requests that the device has not finished, cancelled ones included."""
    bytes_read: int = 0
    """By completed requests."""
    bytes_written: int = 0
    """By completed requests; zeroes that are written are not among them."""
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
    bounce_wait: LatencyHistogram = LatencyHistogram()  # noqa: RUF009 (it cannot be changed)
    """How long requests waited for bounce memory that had to, and have got it: from the call, until the last
    part of each had its memory. A batch counts once."""
    read: OperationStatistics = OperationStatistics()
    """Of those that read."""
    write: OperationStatistics = OperationStatistics()
    """Of those that write."""
    write_zeroes: OperationStatistics = OperationStatistics()
    """Of those that write zeroes."""
    discard: OperationStatistics = OperationStatistics()
    """Of those that discard."""
    flush: OperationStatistics = OperationStatistics()
    """Of those that flush."""
    zones: OperationStatistics = OperationStatistics()
    """Reports of zones, and whatever else is done with them."""

    @classmethod
    def of(cls, core: QueueCore, bounce_wait: LatencyHistogram | None = None) -> Self:
        """Those of a compiled queue, which programs do not see."""
        counted: dict[str, Any] = {**core.statistics(), **_by_operation(core)}
        return cls(**counted, bounce_wait=bounce_wait or LatencyHistogram())

    @property
    def operations(self) -> dict[str, OperationStatistics]:
        """Those of each operation, by the name of its method; ``"zones"`` for all that is done with those."""
        return {name: getattr(self, name) for name in OPERATIONS}

    @classmethod
    def none(cls) -> Self:
        """Of no queue at all."""
        return cls()

    def __add__(self, other: "QueueStatistics") -> "QueueStatistics":
        return QueueStatistics(
            *(getattr(self, each.name) + getattr(other, each.name) for each in fields(QueueStatistics))
        )

    def __sub__(self, earlier: "QueueStatistics") -> "QueueStatistics":
        """What was done since; ``in_flight`` is what it is now.

        Raises:
            ValueError: *earlier* has counted more: it is later, or of another device.
        """
        _refuse_unless_later(self, earlier, *_RISING)
        since = QueueStatistics(
            *(getattr(self, each.name) - getattr(earlier, each.name) for each in fields(QueueStatistics))
        )
        return replace(since, in_flight=self.in_flight)


_RISING = tuple(
    each.name for each in fields(QueueStatistics) if each.type is int and each.name != "in_flight"
)


def _refuse_unless_later(later: object, earlier: object, *names: str) -> None:
    for name in names:
        now, before = getattr(later, name), getattr(earlier, name)
        if now < before:
            raise ValueError(
                f"{name} cannot have fallen from {before} to {now}; subtract the earlier statistics from the"
                " later, of the same device"
            )


OPERATIONS = ("read", "write", "write_zeroes", "discard", "flush", "zones")


def _by_operation(core: QueueCore) -> dict[str, OperationStatistics]:
    found: dict[str, OperationStatistics] = {}
    for name, completed, failed, length, errors, latency in core.operations():
        one = OperationStatistics(completed, failed, length, errors, LatencyHistogram.of(*latency))
        public = name if name in OPERATIONS else "zones"
        found[public] = found[public] + one if public in found else one
    return found
