"""Losing a device, and its coming back: a machine of four states beside the session.

TRANSITIONS is all that can happen; docs/loss.md shows it. What lasts as long as a state does is a field of
that state: a device that is present has a peer, one that is lost a reason.
"""

import asyncio
import contextlib
import enum
import functools
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias, final

from .._libblkio.properties import RINGS
from .._sync.blocking import call_elsewhere, run_blocking
from ..errors import BlkioError, DeviceLostError
from .connection import Connection
from .events import DeviceLost, DeviceReturned, DeviceSearching, log
from .lock import hand_over
from .peer import Peer
from .recovery import Recovery, Wanted, connect_again, release_old
from .session import Session

__all__ = ["TRANSITIONS", "Event", "Loss", "Lost", "Present", "Recovering", "Returning"]


@final
class Present(NamedTuple):
    """The device is there, as far as is known."""

    peer: Peer | None
    """The vhost-user backend, whose connection is watched; others have none."""


@final
class Recovering(NamedTuple):
    """The backend has died, and another is looked for in its place (``reconnect_for``)."""

    recovery: Recovery


@final
class Lost(NamedTuple):
    """Everything in flight has failed, and new requests are refused."""

    error: DeviceLostError
    in_use: bool
    """Whether the device had requests, and so may still touch memory."""
    queues: int
    """That it had, those included that had been added."""


@final
class Returning(NamedTuple):
    """Still lost, and an attempt is being made to open it again (``reconnect()``)."""

    lost: Lost


Presence: TypeAlias = Present | Recovering | Lost | Returning


class Event(enum.StrEnum):
    """What happens to a device's presence."""

    DIED = "the backend dies, and `reconnect_for` allows for it"
    FAILED = "the device is given up: for a dead or silent backend, a broken queue, by `abandon()`"
    ASKED = "`reconnect()` is called"
    REFUSED = "the attempt fails, or is cancelled"
    REPLACED = "another connection has taken the old one's place"


TRANSITIONS: Mapping[tuple[type[Presence], Event], type[Presence]] = MappingProxyType(
    {
        (Present, Event.DIED): Recovering,
        (Present, Event.FAILED): Lost,
        (Recovering, Event.FAILED): Lost,
        (Recovering, Event.REPLACED): Present,
        (Lost, Event.ASKED): Returning,
        (Returning, Event.REFUSED): Lost,
        (Returning, Event.REPLACED): Present,
    }
)
"""From a state, by an event, to the next. What is not here cannot happen, or changes nothing."""


@final
class Loss:
    """Whether the device of a session is present, and what follows when that changes.

    All but what begins with ``on_``, and :meth:`is_coming_back`, is for the thread of the device's loop.
    """

    def __init__(self, session: Session, peer: Peer | None) -> None:
        self._session = session
        self._presence: Presence = Present(peer)
        self._attempts = 0  # to reconnect
        self._going_on: set[asyncio.Task[None]] = set()  # queues of whatever loops, with a new connection
        self._awaited: dict[asyncio.Future[None], None] = {}  # in order
        self.losses = 0
        self.reconnections = 0

    def _become(self, event: Event, presence: Presence) -> None:
        assert TRANSITIONS.get((type(self._presence), event)) is type(presence), (self._presence, event)
        self._presence = presence
        match event:
            case Event.FAILED:
                assert isinstance(presence, Lost)
                self.losses += 1
                self._session.events.tell(DeviceLost(presence.error))
            case Event.DIED:
                self._session.events.tell(DeviceSearching())
            case Event.REPLACED:
                self._session.events.tell(DeviceReturned())
            case Event.ASKED | Event.REFUSED:
                pass  # whoever has asked knows

    # --- what is known --------------------------------------------------------------------------------------

    @property
    def error(self) -> DeviceLostError | None:
        """Why the device is lost; None: it is not."""
        lost = self._lost
        return None if lost is None else lost.error

    @property
    def _lost(self) -> Lost | None:
        presence = self._presence
        if isinstance(presence, Returning):
            return presence.lost
        return presence if isinstance(presence, Lost) else None

    @property
    def is_recovering(self) -> bool:
        """Whether another backend is being looked for."""
        return isinstance(self._presence, Recovering)

    @property
    def left_in_use(self) -> bool:
        """Whether it is lost, and may still touch memory."""
        lost = self._lost
        return lost is not None and lost.in_use

    def occurrence(self) -> asyncio.Future[None]:
        """Is done when the device is lost next."""
        future: asyncio.Future[None] = self._session.loop.create_future()
        self._awaited[future] = None
        future.add_done_callback(lambda future: self._awaited.pop(future, None))
        return future

    async def until_settled(self) -> None:
        """Wait while queues are about to go on, or another backend is looked for."""
        while self._going_on:
            await asyncio.wait(self._going_on)

    # --- the backend's connection ---------------------------------------------------------------------------

    @property
    def _peer(self) -> Peer | None:
        return self._presence.peer if isinstance(self._presence, Present) else None

    def watch(self) -> None:
        """Have the loop tell when the backend closes the connection."""
        if self._peer is not None:
            self._session.loop.add_reader(self._peer.fileno(), _weakly(self.look))

    def stop_watching(self) -> None:
        """Undo that; idempotent."""
        if self._peer is not None and not self._session.loop.is_closed():
            self._session.loop.remove_reader(self._peer.fileno())

    def look(self) -> None:
        """The backend may have closed the connection."""
        if self._peer is not None and self._peer.has_hung_up():
            self._on_hang_up(self._peer)

    def hang_up(self) -> bool:
        """End the connection, so that nobody waits for an answer. False: it is none that could be."""
        if self._peer is None:
            return False
        self._peer.hang_up()
        return True

    def forget_peer(self) -> None:
        """End the connection, which a forked child may have a copy of that keeps the backend busy."""
        self.stop_watching()
        peer = self._peer
        if peer is not None:
            self._presence = Present(None)
            peer.hang_up()
            peer.close()

    # --- losing ---------------------------------------------------------------------------------------------

    def lose(self, why: str) -> None:
        """Give the device up: fail what is in flight, refuse what comes. Once lost, it changes nothing."""
        presence, session = self._presence, self._session
        if isinstance(presence, Lost | Returning):
            return
        error = session.subject.lost(None, why)
        session.refusals.lost = why
        if isinstance(presence, Recovering):
            presence.recovery.stop()
        self.stop_watching()
        in_use = any(queue.in_flight for queue in session.queues)
        self._become(Event.FAILED, Lost(error, in_use, session.handle.queue_count))
        session.queues.note_loss(error)
        if isinstance(presence, Present) and presence.peer is not None:
            presence.peer.hang_up()
            presence.peer.close()
        session.queues.abandon(error)
        if in_use and session.options.driver in RINGS:
            log.warning(
                "buffers of requests in flight are never released: %s may write to them", session.subject
            )
        session.memory.lose(error)
        for future in list(self._awaited):
            if not future.done():
                future.set_result(None)

    def on_broken(self, errno: int) -> None:
        self._call_in_own_thread(self._break_down, f"the queue broke down: {os.strerror(errno)}")

    def _break_down(self, why: str) -> None:
        self.look()  # which may be the reason
        if not self.is_recovering:
            self.lose(why)

    def on_silence(self, silence: str) -> None:
        self._call_in_own_thread(self.lose, silence)

    def on_no_answer(self, why: str) -> None:
        self._call_in_own_thread(self._break_down, why)

    def _call_in_own_thread(self, function: Callable[[str], None], why: str) -> None:
        if self._session.thread == threading.get_ident():
            function(why)
        else:
            with contextlib.suppress(RuntimeError):  # the device's loop is closed
                self._session.loop.call_soon_threadsafe(function, why)

    def _on_hang_up(self, peer: Peer) -> None:
        why, seconds = "the backend has closed the connection", self._session.options.reconnect_for
        if seconds is not None and self._session.queues.blocking:
            why, seconds = f"{why}; reconnecting is impossible with blocking queues", None
        if seconds is None:
            self.lose(why)
        else:
            self._start_recovering(peer, seconds)

    # --- coming back by itself ------------------------------------------------------------------------------

    def _start_recovering(self, peer: Peer, seconds: float) -> None:
        session = self._session
        self.stop_watching()
        recovering = Recovering(Recovery(session, peer, seconds, self._is_worth_recovering))
        self._become(Event.DIED, recovering)
        peer.hang_up()  # a thread may be waiting for an answer
        session.memory.calls.hold()
        session.queues.note_death()
        _ = self._start_going_on(self._recover(recovering, peer, set(self._going_on)))

    def _is_worth_recovering(self) -> bool:
        return not self._session.is_closing or self._session.queues.in_flight > 0

    def end_vain_recovery(self) -> None:
        """The device is being closed: without requests in flight, nobody waits for another backend."""
        if self.is_recovering and not self._is_worth_recovering():
            self.lose("the device was closed while it was without a backend")

    async def _recover(self, recovering: Recovering, peer: Peer, former: set[asyncio.Task[None]]) -> None:
        session, recovery = self._session, recovering.recovery
        if former:  # queues of other loops may be about to go on with the backend that is gone
            await asyncio.wait(former)
        try:
            connection = await recovery.run()
        except BaseException as error:  # whatever it is, nobody may be left waiting
            if self._presence is recovering:
                self.lose(getattr(error, "message", None) or repr(error))
            if not isinstance(error, Exception):
                raise
            return
        finally:
            peer.close()
        session.queues.exclusively(functools.partial(session.handle.exchange, connection.handle))
        call_elsewhere(connection.handle.destroy)
        recovery.end_loan()
        session.memory.calls.release()
        self._go_on_with(connection)  # what happens from here on happens to the new one
        await session.queues.resume()

    def is_coming_back(self) -> bool:
        """Asked, in any thread, when a call to the backend has failed."""
        presence = self._presence
        if isinstance(presence, Present):
            reconnects = self._session.options.reconnect_for is not None
            if not reconnects or presence.peer is None or not presence.peer.has_hung_up():
                return False
        elif not isinstance(presence, Recovering):
            return False
        self._session.memory.calls.hold()
        with contextlib.suppress(RuntimeError):  # the device's loop is closed
            self._session.loop.call_soon_threadsafe(self._on_suspicion)
        return True

    def _on_suspicion(self) -> None:
        self.look()
        if not self.is_recovering:
            self._session.memory.calls.release()

    # --- coming back on request -----------------------------------------------------------------------------

    async def reconnect(self, on_rebound: Callable[[], None]) -> None:
        """One attempt to open the lost device again. *on_rebound* is called, when it is back, if it was
        detached when it was lost: its default queue is another one then."""
        lost = self._require_lost()
        returning = Returning(lost)
        self._become(Event.ASKED, returning)
        try:
            await self._reconnect(lost, on_rebound)
        finally:
            if self._presence is returning:
                self._become(Event.REFUSED, lost)

    def _require_lost(self) -> Lost:
        session, presence = self._session, self._presence
        if isinstance(presence, Present | Recovering):
            raise session.subject.misuse("reconnect", "the device is not lost; abandon() gives it up")
        session.require_own_loop("reconnect")
        if "fd" in session.options.before_connect:
            text = "a device that was opened by fd has no name to be found by again"
            raise session.subject.misuse("reconnect", text)
        blocking = session.queues.blocking
        if blocking:
            raise session.subject.misuse("reconnect", f"still bound: {blocking}; close these queues first")
        if isinstance(presence, Returning):
            raise session.subject.misuse("reconnect", "the device is being reconnected already")
        return presence

    async def _reconnect(self, lost: Lost, on_rebound: Callable[[], None]) -> None:
        """As far as a connection, waiting can be given up at any moment; from there on it is finished."""
        session, memory, handle = self._session, self._session.memory, self._session.handle
        await session.queues.until_abandoned()
        await memory.detach_loop()
        self._attempts += 1
        attempt = self._attempts

        def release() -> None:
            if attempt == self._attempts:  # otherwise given up, and another one has been made meanwhile
                if lost.in_use:
                    hand_over(session.lock, handle)
                release_old(handle)

        await run_blocking(functools.partial(memory.calls.make_here, release))
        memory.end_limbo()
        self._require_still_open()
        regions = [*memory.withdraw_regions(), *session.queues.bounce_regions()]
        wanted = Wanted(session.limits, session.capacity, lost.queues, tuple(regions), session.lock)
        again = connect_again(session.options, wanted, handle.loans)
        try:
            connection = await run_blocking(again.make, undo=again.undo)
        except BlkioError:
            again.end()
            self._require_still_open()
            raise
        finally:
            memory.end_withdrawal()
        if session.is_closing:
            call_elsewhere(functools.partial(again.undo, connection))
            self._require_still_open()
        handle.exchange(connection.handle)
        call_elsewhere(connection.handle.destroy)
        handle.free_all_but(session.queues.bounce_regions())
        # From here to the task there is no other turn: the device is lost, or back as a whole.
        session.core.forget_given_up()
        session.refusals.lost = None
        memory.come_back()
        again.end()
        self._go_on_with(connection)
        reopening = session.queues.reopen()
        if session.queue._is_closed:  # pyright: ignore[reportPrivateUsage]
            session.bind_default()
            on_rebound()
        await asyncio.shield(self._start_going_on(reopening))

    def _require_still_open(self) -> None:
        session = self._session
        if session.is_closing:
            # Once more, if closing was faster.
            call_elsewhere(functools.partial(session.handle.destroy, in_use=True))
            raise session.subject.closed(None, "the device has been closed")

    # --- back -----------------------------------------------------------------------------------------------

    def _go_on_with(self, connection: Connection) -> None:
        self._become(Event.REPLACED, Present(connection.peer))
        self._session.go_on_with(connection)
        self.reconnections += 1
        self.watch()

    def _start_going_on(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._session.start_task(work)
        self._going_on.add(task)
        task.add_done_callback(self._going_on.discard)
        return task


def _weakly(method: Callable[[], None]) -> Callable[[], None]:
    """Calls *method* for as long as its object exists: the loop must not keep an unclosed device alive."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        bound = reference()
        if bound is not None:
            bound()

    return call
