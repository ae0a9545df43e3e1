"""SocketStream: a socket that receives into, and sends from, memory that devices reach."""

import asyncio
import os
import select
import socket
from collections import deque
from collections.abc import Callable
from itertools import chain, islice
from operator import itemgetter
from struct import Struct
from typing import Any, NoReturn, TypeAlias, final

from .._native._core import View
from .._native.buffers import BytesLike, as_memoryview
from .._sync.loops import running_loop
from ..errors import StreamBusyError, UsageError

__all__ = ["DisconnectedError", "SocketStream"]

BUFFER_SIZE = 64 << 10  # for small things that are received
MOST_IN_A_ROW = 16  # receiving calls without a turn of the loop
MOST_BUFFERS = 512  # of one sendmsg(); the kernel takes 1024


AS_IT_IS = (bytes, View)  # what is sent without a memoryview of it

Parts: TypeAlias = list[bytes | View | memoryview]
Outgoing: TypeAlias = tuple[Parts, int, Callable[[], object] | None]
"""What goes together, how many bytes that is, and what is called when it has gone."""
_parts_of: Callable[[Outgoing], Parts] = itemgetter(0)


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

    Small things are received into a buffer of the stream's own, many at a time. Of large things, what came
    along with the last small one is copied from there, and the rest goes straight to where it belongs.
    Replies that are sent in one turn of the loop go out together.

    **Who receives.** One task at a time: a second one is refused with :class:`StreamBusyError`, and the first
    goes on. Receiving raises :class:`DisconnectedError` once the peer has sent its last byte and all of them
    have been read, and after :meth:`abort`.

    **Who sends.** Anybody on the loop, since sending never waits: what one call is given stays together, and
    calls keep their order, also those that are made in an *on_sent*. A peer that has only closed its sending
    half is still sent to.

    **Cancellation** loses nothing that has arrived: what a cancelled :meth:`read`, :meth:`unpack` or
    :meth:`read_into` had received, the next call receives again. ``asyncio.timeout()`` around them is the way
    to limit how long a peer may be idle. Only a cancelled :meth:`skip` has skipped a part that nobody knows:
    abort the stream then.

    Belongs to the running event loop.
    """

    def __init__(self, connection: socket.socket, *, least_rate: float = 4096) -> None:
        """Of a connected socket, which is the stream's from now on.

        *least_rate* is what a peer has to send, or to take, in bytes per second while it is in the middle of
        something; :meth:`stalled` tells how far it is behind that.
        """
        if not least_rate > 0:
            raise ValueError(f"the least rate must be positive, not {least_rate}")
        connection.setblocking(False)
        self._socket = connection
        self._loop = running_loop("connect")
        # Why it is over. No exception is kept: its traceback would keep the memory of who was receiving.
        self._ended: str | None = None  # nothing more is received
        self._gone: str | None = None  # and nothing more is sent
        # receiving
        self._buffer = memoryview(bytearray(BUFFER_SIZE))
        self._start = self._end = 0  # what of it has been received and not taken
        self._receiving = False  # somebody does
        self._target: memoryview | None = None  # what is filled in place of the stream's own buffer,
        self._filled = 0  # and how far
        self._received: asyncio.Future[None] | None = None  # the receiving task waits for it
        self._offered: tuple[Struct, Callable[..., bool]] | None = None  # to whom what comes is, meanwhile
        self._watching = False  # whether the loop watches for data
        self._probably_more = False  # the last call received all it had asked for
        self._in_a_row = 0
        self._incoming = Pace(least_rate)
        # sending
        self._outgoing: deque[Outgoing] = deque()
        self._flushing = False
        self._flush_scheduled = False
        self._taking = Pace(least_rate)  # its moving: the peer does not take what is sent

    # --- receiving ------------------------------------------------------------------------------------------

    async def read(self, size: int) -> memoryview:
        """The next *size* bytes, 64 KiB at most. They are there until the next call."""
        self._refuse_elsewhere("receive")
        if self._receiving or not 0 <= size <= self._end - self._start:
            await self._receive_at_least(size)
        self._start += size
        return self._buffer[self._start - size : self._start]

    def read_nowait(self, size: int) -> memoryview | None:
        """What :meth:`read` gives, if so much has been received already."""
        if self._receiving:
            self._refuse_a_second()
        if not 0 <= size <= self._end - self._start:
            return None
        self._start += size
        return self._buffer[self._start - size : self._start]

    async def read_some(self) -> memoryview:
        """What has been received and not been read, or the next that is: a byte at least. It is there until
        the next call. Whoever waits here is in the middle of nothing: a peer may be silent."""
        self._refuse_elsewhere("receive")
        if self._receiving or self._start == self._end:
            await self._receive_at_least(1)
        begin, self._start = self._start, self._end
        return self._buffer[begin : self._end]

    async def unpack(self, layout: Struct) -> tuple[Any, ...]:
        """The next bytes, read as *layout* says."""
        self._refuse_elsewhere("receive")
        if self._receiving or self._end - self._start < layout.size:
            await self._receive_at_least(layout.size)
        self._start += layout.size
        return layout.unpack_from(self._buffer, self._start - layout.size)

    def unpack_nowait(self, layout: Struct) -> tuple[Any, ...] | None:
        """What :meth:`unpack` gives, if so much has been received already."""
        if self._receiving:
            self._refuse_a_second()
        start, end = self._start, self._start + layout.size
        if end > self._end:
            return None
        self._start = end
        return layout.unpack_from(self._buffer, start)

    async def unpack_while(self, layout: Struct, take: Callable[..., bool]) -> tuple[Any, ...]:
        """Unpack again and again, for as long as ``take(*values)`` is true; the first values of which it is
        not.

        It is called in the turn of the loop in which they arrive, without a detour through the task, so it
        waits for nothing; what follows the values it takes by :meth:`read_nowait`, or not at all. Where it is
        not true it has done nothing: it may be asked the same again.
        """
        self._refuse_elsewhere("receive")
        while True:
            values = self.unpack_nowait(layout)
            if values is not None:
                if not take(*values):
                    return values
                continue
            self._offered = layout, take
            try:
                await self._receive_at_least(layout.size)
            finally:
                self._offered = None

    async def read_into(self, buffer: BytesLike) -> None:
        """Fill the writable *buffer* with the next bytes.

        Cancelled, it has filled a part, which the next call receives again: the stream keeps a copy.
        """
        self._refuse_elsewhere("receive")
        if self._receiving:
            self._refuse_a_second()
        target = as_memoryview(buffer).cast("B")
        filled = min(len(target), self._end - self._start)
        target[:filled] = self._buffer[self._start : self._start + filled]
        self._start += filled
        if filled < len(target):
            await self._fill(target, filled)

    async def skip(self, size: int) -> None:
        """Receive *size* bytes and forget them."""
        while size:
            size -= len(await self.read(min(size, BUFFER_SIZE)))

    @property
    def received(self) -> int:
        """How many bytes have been received that nobody has read."""
        return self._end - self._start

    @property
    def has_more(self) -> bool:
        """Whether something has been received already that nobody has read."""
        return self._start != self._end

    async def _receive_at_least(self, size: int) -> None:
        """Have *size* bytes in the stream's own buffer."""
        if self._receiving:
            self._refuse_a_second()
        if size < 0:
            raise ValueError(f"size must not be negative, as {size} is")
        if size > BUFFER_SIZE:
            raise ValueError(f"at most {BUFFER_SIZE} bytes can be read at once, not {size}; use read_into()")
        self._receiving = True
        try:
            self._make_room()
            while self._end < size:
                if self._end:
                    self._incoming.begin(self._loop.time())
                await self._receive()
        finally:
            self._receiving = False
            if self._incoming.moving:
                self._incoming.end(self._loop.time())

    async def _fill(self, target: memoryview, filled: int) -> None:
        """Receive into what is left of *target*. The stream's own buffer is empty meanwhile."""
        self._receiving = True
        self._target, self._filled = target, filled
        try:
            self._incoming.begin(self._loop.time())
            while self._filled < len(target):
                await self._receive()
        except BaseException:
            if self._ended is None:
                self._receive_again(target[: self._filled])
            raise
        finally:
            self._receiving = False
            self._target = None
            self._incoming.end(self._loop.time())

    def _make_room(self) -> None:
        """Move what is left in the stream's own buffer, which is less than it holds, to its beginning."""
        if self._start == self._end and len(self._buffer) == BUFFER_SIZE:
            self._start = self._end = 0
            return
        left = self._buffer[self._start : self._end]
        if len(self._buffer) > BUFFER_SIZE:
            self._buffer = memoryview(bytearray(BUFFER_SIZE))
        self._buffer[: len(left)] = left
        self._start, self._end = 0, len(left)

    def _receive_again(self, data: memoryview) -> None:
        """Put what was received elsewhere into the stream's own buffer, which is empty."""
        if len(data) > len(self._buffer):
            self._buffer = memoryview(bytearray(data))
        else:
            self._buffer[: len(data)] = data
        self._start, self._end = 0, len(data)

    async def _receive(self) -> None:
        """Receive what there is, at least one byte, where it is wanted."""
        if self._ended is not None:
            raise DisconnectedError(self._ended)
        if self._probably_more:
            self._in_a_row = (self._in_a_row + 1) % MOST_IN_A_ROW
            if self._in_a_row == 0:
                await asyncio.sleep(0)  # a peer that always has more must let others have their turn
            if self._receive_now():
                return
        self._received = self._loop.create_future()
        if not self._watching:
            self._watching = True
            self._loop.add_reader(self._socket, self._on_readable)
        try:
            await self._received
        finally:
            self._received = None

    def _receive_now(self) -> bool:
        """Receive what there is, and count it at once: the task may be cancelled before it runs again."""
        if self._ended is None:
            target = self._buffer[self._end :] if self._target is None else self._target[self._filled :]
            try:
                size = self._socket.recv_into(target)
            except BlockingIOError:
                return False
            except OSError as error:
                self.abort(error.strerror or "receiving failed")
            else:
                if size:
                    if self._target is None:
                        self._end += size
                    else:
                        self._filled += size
                    self._probably_more = size == len(target)
                    if self._incoming.moving:
                        self._incoming.advance(size, self._loop.time())
                    return True
                self._end_receiving("the peer has closed the connection")
        raise DisconnectedError(self._ended)

    def _on_readable(self) -> None:
        received = self._received
        if received is None or received.done():
            # The receiving task is busy with what it has: leave the data in the socket, which makes a peer
            # that sends faster than it is served wait.
            self._stop_watching()
            return
        try:
            if self._receive_now() and (self._offered is None or not self._is_taken(*self._offered)):
                received.set_result(None)
        except DisconnectedError:
            pass  # ending has told who receives
        except Exception as error:
            if not received.done():
                received.set_exception(error)

    def _is_taken(self, layout: Struct, take: Callable[..., bool]) -> bool:
        """Offer what has come; whether all of it was taken that is whole, so that the task need not run."""
        size = layout.size
        self._receiving = False  # it is as if the task did
        try:
            while self._end - self._start >= size:
                self._start += size
                if not take(*layout.unpack_from(self._buffer, self._start - size)):
                    self._start -= size
                    return False
        finally:
            self._receiving = True
        if self._ended is not None:
            raise DisconnectedError(self._ended)
        self._make_room()
        if self._incoming.moving or self._end:
            now = self._loop.time()
            self._incoming.end(now)
            if self._end:
                self._incoming.begin(now)
        return True

    def _stop_watching(self) -> None:
        if self._watching:
            self._watching = False
            self._loop.remove_reader(self._socket)

    def _end_receiving(self, why: str) -> None:
        """Nothing more will come. What is to be sent still is, unless the peer has closed that way, too."""
        self._ended = why
        self._stop_watching()
        if self._received is not None and not self._received.done():
            self._received.set_exception(DisconnectedError(why))
        if self._taking.moving:
            self._flush()

    # --- sending --------------------------------------------------------------------------------------------

    def send(
        self, *parts: BytesLike, on_sent: Callable[[], object] | None = None, more: bool = False
    ) -> None:
        """Send the parts, after everything else; *on_sent* is called when their memory is free again.

        That is so when they have been sent, and when they never will be because the peer is gone: then it may
        be called before this returns. With *more*, the parts wait until the next turn of the loop for company
        on their way. The caller bounds how much is to be sent, with :class:`InFlight` for example.
        """
        if not self._outgoing:
            self._refuse_elsewhere("send")
        flat = [part if isinstance(part, AS_IT_IS) else as_memoryview(part).cast("B") for part in parts]
        self._outgoing.append((flat, sum(map(len, flat)), on_sent))
        del flat  # or its memory would be in use when it is given back
        if self._taking.moving or self._flush_scheduled or self._flushing:
            return
        if more:
            self._schedule_flush()
        else:
            self._flush()

    def _schedule_flush(self) -> None:
        self._flush_scheduled = True
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Hand to the kernel what it takes now, and the rest as soon as it can take it."""
        self._flush_scheduled = False
        if self._flushing:  # an on_sent has something to send, or ends it all: the call below goes on with it
            return
        self._flushing = True
        try:
            while self._outgoing and self._gone is None:
                try:
                    sent = self._socket.sendmsg(
                        list(islice(chain.from_iterable(map(_parts_of, self._outgoing)), MOST_BUFFERS))
                    )
                except BlockingIOError:
                    if not self._taking.moving:
                        self._taking.begin(self._loop.time())
                        self._loop.add_writer(self._socket, self._flush)
                    return
                except OSError as error:
                    self.abort(error.strerror or "sending failed")
                    break
                if self._taking.moving:
                    self._taking.advance(sent, self._loop.time())
                self._forget(sent)
            if self._gone is not None:
                self._forget(sum(size for _, size, _ in self._outgoing))
                if self._outgoing:  # by an on_sent, which would send for ever here
                    self._schedule_flush()
            elif self._taking.moving:
                self._taking.end(self._loop.time())
                self._loop.remove_writer(self._socket)
        finally:
            self._flushing = False

    def _forget(self, sent: int) -> None:
        """Drop the first *sent* bytes of what is to be sent."""
        outgoing = self._outgoing
        for _ in range(len(outgoing)):
            parts, size, on_sent = outgoing[0]
            if sent < size:
                if sent:
                    outgoing[0] = _without(parts, sent), size - sent, on_sent
                break
            sent -= size
            outgoing.popleft()
            del parts  # or its memory would be in use when it is given back
            if on_sent is not None:
                try:
                    on_sent()
                except Exception as error:
                    message = "what was to be called when data had been sent failed"
                    self._loop.call_exception_handler({"message": message, "exception": error})

    # --- the end --------------------------------------------------------------------------------------------

    def stalled(self) -> float:
        """For how many seconds the peer has been behind the least rate in the middle of something: sending
        what it has begun, or taking what is sent to it.

        A peer that does nothing falls behind by a second in each second, and whatever it sends or takes
        counts for as many seconds as it may take for that; it is never ahead. So one that drips stalls as
        surely as one that has stopped. A peer that owes nothing may be silent for as long as it likes: 0.

        A peer that was found to be gone is aborted. So ask every now and then, and abort who takes too long.
        """
        if self._gone is not None:
            return 0.0
        if error := self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            # libuv stops watching a socket that was reset, and uvloop does not pass that on.
            self.abort(os.strerror(error))
            return 0.0
        now = self._loop.time()
        return max(self._incoming.behind(now), self._taking.behind(now))

    def hung_up(self) -> bool:
        """Whether the peer has closed the connection, or its sending half, although not all that it has sent
        may have been received: for who is busy with something else than receiving."""
        if self._ended is not None:
            return True
        look = select.poll()
        look.register(self._socket, select.POLLRDHUP)
        return bool(look.poll(0))

    def abort(self, why: str) -> None:
        """Have done with the peer: whoever receives meets DisconnectedError(*why*), what was to be sent is
        dropped. Idempotent."""
        if self._gone is None:
            self._gone = why
            if self._ended is None:
                self._end_receiving(why)
            if self._taking.moving:
                self._taking.end(self._loop.time())
                self._loop.remove_writer(self._socket)
            self._flush()

    def close(self) -> None:
        """Close the socket; idempotent. What has not been sent is dropped."""
        self.abort("the connection is closed")
        self._socket.close()

    def _refuse_a_second(self) -> NoReturn:
        raise StreamBusyError("another task is receiving from the stream already", operation="receive")

    def _refuse_elsewhere(self, operation: str) -> None:
        if running_loop(operation) is not self._loop:
            raise UsageError("the stream belongs to another event loop", operation=operation)


def _without(parts: Parts, sent: int) -> Parts:
    """What is left of them without the first *sent* bytes."""
    left: Parts = []
    for part in parts:
        if sent < len(part):  # a part of bytes would be copied
            left.append((part if isinstance(part, View) else as_memoryview(part))[sent:] if sent else part)
            sent = 0
        else:
            sent -= len(part)
    return left


@final
class Pace:
    """How far a peer is behind a rate, in one direction, while it is in the middle of something.

    What it is behind when that ends, it is behind still when the next thing begins at once, and has made up
    for when it has rested as long.
    """

    __slots__ = ("_behind", "_ended", "_rate", "_since", "moving")

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self.moving: bool = False
        self._since = 0.0  # a peer that had kept to the rate would have begun then
        self._behind = self._ended = 0.0

    def begin(self, now: float) -> None:
        if not self.moving:
            self.moving = True
            self._since = now - max(0.0, self._behind - (now - self._ended))

    def advance(self, size: int, now: float) -> None:
        self._since = min(now, self._since + size / self._rate)

    def end(self, now: float) -> None:
        if self.moving:
            self._behind, self._ended = self.behind(now), now
            self.moving = False

    def behind(self, now: float) -> float:
        return now - self._since if self.moving else 0.0
