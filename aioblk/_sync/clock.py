"""The time of threads that have no event loop: where it enters, and a simulator can take its place.

Whoever has a loop asks that: ``loop.time()``, ``call_later()``, ``asyncio.sleep()``.
"""

import time

__all__ = ["now", "pause"]


def now() -> float:
    """Seconds, of the monotonic clock."""
    return time.monotonic()


def pause(seconds: float) -> None:
    """Block the thread; not at all if they are less than none."""
    if seconds > 0:  # a pause of none lasts as long as the kernel's timers are coarse
        time.sleep(seconds)
