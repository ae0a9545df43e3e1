"""Where something was made, as asyncio notes it of futures and tasks in debug mode."""

import sys
import traceback
from traceback import StackSummary

__all__ = ["here"]

DEEPEST = 10  # frames, as in asyncio


def here() -> StackSummary:
    """The caller's place. It keeps no frame, and has read no source file yet."""
    frames = traceback.walk_stack(sys._getframe(1))  # pyright: ignore[reportPrivateUsage]
    stack = StackSummary.extract(frames, limit=DEEPEST, lookup_lines=False)
    stack.reverse()
    return stack
