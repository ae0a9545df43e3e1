"""Calls of a device's handle, made in worker threads: one at a time, and none while the device comes back.

Such a call may block for as long as the device's other side takes to answer; the loop must not.
"""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar, final

from .._libblkio.handle import Blkio
from .._libblkio.hints import is_no_answer
from .._libblkio.subject import complete
from .._sync.blocking import BlockingCall
from .._sync.loops import running_loop
from ..errors import BlkioError, DeviceLostError

__all__ = ["HandleCalls"]

T = TypeVar("T")

_MOMENT = 0.005  # seconds

_NO_ANSWER = (
    "the backend has answered {} with what is no answer ({}): what it has done is not known, nor what it will"
    " answer next. See to the backend, then close the device and open it again, or call reconnect()"
)


@final
class _Job(Generic[T]):
    """A call that a thread is to make, be it the thread of another one."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function: Callable[[], T] | None = function
        self.outcome: tuple[T] | BaseException | None = None

    def run(self) -> None:
        function, self._function = self._function, None
        assert function is not None
        try:
            self.outcome = (function(),)
        except BaseException as error:
            self.outcome = error

    def result(self) -> T:
        outcome, self.outcome = self.outcome, None
        assert outcome is not None
        if isinstance(outcome, BaseException):
            try:
                raise outcome
            finally:
                del outcome  # which has this frame
        return outcome[0]


@final
class HandleCalls:
    """The calls of one device, from any loop."""

    def __init__(self, handle: Blkio) -> None:
        self._handle = handle
        self._turn = threading.Lock()
        self._jobs: deque[_Job[Any]] = deque()  # that nobody has begun to do
        # Of any loop, in order, until their threads are back.
        self._calls: dict[BlockingCall[Any], None] = {}
        self._losses = 0  # a call that was to be made before one of them is not made any more
        self._held = False
        self._held_calls: dict[asyncio.Future[None], None] = {}  # of any loop, in order
        self._holding = threading.Lock()
        self.lost: DeviceLostError | None = None
        """Why the device is lost, when it is."""
        self.limit: float | None = None
        """Seconds that a call may take before :attr:`on_silence` is told."""
        self.on_silence: Callable[[str], object] = lambda _: None
        self.on_no_answer: Callable[[str], object] = lambda _: None
        """Told when what the device said is no answer: nothing is known of it from then on."""
        self.is_coming_back: Callable[[], bool] = lambda: False
        """Asked when a call has failed: whether the device is being reconnected, so that it should be tried
        again."""

    @property
    def are_busy(self) -> bool:
        """Whether a worker thread is using the handle."""
        return self._turn.locked()

    async def make(
        self, operation: str, function: Callable[[], T], *, undo: Callable[[T], object] | None = None
    ) -> T:
        """Call a function that uses the handle in a worker thread, after those that were asked for before:
        those that were given up as well, which are made all the same.

        *operation* is what the user has asked for, where the function does not come to say it.
        *undo* is called there, too, with a result that comes when the caller has been cancelled.

        Raises DeviceLostError as soon as the device is lost: the thread may then go on by itself.
        """
        running_loop(operation, self._handle.driver, self._handle.filename)

        def call() -> T:
            if losses != self._losses:  # the handle may have another instance of libblkio by now
                raise DeviceLostError("the device was lost meanwhile", driver=self._handle.driver)
            return function()

        def take_undoing_turn(result: T) -> None:
            with self._turn, contextlib.suppress(BlkioError):  # lost or closed meanwhile: it went with that
                if undo is not None and losses == self._losses:
                    undo(result)

        while True:
            await self._until_released()
            if self.lost is not None:
                raise DeviceLostError(self.lost.message, driver=self._handle.driver) from self.lost
            losses = self._losses
            try:
                result = await self._watched(self._begin(call, take_undoing_turn))
                break
            except BlkioError as error:
                handle = self._handle
                complete(error, driver=handle.driver, operation=operation, filename=handle.filename)
                if isinstance(error, DeviceLostError) or not self.is_coming_back():
                    if is_no_answer(handle.driver, error.message):
                        self.on_no_answer(_NO_ANSWER.format(operation, error.message))
                    raise
        if losses != self._losses:  # in the turn in which it was delivered: it went with the instance
            raise DeviceLostError("the device was lost meanwhile", driver=self._handle.driver)
        return result

    def _begin(self, function: Callable[[], T], undo: Callable[[T], object]) -> BlockingCall[T]:
        job = _Job(function)
        self._jobs.append(job)
        try:
            return BlockingCall(partial(self._do, job), undo=undo)
        except BaseException:  # there is no thread
            with contextlib.suppress(ValueError):  # another one has done it
                self._jobs.remove(job)
            raise

    def _do(self, job: "_Job[T]") -> T:
        """In the job's thread. Whatever was begun before is done before, by whichever thread comes first."""
        with self._turn:
            while job.outcome is None:
                self._jobs.popleft().run()
        return job.result()

    async def _watched(self, call: BlockingCall[T]) -> T:
        for other in list(self._calls):
            if other.returned:
                self._calls.pop(other, None)
        self._calls[call] = None
        timer = None
        if self.limit is not None:
            told = f"a call to the device has not returned for {self.limit:g} seconds (lost_after)"
            timer = call.done.get_loop().call_later(self.limit, self.on_silence, told)
        try:
            return await call.outcome()
        finally:
            if call.returned:
                self._calls.pop(call, None)
            if timer is not None:
                timer.cancel()
            del call  # which has the error that keeps this frame

    def make_here(self, function: Callable[[], T]) -> T:
        """Call it in this thread, after whoever calls the handle now."""
        with self._turn:
            return function()

    async def until_idle(self) -> None:
        """Wait until no call is being made, not even one that was given up: those to come are held."""
        while any(not call.returned for call in list(self._calls)):  # noqa: ASYNC110 (of several loops)
            await asyncio.sleep(_MOMENT)

    def lose(self, error: DeviceLostError) -> None:
        """The device is lost. Nobody waits for it."""
        self.lost = error
        self.release()
        self._losses += 1
        for call in list(self._calls):
            with contextlib.suppress(RuntimeError):  # its loop is closed
                call.done.get_loop().call_soon_threadsafe(
                    call.abort, DeviceLostError(error.message, driver=error.driver)
                )

    # --- while the device is being reconnected --------------------------------------------------------------

    def hold(self) -> None:
        """Let calls wait from now on, those that fail now included. From any thread."""
        with self._holding:
            self._held = True

    def release(self) -> None:
        """Let them go on."""
        with self._holding:
            self._held = False
            waiting, self._held_calls = self._held_calls, {}
        for call in waiting:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                call.get_loop().call_soon_threadsafe(_settle, call)

    async def _until_released(self) -> None:
        while True:
            with self._holding:
                if not self._held:
                    return
                released = running_loop("register").create_future()
                self._held_calls[released] = None
            await released


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
