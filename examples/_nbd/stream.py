"""A client's socket: receiving into given memory, sending from given memory, in order.

asyncio's own streams and transports copy, and do not tell when memory that was handed to them has been sent.
Here the caller's memory is what the kernel reads and writes.
"""

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from struct import Struct
from typing import Any, TypeAlias, final

__all__ = ["DisconnectedError", "Stream"]

RECEIVE_SIZE = 64 << 10
MOST_IN_A_ROW = 16  # receiving calls without a turn of the loop
MOST_BUFFERS = 512  # of one sendmsg(); the kernel takes 1024

Sendable: TypeAlias = bytes | memoryview


class DisconnectedError(ConnectionError):
    """The client is gone, or was sent away."""


@final
class Stream:
    """A connected socket on the running loop. One task receives; sending never waits.

    Small things are received into a buffer of the stream's own, many of them at a time. Of large things, what
    came along with the last small one is copied from there; the rest goes straight to where it belongs.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._loop = asyncio.get_running_loop()
        self._error: DisconnectedError | None = None
        # receiving
        self._buffer = memoryview(bytearray(RECEIVE_SIZE))
        self._start = self._end = 0  # what of it has been received and not taken
        self._reading = False  # whether the loop watches for data
        self._probably_more = False  # the last call received all it had asked for
        self._in_a_row = 0
        self._target = self._buffer  # where the receiving task wants data,
        self._received: asyncio.Future[int] | None = None  # and how it gets to know that they are there
        self._owing_since = 0.0  # since when the client has owed the rest of what it began; 0: it does not
        # sending
        self._outgoing: deque[tuple[Sendable, Callable[[], object] | None]] = deque()
        self._flush_scheduled = False
        self._blocked_since = 0.0  # since when the client has not taken what is sent; 0: it does

    # --- receiving ------------------------------------------------------------------------------------------

    async def take(self, size: int) -> memoryview:
        """The next *size* bytes; they are there until the next call. Raises DisconnectedError."""
        if self._end - self._start < size:
            await self._receive_at_least(size)
        self._start += size
        return self._buffer[self._start - size : self._start]

    async def unpack(self, layout: Struct) -> tuple[Any, ...]:
        """The next bytes, read as *layout* says. Raises DisconnectedError."""
        if self._end - self._start < layout.size:
            await self._receive_at_least(layout.size)
        self._start += layout.size
        return layout.unpack_from(self._buffer, self._start - layout.size)

    async def take_into(self, targets: list[memoryview]) -> None:
        """Fill the targets, one after the other, with the next bytes. Raises DisconnectedError."""
        self._owing_since = self._loop.time()
        for target in targets:
            filled = min(len(target), self._end - self._start)
            target[:filled] = self._buffer[self._start : self._start + filled]
            self._start += filled
            while filled < len(target):
                filled += await self._receive(target[filled:])
        self._owing_since = 0.0

    async def skip(self, size: int) -> None:
        """Receive *size* bytes and forget them. Raises DisconnectedError."""
        while size:
            size -= len(await self.take(min(size, RECEIVE_SIZE)))

    @property
    def between_messages(self) -> bool:
        """Whether nothing has been received that was not taken."""
        return self._start == self._end

    async def _receive_at_least(self, size: int) -> None:
        kept = self._end - self._start
        if self._start:
            self._buffer[:kept] = self._buffer[self._start : self._end]
            self._start, self._end = 0, kept
        while self._end < size:
            if self._end and not self._owing_since:
                self._owing_since = self._loop.time()
            self._end += await self._receive(self._buffer[self._end :])
        self._owing_since = 0.0

    async def _receive(self, target: memoryview) -> int:
        """Receive what there is, at least one byte."""
        if self._error is not None:
            raise self._error
        size = 0
        if self._probably_more:
            self._in_a_row = (self._in_a_row + 1) % MOST_IN_A_ROW
            if self._in_a_row == 0:
                await asyncio.sleep(0)  # a client that always has more must let others have their turn
            size = self._receive_now(target)
        if size == 0:
            self._target = target
            self._received = self._loop.create_future()
            if not self._reading:
                self._reading = True
                self._loop.add_reader(self._socket, self._on_readable)
            try:
                size = await self._received
            finally:
                self._received = None
        self._probably_more = size == len(target)
        return size

    def _receive_now(self, target: memoryview) -> int:
        """Receive what there is; 0 if that is nothing. Raises DisconnectedError."""
        if self._error is None:
            try:
                size = self._socket.recv_into(target)
            except BlockingIOError:
                return 0
            except OSError as error:
                self.abandon(error.strerror or "receiving failed")
            else:
                if size:
                    return size
                self.abandon("the client has closed the connection")
        assert self._error is not None
        raise self._error

    def _on_readable(self) -> None:
        received = self._received
        if received is None or received.done():
            # The receiving task is busy with what it has: leave the data in the socket, which makes a client
            # that sends faster than it is served wait.
            self._reading = False
            self._loop.remove_reader(self._socket)
            return
        with suppress(DisconnectedError):  # abandoning has told who receives
            if size := self._receive_now(self._target):
                received.set_result(size)

    # --- sending --------------------------------------------------------------------------------------------

    def send(self, *parts: Sendable, on_sent: Callable[[], object] | None = None, more: bool = False) -> None:
        """Send the parts, after everything else; *on_sent* is called when their memory is free again.

        That is so when they have been sent, and when they never will be because the client is gone. With
        *more*, they wait until the next turn of the loop for company on their way.
        """
        for part in parts[:-1]:
            self._outgoing.append((part, None))
        self._outgoing.append((parts[-1], on_sent))
        if self._blocked_since or self._flush_scheduled:
            return
        if more:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)
        else:
            self._flush()

    def _flush(self) -> None:
        """Hand to the kernel what it takes now, and the rest as soon as it can take it."""
        self._flush_scheduled = False
        while self._outgoing and self._error is None:
            try:
                sent = self._socket.sendmsg([part for part, _ in islice(self._outgoing, MOST_BUFFERS)])
            except BlockingIOError:
                if not self._blocked_since:
                    self._blocked_since = self._loop.time()
                    self._loop.add_writer(self._socket, self._flush)
                return
            except OSError as error:
                self.abandon(error.strerror or "sending failed")
                return
            if self._forget(sent) and self._blocked_since:
                self._blocked_since = self._loop.time()
        if self._error is not None:
            self._forget(sum(len(part) for part, _ in self._outgoing))
        elif self._blocked_since:
            self._blocked_since = 0.0
            self._loop.remove_writer(self._socket)

    def _forget(self, sent: int) -> bool:
        """Drop the first *sent* bytes of what is to be sent; whether that ended something."""
        outgoing, ended = self._outgoing, False
        while outgoing:
            part, on_sent = outgoing[0]
            if sent < len(part):
                if sent:
                    outgoing[0] = memoryview(part)[sent:], on_sent
                break
            sent -= len(part)
            outgoing.popleft()
            if on_sent is not None:
                on_sent()
                ended = True
        return ended

    # --- the end --------------------------------------------------------------------------------------------

    def check(self, patience: float) -> None:
        """Abandon a client that is not through with something after *patience* seconds: sending what it has
        begun, or taking the next reply. A client that owes nothing may be silent for as long as it likes."""
        if self._error is not None:
            return
        since = [moment for moment in (self._owing_since, self._blocked_since) if moment]
        if since and self._loop.time() - min(since) > patience:
            self.abandon("the client has stalled")
        elif error := self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            # libuv stops watching a socket that was reset, and uvloop does not pass that on.
            self.abandon(os.strerror(error))

    def abandon(self, why: str) -> None:
        """The client is gone, or has to go: who receives meets DisconnectedError, what was to be sent is
        dropped."""
        if self._error is None:
            self._error = DisconnectedError(why)
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._reading, self._blocked_since = False, 0.0
            if self._received is not None and not self._received.done():
                self._received.set_exception(self._error)
            self._flush()

    def close(self) -> None:
        """Close the socket; idempotent."""
        self.abandon("the connection is closed")
        self._socket.close()
