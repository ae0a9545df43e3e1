"""Transmission: commands arrive, become requests of the device, and are answered as those complete.

One task receives. It starts what it receives and goes on receiving, so that many commands of a client are in
flight together; the reply of each is sent from the callback of its request, in whichever order they complete.
Data travel through the client's share of the memory: the socket fills it and the device takes it, or the
other way round. They do so piece by piece, so that a command needs no more memory than its client may have,
and none for data that have not begun to arrive.
"""

import asyncio
import errno
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any, TypeAlias, final

from ..._memory.arena import ArenaBuffer, ArenaShare
from ..._native._core import Request, View
from ...services.in_flight import InFlightShare
from ...services.socket_stream import DisconnectedError
from .. import protocol
from . import zeroes
from .command import Command, Inquiry
from .contexts import MOST_STATES
from .export import CACHED_AT_ONCE
from .handshake import Session
from .policy import GRANULE
from .statistics import Counts

DATA = (protocol.READ, protocol.WRITE)
CHANGE = (protocol.WRITE, protocol.TRIM, protocol.WRITE_ZEROES)
PIECE = 256 << 10  # of data
BOUNDARY = 4096  # pieces meet at a multiple of it, so that no block belongs to two of them
LOST_BY_OTHERS = "a flush of the device has failed meanwhile: what was written before may be gone"

STEP = 32 << 20  # what is zeroed or trimmed at once: a command may ask for everything, and its client go away
MOST_CACHED = 32 << 20  # for a command, which is advice

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
Submit: TypeAlias = Callable[[], Coroutine[Any, Any, Any]]


@final
class Transmission:
    """One client's commands."""

    def __init__(self, session: Session, places: InFlightShare, memory: ArenaShare, counts: Counts) -> None:
        self._stream = session.stream
        self._export = session.export
        self._told = session.export.backend.failed_flushes
        self._dialect = session.dialect
        self._contexts = session.contexts
        self._share = memory
        self._commands, self._bytes, self._errors = counts.commands, counts.bytes, counts.errors
        self._in_flight = places
        self._long = asyncio.Lock()  # of the one command under way of those that may take long,
        self._asking = asyncio.Lock()  # and of the one that asks about ranges
        self._tasks: dict[asyncio.Task[Any], Command] = {}
        self._left: asyncio.Future[None] | None = None  # the receiving task waits for a command to be over
        self._held_back: list[tuple[Command, bytes]] | None = None  # while a reply is sent piece by piece

    async def run(self) -> None:
        """Serve until the client says goodbye, and answer what is in flight in any case.

        Cancelled once, it receives no more and answers what is in flight; cancelled again, it gives up what
        may take long.

        Raises:
            DisconnectedError: the client is gone, or has to go.
        """
        dialect, stream, most = self._dialect, self._stream, self._export.largest_payload
        layout, expected, has_payloads = dialect.layout, dialect.magic, dialect.has_payloads
        try:
            while True:
                head = await stream.unpack_while(layout, self._begin_in_one)
                magic, flags, kind, cookie, offset, length = head
                if magic != expected:
                    raise DisconnectedError("the client sends commands without their magic number")
                if kind == protocol.DISC:
                    return
                # QEMU's clients do not say of a write that its data follow.
                has_payload = kind == protocol.WRITE or (has_payloads and flags & protocol.PAYLOAD_LEN)
                payload = length if has_payload else 0
                if payload > most:
                    raise DisconnectedError(f"the client sends {payload} bytes at once")
                await self._in_flight.enter()  # or receive no more for now
                command = Command(kind, flags, cookie, offset, length, payload)
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

    async def _until_alone(self) -> None:
        """Wait until no other command is in flight."""
        while self._in_flight.requests > 1:
            self._left = asyncio.get_running_loop().create_future()
            await self._left

    def _leave(self) -> None:
        """A command has been answered."""
        self._in_flight.leave()
        if self._left is not None and not self._left.done():
            self._left.set_result(None)

    def _give_up(self, which: Callable[[Command], bool]) -> None:
        for task, command in list(self._tasks.items()):
            if which(command):
                task.cancel()

    # --- from command to request ----------------------------------------------------------------------------

    def _begin_in_one(self, magic: int, flags: int, kind: int, cookie: int, offset: int, length: int) -> bool:
        """Begin a read or a write that is right, of one piece, and waits for nothing: whether it is.

        Most are, and begin in half the time that the other way takes.
        """
        stream, dialect, is_write = self._stream, self._dialect, kind == protocol.WRITE
        if (
            magic != dialect.magic
            or kind not in DATA
            or not 0 < length <= PIECE
            or offset + length > self._export.size
            or flags & ~dialect.flags[kind]
            or (is_write and (self._export.read_only or stream.received < length))
            or not self._in_flight.enter_nowait()
        ):
            return False
        if (buffer := self._share.acquire_nowait(length)) is None:
            self._in_flight.leave()
            return False
        command = Command(kind, flags, cookie, offset, length, 0)
        self._commands[kind] += 1
        self._bytes[kind] += length
        device = self._export.bytes
        try:
            if is_write:
                buffer[:] = stream.read_nowait(length)
                work = device.write(offset, buffer, fua=bool(flags & protocol.FUA))
                done = partial(self._written, command, offset, buffer)
            else:
                work = device.read_into(offset, buffer)
                done = partial(self._sender(command), command, offset, buffer, buffer)
        except (Exception, asyncio.CancelledError) as error:
            self._end_part(command, error, buffer)
        else:
            self._follow(work, done)
        return True

    def _sender(self, command: Command) -> Callable[..., None]:
        """Whether zeroes in the reply are worth a look, and may go as holes."""
        may_be = (
            command.length >= zeroes.BLOCK and self._dialect.has_chunks and not command.flags & protocol.DF
        )
        return self._send_data_or_holes if may_be else self._send_data

    async def _begin(self, command: Command) -> None:
        """Submit what the command asks for; its end is answered by itself."""
        kind, refusal = command.kind, None
        if kind == protocol.BLOCK_STATUS:
            refusal = await self._prepare_to_ask(command)
        if refusal := refusal or self._refusal(command):
            command.error = refusal
            await self._stream.skip(command.payload)
            return
        self._commands[kind] += 1
        self._bytes[kind] += command.length
        if not command.length or kind not in DATA:
            self._begin_without_data(command)
        elif kind == protocol.WRITE:
            await self._receive_and_write(command)
        elif self._dialect.has_chunks and not command.flags & protocol.DF:
            await self._read_in_chunks(command)
        else:
            await self._read_at_once(command)

    def _refusal(self, command: Command) -> "_RefusedError | None":
        """What is wrong with the command."""
        export, kind, length = self._export, command.kind, command.length
        if (flags := self._dialect.flags.get(kind)) is None:
            return _RefusedError(protocol.EINVAL, f"there is no command {kind}")
        if command.flags & ~flags:
            return _RefusedError(protocol.EINVAL, f"the flags {command.flags:#x} do not suit the command")
        if kind in CHANGE and export.read_only:
            return _RefusedError(protocol.EPERM, "the export is read-only")
        if command.offset + length > export.size:
            is_change = kind in (protocol.WRITE, protocol.WRITE_ZEROES)
            number = protocol.ENOSPC if is_change else protocol.EINVAL
            return _RefusedError(number, "the range ends beyond the export")
        if kind == protocol.READ and length > export.largest_payload:
            return _RefusedError(
                protocol.EINVAL, f"at most {export.largest_payload} bytes can be read at once"
            )
        if kind == protocol.BLOCK_STATUS and not (command.inquiry and length):
            return _RefusedError(protocol.EINVAL, "a block status needs a length and a metadata context")
        return None

    # --- without data ---------------------------------------------------------------------------------------

    def _begin_without_data(self, command: Command) -> None:
        kind = command.kind
        if command.inquiry is not None:
            submit: Submit = partial(self._ask, command, command.inquiry)
        elif kind == protocol.CACHE or (
            command.length > STEP and kind in (protocol.TRIM, protocol.WRITE_ZEROES)
        ):
            submit = partial(self._go_step_by_step, command)
        else:
            submit = partial(self._submit, command, command.offset, command.length)
        self._begin_part(command, submit, partial(self._finished, command))

    async def _go_step_by_step(self, command: Command) -> None:
        """A client's commands that may take long: no number of them takes the device from others, and none
        goes on for long when the client is gone."""
        kind = command.kind
        length, step = command.length, STEP
        if kind == protocol.CACHE:
            length, step = min(length, MOST_CACHED), CACHED_AT_ONCE
        command.flush = kind != protocol.CACHE and bool(command.flags & protocol.FUA)
        async with self._long:
            for offset, size in _steps(command.offset, length, step):
                if self._stream.hung_up():
                    raise _RefusedError(errno.ESHUTDOWN, "the client is gone")
                command.at = offset
                await self._submit(command, offset, size)

    def _submit(self, command: Command, offset: int, length: int) -> Coroutine[Any, Any, Any]:
        """The device's work. What is wrong with it is raised here or when it is done."""
        export = self._export
        match command.kind:
            case protocol.READ:  # of nothing, and so is the write
                return export.bytes.read_into(offset, bytearray())
            case protocol.WRITE:
                return export.bytes.write(offset, b"", fua=bool(command.flags & protocol.FUA))
            case protocol.WRITE_ZEROES:
                no_hole, fast = command.flags & protocol.NO_HOLE, command.flags & protocol.FAST_ZERO
                return export.bytes.write_zeroes(
                    *(offset, length),
                    fua=not command.flush and bool(command.flags & protocol.FUA),
                    no_unmap=bool(no_hole),
                    no_fallback=bool(fast),
                )
            case protocol.TRIM:
                command.flush = bool(command.flags & protocol.FUA)
                return export.bytes.discard(offset, length)
            case protocol.CACHE:
                return export.cache(offset, length)
            case _:
                return export.bytes.flush()

    def _finished(self, command: Command, work: Work) -> None:
        self._end_part(command, _error_of(work), at=command.at)

    # --- block status ---------------------------------------------------------------------------------------

    async def _prepare_to_ask(self, command: Command) -> "_RefusedError | None":
        """Whom the command asks: all contexts that were chosen, or those that its payload has. What is wrong
        with that."""
        if not (size := command.payload):
            command.inquiry = Inquiry(tuple(self._contexts.items())) if self._contexts else None
            return None
        numbers, excess = divmod(size - protocol.STATUS_PAYLOAD.size, protocol.U32.size)
        if excess or not 1 <= numbers <= len(self._contexts):
            return _RefusedError(
                protocol.EINVAL, f"a payload of {size} bytes does not name some of the metadata contexts"
            )
        data = bytes(await self._stream.read(size))
        command.payload = 0
        (command.length,) = protocol.STATUS_PAYLOAD.unpack_from(data)
        chosen = {number for (number,) in protocol.U32.iter_unpack(data[protocol.STATUS_PAYLOAD.size :])}
        if len(chosen) < numbers or not chosen <= self._contexts.keys():
            return _RefusedError(
                protocol.EINVAL, "the payload names a metadata context twice or an unknown one"
            )
        command.inquiry = Inquiry(tuple((number, self._contexts[number]) for number in sorted(chosen)))
        return None

    async def _ask(self, command: Command, inquiry: Inquiry) -> None:
        most = 1 if command.flags & protocol.REQ_ONE else MOST_STATES
        async with self._asking:
            last, _ = inquiry.contexts[-1]
            for number, context in inquiry.contexts:
                states = await context.states(command.offset, command.length, most)
                inquiry.reply += self._dialect.status(command, number, states, last=number == last)

    # --- data -----------------------------------------------------------------------------------------------

    def _take(self, length: int) -> Coroutine[Any, Any, ArenaBuffer]:
        """A buffer of *length* bytes, or of as many as there is memory for: the rest goes piece by piece."""
        return self._share.acquire(length, at_least=min(length, GRANULE))

    async def _receive_and_write(self, command: Command) -> None:
        """Take memory for a piece, fill it, and have it written while the next one arrives."""
        position, end = command.offset, command.offset + command.length
        fua = bool(command.flags & protocol.FUA)
        while position < end and not command.error:
            buffer = await self._take(min(end - position, PIECE))
            data = _piece(buffer, position, end)
            try:
                await self._stream.read_into(data)
            except BaseException:
                buffer.release()
                raise
            in_one = len(data) == command.length
            command.flush = fua and not in_one
            submit = partial(self._export.bytes.write, position, data, fua=fua and in_one)
            at = position
            position += len(data)  # before the buffer has been given back
            self._begin_part(command, submit, partial(self._written, command, at, buffer), buffer)
        await self._stream.skip(end - position)

    def _written(self, command: Command, position: int, buffer: ArenaBuffer, work: Work) -> None:
        self._end_part(command, _error_of(work), buffer, position)

    async def _read_in_chunks(self, command: Command) -> None:
        """A structured reply has as many chunks as there are pieces; other replies may go between them."""
        position, end = command.offset, command.offset + command.length
        send = self._sender(command)
        while position < end and not command.error:
            buffer = await self._take(min(end - position, PIECE))
            data = _piece(buffer, position, end)
            submit = partial(self._export.bytes.read_into, position, data)
            done = partial(send, command, position, data, buffer)
            position += len(data)
            self._begin_part(command, submit, done, buffer)

    def _send_data(
        self, command: Command, position: int, data: View, buffer: ArenaBuffer, work: Work
    ) -> None:
        """A piece has been read: part of a reply in chunks, or all of any."""
        if error := _error_of(work):
            self._end_part(command, error, buffer, position)
            return
        command.unanswered -= len(data)
        head = self._dialect.data(command, position, len(data), last=not command.unanswered)
        self._stream.send(
            head, data, on_sent=partial(self._end_part, command, None, buffer), more=self._more_to_come()
        )

    def _send_data_or_holes(
        self, command: Command, position: int, data: View, buffer: ArenaBuffer, work: Work
    ) -> None:
        """A piece of a long reply in chunks has been read."""
        if error := _error_of(work):
            self._end_part(command, error, buffer, position)
            return
        command.unanswered -= len(data)
        parts: list[bytes | View] = []
        for start, stop, is_hole in zeroes.stretches(data, position):
            last = not command.unanswered and stop == len(data)
            if is_hole:
                parts.append(self._dialect.hole(command, position + start, stop - start, last=last))
            else:
                parts.append(self._dialect.data(command, position + start, stop - start, last=last))
                parts.append(data[start:stop])
        sent = partial(self._end_part, command, None, buffer)
        self._stream.send(*parts, on_sent=sent, more=self._more_to_come())

    async def _read_at_once(self, command: Command) -> None:
        """A reply that cannot be divided: all of it is read before, if the client may have as much memory."""
        buffer = await self._take(command.length)
        if len(buffer) < command.length and self._in_flight.requests > 1:
            buffer.release()
            await self._until_alone()
            buffer = await self._take(command.length)
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

        No other data are on their way: the command is the only one in flight. Once the reply has begun, an
        error can only end the connection.
        """
        position, end = command.offset, command.offset + command.length
        head = self._dialect.data(command, position, command.length, last=True)
        self._held_back = []
        try:
            while True:
                try:
                    await self._export.bytes.read_into(position, buffer)
                except BaseException:
                    buffer.release()
                    raise
                command.parts += 1
                command.unanswered -= len(buffer)
                position += len(buffer)
                self._stream.send(head, buffer, on_sent=partial(self._end_part, command, None, buffer))
                head = b""
                if position == end:
                    return
                buffer = await self._take(min(end - position, PIECE))
        except Exception as error:
            command.error, command.at = error, position
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
        submit: Submit,
        done: Callable[[Work], None],
        buffer: ArenaBuffer | None = None,
    ) -> None:
        """One request, as a rule; what takes several becomes a task."""
        command.parts += 1
        try:
            begun = submit()
        except (Exception, asyncio.CancelledError) as error:
            self._end_part(command, error, buffer)
            return
        work = self._follow(begun, done)
        if buffer is None and not isinstance(work, Request):
            self._tasks[work] = command
            work.add_done_callback(self._tasks.pop)

    def _follow(self, begun: Coroutine[Any, Any, Any], done: Callable[[Work], None]) -> Work:
        """Have *done* called when what has begun is."""
        work: Work = begun if isinstance(begun, Request) else asyncio.create_task(begun)
        # A request whose outcome is asked for before the next one is made goes to the device by itself. So
        # that is done only when no other commands are here to go with it.
        if not self._stream.has_more and work.done():
            done(work)
        else:
            work.add_done_callback(done)
        return work

    def _end_part(
        self,
        command: Command,
        error: BaseException | None = None,
        buffer: ArenaBuffer | None = None,
        at: int | None = None,
    ) -> None:
        """Give its memory back; after the last one, answer. *at* is where an error was met."""
        if buffer is not None:
            buffer.release()
        if error is not None and command.error is None:
            command.error, command.at = error, at
        command.parts -= 1
        if command.parts:
            return
        if command.kind == protocol.READ and command.length and not command.unanswered:
            self._leave()  # the data were the answer
        elif command.error is not None:
            self._fail(command, command.error)
        elif command.flush:
            command.flush = False
            command.at = None
            self._begin_part(command, self._export.bytes.flush, partial(self._finished, command))
        elif command.inquiry is not None:
            self._send(command, command.inquiry.reply)
        elif command.kind == protocol.FLUSH and self._is_in_doubt():
            self._fail(command, _RefusedError(errno.EIO, LOST_BY_OTHERS))
        else:
            self._send(command, self._dialect.done(command))

    # --- replies --------------------------------------------------------------------------------------------

    def _is_in_doubt(self) -> bool:
        """Whether a flush has failed since this client was last told of one."""
        told, self._told = self._told, self._export.backend.failed_flushes
        return told < self._told

    def _fail(self, command: Command, error: BaseException) -> None:
        number = ERRORS.get(error.errno or 0, protocol.EIO) if isinstance(error, OSError) else protocol.EIO
        self._errors[number] += 1
        if not isinstance(error, _RefusedError):
            backend = self._export.backend
            backend.note(error)
            if command.kind == protocol.FLUSH:
                backend.failed_flushes += 1
                self._told = backend.failed_flushes
            elif command.flags & protocol.FUA and number == protocol.EIO:
                backend.failed_flushes += 1
        at = command.at if command.length else None  # of no byte none is the place
        self._send(command, self._dialect.error(command, number, str(error).encode(errors="replace"), at))

    def _send(self, command: Command, reply: bytes) -> None:
        """The end of a command."""
        if self._held_back is not None:
            self._held_back.append((command, reply))
        else:
            self._stream.send(reply, on_sent=self._leave, more=self._more_to_come())

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
    try:
        return work.exception()
    except asyncio.CancelledError:
        return _RefusedError(errno.ESHUTDOWN, "the server ends")


def _piece(buffer: ArenaBuffer, position: int, end: int) -> View:
    """As much of the buffer as makes a good piece: one that ends at a boundary, or at the end."""
    size = len(buffer)
    if position + size >= end:
        return buffer
    excess = (position + size) % BOUNDARY
    return buffer[: size - excess] if excess else buffer


def _steps(offset: int, length: int, step: int) -> Iterator[tuple[int, int]]:
    """Offsets and lengths, so that all but the last step end at a multiple of a step's length."""
    end = offset + length
    while offset < end:
        size = min(end, (offset // step + 1) * step) - offset
        yield offset, size
        offset += size
