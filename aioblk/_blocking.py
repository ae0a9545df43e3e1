"""Blocking work that may take forever, beside a loop that must not.

Connecting to a vhost-user socket that another client holds blocks until that client leaves. The loop's
default executor is no place for it: its few threads would be taken, and the interpreter waits for them at
exit. A daemon thread of its own hurts nobody.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["run_blocking", "start_blocking"]

T = TypeVar("T")


async def run_blocking(function: Callable[[], T], *, undo: Callable[[T], object] | None = None) -> T:
    """Call *function* in a thread of its own and return what it returns.

    If the caller is cancelled the thread goes on, since nothing can stop it, and *undo* is called there
    with a result that comes too late. The same goes for a loop that was closed in the meantime.
    """
    return await start_blocking(function, undo=undo)


def start_blocking(
    function: Callable[[], T], *, undo: Callable[[T], object] | None = None
) -> asyncio.Future[T]:
    """Call *function* in a thread of its own, and have its result, or what it raises, in a future.

    When the future is done before the thread is, *undo* is called with the result that comes too late.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: BaseException | None) -> None:
        if future.done():
            if error is None and undo is not None:
                threading.Thread(target=undo, args=(result,), daemon=True).start()
        elif error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = function()
        except BaseException as caught:  # handed to the caller, whatever it is
            error = caught
        wanted = not future.done()
        if wanted:
            try:
                loop.call_soon_threadsafe(deliver, result, error)
            except RuntimeError:  # the loop is closed
                wanted = False
        if not wanted and error is None and undo is not None:
            undo(result)  # type: ignore[arg-type]

    threading.Thread(target=work, name="aioblk-blocking", daemon=True).start()
    return future
