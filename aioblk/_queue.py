"""A queue of a device, bound to one event loop: its completion descriptor's reader, draining, and loss."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal, NoReturn, Self, final

from ._handle import Blkio
from ._native._core import DeviceCore, QueueCore, Submitter
from .errors import BlkioError, DeviceClosedError

__all__ = ["Queue", "QueueStatistics"]


@final
@dataclass(frozen=True, slots=True)
class QueueStatistics:
    """What a queue has done since it was opened."""

    submitted: int
    """Requests accepted; a batch counts as its items."""
    completed: int
    failed: int
    cancelled: int
    in_flight: int
    """Requests that the device has not finished, cancelled ones included."""
    bytes_read: int
    bytes_written: int
    parts: int
    """libblkio requests completed; more than requests where they had to be split."""
    bounced_bytes: int
    """Bytes that were copied because the device could not reach the caller's memory."""
    inline_completions: int
    """Requests that had completed by the time their method returned."""
    flushes: int
    """Turns of the loop that submitted something."""
    do_io_calls: int
    events: int
    """Times the loop found the completion descriptor readable."""
    empty_events: int
    direct_wakes: int
    """Tasks that were resumed without a detour through the loop."""

    @classmethod
    def of(cls, core: QueueCore) -> Self:
        return cls(**core.statistics())

    def __add__(self, other: "QueueStatistics") -> "QueueStatistics":
        return QueueStatistics(
            *(getattr(self, field.name) + getattr(other, field.name) for field in fields(QueueStatistics))
        )


class Queue(Submitter):
    """One queue of a device, used from the event loop (and thread) that it was bound to."""

    def __init__(
        self,
        handle: Blkio,
        device: DeviceCore,
        index: int,
        *,
        depth: int,
        on_broken: Callable[[int], object],
    ) -> None:
        """Bind queue *index* of a started device to the running loop.

        *depth* bounds how many requests libblkio is given at once.
        """
        self.index = index
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._drained: asyncio.Future[None] | None = None
        handle.set_completion_fd_enabled(index, True)  # before the first submission, or it may stay silent
        self._fd = handle.completion_fd(index)
        core = QueueCore(device, handle.queue(index), self._fd, self._loop, depth)
        core.on_idle = self._on_idle
        core.on_broken = on_broken
        self._loop.add_reader(self._fd, core.on_event)
        self._core = core
        self._attached = True

    @property
    def core(self) -> QueueCore:
        """The compiled part."""
        assert self._core is not None
        return self._core

    def is_bound_here(self) -> bool:
        """Whether the caller runs in the thread that the queue belongs to."""
        return self._thread == threading.get_ident()

    def statistics(self) -> QueueStatistics:
        """A snapshot of the counters."""
        return QueueStatistics.of(self.core)

    async def drain(self) -> None:
        """Wait until nothing is in flight, cancelled requests included."""
        while self.core.in_flight:
            if self._drained is None or self._drained.done():
                self._drained = self._loop.create_future()
            await asyncio.shield(self._drained)

    def close(self, reason: Literal["closed", "lost"]) -> None:
        """Refuse new requests from now on; *reason* is "closed" or "lost"."""
        self.core.close(reason)

    def abandon(self, error: BlkioError) -> None:
        """The device is lost: fail what is in flight."""
        self._detach()
        self.core.abandon(error)

    def dispose(self) -> None:
        """Let go of the drained queue: the device is about to be destroyed."""
        self._detach()
        self.core.dispose()

    def _detach(self) -> None:
        # libblkio closes the descriptor with the device, and the next device gets its number.
        if self._attached:
            self._attached = False
            if not self._loop.is_closed():
                self._loop.remove_reader(self._fd)
        self.core.on_broken = None

    def _on_idle(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def _refuse_unopened(self, operation: str) -> NoReturn:
        raise DeviceClosedError("the queue is closed", operation=operation)
