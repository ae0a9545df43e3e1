"""Noticing that a device has fallen silent: it has requests, and answers one of them no more.

Nothing is added to the path of a request: no clock is read there and no timer set. Four times in the longest
time allowed, a queue lets the requests that the device has grow older by one tick. One that has waited for
more than four ticks has waited for at least that time, and at most a quarter longer. While the loop itself
stands still no tick passes, so that a program that is busy does not take a device for silent.
"""

import asyncio
from collections.abc import Callable
from typing import final

from .._native._core import QueueCore

__all__ = ["TICKS", "SilenceWatch", "describe_silence"]

TICKS = 4


@final
class SilenceWatch:
    """Ticks for one queue, on its loop."""

    def __init__(
        self,
        core: QueueCore,
        loop: asyncio.AbstractEventLoop,
        lost_after: float,
        on_silence: Callable[[str], object],
    ) -> None:
        """*on_silence* is called, once, with what the device has not answered for *lost_after* seconds."""
        self._core = core
        self._loop = loop
        self._lost_after = lost_after
        self._on_silence = on_silence
        self._timer: asyncio.TimerHandle | None = None
        self._set()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self) -> None:
        self._timer = self._loop.call_later(self._lost_after / TICKS, self._tick)

    def _tick(self) -> None:
        self._set()
        if self._core.in_flight:
            self._core.flush()  # the loop may have been kept from taking what has been there for long
        silence = describe_silence(self._core, self._lost_after)
        if silence is not None:
            self.stop()
            self._on_silence(silence)


def describe_silence(core: QueueCore, lost_after: float) -> str | None:
    """Let a tick pass. The text says what has not been answered for longer than is allowed, if anything."""
    oldest = core.grow_older()
    if oldest is None or oldest[0] <= TICKS:
        return None
    _ticks, operation, offset, length = oldest
    where = "" if offset is None else f" at offset {offset}"
    size = "" if length is None else f", length {length}"
    return (
        f"the device has not answered for {lost_after:g} seconds (lost_after); the oldest request that it has"
        f" is: {operation}{where}{size}. See to the device or its backend, then close this one and open it"
        " again, or call reconnect()"
    )
