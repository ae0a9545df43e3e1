"""A coroutine as a program: on the loop that is wanted, ended in order by signals; how failures are told."""

import asyncio
import contextlib
import errno
import signal
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar

from .._libblkio.own_descriptors import count_spare
from ..errors import BlkioError
from .output import say

__all__ = ["FAILED", "LOOPS", "LoopName", "Terminated", "fail", "loop_factory", "run"]

FAILED = 1
"""The exit status where a device or a file failed."""

DESCRIPTORS = 10
"""Those of a loop, and of what it is told of signals by; one for what is imported."""

T = TypeVar("T")
LoopName: TypeAlias = Literal["auto", "asyncio", "uvloop"]
LOOPS: tuple[LoopName, ...] = ("auto", "asyncio", "uvloop")


class Terminated(SystemExit):
    """SIGTERM has ended a coroutine, in order. The exit status is the shell's for it."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


def fail(message: str, status: int = FAILED) -> int:
    """Say on stderr what went wrong, as one line; returns the exit status."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    say(f"aioblk: {' '.join(message.split())}")
    return status


def loop_factory(name: LoopName) -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes the loop of that name; "auto" is uvloop where it is installed.

    ModuleNotFoundError: uvloop is wanted, and is not.
    """
    if name == "asyncio":
        return partial(_with_descriptors, asyncio.SelectorEventLoop)
    try:
        import uvloop
    except ModuleNotFoundError:
        if name == "uvloop":
            raise
        return partial(_with_descriptors, asyncio.SelectorEventLoop)
    return partial(_with_descriptors, uvloop.new_event_loop)


def _with_descriptors(make: Callable[[], asyncio.AbstractEventLoop]) -> asyncio.AbstractEventLoop:
    """A loop for which there is room: in the midst of beginning, uvloop's cannot be closed, or aborts."""
    spare, reason = count_spare(DESCRIPTORS)
    if spare < DESCRIPTORS:
        raise BlkioError(
            f"an event loop takes up to {DESCRIPTORS} free file descriptors, and there are {spare}; "
            "see ulimit -n",
            errno=reason or errno.EMFILE,
        )
    return make()


def run(main: Coroutine[Any, Any, T], loop: LoopName = "auto") -> T:
    """The result of a coroutine. Ctrl-C and SIGTERM cancel it, so that it closes what it has opened.

    Raises:
        KeyboardInterrupt: it was cancelled by Ctrl-C; a second one does not wait for it.
        Terminated: by SIGTERM.
    """
    terminated = False

    async def cancelled_by_sigterm() -> T:
        nonlocal terminated
        task = asyncio.current_task()
        assert task is not None

        def cancel() -> None:
            nonlocal terminated
            terminated = True
            task.cancel()

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, cancel)
        return await main

    try:
        with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
            return runner.run(cancelled_by_sigterm())
    except asyncio.CancelledError:
        if not terminated:
            raise
        raise Terminated from None
    finally:
        main.close()  # it was not begun, if there is no loop
        sys.stdout.flush()
