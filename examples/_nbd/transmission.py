"""Transmission: commands arrive, become requests of the device, and are answered as those complete.

One task receives. It starts what it receives and goes on receiving, so that many commands of a client are in
flight together; the reply of each is sent from the callback of its request, in whichever order they complete.
When a client has as much in flight as it may, its task receives no more until something has been answered.
"""

import asyncio
import errno
from dataclasses import dataclass
from functools import partial
from typing import final

import aioblk

from . import protocol
from .export import Export, Extent, Work
from .handshake import Session
from .memory import Payload
from .stream import DisconnectedError, Stream

__all__ = ["ClientLimits", "Transmission"]

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
MOST_EXTENTS = 4096  # of one reply
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


@final
@dataclass(frozen=True, slots=True)
class ClientLimits:
    """How much one client may have in flight before the server stops receiving from it."""

    requests: int = 128
    bytes: int = 32 << 20
    """Of data; a larger command has to be alone."""


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
    payload: Payload | None = None


class _RefusedError(Exception):
    """The command cannot be carried out; the number is the protocol's."""

    def __init__(self, error: int, why: str) -> None:
        super().__init__(why)
        self.error = error


@final
class Transmission:
    """One client's commands."""

    def __init__(self, stream: Stream, export: Export, session: Session, limits: ClientLimits) -> None:
        self._stream = stream
        self._export = export
        self._session = session
        self._limits = limits
        self._requests_in_flight = 0  # received, and the reply not sent
        self._bytes_in_flight = 0
        self._fewer_in_flight: asyncio.Future[None] | None = None  # whoever waits for that: only the receiver

    async def run(self) -> None:
        """Serve until the client says goodbye. Raises DisconnectedError."""
        while True:
            magic, flags, kind, cookie, offset, length = await self._stream.unpack(protocol.COMMAND)
            if magic != protocol.COMMAND_MAGIC:
                raise DisconnectedError("the client sends commands without their magic number")
            if kind == protocol.DISC:
                return
            if kind == protocol.WRITE and length > self._export.largest_payload:
                raise DisconnectedError(f"the client sends {length} bytes at once")
            data_length = length if kind in CARRY_DATA else 0
            command = Command(kind, flags, cookie, offset, length, data_length)
            if not self._has_room(command):
                await self._wait_for_room(command)
            self._requests_in_flight += 1
            self._bytes_in_flight += command.data_length
            await self._carry_out(command)

    async def drain(self) -> None:
        """Wait until every command that was received has been answered, or never will be."""
        while self._requests_in_flight:
            await self._wait_for_fewer()

    # --- how much is in flight ------------------------------------------------------------------------------

    def _has_room(self, command: Command) -> bool:
        return not self._requests_in_flight or (
            self._requests_in_flight < self._limits.requests
            and self._bytes_in_flight + command.data_length <= self._limits.bytes
        )

    async def _wait_for_room(self, command: Command) -> None:
        while not self._has_room(command):
            await self._wait_for_fewer()

    async def _wait_for_fewer(self) -> None:
        self._fewer_in_flight = asyncio.get_running_loop().create_future()
        try:
            await self._fewer_in_flight
        finally:
            self._fewer_in_flight = None

    def _finish(self, command: Command) -> None:
        """The reply has been sent, or never will be."""
        if command.payload is not None:
            self._export.memory.give_back(command.payload)
        self._requests_in_flight -= 1
        self._bytes_in_flight -= command.data_length
        if self._fewer_in_flight is not None and not self._fewer_in_flight.done():
            self._fewer_in_flight.set_result(None)

    # --- from command to request ----------------------------------------------------------------------------

    async def _carry_out(self, command: Command) -> None:
        """Submit what the command asks for; its end is answered by itself. Only receiving may fail here."""
        try:
            try:
                self._check(command)
            except _RefusedError as refusal:
                await self._skip_data(command)
                self._refuse(command, refusal.error, str(refusal))
                return
            if command.data_length:
                command.payload = await self._export.memory.take(command.length)
                if command.kind == protocol.WRITE:
                    await self._stream.take_into(command.payload.parts)
        except BaseException:
            self._finish(command)
            raise
        try:
            work = self._submit(command)
        except aioblk.BlkioError as error:
            self._refuse(command, ERRORS.get(error.errno or 0, protocol.EIO), str(error))
            return
        # To ask for the outcome at once makes each request go to the device by itself. So that is done only
        # when no other commands are here to go with it.
        if work is None or (self._stream.between_messages and work.done()):
            self._answer(command, work)
        else:
            work.add_done_callback(partial(self._answer, command))

    async def _skip_data(self, command: Command) -> None:
        if command.kind == protocol.WRITE:
            await self._stream.skip(command.length)

    def _check(self, command: Command) -> None:
        export = self._export
        if command.kind in CHANGE and export.read_only:
            raise _RefusedError(protocol.EPERM, "the export is read-only")
        if command.offset + command.length > export.size:
            error = protocol.ENOSPC if command.kind == protocol.WRITE else protocol.EINVAL
            raise _RefusedError(error, "the range ends beyond the export")
        if command.kind == protocol.READ and command.length > export.largest_payload:
            raise _RefusedError(
                protocol.EINVAL, f"at most {export.largest_payload} bytes can be read at once"
            )
        if command.kind not in FLAGS:
            raise _RefusedError(protocol.EINVAL, f"there is no command {command.kind}")
        if command.flags & ~FLAGS[command.kind]:
            raise _RefusedError(protocol.EINVAL, f"the flags {command.flags:#x} do not suit the command")
        if command.kind == protocol.BLOCK_STATUS and not (self._session.base_allocation and command.length):
            raise _RefusedError(protocol.EINVAL, "a block status needs a length and a metadata context")

    def _submit(self, command: Command) -> Work | None:
        """Begin the device's work; None if there is nothing to do."""
        export, offset, length = self._export, command.offset, command.length
        fua = bool(command.flags & protocol.FUA)
        match command.kind:
            case protocol.READ if command.payload is not None:
                return export.read(offset, command.payload)
            case protocol.WRITE if command.payload is not None:
                return export.write(offset, command.payload, fua=fua)
            case protocol.FLUSH:
                return export.device.flush()
            case protocol.WRITE_ZEROES if length:
                no_hole = bool(command.flags & protocol.NO_HOLE)
                fast = bool(command.flags & protocol.FAST_ZERO)
                return export.write_zeroes(offset, length, fua=fua, no_hole=no_hole, fast=fast)
            case protocol.TRIM if length:
                return asyncio.ensure_future(export.trim(offset, length, fua=fua))
            case protocol.CACHE if length:
                return asyncio.ensure_future(export.cache(offset, length))
            case protocol.BLOCK_STATUS:
                most = 1 if command.flags & protocol.REQ_ONE else MOST_EXTENTS
                return asyncio.ensure_future(export.extents(offset, length, most))
            case _:
                return None

    # --- from outcome to reply ------------------------------------------------------------------------------

    def _answer(self, command: Command, work: Work | None) -> None:
        error: BaseException | None = None
        if work is not None:
            error = asyncio.CancelledError() if work.cancelled() else work.exception()
        if error is not None:
            number = (
                ERRORS.get(error.errno or 0, protocol.EIO) if isinstance(error, OSError) else protocol.EIO
            )
            self._refuse(command, number, str(error))
        elif command.kind == protocol.READ:
            self._reply_data(command)
        elif command.kind == protocol.BLOCK_STATUS and work is not None:
            self._reply_extents(command, work.result())
        else:
            self._reply(command, protocol.SIMPLE_REPLY.pack(protocol.SIMPLE_REPLY_MAGIC, 0, command.cookie))

    def _reply_data(self, command: Command) -> None:
        parts = command.payload.parts if command.payload is not None else []
        if not self._session.structured_replies:
            head = protocol.SIMPLE_REPLY.pack(protocol.SIMPLE_REPLY_MAGIC, 0, command.cookie)
        elif parts:
            head = protocol.DATA_REPLY.pack(
                protocol.STRUCTURED_REPLY_MAGIC,
                protocol.REPLY_DONE,
                protocol.REPLY_OFFSET_DATA,
                command.cookie,
                command.length + 8,
                command.offset,
            )
        else:
            head = self._structured_head(command, protocol.REPLY_NONE, 0)
        self._reply(command, head, *parts)

    def _reply_extents(self, command: Command, extents: list[Extent]) -> None:
        body = protocol.U32.pack(protocol.BASE_ALLOCATION_ID) + b"".join(
            protocol.EXTENT.pack(
                extent.length, 0 if extent.is_data else protocol.STATE_HOLE | protocol.STATE_ZERO
            )
            for extent in extents
        )
        self._reply(command, self._structured_head(command, protocol.REPLY_BLOCK_STATUS, len(body)) + body)

    def _refuse(self, command: Command, error: int, why: str) -> None:
        if self._session.structured_replies:
            text = why.encode()[:LONGEST_TEXT]
            body = protocol.ERROR.pack(error, len(text)) + text
            self._reply(command, self._structured_head(command, protocol.REPLY_ERROR, len(body)) + body)
        else:
            self._reply(
                command, protocol.SIMPLE_REPLY.pack(protocol.SIMPLE_REPLY_MAGIC, error, command.cookie)
            )

    def _structured_head(self, command: Command, kind: int, length: int) -> bytes:
        return protocol.STRUCTURED_REPLY.pack(
            protocol.STRUCTURED_REPLY_MAGIC, protocol.REPLY_DONE, kind, command.cookie, length
        )

    def _reply(self, command: Command, head: bytes, *parts: memoryview) -> None:
        # More replies are on their way soon if more commands are.
        more = self._requests_in_flight > 1 or not self._stream.between_messages
        self._stream.send(head, *parts, on_sent=partial(self._finish, command), more=more)
