"""Transmission: commands arrive, become requests of the device, and are answered as those complete.

One task receives. It starts what it receives and goes on receiving, so that many commands of a client are in
flight together; the reply of each is sent from the callback of its request, in whichever order they complete.
Data travel through the client's share of the memory: the socket fills it and the device takes it, or the
other way round. They do so piece by piece, so that a command needs no more memory than its client may have,
and none for data that have not begun to arrive.
"""

import asyncio
import errno
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, final

from ..._device.extents import Extent, ExtentKind
from ..._memory.arena import ArenaBuffer
from ..._native._core import Request, View
from ...services.in_flight import InFlightShare
from ...services.socket_stream import DisconnectedError, SocketStream
from .. import protocol
from .export import STEP
from .handshake import Session
from .memory import Share

CHANGE = (protocol.WRITE, protocol.TRIM, protocol.WRITE_ZEROES)
FLAGS = {  # that a command may have
    protocol.READ: protocol.FUA | protocol.DF,
    protocol.WRITE: protocol.FUA,
    protocol.FLUSH: protocol.FUA,
    protocol.TRIM: protocol.FUA,
    protocol.CACHE: protocol.FUA,
    protocol.WRITE_ZEROES: protocol.FUA | protocol.NO_HOLE | protocol.FAST_ZERO,
    protocol.BLOCK_STATUS: protocol.FUA | protocol.REQ_ONE,
}
LONGEST_TEXT = 4096
PIECE = 256 << 10  # of data
BOUNDARY = 4096  # pieces meet at a multiple of it, so that no block belongs to two of them

# What the protocol has no number for is an input/output error.
ERRORS = {
    errno.EPERM: protocol.EPERM,
    errno.EACCES: protocol.EPERM,
    errno.EBADF: protocol.EPERM,
    errno.EROFS: protocol.EPERM,
    errno.ENOMEM: protocol.ENOMEM,
    errno.EINVAL: protocol.EINVAL,
    errno.ENOSPC: protocol.ENOSPC,
    errno.EDQUOT: protocol.ENOSPC,
    errno.EFBIG: protocol.ENOSPC,
    errno.ENOTSUP: protocol.ENOTSUP,
    errno.ESHUTDOWN: protocol.ESHUTDOWN,
}


Work: TypeAlias = Request[Any] | asyncio.Task[Any]


@final
@dataclass(slots=True)
class Command:
    kind: int
    flags: int
    cookie: int
    offset: int
    length: int
    unanswered: int
    """How many bytes of a read no reply has begun to answer."""
    parts: int = 1
    """Those not done: each piece, and the task that receives until it is through with the command."""
    flush: bool = False
    """What has been written is yet to be made durable."""
    extents: list[Extent] | None = None
    error: BaseException | None = None
    """The first that a part has met."""


@final
class Transmission:
    """One client's commands."""

    def __init__(self, stream: SocketStream, session: Session, places: InFlightShare, memory: Share) -> None:
        self._stream = stream
        self._export = session.export
        self._session = session
        self._share = memory
        self._in_flight = places
        self._long = asyncio.Lock()  # of the one command under way of those that may take long
        self._tasks: dict[asyncio.Task[Any], Command] = {}
        self._held_back: list[tuple[Command, bytes]] | None = None  # while a reply is sent piece by piece

    async def run(self) -> None:
        """Serve until the client says goodbye, and answer what is in flight in any case.

        Cancelled once, it receives no more and answers what is in flight; cancelled again, it gives up what
        may take long.

        Raises:
            DisconnectedError: the client is gone, or has to go.
        """
        try:
            while True:
                magic, flags, kind, cookie, offset, length = await self._stream.unpack(protocol.COMMAND)
                if magic != protocol.COMMAND_MAGIC:
                    raise DisconnectedError("the client sends commands without their magic number")
                if kind == protocol.DISC:
                    return
                if kind == protocol.WRITE and length > self._export.largest_payload:
                    raise DisconnectedError(f"the client sends {length} bytes at once")
                await self._in_flight.enter()  # or receive no more for now
                command = Command(kind, flags, cookie, offset, length, unanswered=length)
                try:
                    await self._begin(command)
                except BaseException as error:
                    command.error = command.error or _why(error)
                    raise
                finally:
                    self._end_part(command)
        except DisconnectedError:
            self._give_up(lambda _: True)  # nobody waits for it
            raise
        finally:
            await self._drain()

    async def _drain(self) -> None:
        self._give_up(lambda command: command.kind == protocol.CACHE)
        cancelled: asyncio.CancelledError | None = None
        while self._in_flight.requests:
            try:
                await self._in_flight.drain()
            except asyncio.CancelledError as error:
                cancelled = error
                self._give_up(lambda _: True)
        if cancelled is not None:
            raise cancelled

    def _give_up(self, which: Callable[[Command], bool]) -> None:
        for task, command in list(self._tasks.items()):
            if which(command):
                task.cancel()

    # --- from command to request ----------------------------------------------------------------------------

    async def _begin(self, command: Command) -> None:
        """Submit what the command asks for; its end is answered by itself."""
        if refusal := self._refusal(command):
            command.error = refusal
            if command.kind == protocol.WRITE:
                await self._stream.skip(command.length)
        elif not command.length or command.kind not in (protocol.READ, protocol.WRITE):
            self._begin_without_data(command)
        elif command.kind == protocol.WRITE:
            await self._receive_and_write(command)
        elif self._session.structured_replies and not command.flags & protocol.DF:
            await self._read_in_chunks(command)
        else:
            await self._read_at_once(command)

    def _refusal(self, command: Command) -> "_RefusedError | None":
        """What is wrong with the command."""
        export, kind, length = self._export, command.kind, command.length
        if kind in CHANGE and export.read_only:
            return _RefusedError(protocol.EPERM, "the export is read-only")
        if command.offset + length > export.size:
            number = protocol.ENOSPC if kind == protocol.WRITE else protocol.EINVAL
            return _RefusedError(number, "the range ends beyond the export")
        if kind == protocol.READ and length > export.largest_payload:
            return _RefusedError(
                protocol.EINVAL, f"at most {export.largest_payload} bytes can be read at once"
            )
        if kind not in FLAGS:
            return _RefusedError(protocol.EINVAL, f"there is no command {kind}")
        if command.flags & ~FLAGS[kind]:
            return _RefusedError(protocol.EINVAL, f"the flags {command.flags:#x} do not suit the command")
        if kind == protocol.BLOCK_STATUS and not (self._session.base_allocation and length):
            return _RefusedError(protocol.EINVAL, "a block status needs a length and a metadata context")
        return None

    def _begin_without_data(self, command: Command) -> None:
        kind = command.kind
        by_steps = kind in (protocol.TRIM, protocol.WRITE_ZEROES) and command.length > STEP
        if by_steps or kind in (protocol.CACHE, protocol.BLOCK_STATUS):
            submit = partial(self._one_by_one, command)
        else:
            submit = partial(self._submit, command)
        self._begin_part(command, submit, partial(self._finished, command))

    async def _one_by_one(self, command: Command) -> Any:
        """A client's commands that may take long: no number of them takes the device from others."""
        async with self._long:
            return await self._submit(command)

    def _submit(self, command: Command) -> Coroutine[Any, Any, Any]:
        """The device's work. What is wrong with it is raised here or when it is done."""
        export, offset, length = self._export, command.offset, command.length
        fua = bool(command.flags & protocol.FUA)
        match command.kind:
            case protocol.READ:  # of nothing, and so is the write
                return export.bytes.read_into(offset, bytearray())
            case protocol.WRITE:
                return export.bytes.write(offset, b"", fua=fua)
            case protocol.WRITE_ZEROES:
                no_hole, fast = command.flags & protocol.NO_HOLE, command.flags & protocol.FAST_ZERO
                return export.write_zeroes(
                    offset, length, fua=fua, no_unmap=bool(no_hole), no_fallback=bool(fast)
                )
            case protocol.TRIM:
                return export.trim(offset, length, fua=fua)
            case protocol.CACHE:
                return export.cache(offset, length)
            case protocol.BLOCK_STATUS:
                return export.extents(offset, length, one=bool(command.flags & protocol.REQ_ONE))
            case _:
                return export.bytes.flush()

    def _finished(self, command: Command, work: Work) -> None:
        if not (error := _error_of(work)) and command.kind == protocol.BLOCK_STATUS:
            command.extents = work.result()
        self._end_part(command, error)

    # --- data -----------------------------------------------------------------------------------------------

    async def _receive_and_write(self, command: Command) -> None:
        """Take memory for a piece, fill it, and have it written while the next one arrives."""
        position, end = command.offset, command.offset + command.length
        fua = bool(command.flags & protocol.FUA)
        while position < end and not command.error:
            buffer = await self._share.take(min(end - position, PIECE))
            data = _piece(buffer, position, end)
            try:
                await self._stream.read_into(data)
            except BaseException:
                self._share.give_back(buffer)
                raise
            in_one = len(data) == command.length
            command.flush = fua and not in_one
            submit = partial(self._export.bytes.write, position, data, fua=fua and in_one)
            position += len(data)  # before the buffer has been given back
            self._begin_part(command, submit, partial(self._written, command, buffer), buffer)
        await self._stream.skip(end - position)

    def _written(self, command: Command, buffer: ArenaBuffer, work: Work) -> None:
        self._end_part(command, _error_of(work), buffer)

    async def _read_in_chunks(self, command: Command) -> None:
        """A structured reply has as many chunks as there are pieces; other replies may go between them."""
        position, end = command.offset, command.offset + command.length
        while position < end and not command.error:
            buffer = await self._share.take(min(end - position, PIECE))
            data = _piece(buffer, position, end)
            submit = partial(self._export.bytes.read_into, position, data)
            done = partial(self._send_data, command, position, data, buffer)
            position += len(data)
            self._begin_part(command, submit, done, buffer)

    def _send_data(
        self, command: Command, position: int, data: View, buffer: ArenaBuffer, work: Work
    ) -> None:
        """A piece has been read: part of a structured reply, or all of any."""
        if error := _error_of(work):
            self._end_part(command, error, buffer)
            return
        command.unanswered -= len(data)
        if self._session.structured_replies:
            head = _data_head(command, position, len(data), last=not command.unanswered)
        else:
            head = _simple_head(command, 0)
        self._stream.send(
            head, data, on_sent=partial(self._end_part, command, None, buffer), more=self._more_to_come()
        )

    async def _read_at_once(self, command: Command) -> None:
        """A reply that cannot be divided: all of it is read before, if the client may have as much memory."""
        buffer = await self._share.take(command.length)
        if len(buffer) == command.length:
            submit = partial(self._export.bytes.read_into, command.offset, buffer)
            done = partial(self._send_data, command, command.offset, buffer, buffer)
            self._begin_part(command, submit, done, buffer)
        else:
            # It goes on when this task is cancelled: nobody would understand half a reply.
            command.parts += 1
            await asyncio.shield(asyncio.create_task(self._read_and_send(command, buffer)))

    async def _read_and_send(self, command: Command, buffer: ArenaBuffer) -> None:
        """Read and send piece after piece. Nothing else may come between, so other replies wait.

        No other data are on their way: the client's share was as good as empty. Once the reply has begun, an
        error can only end the connection.
        """
        position, end = command.offset, command.offset + command.length
        if self._session.structured_replies:
            head = _data_head(command, position, command.length, last=True)
        else:
            head = _simple_head(command, 0)
        self._held_back = []
        try:
            while True:
                try:
                    await self._export.bytes.read_into(position, buffer)
                except BaseException:
                    self._share.give_back(buffer)
                    raise
                command.parts += 1
                command.unanswered -= len(buffer)
                position += len(buffer)
                self._stream.send(head, buffer, on_sent=partial(self._end_part, command, None, buffer))
                head = b""
                if position == end:
                    return
                buffer = await self._share.take(min(end - position, PIECE))
        except Exception as error:
            command.error = error
            if position > command.offset:
                self._stream.abort(f"reading failed in the middle of a reply: {error}")
        finally:
            held_back, self._held_back = self._held_back, None
            for other, reply in held_back:
                self._send(other, reply)
            self._end_part(command)

    # --- parts ----------------------------------------------------------------------------------------------

    def _begin_part(
        self,
        command: Command,
        submit: Callable[[], Coroutine[Any, Any, Any]],
        done: Callable[[Work], None],
        buffer: ArenaBuffer | None = None,
    ) -> None:
        """One request, as a rule; what takes several becomes a task."""
        command.parts += 1
        try:
            begun = submit()
        except Exception as error:
            self._end_part(command, error, buffer)
            return
        if isinstance(begun, Request):
            work: Work = begun
        else:
            work = asyncio.create_task(begun)
            if buffer is None:
                self._tasks[work] = command
                work.add_done_callback(self._tasks.pop)
        # A request whose outcome is asked for before the next one is made goes to the device by itself. So
        # that is done only when no other commands are here to go with it.
        if not self._stream.has_more and work.done():
            done(work)
        else:
            work.add_done_callback(done)

    def _end_part(
        self, command: Command, error: BaseException | None = None, buffer: ArenaBuffer | None = None
    ) -> None:
        """Give its memory back; after the last one, answer."""
        if buffer is not None:
            self._share.give_back(buffer)
        command.error = command.error or error
        command.parts -= 1
        if command.parts:
            return
        if command.kind == protocol.READ and command.length and not command.unanswered:
            self._in_flight.leave()  # the data were the answer
        elif command.error is not None:
            self._fail(command, command.error)
        elif command.flush:
            command.flush = False
            self._begin_part(command, self._export.bytes.flush, partial(self._finished, command))
        elif command.extents is not None:
            states = b"".join(map(_describe, command.extents))
            self._send_chunk(command, protocol.REPLY_BLOCK_STATUS, BASE_ALLOCATION + states)
        elif command.kind == protocol.READ and self._session.structured_replies:
            self._send_chunk(command, protocol.REPLY_NONE)
        else:
            self._send(command, _simple_head(command, 0))

    # --- replies --------------------------------------------------------------------------------------------

    def _fail(self, command: Command, error: BaseException) -> None:
        number = ERRORS.get(error.errno or 0, protocol.EIO) if isinstance(error, OSError) else protocol.EIO
        if self._session.structured_replies:
            text = str(error).encode()[:LONGEST_TEXT]
            self._send_chunk(command, protocol.REPLY_ERROR, protocol.ERROR.pack(number, len(text)) + text)
        else:
            self._send(command, _simple_head(command, number))

    def _send_chunk(self, command: Command, kind: int, body: bytes = b"") -> None:
        """The only chunk of a structured reply, or the last one."""
        head = protocol.STRUCTURED_REPLY.pack(
            *(protocol.STRUCTURED_REPLY_MAGIC, protocol.REPLY_DONE, kind), *(command.cookie, len(body))
        )
        self._send(command, head + body)

    def _send(self, command: Command, reply: bytes) -> None:
        """The end of a command."""
        if self._held_back is not None:
            self._held_back.append((command, reply))
        else:
            self._stream.send(reply, on_sent=self._in_flight.leave, more=self._more_to_come())

    def _more_to_come(self) -> bool:
        """More replies are on their way soon if more commands are."""
        return self._in_flight.requests > 1 or self._stream.has_more


class _RefusedError(OSError):
    """A command that is wrong: an error of the protocol's, and words."""

    def __str__(self) -> str:
        return str(self.strerror)


def _why(error: BaseException) -> BaseException:
    """What the task that receives tells of its end. No exception is kept: it would keep memory in use."""
    if isinstance(error, asyncio.CancelledError):
        return _RefusedError(errno.ESHUTDOWN, "the server ends")
    return _RefusedError(errno.EIO, str(error))


def _error_of(work: Work) -> BaseException | None:
    if work.cancelled():
        return _RefusedError(errno.ESHUTDOWN, "the server ends")
    return work.exception()


def _piece(buffer: ArenaBuffer, position: int, end: int) -> View:
    """As much of the buffer as makes a good piece: one that ends at a boundary, or at the end."""
    size = len(buffer)
    if position + size >= end:
        return buffer
    excess = (position + size) % BOUNDARY
    return buffer[: size - excess] if excess else buffer


def _simple_head(command: Command, error: int) -> bytes:
    return protocol.SIMPLE_REPLY.pack(protocol.SIMPLE_REPLY_MAGIC, error, command.cookie)


def _data_head(command: Command, position: int, length: int, *, last: bool) -> bytes:
    return protocol.DATA_REPLY.pack(
        *(protocol.STRUCTURED_REPLY_MAGIC, protocol.REPLY_DONE if last else 0, protocol.REPLY_OFFSET_DATA),
        *(command.cookie, length + 8, position),
    )


BASE_ALLOCATION = protocol.U32.pack(protocol.BASE_ALLOCATION_ID)


def _describe(extent: Extent) -> bytes:
    is_hole = extent.kind is ExtentKind.HOLE
    return protocol.EXTENT.pack(
        extent.length, protocol.STATE_HOLE | protocol.STATE_ZERO if is_hole else protocol.STATE_DATA
    )
