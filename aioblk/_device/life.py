"""An open device's way from loop to loop, and to its end."""

import asyncio
import contextlib
import enum
import functools
import os
import threading
import warnings
from dataclasses import dataclass, replace
from typing import NoReturn, final

from .._libblkio.properties import RINGS
from .._libblkio.subject import Subject
from .._queues.statistics import QueueStatistics
from .._sync.blocking import BlockingCall
from .._sync.loops import running_loop
from .._sync.scopes import shielded_if_cancelled
from ..errors import BlkioError, DeviceLostError
from .loss import Loss
from .session import Session

__all__ = ["Life", "Stage", "Unopened"]

# How long closing a lost device waits for libblkio to let go of it; that may go on in a thread of its own.
LOST_PATIENCE = 1.0  # seconds


class Stage(enum.StrEnum):
    """Of a device's life."""

    NEW = "not open"
    OPENING = "being opened"
    OPEN = "open"
    DETACHING = "being detached from its loop"
    DETACHED = "detached from its loop"
    CLOSING = "being closed"
    CLOSED = "closed"


@final
@dataclass(frozen=True, slots=True)
class Unopened:
    """A device that has nothing: before it is open, and afterwards."""

    subject: Subject
    stage: Stage
    lost: DeviceLostError | None = None
    losses: int = 0
    reconnections: int = 0
    reconnecting: bool = False
    counted: QueueStatistics = QueueStatistics.none()  # noqa: RUF009 (it cannot be changed)

    def opened(self, operation: str) -> NoReturn:
        raise _refusal(self.subject, self.stage, operation)

    present = unclosed = opened

    def statistics(self) -> QueueStatistics:
        """What was done, of one that is closed."""
        if self.stage is not Stage.CLOSED:
            raise _refusal(self.subject, self.stage, "statistics")
        return self.counted

    def start_detaching(self) -> NoReturn:
        raise _refusal(self.subject, self.stage, "detach")

    def attach(self) -> NoReturn:
        raise _refusal(self.subject, self.stage, "attach")

    def abandon(self, reason: str) -> None:
        if self.stage is not Stage.CLOSED:
            raise self.subject.misuse("abandon", f"the device is {self.stage}")

    async def aclose(self) -> "Unopened":
        if self.stage is Stage.OPENING:
            raise self.subject.misuse("close", "the device is being opened; cancel that instead")
        return replace(self, stage=Stage.CLOSED)


@final
class Life:
    """A session, whether its device is lost, and the stage that it is in: from OPEN on."""

    def __init__(self, session: Session, loss: Loss) -> None:
        self.session = session
        self.loss = loss
        self.stage = Stage.OPEN
        self._detaching: asyncio.Task[None] | None = None  # the last time
        self._closing: asyncio.Task[None] | None = None
        self._destroyed = False  # libblkio's instance, or a thread is at it
        self._pid = os.getpid()

    def opened(self, operation: str) -> "Life":
        """Itself, when it is open, be it lost."""
        if self.stage is not Stage.OPEN:
            raise _refusal(self.session.subject, self.stage, operation)
        return self

    def unclosed(self, operation: str) -> "Life":
        """Itself, until it is closed: also while it belongs to no loop."""
        if self.stage in (Stage.CLOSING, Stage.CLOSED):
            raise _refusal(self.session.subject, self.stage, operation)
        return self

    def present(self, operation: str) -> "Life":
        """Itself, when it is open and not lost."""
        self.opened(operation)
        if self.lost is not None:
            raise self.session.subject.lost(operation, self.lost.message) from self.lost
        return self

    def statistics(self) -> QueueStatistics:
        """What was done so far."""
        return self.session.queues.statistics()

    # --- loss -----------------------------------------------------------------------------------------------

    @property
    def lost(self) -> DeviceLostError | None:
        return self.loss.error

    @property
    def losses(self) -> int:
        return self.loss.losses

    @property
    def reconnections(self) -> int:
        return self.loss.reconnections

    @property
    def reconnecting(self) -> bool:
        return self.loss.is_recovering

    def abandon(self, reason: str) -> None:
        """Lose the device, unless it is lost or closed."""
        subject = self.session.subject
        if self.lost is not None or self.stage is Stage.CLOSED:
            return
        if self.stage is Stage.DETACHED:
            raise subject.misuse("abandon", f"the device is {self.stage}")
        if self.session.thread != threading.get_ident():
            text = "the device belongs to another thread; call_soon_threadsafe() helps"
            raise subject.misuse("abandon", text)
        self.loss.lose(reason)

    async def ask_capacity(self) -> int:
        """Have the device say what :attr:`Session.capacity` is, unless it is lost."""
        if self.lost is None:
            try:
                await self.session.ask_capacity()
            except BlkioError:
                self.loss.look()  # the backend's end may have had no turn of the loop to be noticed
                if self.lost is None:
                    raise
        if self.lost is not None:
            raise self.session.subject.lost("refresh_capacity", self.lost.message)
        return self.session.present_capacity()

    # --- from loop to loop ----------------------------------------------------------------------------------

    def start_detaching(self) -> asyncio.Task[None]:
        """Finish what is in flight and let go of the loop: the task that does, or does already."""
        detaching = self._detaching
        if detaching is None or self.stage is not Stage.DETACHING:
            self.present("detach").session.require_own_loop("detach")
            others = [queue for queue in self.session.queues if queue is not self.session.queue]
            if others:
                raise self.session.subject.misuse(
                    "detach", f"still bound: {others}; close these queues first"
                )
            self.stage = Stage.DETACHING
            detaching = self._detaching = self.session.start_task(self._detach())
        return detaching

    async def _detach(self) -> None:
        try:
            await self.session.queue.aclose()
            await self.loss.until_settled()
            await self.session.memory.detach_loop()
        finally:
            self.loss.stop_watching()
            self.stage = Stage.DETACHED

    def attach(self) -> None:
        """Go on, detached until now, with the running loop."""
        if self.stage in (Stage.OPEN, Stage.DETACHING):
            text = f"the device is {self.stage}; await its detach() there first"
            raise self.session.subject.misuse("attach", text)
        if self.stage is not Stage.DETACHED:
            self.opened("attach")
        self._settle_here("attach")
        self.stage = Stage.OPEN
        try:
            if self.lost is None:
                self.session.bind_default()
        except BaseException:
            self.loss.stop_watching()
            self.stage = Stage.DETACHED
            raise

    def _settle_here(self, operation: str) -> None:
        if os.getpid() != self._pid:  # it would end the parent's connection, or share its queues
            text = "the device was opened before fork(); only the parent can use it, open it anew here"
            raise self.session.subject.misuse(operation, text)
        self.session.settle_here()
        self.loss.watch()

    # --- the end --------------------------------------------------------------------------------------------

    async def aclose(self) -> Unopened:
        """Refuse new requests, wait for those in flight, give everything back: what has failed, once more.

        What the device is then.
        """
        if self.stage is Stage.CLOSED:
            return self._afterwards()
        subject = self.session.subject
        loop = running_loop("close", subject.driver, subject.filename)
        if self.stage is Stage.DETACHING and self.session.loop is loop and self._detaching is not None:
            await asyncio.wait([self._detaching])
        if self.stage is Stage.DETACHED:
            self._settle_here("close")
        self.session.require_own_loop("close")
        closing = self._closing
        if closing is None or closing.done():
            closing = self._closing = self._start_closing()
        with shielded_if_cancelled():
            await asyncio.shield(closing)
        return self._afterwards()

    def _afterwards(self) -> Unopened:
        return Unopened(
            self.session.subject,
            Stage.CLOSED,
            self.lost,
            self.losses,
            self.reconnections,
            counted=self.statistics(),
        )

    def _start_closing(self) -> asyncio.Task[None]:
        session = self.session
        self.stage = Stage.CLOSING
        session.begin_closing()
        session.events.end()
        session.queues.refuse()
        if self.lost is None:
            session.queue.close()
        self.loss.end_vain_recovery()
        return session.start_task(self._close())

    async def _close(self) -> None:
        try:
            await self._tear_down()
        finally:
            if self._destroyed:
                self.stage = Stage.CLOSED

    async def _tear_down(self) -> None:
        """Drain and give back whatever there is. One failing step does not stop the others."""
        async with contextlib.AsyncExitStack() as last_first:
            last_first.callback(self.loss.forget_peer)
            last_first.push_async_callback(self._destroy)
            last_first.callback(self.loss.stop_watching)
            last_first.push_async_callback(self.session.memory.aclose)
            last_first.push_async_callback(self.session.queue.aclose)
            last_first.push_async_callback(self.session.queues.close_others, self.session.queue)
            last_first.push_async_callback(self._end_binding)

    async def _end_binding(self) -> None:
        """A thread may be waiting for the backend, to map the memory of its blocking queue."""
        limit, timer = self.session.options.lost_after, None
        if limit is not None:
            silence = f"a call to the device has not returned for {limit:g} seconds (lost_after)"
            timer = self.session.loop.call_later(limit, self.loss.lose, silence)
        try:
            await self.session.queues.until_none_is_binding()
        finally:
            if timer is not None:
                timer.cancel()

    async def _destroy(self) -> None:
        """Disconnect. That takes as long as the device takes to answer: who does not answer is left to it.

        Without a thread, a backend at the other end of a socket is not asked for an answer, and rings need
        none. Other devices might keep the loop waiting: closing them fails, and can be tried again.
        """
        if self._destroyed:
            return
        self.loss.end_vain_recovery()
        destroy = functools.partial(self.session.destroy, in_use=self.loss.left_in_use)
        try:
            call = BlockingCall(destroy)
        except BlkioError:
            if not self.loss.hang_up() and self.session.options.driver not in RINGS:
                raise
            destroy()
            self._end_of_instance()
            return
        self._destroyed = True
        call.done.add_done_callback(lambda _: self._end_of_instance())
        if self.lost is None:
            await asyncio.wait(
                [call.done, self.loss.occurrence()],
                timeout=self.session.options.lost_after,
                return_when=asyncio.FIRST_COMPLETED,
            )
        if not call.done.done():
            await asyncio.wait([call.done], timeout=LOST_PATIENCE)
        if call.done.done():
            call.take()

    def _end_of_instance(self) -> None:
        self._destroyed = True
        self.session.memory.forget()

    def end_unclosed(self, device: object) -> None:
        """*device* was dropped without being closed: warn, and give back what can be.

        With nothing in flight, that is everything; otherwise memory that the device still uses would go: a
        leak is the lesser evil. So it is when the interpreter ends while a thread talks to the backend: there
        would be two who wait for one answer.
        """
        if self.stage is Stage.CLOSED or os.getpid() != self._pid:
            return
        warnings.warn(f"unclosed {device!r}", ResourceWarning, source=device, stacklevel=3)
        if self.session.queues.are_idle_here and not self.session.memory.calls.are_busy:
            self.loss.forget_peer()  # or its answer would be waited for
            self.session.queues.dispose()
            self.session.destroy(in_use=self.loss.left_in_use)


def _refusal(subject: Subject, stage: Stage, operation: str) -> BlkioError:
    """Of what needs an open device."""
    if stage in (Stage.CLOSING, Stage.CLOSED):
        return subject.closed(operation)
    detached = stage in (Stage.DETACHING, Stage.DETACHED)
    remedy = "await device.attach()" if detached else "async with device"
    return subject.misuse(operation, f"the device is {stage}; use `{remedy}` first")
