"""SocketStream: a socket that receives into, and sends from, memory that devices reach."""

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from struct import Struct
from typing import Any, final

from typing_extensions import Buffer

from ._native._core import View

__all__ = ["DisconnectedError", "SocketStream"]

BUFFER_SIZE = 64 << 10  # for small things that are received
MOST_IN_A_ROW = 16  # receiving calls without a turn of the loop
MOST_BUFFERS = 512  # of one sendmsg(); the kernel takes 1024


class DisconnectedError(ConnectionError):
    """The peer is gone, or the stream was closed or aborted on this side; the text says which."""


@final
class SocketStream:
    """A connected stream socket for services that move data between sockets and devices.

    asyncio's own streams and transports copy what they receive, and do not tell when memory that was handed
    to them has been sent. Here the kernel reads and writes the caller's memory: an arena's buffer, a region::

        stream = aioblk.SocketStream(connection)
        kind, offset, length = await stream.unpack(HEADER)
        buffer = await arena.acquire(length)
        await stream.read_into(buffer)
        await device.write(offset, buffer)
        stream.send(reply, buffer, on_sent=buffer.release)

    One task receives; sending never waits. Small things are received into a buffer of the stream's own, many
    at a time. Of large things, what came along with the last small one is copied from there, and the rest
    goes straight to where it belongs. Replies that are sent in one turn of the loop go out together.

    Receiving raises :class:`DisconnectedError` once the peer is gone, and after :meth:`abort`. A task that is
    cancelled while it receives may have received a part: abort the stream then.

    Belongs to the running event loop.
    """

    def __init__(self, connection: socket.socket) -> None:
        """Of a connected socket, which is the stream's from now on."""
        connection.setblocking(False)
        self._socket = connection
        self._loop = asyncio.get_running_loop()
        # Why it is over. No exception is kept: its traceback would keep the memory of who was receiving.
        self._gone: str | None = None
        # receiving
        self._buffer = memoryview(bytearray(BUFFER_SIZE))
        self._start = self._end = 0  # what of it has been received and not taken
        self._reading = False  # whether the loop watches for data
        self._probably_more = False  # the last call received all it had asked for
        self._in_a_row = 0
        self._target = self._buffer  # where the receiving task wants data,
        self._received: asyncio.Future[int] | None = None  # and how it gets to know that they are there
        self._owed_since = 0.0  # since when the peer has owed the rest of what it began; 0: it does not
        # sending
        self._outgoing: deque[tuple[bytes | View | memoryview, Callable[[], object] | None]] = deque()
        self._flush_scheduled = False
        self._blocked_since = 0.0  # since when the peer has not taken what is sent; 0: it does

    # --- receiving ------------------------------------------------------------------------------------------

    async def read(self, size: int) -> memoryview:
        """The next *size* bytes, 64 KiB at most. They are there until the next call."""
        if self._end - self._start < size:
            await self._receive_at_least(size)
        self._start += size
        return self._buffer[self._start - size : self._start]

    async def unpack(self, layout: Struct) -> tuple[Any, ...]:
        """The next bytes, read as *layout* says."""
        if self._end - self._start < layout.size:
            await self._receive_at_least(layout.size)
        self._start += layout.size
        return layout.unpack_from(self._buffer, self._start - layout.size)

    async def read_into(self, buffer: Buffer) -> None:
        """Fill the writable *buffer* with the next bytes."""
        target = memoryview(buffer).cast("B")
        filled = min(len(target), self._end - self._start)
        target[:filled] = self._buffer[self._start : self._start + filled]
        self._start += filled
        if filled < len(target):
            self._owed_since = self._loop.time()
            while filled < len(target):
                filled += await self._receive(target[filled:])
            self._owed_since = 0.0

    async def skip(self, size: int) -> None:
        """Receive *size* bytes and forget them."""
        while size:
            size -= len(await self.read(min(size, BUFFER_SIZE)))

    @property
    def has_more(self) -> bool:
        """Whether something has been received already that nobody has read."""
        return self._start != self._end

    async def _receive_at_least(self, size: int) -> None:
        if size > BUFFER_SIZE:
            raise ValueError(f"at most {BUFFER_SIZE} bytes can be read at once, not {size}; use read_into()")
        kept = self._end - self._start
        if self._start:
            self._buffer[:kept] = self._buffer[self._start : self._end]
            self._start, self._end = 0, kept
        while self._end < size:
            if self._end and not self._owed_since:
                self._owed_since = self._loop.time()
            self._end += await self._receive(self._buffer[self._end :])
        self._owed_since = 0.0

    async def _receive(self, target: memoryview) -> int:
        """Receive what there is, at least one byte."""
        if self._gone is not None:
            raise DisconnectedError(self._gone)
        size = 0
        if self._probably_more:
            self._in_a_row = (self._in_a_row + 1) % MOST_IN_A_ROW
            if self._in_a_row == 0:
                await asyncio.sleep(0)  # a peer that always has more must let others have their turn
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
                self._received, self._target = None, self._buffer
        self._probably_more = size == len(target)
        return size

    def _receive_now(self, target: memoryview) -> int:
        """Receive what there is; 0 if that is nothing."""
        if self._gone is None:
            try:
                size = self._socket.recv_into(target)
            except BlockingIOError:
                return 0
            except OSError as error:
                self.abort(error.strerror or "receiving failed")
            else:
                if size:
                    return size
                self.abort("the peer has closed the connection")
        raise DisconnectedError(self._gone)

    def _on_readable(self) -> None:
        received = self._received
        if received is None or received.done():
            # The receiving task is busy with what it has: leave the data in the socket, which makes a peer
            # that sends faster than it is served wait.
            self._reading = False
            self._loop.remove_reader(self._socket)
            return
        with suppress(DisconnectedError):  # aborting has told who receives
            if size := self._receive_now(self._target):
                received.set_result(size)

    # --- sending --------------------------------------------------------------------------------------------

    def send(self, *parts: Buffer, on_sent: Callable[[], object] | None = None, more: bool = False) -> None:
        """Send the parts, after everything else; *on_sent* is called when their memory is free again.

        That is so when they have been sent, and when they never will be because the peer is gone: then it may
        be called before this returns. With *more*, the parts wait until the next turn of the loop for company
        on their way. The caller bounds how much is to be sent, with :class:`InFlight` for example.
        """
        outgoing = self._outgoing
        for part in parts:
            outgoing.append((part if isinstance(part, (bytes, View)) else memoryview(part).cast("B"), None))
        if on_sent is not None:
            last, _ = outgoing.pop() if parts else (b"", None)
            outgoing.append((last, on_sent))
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
        while self._outgoing and self._gone is None:
            try:
                sent = self._socket.sendmsg([part for part, _ in islice(self._outgoing, MOST_BUFFERS)])
            except BlockingIOError:
                if not self._blocked_since:
                    self._blocked_since = self._loop.time()
                    self._loop.add_writer(self._socket, self._flush)
                return
            except OSError as error:
                self.abort(error.strerror or "sending failed")
                return
            if self._forget(sent) and self._blocked_since:
                self._blocked_since = self._loop.time()
        if self._gone is not None:
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
                if sent:  # a part of bytes would be copied
                    outgoing[0] = (part if isinstance(part, View) else memoryview(part))[sent:], on_sent
                break
            sent -= len(part)
            outgoing.popleft()
            del part  # or its buffer would be in use when it is given back
            if on_sent is not None:
                on_sent()
                ended = True
        return ended

    # --- the end --------------------------------------------------------------------------------------------

    def stalled(self) -> float:
        """For how many seconds the peer has been in the middle of something: sending what it has begun, or
        taking what is sent to it. A peer that owes nothing may be silent for as long as it likes: 0.

        A peer that was found to be gone is aborted. So ask every now and then, and abort who takes too long.
        """
        if self._gone is not None:
            return 0.0
        if error := self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            # libuv stops watching a socket that was reset, and uvloop does not pass that on.
            self.abort(os.strerror(error))
            return 0.0
        since = [moment for moment in (self._owed_since, self._blocked_since) if moment]
        return self._loop.time() - min(since) if since else 0.0

    def abort(self, why: str) -> None:
        """Have done with the peer: whoever receives meets DisconnectedError(*why*), what was to be sent is
        dropped. Idempotent."""
        if self._gone is None:
            self._gone = why
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._reading, self._blocked_since = False, 0.0
            if self._received is not None and not self._received.done():
                self._received.set_exception(DisconnectedError(why))
            self._flush()

    def close(self) -> None:
        """Close the socket; idempotent. What has not been sent is dropped."""
        self.abort("the connection is closed")
        self._socket.close()
