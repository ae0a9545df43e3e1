"""Messages with descriptors, as they come from a client one after the other."""

import array
import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence
from typing import final

from ...services.socket_stream import DisconnectedError
from . import protocol

ANCILLARY = socket.CMSG_SPACE(4 * protocol.MOST_DESCRIPTORS)


@final
class Message:
    """One, with the descriptors that came with it: those that nobody takes are closed."""

    def __init__(self, kind: int, flags: int, body: bytes, descriptors: list[int]) -> None:
        self.kind = kind
        self.flags = flags
        self.body = body
        self.descriptors = descriptors

    @property
    def wants_reply(self) -> bool:
        return bool(self.flags & protocol.WANTS_REPLY)

    def close(self) -> None:
        while self.descriptors:
            os.close(self.descriptors.pop())


@final
class Channel:
    """A client's socket. It is closed by whoever has it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    async def receive(self) -> Message | None:
        """The next message; None: the client has hung up.

        Raises:
            DisconnectedError: it hangs up in the middle, or says what is no message.
        """
        descriptors: list[int] = []
        try:
            head = await self._read(protocol.HEADER.size, descriptors)
            if not head:
                return None
            kind, flags, length = protocol.HEADER.unpack(head)
            if flags & protocol.VERSION_MASK != protocol.VERSION or flags & protocol.IS_REPLY:
                raise DisconnectedError(f"the client sends a message with the flags {flags:#x}")
            if length > protocol.LONGEST:
                raise DisconnectedError(f"the client sends a message of {length} bytes")
            body = await self._read(length, None) if length else b""
            if len(body) < length:
                raise DisconnectedError("the client hangs up in the middle of a message")
            message = Message(kind, flags, body, descriptors)
            descriptors = []
            return message
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    async def _read(self, length: int, descriptors: list[int] | None) -> bytes:
        """So many bytes, or none at the end. Descriptors come with the first."""
        data = b""
        while len(data) < length:
            try:
                some, ancillary, flags, _ = self._connection.recvmsg(
                    length - len(data), ANCILLARY, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                await self._readable()
                continue
            except OSError as error:
                raise DisconnectedError(f"the connection is lost: {error.strerror}") from None
            received = array.array("i")
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    received.frombytes(content[: len(content) - len(content) % received.itemsize])
            if descriptors is None:
                for descriptor in received:
                    os.close(descriptor)
            else:
                descriptors += received
            if flags & socket.MSG_CTRUNC:
                raise DisconnectedError("the client sends more descriptors than a message can have")
            if not some:
                if data:
                    raise DisconnectedError("the client hangs up in the middle of a message")
                return b""
            data += some
        return data

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        comes = loop.create_future()

        def tell() -> None:
            if not comes.done():
                comes.set_result(None)

        loop.add_reader(self._connection, tell)
        try:
            await comes
        finally:
            loop.remove_reader(self._connection)

    def send(self, kind: int, body: bytes, *, reply: bool = True, descriptors: Sequence[int] = ()) -> None:
        """Messages are short, and who takes them has room for one.

        Raises:
            DisconnectedError: it takes none, or is gone.
        """
        flags = protocol.VERSION | (protocol.IS_REPLY if reply else 0)
        message = protocol.HEADER.pack(kind, flags, len(body)) + body
        ancillary = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        )
        sent = 0
        with contextlib.suppress(BlockingIOError):
            try:
                sent = self._connection.sendmsg(
                    [message], ancillary, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
                )
            except BlockingIOError:
                raise
            except OSError as error:
                raise DisconnectedError(f"the connection is lost: {error.strerror}") from None
        if sent < len(message):
            raise DisconnectedError("the client does not take its answers")
