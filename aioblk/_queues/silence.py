"""Noticing that a device has fallen silent: it has requests, and answers one of them no more.

Nothing is added to the path of a request: no clock is read there and no timer set. Four times in the longest
time allowed, a queue lets the requests that the device has grow older by one tick. One that has waited for
more than four ticks has waited for at least that time, and at most a quarter longer. While the loop itself
stands still no tick passes, so that a program that is busy does not take a device for silent.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import final

from .._libblkio.subject import Subject
from .._native._core import QueueCore
from .._sync.ticker import Ticker

__all__ = ["TICKS", "SilenceWatch", "describe_silence"]

log: logging.Logger = logging.getLogger("aioblk.device")

TICKS = 4


@final
class SilenceWatch:
    """Ticks for one queue, on its loop."""

    def __init__(
        self,
        core: QueueCore,
        subject: Subject,
        loop: asyncio.AbstractEventLoop,
        lost_after: float,
        on_silence: Callable[[str], object],
    ) -> None:
        """*on_silence* is called, once, with what the device has not answered for *lost_after* seconds."""
        self._core = core
        self._subject = subject
        self._lost_after = lost_after
        self._on_silence = on_silence
        self._ticker = Ticker(loop, lost_after / TICKS, self._tick)

    def stop(self) -> None:
        self._ticker.stop()

    def _tick(self) -> None:
        if self._core.in_flight:
            self._core.flush()  # the loop may have been kept from taking what has been there for long
        silence = describe_silence(self._core, self._subject, self._lost_after)
        if silence is not None:
            self.stop()
            self._on_silence(silence)


def describe_silence(core: QueueCore, subject: Subject, lost_after: float) -> str | None:
    """Let a tick pass. The text says what has not been answered for longer than is allowed, if anything.

    What has waited for half of that is said in the log, once.
    """
    oldest = core.grow_older()
    if oldest is None:
        return None
    ticks, operation, offset, length = oldest
    where = "" if offset is None else f" at offset {offset}"
    size = "" if length is None else f", length {length}"
    what = f"the oldest request that it has is: {operation}{where}{size}"
    if ticks == TICKS // 2:
        log.warning("%s has not answered for %g seconds or more; %s", subject, lost_after / TICKS, what)
    if ticks <= TICKS:
        return None
    return (
        f"the device has not answered for {lost_after:g} seconds (lost_after); {what}. See to the device or"
        " its backend, then close this one and open it again, or call reconnect()"
    )
