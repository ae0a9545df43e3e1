"""Blocking work that may take forever, beside a loop that must not.

Connecting to a vhost-user socket that another client holds blocks until that client leaves. The loop's
default executor is no place for it: its few threads would be taken, and the interpreter waits for them at
exit. A daemon thread that does nothing else meanwhile hurts nobody.

What a thread makes for a task (a connection, a queue) has exactly one owner at every moment: the thread, then
the call, then whoever takes it from there. A task can be cancelled in the very turn in which it is delivered;
a future would drop the result then, and a connection that nobody knows of holds its backend for ever.
"""

import asyncio
import enum
import errno
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar, cast, final

from ..errors import BlkioError
from .loops import running_loop
from .threads import call_in_thread

__all__ = ["BlockingCall", "call_elsewhere", "run_blocking"]

T = TypeVar("T")


class _Owner(enum.Enum):
    """Whose the result is."""

    THREAD = enum.auto()  # there is none yet
    CALL = enum.auto()
    TAKER = enum.auto()
    NOBODY = enum.auto()  # it is undone as soon as it is there


@final
class BlockingCall(Generic[T]):
    """A function that is called in a thread of its own, for a task of the running loop."""

    def __init__(self, function: Callable[[], T], *, undo: Callable[[T], object] | None = None) -> None:
        """Start it. *undo* is called, in some thread, with a result that nobody takes.

        Raises:
            BlkioError: EAGAIN, there is no thread to be had. Nothing was called.
        """
        self._function = function
        self._undo = undo
        self._loop = running_loop("call")
        self._owner = _Owner.THREAD
        self._turn = threading.Lock()  # of `_owner` and what it is about; held for a few instructions
        self._result: T | None = None
        self._error: BaseException | None = None
        self.returned = False
        """Whether the function has returned, or raised."""
        self.done: asyncio.Future[None] = self._loop.create_future()
        """Is done when the outcome can be taken, or :meth:`abort` was called. It may be cancelled: it owns
        nothing."""
        _start_thread(self._work)

    def _work(self) -> None:
        result, error = None, None
        try:
            result = self._function()
        except BaseException as caught:  # raised where the result is taken, whatever it is
            error = caught
        failed = error is not None
        with self._turn:
            self.returned = True
            wanted = self._owner is _Owner.THREAD
            if wanted:
                self._owner, self._result, self._error = _Owner.CALL, result, error
        error = None  # which would otherwise keep this frame, and the frame it
        if not wanted:
            if not failed and self._undo is not None:
                self._undo(cast(T, result))
            return
        try:
            self._loop.call_soon_threadsafe(_settle, self.done)
        except RuntimeError:  # the loop is closed: nobody will take it
            self._undo_at(lambda undo: undo())

    def take(self) -> T:
        """The result, the caller's from now on, or what the function has raised. Once, when it is there."""
        with self._turn:
            assert self._owner is _Owner.CALL, self._owner
            self._owner = _Owner.TAKER
            result, self._result, error, self._error = self._result, None, self._error, None
            self._undo = None  # the thread may last for a moment, and must keep nobody that long
        if error is not None:
            try:
                raise error
            finally:
                error = None  # which would otherwise keep this frame, and the frame it
        return cast(T, result)

    def drop(self) -> None:
        """Nobody will take the result: it is undone now or, if it is not there yet, when it comes."""
        self._undo_at(call_elsewhere)

    def abort(self, error: BaseException) -> None:
        """Have whoever waits for the outcome meet *error* now; the thread may go on by itself."""
        if not self.done.done():
            self.done.set_exception(error)

    async def outcome(self) -> T:
        """Wait for the outcome and take it. If the waiting ends in another way, the result is dropped."""
        try:
            await self.done
        except BaseException:
            self.drop()
            del self  # which has the error that keeps this frame
            raise
        return self.take()

    def _undo_at(self, place: Callable[[Callable[[], object]], object]) -> None:
        with self._turn:
            there = self._owner is _Owner.CALL and self._error is None
            if self._owner is not _Owner.TAKER:
                self._owner = _Owner.NOBODY
            result, self._result, self._error = self._result, None, None
            undo = self._undo
        if there and undo is not None:
            place(lambda: undo(cast(T, result)))

    def __del__(self) -> None:
        if getattr(self, "_owner", None) is _Owner.CALL:  # the loop was closed before it was told
            self.drop()


async def run_blocking(function: Callable[[], T], *, undo: Callable[[T], object] | None = None) -> T:
    """Call *function* in a thread of its own and return what it returns.

    If the caller is cancelled the thread goes on, since nothing can stop it, and *undo* is called with a
    result that comes too late, be it by a moment. The same goes for a loop that was closed in the meantime.

    Raises:
        BlkioError: EAGAIN, there is no thread to be had.
    """
    return await BlockingCall(function, undo=undo).outcome()


def call_elsewhere(function: Callable[[], object]) -> None:
    """Call what gives something back, and hardly blocks, in a thread of its own; here, if there is none."""
    if sys.is_finalizing():  # no thread would come to run, and starting one waits for that
        function()
        return
    try:
        _start_thread(function)
    except BlkioError:
        function()


def _start_thread(function: Callable[[], object]) -> None:
    try:
        call_in_thread(function)
    except RuntimeError as error:  # "can't start new thread", which is all that it says
        raise BlkioError(
            f"it needs a thread, since it may block, and there is none to be had: {error}; see the limits of"
            " processes and threads (ulimit -u, a container's pids.max)",
            errno=errno.EAGAIN,
        ) from None


def _settle(future: asyncio.Future[None]) -> None:
    # A signal's handler may cancel it at any line: to look first whether it is done would not be enough.
    with suppress(asyncio.InvalidStateError):
        future.set_result(None)
