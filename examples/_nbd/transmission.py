"""Transmission: commands arrive, become requests of the device, and are answered as those complete.

One task receives. It starts what it receives and goes on receiving, so that many commands of a client are in
flight together; the reply of each is sent from the callback of its request, in whichever order they complete.
Data travel through the arena's memory: the socket fills it and the device takes it, or the other way round.
"""

import asyncio
import errno
from collections.abc import Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, final

import aioblk

from . import protocol
from .export import Export
from .handshake import Session

CARRY_DATA = (protocol.READ, protocol.WRITE)
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
}


Work: TypeAlias = aioblk.Request[Any] | asyncio.Task[Any]


@final
@dataclass(slots=True)
class Command:
    kind: int
    flags: int
    cookie: int
    offset: int
    length: int
    data_length: int
    """How much of it is data that come or go with the command."""
    buffer: aioblk.ArenaBuffer | None = None


@final
class Transmission:
    """One client's commands."""

    def __init__(
        self, stream: aioblk.SocketStream, export: Export, session: Session, in_flight: aioblk.InFlight
    ) -> None:
        self._stream = stream
        self._export = export
        self._session = session
        self._in_flight = in_flight

    async def run(self) -> None:
        """Serve until the client says goodbye, and answer what is in flight in any case.

        Raises:
            aioblk.DisconnectedError: the client is gone, or has to go.
        """
        try:
            while True:
                magic, flags, kind, cookie, offset, length = await self._stream.unpack(protocol.COMMAND)
                if magic != protocol.COMMAND_MAGIC:
                    raise aioblk.DisconnectedError("the client sends commands without their magic number")
                if kind == protocol.DISC:
                    return
                if kind == protocol.WRITE and length > self._export.largest_payload:
                    raise aioblk.DisconnectedError(f"the client sends {length} bytes at once")
                data_length = length if kind in CARRY_DATA else 0
                command = Command(kind, flags, cookie, offset, length, data_length)
                await self._in_flight.enter(command.data_length)  # or receive no more for now
                try:
                    await self._begin(command)
                except BaseException:
                    self._finish(command)
                    raise
        finally:
            await self._in_flight.drain()

    def _finish(self, command: Command) -> None:
        """The reply has been sent, or never will be."""
        if command.buffer is not None:
            command.buffer.release()
        self._in_flight.leave(command.data_length)

    # --- from command to request ----------------------------------------------------------------------------

    async def _begin(self, command: Command) -> None:
        """Submit what the command asks for; its end is answered by itself."""
        if refusal := self._refusal(command):
            if command.kind == protocol.WRITE:
                await self._stream.skip(command.length)
            self._refuse(command, *refusal)
            return
        if command.data_length:
            command.buffer = await self._export.arena.acquire(command.length)
            if command.kind == protocol.WRITE:
                await self._stream.read_into(command.buffer)
        try:
            begun = self._submit(command)  # one request, as a rule; what takes several becomes a task
            work: Work = begun if isinstance(begun, aioblk.Request) else asyncio.create_task(begun)
        except aioblk.BlkioError as error:
            self._fail(command, error)
            return
        # A request whose outcome is asked for before the next one is made goes to the device by itself. So
        # that is done only when no other commands are here to go with it.
        if not self._stream.has_more and work.done():
            self._answer(command, work)
        else:
            work.add_done_callback(partial(self._answer, command))

    def _refusal(self, command: Command) -> tuple[int, str] | None:
        """What is wrong with the command: the protocol's number, and words."""
        export, kind, length = self._export, command.kind, command.length
        if kind in CHANGE and export.read_only:
            return protocol.EPERM, "the export is read-only"
        if command.offset + length > export.size:
            number = protocol.ENOSPC if kind == protocol.WRITE else protocol.EINVAL
            return number, "the range ends beyond the export"
        if kind == protocol.READ and length > export.largest_payload:
            return protocol.EINVAL, f"at most {export.largest_payload} bytes can be read at once"
        if kind not in FLAGS:
            return protocol.EINVAL, f"there is no command {kind}"
        if command.flags & ~FLAGS[kind]:
            return protocol.EINVAL, f"the flags {command.flags:#x} do not suit the command"
        if kind == protocol.BLOCK_STATUS and not (self._session.base_allocation and length):
            return protocol.EINVAL, "a block status needs a length and a metadata context"
        return None

    def _submit(self, command: Command) -> Coroutine[Any, Any, Any]:
        """The device's work. What is wrong with it is raised here or when it is done."""
        export, offset, length = self._export, command.offset, command.length
        fua = bool(command.flags & protocol.FUA)
        match command.kind:
            case protocol.READ:
                return export.bytes.read_into(offset, command.buffer or bytearray())
            case protocol.WRITE:
                return export.bytes.write(offset, command.buffer or b"", fua=fua)
            case protocol.WRITE_ZEROES:
                no_hole, fast = command.flags & protocol.NO_HOLE, command.flags & protocol.FAST_ZERO
                return export.bytes.write_zeroes(
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

    # --- from outcome to reply ------------------------------------------------------------------------------

    def _answer(self, command: Command, work: Work) -> None:
        error = OSError(errno.EIO, "the request was cancelled") if work.cancelled() else work.exception()
        if error is not None:
            self._fail(command, error)
        elif command.kind == protocol.BLOCK_STATUS:
            states = map(_describe, work.result())
            self._send_chunk(command, protocol.REPLY_BLOCK_STATUS, BASE_ALLOCATION + b"".join(states))
        elif command.kind != protocol.READ:
            self._send_simple(command, 0)
        elif not self._session.structured_replies:
            self._send_simple(command, 0, *([command.buffer] if command.buffer else []))
        elif command.buffer is None:
            self._send_chunk(command, protocol.REPLY_NONE)
        else:
            kind, length = protocol.REPLY_OFFSET_DATA, command.length + 8
            head = protocol.DATA_REPLY.pack(
                *(protocol.STRUCTURED_REPLY_MAGIC, protocol.REPLY_DONE, kind),
                *(command.cookie, length, command.offset),
            )
            self._send(command, head, command.buffer)

    def _fail(self, command: Command, error: BaseException) -> None:
        number = error.errno if isinstance(error, OSError) else None
        self._refuse(command, ERRORS.get(number or 0, protocol.EIO), str(error))

    def _refuse(self, command: Command, error: int, why: str) -> None:
        if self._session.structured_replies:
            text = why.encode()[:LONGEST_TEXT]
            self._send_chunk(command, protocol.REPLY_ERROR, protocol.ERROR.pack(error, len(text)) + text)
        else:
            self._send_simple(command, error)

    def _send_simple(self, command: Command, error: int, *data: aioblk.View) -> None:
        head = protocol.SIMPLE_REPLY.pack(protocol.SIMPLE_REPLY_MAGIC, error, command.cookie)
        self._send(command, head, *data)

    def _send_chunk(self, command: Command, kind: int, body: bytes = b"") -> None:
        """A structured reply; one chunk says all."""
        head = protocol.STRUCTURED_REPLY.pack(
            *(protocol.STRUCTURED_REPLY_MAGIC, protocol.REPLY_DONE, kind), *(command.cookie, len(body))
        )
        self._send(command, head + body)

    def _send(self, command: Command, *parts: bytes | aioblk.View) -> None:
        # More replies are on their way soon if more commands are.
        more = self._in_flight.requests > 1 or self._stream.has_more
        self._stream.send(*parts, on_sent=partial(self._finish, command), more=more)


BASE_ALLOCATION = protocol.U32.pack(protocol.BASE_ALLOCATION_ID)


def _describe(extent: aioblk.Extent) -> bytes:
    is_hole = extent.kind is aioblk.ExtentKind.HOLE
    return protocol.EXTENT.pack(
        extent.length, protocol.STATE_HOLE | protocol.STATE_ZERO if is_hole else protocol.STATE_DATA
    )
