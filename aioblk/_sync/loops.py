"""Which event loop is running, and what to say where there is none."""

import asyncio
import sys
from typing import cast

from ..errors import UsageError

__all__ = ["no_loop", "running_loop"]


def running_loop(
    operation: str, driver: str | None = None, filename: str | None = None
) -> asyncio.AbstractEventLoop:
    """asyncio's running loop. UsageError: there is none here."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise UsageError(no_loop(), driver=driver, operation=operation, filename=filename) from None


def no_loop() -> str:
    """Why none of asyncio's loops is running here, and what to do about it."""
    if _in_trio():
        return (
            "trio is running here, and devices need asyncio's event loop; with anyio, run it with"
            ' backend="asyncio"'
        )
    return (
        "no event loop is running here, and what is called begins at once: call it within a coroutine that"
        " the loop runs, as in asyncio.run(main())"
    )


def _in_trio() -> bool:
    trio = sys.modules.get("trio")
    return trio is not None and cast(bool, trio.lowlevel.in_trio_run())
