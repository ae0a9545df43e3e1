"""The connections of a device as one: opened together, broken off together, and together they come back.

When one is broken, all are broken off: nobody can tell a server of which one process has died from one whose
cache is gone. What was in flight is sent again on the next ones, which is right where the server does no more
of what it had been sent by then. What was answered and not flushed may be gone with a cache: see Unflushed.
"""

import asyncio
import enum
import errno
import logging
import math
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar, final

from ..._device.events import DeviceLost, DeviceReturned, DeviceSearching, Events
from ..._libblkio.subject import Subject
from ..._sync.scopes import shielded_if_cancelled
from ..._sync.tasks import start_steadfast_task
from ...errors import BlkioError, DeviceLostError
from .channel import Channel
from .commands import Command
from .connection import Connection
from .dispatch import Dispatch
from .export import Export
from .handshake import Dial
from .reach import ReachWatch
from .requests import NbdRequest
from .silence import SilenceWatch

__all__ = ["UNFLUSHED", "Life", "State", "Terms", "Unflushed"]

T = TypeVar("T")

log: logging.Logger = logging.getLogger("aioblk.nbd")
log.addHandler(logging.NullHandler())  # who has set up no logging is told by exceptions alone

FIRST_DELAY, LONGEST_DELAY = 0.05, 5.0  # seconds between attempts to connect: twice as long each time

Unflushed: TypeAlias = Literal["lose", "report", "trust"]
UNFLUSHED: tuple[Unflushed, ...] = ("lose", "report", "trust")


class State(enum.StrEnum):
    PRESENT = "open"
    RECOVERING = "being reconnected"
    LOST = "lost"
    CLOSED = "closed"


@final
@dataclass(frozen=True, slots=True)
class Terms:
    """What the user has asked for. Times are in seconds."""

    connections: int
    depth: int
    connect_timeout: float | None
    lost_after: float | None
    reconnect_for: float | None
    unflushed: Unflushed


@final
class Life:
    """Of a device that was opened."""

    def __init__(
        self,
        subject: Subject,
        terms: Terms,
        dial: Dial,
        dialled: list[tuple[Channel, Export]],
        events: Events,
        make_error: Callable[[NbdRequest[Any], Command | None], BlkioError],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._subject = subject
        self._terms = terms
        self._dial = dial
        self._events = events
        self.export = dialled[0][1]
        self.dispatch = Dispatch(self._loop, terms.depth, make_error)
        self.state = State.PRESENT
        self.lost: DeviceLostError | None = None
        self.closing = False
        self.losses = 0
        self.reconnections = 0
        self._stop: asyncio.Future[None] | None = None  # ends the search for a server
        # Of a search, which is over when a server has answered what was in flight, or was there for long.
        self._give_up_at: float | None = None
        self._returned_at = -math.inf
        self._delay = FIRST_DELAY
        self._closing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._watches: list[SilenceWatch | ReachWatch] = []
        self._use(self._connected(dialled))

    def _connected(self, dialled: list[tuple[Channel, Export]]) -> list[Connection]:
        """BlkioError: there is no memory for them, or the loop can look at no more sockets; none is open."""
        connections: list[Connection] = []
        try:
            for channel, export in dialled:
                connections.append(
                    Connection(channel, export, self._loop, self.dispatch.answered, self._broken)
                )
        except BaseException as error:
            for connection in connections:
                connection.close()
            close_all(dialled[len(connections) :])
            if not isinstance(error, (OSError, MemoryError)):
                raise
            raise BlkioError(
                "a connection that was made cannot be used",
                errno=getattr(error, "errno", None) or errno.ENOMEM,
                driver=self._subject.driver,
                operation="open",
                filename=self._subject.filename,
            ) from error
        return connections

    def _use(self, connections: list[Connection]) -> None:
        if self._terms.lost_after is not None:
            self._watches.append(
                SilenceWatch(
                    self._loop, self._terms.lost_after, lambda: self.dispatch.connections, self._give_up
                )
            )
        if any(connection.is_of_network for connection in connections):
            self._watches.append(
                ReachWatch(self._loop, self._dial.dead_after, lambda: self.dispatch.connections)
            )
        self.dispatch.resume(connections)  # last: what is sent may find that a connection is over already

    def _end_watches(self) -> None:
        for watch in self._watches:
            watch.stop()
        self._watches.clear()

    # --- breaking -------------------------------------------------------------------------------------------

    def _broken(self, connection: Connection, why: str, is_fault: bool) -> None:
        if self.state is State.PRESENT:
            self._break(why, may_return=not is_fault)

    def _give_up(self, why: str) -> None:
        """The server is there, and silent: it may do at any time what it was asked for."""
        if self.state is State.PRESENT:
            self._break(why, may_return=False)

    def _break(self, why: str, *, may_return: bool) -> None:
        """Break all connections off, and look for others, or not."""
        dispatch = self.dispatch
        self.state = State.RECOVERING
        for connection in dispatch.connections:
            connection.end(why)
        self._end_watches()
        in_doubt = dispatch.unflushed
        dispatch.recall()
        if not may_return or self._terms.reconnect_for is None:
            self._lose(why)
            return
        if in_doubt:
            doubt = (
                f"{why}, when {in_doubt} {'change' if in_doubt == 1 else 'changes'} had been answered and not"
                " been flushed: what may be gone with the server's cache, and has to be made again"
            )
            if self._terms.unflushed == "lose":
                self._lose(f"{doubt} (unflushed='lose')")
                return
            if self._terms.unflushed == "report":
                dispatch.forget_unflushed()
                if not dispatch.fail_flushes(lambda request: self._doubt_error(doubt)):
                    dispatch.doubt = doubt
                log.warning("%s: %s", self._subject, doubt)
        if self.closing and dispatch.is_idle:
            return
        self._events.tell(DeviceSearching())
        _ = self._start(self._search(why), on_cancel=self._leave)

    def _doubt_error(self, doubt: str) -> BlkioError:
        return BlkioError(
            doubt,
            errno=errno.EIO,
            driver=self._subject.driver,
            operation="flush",
            filename=self._subject.filename,
        )

    def take_doubt(self) -> BlkioError | None:
        """What a flush has to fail with, once."""
        doubt, self.dispatch.doubt = self.dispatch.doubt, None
        return None if doubt is None else self._doubt_error(doubt)

    def _lose(self, why: str) -> None:
        if self.state is State.LOST:
            return
        self.state = State.LOST
        self.losses += 1
        self.lost = self._lost_error("connect", why)
        self._end_search()
        self.dispatch.fail_all(
            lambda request: self.lost_error(request.operation, request.offset, request.length)
        )
        if not self.closing:
            self._events.tell(DeviceLost(self.lost))

    def _lost_error(self, operation: str, why: str) -> DeviceLostError:
        return self._subject.lost(operation, why)

    def lost_error(
        self, operation: str, offset: int | None = None, length: int | None = None
    ) -> DeviceLostError:
        """What a request meets, or has met."""
        assert self.lost is not None
        error = self._lost_error(
            operation,
            f"the device is lost: {self.lost.message}; close it and open it again, or reconnect() it",
        )
        error.offset, error.length = offset, length
        error.__cause__ = self.lost
        return error

    def abandon(self, reason: str) -> None:
        if self.state in (State.PRESENT, State.RECOVERING):
            if self.state is State.PRESENT:
                self._break(reason, may_return=False)
            else:
                self._lose(reason)

    # --- coming back ----------------------------------------------------------------------------------------

    def _start(
        self, work: Coroutine[Any, Any, T], on_cancel: Callable[[], object] | None = None
    ) -> asyncio.Task[T]:
        task = start_steadfast_task(self._loop, work, on_cancel=on_cancel)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _leave(self, _idle: object = None) -> None:
        """All tasks are cancelled, since the loop is to end. Who waits for a request all the same has it; the
        search is not carried on for nobody."""
        if self.state is State.RECOVERING and not self.closing:
            if self.dispatch.is_idle:
                self._lose("the loop ends, and nobody waits for the server, which is gone")
            else:
                self.dispatch.idle().add_done_callback(self._leave)

    def _end_search(self) -> None:
        if self._stop is not None and not self._stop.done():
            self._stop.set_result(None)

    async def _search(self, why: str) -> None:
        """Connect until somebody answers, the time for it is up, or nobody wants it any more."""
        assert self._terms.reconnect_for is not None
        now = self._loop.time()
        was_there = now - self._returned_at
        if self._give_up_at is None or was_there >= self._terms.reconnect_for:
            self._give_up_at = now + self._terms.reconnect_for
        if was_there >= LONGEST_DELAY:
            self._delay = FIRST_DELAY
        else:  # it does not stay, whatever it has answered
            self._delay = max(FIRST_DELAY, min(self._delay, (self._give_up_at - now) / 2))
            await self._rest()
        self._stop = stop = self._stop or self._loop.create_future()
        last = why
        while self.state is State.RECOVERING and not stop.done():
            left = self._give_up_at - self._loop.time()
            if left <= 0:
                self._lose(
                    f"{why}, and it did not come back in {self._terms.reconnect_for:g} seconds"
                    f" (reconnect_for): {last}"
                )
                break
            try:
                dialled = await self._attempt(left)
                connections = None if dialled is None else self._connected(dialled)
            except DeviceLostError as error:
                self._lose(error.message or "another device answers")
                break
            except (BlkioError, TimeoutError, MemoryError) as error:
                text = str(error) or "there is no memory"
                if text != last:
                    log.info("%s does not come back yet: %s", self._subject, text)
                    last = text
                await self._rest()
                continue
            except Exception as error:
                self._lose(f"connecting again fails: {error!r}")  # or requests would wait for it for ever
                raise
            self._stop = None  # another search may begin with what is sent at once
            if connections is not None:
                self._return(connections)
            return
        self._stop = None

    async def _rest(self) -> None:
        assert self._give_up_at is not None
        if self._stop is None:
            self._stop = self._loop.create_future()
        delay = min(self._delay * random.uniform(0.5, 1.0), max(0.0, self._give_up_at - self._loop.time()))
        self._delay = min(2 * self._delay, LONGEST_DELAY)
        await asyncio.wait([self._stop], timeout=delay)

    async def _attempt(self, seconds: float) -> list[tuple[Channel, Export]] | None:
        """Connect, in a task that can be cancelled, which this one cannot. None: nobody wants it any more."""
        assert self._stop is not None
        limit = self._terms.connect_timeout
        attempt = self._loop.create_task(dial_all(self._dial, self._terms.connections, self.export))
        both: list[asyncio.Future[Any]] = [attempt, self._stop]
        await asyncio.wait(
            both,
            timeout=seconds if limit is None else min(seconds, limit),
            return_when=asyncio.FIRST_COMPLETED,
        )
        if not attempt.done():
            attempt.cancel()
            await asyncio.wait([attempt])
        if not attempt.cancelled():
            dialled = attempt.result()
            if self._stop.done():
                close_all(dialled)
                return None
            return dialled
        if self._stop.done():
            return None
        raise TimeoutError("the server does not answer in time")

    def _return(self, connections: list[Connection]) -> None:
        self.state = State.PRESENT
        self.lost = None
        self._returned_at = self._loop.time()
        self.reconnections += 1
        self.dispatch.on_progress = self._answer_came
        self._events.tell(DeviceReturned())
        self._use(connections)

    def _answer_came(self) -> None:
        """A server that has answered what another one may have died of; the next search has all its time."""
        self._give_up_at = None

    async def reconnect(self) -> None:
        """Open a lost device again. BlkioError: it cannot be."""
        loss = self.lost
        dialled = await dial_in_time(self._dial, self._terms, self.export, self._subject)
        if self.lost is not loss or self.closing:
            close_all(dialled)
            if self.closing:
                raise self._subject.closed("reconnect")
            if self.lost is not None:
                # Another task has had it back meanwhile, and is not told that what it wrote may be gone.
                raise self._lost_error(
                    "reconnect", f"it was lost once more, before it was back: {self.lost.message}"
                ) from self.lost
            return
        connections = self._connected(dialled)
        self.dispatch.forget_unflushed()
        self.dispatch.doubt = None
        self._give_up_at = None
        self._return(connections)

    # --- the end --------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Wait for what is in flight, and take leave; goes on when who waits is cancelled. Idempotent."""
        if self._closing is None:
            self.closing = True
            self._events.end()
            if self.state is State.RECOVERING and self.dispatch.is_idle:
                self._end_search()
            self._closing = self._start(self._close())
        with shielded_if_cancelled():
            await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await self.dispatch.drained()
        self._end_search()
        self._end_watches()
        for connection in self.dispatch.connections:
            connection.close()
        self.dispatch.connections = []
        if self.state is not State.LOST:
            self.state = State.CLOSED
        if others := [task for task in self._tasks if task is not self._closing]:
            await asyncio.wait(others)

    def forget(self) -> None:
        """Nobody has closed it, and nobody can any more; from any thread."""
        self.closing = True
        try:
            self._loop.call_soon_threadsafe(self.abandon, "the device was forgotten, and not closed")
        except RuntimeError:
            self.drop()

    def drop(self) -> None:
        """Let go of everything without the loop, which is closed, and looks at no socket any more."""
        self.closing = True
        for connection in self.dispatch.connections:
            connection.drop()
        self.dispatch.connections = []
        if self.state is not State.LOST:
            self.state = State.CLOSED


# --- dialling -----------------------------------------------------------------------------------------------


async def dial_all(dial: Dial, most: int, before: Export | None = None) -> list[tuple[Channel, Export]]:
    """As many connections as are wanted, or one where the server does not allow for several.

    Raises:
        DeviceLostError: the export is not what it was *before*.
        BlkioError: there is nobody, or it is not like that.
    """
    dialled = [await dial()]
    try:
        export = dialled[0][1]
        if before is not None:
            _refuse_another(export, before, dial)
        if most > 1 and not export.multi_conn:
            log.info("%s: the server allows for one connection only, not for %d", dial.uri.text, most)
            return dialled
        for _ in range(most - 1):
            dialled.append(await dial())
            _refuse_another(dialled[-1][1], export, dial)
        return dialled
    except BaseException:
        close_all(dialled)
        raise


def _refuse_another(export: Export, before: Export, dial: Dial) -> None:
    if difference := export.same_as(before):
        raise DeviceLostError(
            f"another export answers: {difference}",
            driver="nbd",
            operation="connect",
            filename=dial.uri.text,
        )


def close_all(dialled: Sequence[tuple[Channel, Export]]) -> None:
    for channel, _ in dialled:
        channel.close()


async def dial_in_time(
    dial: Dial, terms: Terms, before: Export | None, subject: Subject
) -> list[tuple[Channel, Export]]:
    """BlkioError with ETIMEDOUT: it takes too long."""
    try:
        async with asyncio.timeout(terms.connect_timeout):
            return await dial_all(dial, terms.connections, before)
    except TimeoutError as error:
        if isinstance(error, BlkioError):
            raise
        raise BlkioError(
            f"the server does not answer within {terms.connect_timeout:g} seconds (connect_timeout)",
            errno=errno.ETIMEDOUT,
            driver=subject.driver,
            operation="open",
            filename=subject.filename,
        ) from None
