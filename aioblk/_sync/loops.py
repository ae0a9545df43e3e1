"""Which event loop is running, and what to say where there is none.

Under trio there may be one all the same, that of trio-asyncio, which is run by a task of trio's. What other
tasks of trio's call is refused there, too: they cannot await what is asyncio's.
"""

import asyncio
import sys
from typing import cast

from ..errors import UsageError

__all__ = ["in_trio_run", "is_any_running", "is_running", "no_loop", "running_loop"]


def running_loop(
    operation: str, driver: str | None = None, filename: str | None = None
) -> asyncio.AbstractEventLoop:
    """asyncio's running loop. UsageError: there is none here, or this is a task of trio's."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise UsageError(no_loop(), driver=driver, operation=operation, filename=filename) from None
    if _in_trio(loop):
        raise UsageError(no_loop(), driver=driver, operation=operation, filename=filename)
    return loop


def is_any_running() -> bool:
    """Whether :func:`running_loop` gives one."""
    loop = asyncio._get_running_loop()
    return loop is not None and not _in_trio(loop)


def is_running(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether it gives this one. The compiled core asks where the interpreter itself knows of another one, or
    of none: of a loop of trio-asyncio's, only asyncio's functions know."""
    return asyncio._get_running_loop() is loop and not _in_trio(loop)


def no_loop() -> str:
    """Why none of asyncio's loops is running here, and what to do about it."""
    if _in_trio(None):
        return (
            "trio is running here, and devices need asyncio's event loop; with anyio, run it with"
            ' backend="asyncio"; with trio-asyncio, call it by aio_as_trio() within open_loop()'
        )
    return (
        "no event loop is running here, and what is called begins at once: call it within a coroutine that"
        " the loop runs, as in asyncio.run(main())"
    )


def in_trio_run() -> bool:
    """Whether trio is running in this thread, be it with a loop of asyncio's."""
    trio = sys.modules.get("trio")
    return trio is not None and cast(bool, trio.lowlevel.in_trio_run())


def _in_trio(loop: asyncio.AbstractEventLoop | None) -> bool:
    """Whether who calls is trio's, and no task of the loop."""
    if "trio" not in sys.modules:
        return False
    sniffio = sys.modules.get("sniffio")  # to which trio tells what is running in a thread
    if sniffio is None or sniffio.thread_local.name != "trio":
        return False
    return loop is None or asyncio.current_task(loop) is None  # trio-asyncio tells it of no reader's callback
