"""Which command goes to which connection, which has to wait, and what of all requests becomes of a reply."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, final

from ..._queues.statistics import OperationStatistics, QueueStatistics
from ...errors import BlkioError
from ...layers._counts import OPERATIONS
from .. import protocol
from .commands import Command, NewBytes
from .connection import Connection
from .requests import NbdRequest, new_request

__all__ = ["Dispatch"]


@final
class _Tally:
    """Of one operation."""

    __slots__ = ("bytes", "completed", "errors")

    def __init__(self) -> None:
        self.completed = self.bytes = 0
        self.errors: dict[int, int] = {}


@final
class Dispatch:
    """The requests of one device, and their commands.

    A command is in exactly one place: in flight on a connection, in the backlog while all have as many as
    they may, or held, since it must come after a change that was given up and may still be made. Any of them
    can be taken back at once, however many there are.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        depth: int,
        make_error: Callable[[NbdRequest[Any], Command | None], BlkioError],
    ) -> None:
        """At most *depth* commands are in flight on one connection. *make_error* is called with a request
        that fails, and the command that the server has answered with an error; None, for want of memory."""
        self._loop = loop
        self._depth = depth
        self._make_error = make_error
        self.connections: list[Connection] = []
        """None: commands wait for some."""
        self._backlog: OrderedDict[Command, None] = OrderedDict()
        # Changes that were sent and given up, each with those that it holds back. One that several hold back
        # is with the first of them that is found: it is looked at again when that is answered.
        self._given_up: dict[Command, dict[Command, None]] = {}
        self._held: dict[Command, Command] = {}  # and what holds it back
        self._requests: dict[int, NbdRequest[Any]] = {}  # by their id: what is hashed looks different
        self._drained: asyncio.Future[None] | None = None
        self.epoch = 0
        """How often all connections were broken off."""
        self.on_progress: Callable[[], object] | None = None
        """Is called once, when a command is answered, and all that were in flight when the connections broke
        last have been: one of them may be what the server died of."""
        self._suspects: set[Command] = set()
        # How many changes were answered that may be in a cache of the server's, and how many of them are
        # covered by a flush.
        self._changed = 0
        self._covered = 0
        self.doubt: str | None = None
        """What the next flush has to fail with."""
        # statistics
        self.submitted = 0
        self._cancelled = 0
        self._commands = 0
        self._tallies: dict[str, _Tally] = {name: _Tally() for name in OPERATIONS}

    # --- requests -------------------------------------------------------------------------------------------

    def request(
        self,
        operation: str,
        offset: int | None,
        length: int,
        value: Any,
        commands: Sequence[tuple[int, int, int, int, Any]],
        flush_after: bool = False,
    ) -> NbdRequest[Any]:
        """A request of commands, each with kind, flags, offset, length and memory; of none, it is done."""
        request = new_request(self._loop)
        request.owner = self
        request.operation = operation
        request.offset = offset
        request.length = length
        request.value = value
        request.flush_after = flush_after
        request.is_flushing = False
        request.epoch = -1
        request._steps = None  # pyright: ignore[reportPrivateUsage]
        self.submitted += 1
        request.pending = len(commands)
        if len(commands) == 1:
            kind, flags, at, size, memory = commands[0]
            command = Command(kind, flags, at, size, request, memory)
            request.commands = (command,)
            self._requests[id(request)] = request
            self._submit(command)
            return request
        request.commands = tuple(
            Command(kind, flags, at, size, request, memory, position)
            for position, (kind, flags, at, size, memory) in enumerate(commands, 1)
        )
        if not commands:
            self._settle(request)
            return request
        self._requests[id(request)] = request
        self._submit_all(request.commands)
        return request

    def ask(self, offset: int, length: int, contexts: Iterable[str]) -> "NbdRequest[dict[str, bytes]]":
        """What the server says of blocks. It counts as no request, as looking for holes does not."""
        request = new_request(self._loop)
        request.owner = self
        request.operation = "block_status"
        request.offset, request.length = offset, length
        request.value = dict.fromkeys(contexts, b"")
        request.flush_after = request.is_flushing = False
        request.epoch = -1
        request._steps = None  # pyright: ignore[reportPrivateUsage]
        request.pending = 1
        command = Command(protocol.BLOCK_STATUS, 0, offset, length, request)
        command.status = request.value
        request.commands = (command,)
        self._requests[id(request)] = request
        self._submit(command)
        return request

    def failed(self, operation: str, error: BaseException) -> "asyncio.Future[Any]":
        """A request that was accepted, and has failed."""
        self.submitted += 1
        self._count_error(operation, error)
        future: asyncio.Future[Any] = self._loop.create_future()
        future.set_exception(error)
        return future

    def give_up(self, request: NbdRequest[Any]) -> None:
        self._cancelled += request.operation in self._tallies
        self._requests.pop(id(request), None)
        for command in request.commands:
            self._drop(command)
        request.commands = ()
        request.value = None
        self._pump()
        self._tell_drained()

    def fail_for_memory(self, request: NbdRequest[Any]) -> None:
        for command in request.commands:
            self._drop(command)
        self._fail(request, self._make_error(request, None))  # nothing is sent: it is within a reply

    def _drop(self, command: Command) -> None:
        command.request = None
        self._suspects.discard(command)
        connection = command.connection
        if connection is not None:
            if connection.give_up(command) and command.is_change:
                self._given_up[command] = {}
        elif command in self._backlog:
            del self._backlog[command]
        elif (holder := self._held.pop(command, None)) is not None:
            del self._given_up[holder][command]
        command.views = None

    # --- commands -------------------------------------------------------------------------------------------

    def _submit_all(self, commands: Iterable[Command]) -> None:
        """Sending one may end the connection, and with it the requests of the others."""
        for command in commands:
            if command.request is not None and not command.request.done():
                self._submit(command)

    def _submit(self, command: Command) -> None:
        if self._given_up:
            holder = next(filter(command.overlaps, self._given_up), None)
            if holder is not None:
                self._given_up[holder][command] = None
                self._held[command] = holder
                return
        if not self._backlog:
            connections = self.connections
            if len(connections) == 1:
                connection = connections[0]
            elif connections:
                connection = min(connections, key=_load)
            else:
                self._backlog[command] = None
                return
            if len(connection.in_flight) < self._depth:
                self._send(connection, command)
                return
        self._backlog[command] = None

    def _send(self, connection: Connection, command: Command) -> None:
        if command.kind == protocol.FLUSH:
            command.tick = 0
            command.offset = 0
            command.end = self._changed  # what it covers
        connection.send(command)

    def _pump(self) -> None:
        """Give connections what they have room for."""
        while self._backlog and self.connections:
            connection = min(self.connections, key=_load)
            if len(connection.in_flight) >= self._depth:
                return
            self._send(connection, self._backlog.popitem(last=False)[0])

    def answered(self, command: Command) -> None:
        """Of a connection: its reply is complete."""
        self._commands += 1
        if self.on_progress is not None:
            self._suspects.discard(command)
            if not self._suspects:
                on_progress, self.on_progress = self.on_progress, None
                on_progress()
        if not command.error:
            if command.kind == protocol.FLUSH:
                self._covered = max(self._covered, command.end)
            elif command.is_change and not command.flags & protocol.FUA:
                self._changed += 1
        request = command.request
        if request is None:
            self._forget(command)
        else:
            request.pending -= 1
            if request.flush_after and request.epoch < 0:
                request.epoch = self.epoch
            if not request.pending:
                self._conclude(request)
        if self._backlog:
            self._pump()

    def _forget(self, command: Command) -> None:
        """What nobody waits for is done. What had to come after it may go on."""
        if (held := self._given_up.pop(command, None)) is not None:
            for each in held:
                del self._held[each]
            self._submit_all(held)
        self._tell_drained()

    def _conclude(self, request: NbdRequest[Any]) -> None:
        """All commands of a request are answered."""
        failed = next((command for command in request.commands if command.error), None)
        if failed is not None:
            self._fail(request, self._make_error(request, failed))
        elif request.is_flushing:
            if request.epoch == self.epoch:
                self._settle(request)
            else:  # a cache may have been lost in between
                self._again(request)
        elif request.flush_after:
            self._flush_for(request)
        else:
            self._settle(request)

    def _flush_for(self, request: NbdRequest[Any]) -> None:
        request.is_flushing = True
        request.pending = 1
        flush = Command(protocol.FLUSH, 0, 0, 0, request)
        request.commands = (*request.commands, flush)
        self._submit(flush)

    def _again(self, request: NbdRequest[Any]) -> None:
        request.is_flushing = False
        request.epoch = -1
        request.commands = request.commands[:-1]
        request.pending = len(request.commands)
        for command in request.commands:
            command.renew()
        self._submit_all(request.commands)

    def _settle(self, request: NbdRequest[Any]) -> None:
        """It is done, and has succeeded."""
        value = request.value
        if isinstance(value, NewBytes):
            data = request.commands[0].data if len(request.commands) == 1 else None
            try:
                value = value.take() if data is None else data
            except MemoryError:
                self._fail(request, self._make_error(request, None))
                return
        tally = self._tallies.get(request.operation)
        if tally is not None:
            tally.completed += 1
            tally.bytes += request.length
        self._requests.pop(id(request), None)
        request.commands = ()
        request.value = None
        request.set_result(value)
        if self._drained is not None:
            self._tell_drained()

    def _fail(self, request: NbdRequest[Any], error: BaseException) -> None:
        self._count_error(request.operation, error)
        self._requests.pop(id(request), None)
        request.commands = ()
        request.value = None
        request.set_exception(error)
        self._tell_drained()

    # --- breaking -------------------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether there is no request, nor a change that may still be made."""
        return not (self._requests or self._given_up)

    @property
    def unflushed(self) -> int:
        """How many changes were answered that no flush has covered."""
        return self._changed - self._covered

    def recall(self) -> None:
        """The connections are over: have back what they had, in the order in which it was given to them.

        What was given up is not made again. What was read in part is read anew. A change of which some
        commands are answered is made again as a whole: when it is done, it will have been told that such
        commands may be lost.
        """
        self.epoch += 1
        commands: list[Command] = []
        for connection in self.connections:
            commands += connection.in_flight.values()
            connection.in_flight.clear()
        waiting = {*commands, *self._backlog, *self._held}
        for request in self._requests.values():
            if request.pending < len(request.commands) and not request.flush_after:
                for command in request.commands:
                    if command not in waiting and command.may_be_lost:
                        request.pending += 1
                        commands.append(command)
        self.connections = []
        commands.sort(key=_cookie)
        self._given_up.clear()
        kept = [command for command in commands if command.request is not None]
        for command in kept:
            command.renew()
        self._suspects = set(kept)
        self._backlog = OrderedDict.fromkeys((*kept, *self._backlog, *self._held))
        self._held.clear()
        self._tell_drained()

    def forget_unflushed(self) -> None:
        """Nothing more can be said of it."""
        self._covered = self._changed

    def fail_flushes(self, make_error: Callable[[NbdRequest[Any]], BaseException]) -> bool:
        """Those that wait fail, since they would have covered what is in doubt. False: there are none."""
        flushes = [request for request in self._requests.values() if request.operation == "flush"]
        for request in flushes:
            for command in request.commands:
                self._drop(command)
            self._fail(request, make_error(request))
        return bool(flushes)

    def resume(self, connections: Iterable[Connection]) -> None:
        """There are others."""
        self.connections = list(connections)
        self._pump()

    def fail_all(self, make_error: Callable[[NbdRequest[Any]], BaseException]) -> None:
        """No connection is there, nor will there be."""
        self._backlog.clear()
        self._held.clear()
        self._given_up.clear()
        self._suspects.clear()
        for request in tuple(self._requests.values()):
            self._fail(request, make_error(request))
        self._tell_drained()

    # --- the end --------------------------------------------------------------------------------------------

    async def drained(self) -> None:
        """Until it is idle."""
        while not self.is_idle:
            await asyncio.shield(self.idle())

    def idle(self) -> "asyncio.Future[None]":
        """Is done when it is, which it is not now."""
        if self._drained is None:
            self._drained = self._loop.create_future()
        return self._drained

    def _tell_drained(self) -> None:
        if self._drained is not None and self.is_idle:
            drained, self._drained = self._drained, None
            if not drained.done():
                drained.set_result(None)

    # --- statistics -----------------------------------------------------------------------------------------

    def _count_error(self, operation: str, error: BaseException) -> None:
        if (tally := self._tallies.get(operation)) is not None:
            number = (error.errno if isinstance(error, OSError) else None) or 0
            tally.errors[number] = tally.errors.get(number, 0) + 1

    def statistics(self) -> QueueStatistics:
        by_operation: dict[str, Any] = {
            name: OperationStatistics(
                tally.completed, sum(tally.errors.values()), tally.bytes, dict(tally.errors)
            )
            for name, tally in self._tallies.items()
        }
        tallies = self._tallies
        return QueueStatistics(
            submitted=self.submitted,
            completed=sum(tally.completed for tally in tallies.values()),
            failed=sum(sum(tally.errors.values()) for tally in tallies.values()),
            cancelled=self._cancelled,
            in_flight=len(self._requests) + len(self._given_up),
            bytes_read=tallies["read"].bytes,
            bytes_written=tallies["write"].bytes,
            parts=self._commands,
            **by_operation,
        )


def _load(connection: Connection) -> int:
    return len(connection.in_flight)


def _cookie(command: Command) -> int:
    return command.cookie
