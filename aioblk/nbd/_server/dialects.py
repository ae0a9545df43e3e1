"""Dialects: how commands look that a client sends, and the replies that it understands.

There are three: simple replies, which tell nothing but data or an error; structured replies, which come in
chunks; and extended headers, with chunks as well, and with lengths of 64 bits both ways.
"""

from abc import ABC, abstractmethod
from struct import Struct, pack
from typing import ClassVar

from .. import protocol
from .command import Command
from .contexts import States

FLAGS = {  # that a command may have
    protocol.READ: protocol.FUA | protocol.DF,
    protocol.WRITE: protocol.FUA,
    protocol.FLUSH: protocol.FUA,
    protocol.TRIM: protocol.FUA,
    protocol.CACHE: protocol.FUA,
    protocol.WRITE_ZEROES: protocol.FUA | protocol.NO_HOLE | protocol.FAST_ZERO,
    protocol.BLOCK_STATUS: protocol.FUA | protocol.REQ_ONE,
}
EXTENDED_FLAGS = FLAGS | {
    kind: FLAGS[kind] | protocol.PAYLOAD_LEN for kind in (protocol.WRITE, protocol.BLOCK_STATUS)
}
LONGEST_TEXT = 4096


class Dialect(ABC):
    """What differs. Chunks are whole: a head, and what follows it but data that are read."""

    layout: ClassVar[Struct]
    """Of a command's head."""
    magic: ClassVar[int]
    """That it begins with."""
    flags: ClassVar[dict[int, int]]
    """Which commands there are, and with which flags."""
    has_payloads: ClassVar[bool]
    """Whether a flag says that data follow a command. They follow writes in any case."""
    has_chunks: ClassVar[bool]
    """Whether a reply may have several. Without them, a head of data is for all of these."""

    @abstractmethod
    def data(self, command: Command, offset: int, length: int, *, last: bool) -> bytes:
        """The head of data."""
        ...

    @abstractmethod
    def done(self, command: Command) -> bytes:
        """The end of what has succeeded, and has nothing else to say."""
        ...

    @abstractmethod
    def error(self, command: Command, number: int, text: bytes, offset: int | None) -> bytes:
        """The end of what has failed, and where it did if that is known."""
        ...

    @abstractmethod
    def hole(self, command: Command, offset: int, length: int, *, last: bool) -> bytes:
        """A range that reads as zeroes, in place of its data."""
        ...

    @abstractmethod
    def status(self, command: Command, context: int, states: States, *, last: bool) -> bytes:
        """What there is from the command's offset on."""
        ...


class Simple(Dialect):
    """Without chunks. There are no holes in its reads, and nothing is asked that has states."""

    layout = protocol.COMMAND
    magic = protocol.COMMAND_MAGIC
    flags = FLAGS
    has_payloads = False
    has_chunks = False

    def data(self, command: Command, offset: int, length: int, *, last: bool) -> bytes:
        return protocol.SIMPLE_REPLY.pack(protocol.SIMPLE_REPLY_MAGIC, 0, command.cookie)

    def done(self, command: Command) -> bytes:
        return protocol.SIMPLE_REPLY.pack(protocol.SIMPLE_REPLY_MAGIC, 0, command.cookie)

    def error(self, command: Command, number: int, text: bytes, offset: int | None) -> bytes:
        return protocol.SIMPLE_REPLY.pack(protocol.SIMPLE_REPLY_MAGIC, number, command.cookie)

    def hole(self, command: Command, offset: int, length: int, *, last: bool) -> bytes:
        raise NotImplementedError

    def status(self, command: Command, context: int, states: States, *, last: bool) -> bytes:
        raise NotImplementedError


class Structured(Simple):
    """In chunks."""

    has_chunks = True

    def data(self, command: Command, offset: int, length: int, *, last: bool) -> bytes:
        return protocol.DATA_REPLY.pack(
            *(protocol.STRUCTURED_REPLY_MAGIC, last, protocol.REPLY_OFFSET_DATA),
            *(command.cookie, length + 8, offset),
        )

    def done(self, command: Command) -> bytes:
        if command.kind != protocol.READ:  # of which alone a structured reply is expected; it has more to say
            return protocol.SIMPLE_REPLY.pack(protocol.SIMPLE_REPLY_MAGIC, 0, command.cookie)
        return self._head(command, protocol.REPLY_NONE, 0, last=True)

    def error(self, command: Command, number: int, text: bytes, offset: int | None) -> bytes:
        text = _cut(text)
        kind = protocol.REPLY_ERROR if offset is None else protocol.REPLY_ERROR_OFFSET
        body = protocol.ERROR.pack(number, len(text)) + text
        if offset is not None:
            body += protocol.OFFSET.pack(offset)
        return self._head(command, kind, len(body), last=True) + body

    def hole(self, command: Command, offset: int, length: int, *, last: bool) -> bytes:
        body = protocol.HOLE.pack(offset, length)
        return self._head(command, protocol.REPLY_OFFSET_HOLE, len(body), last=last) + body

    def status(self, command: Command, context: int, states: States, *, last: bool) -> bytes:
        body = protocol.STATUS.pack(context) + _flat("I", states)
        return self._head(command, protocol.REPLY_BLOCK_STATUS, len(body), last=last) + body

    def _head(self, command: Command, kind: int, length: int, *, last: bool) -> bytes:
        return protocol.STRUCTURED_REPLY.pack(
            protocol.STRUCTURED_REPLY_MAGIC, last, kind, command.cookie, length
        )


class Extended(Structured):
    """In chunks with longer heads, whatever there is to say; the commands have such heads, too."""

    layout = protocol.EXTENDED_COMMAND
    magic = protocol.EXTENDED_COMMAND_MAGIC
    flags = EXTENDED_FLAGS
    has_payloads = True

    def data(self, command: Command, offset: int, length: int, *, last: bool) -> bytes:
        return protocol.EXTENDED_DATA_REPLY.pack(
            *(protocol.EXTENDED_REPLY_MAGIC, last, protocol.REPLY_OFFSET_DATA),
            *(command.cookie, command.offset, length + 8, offset),
        )

    def done(self, command: Command) -> bytes:
        return self._head(command, protocol.REPLY_NONE, 0, last=True)

    def status(self, command: Command, context: int, states: States, *, last: bool) -> bytes:
        body = protocol.EXTENDED_STATUS.pack(context, len(states)) + _flat("Q", states)
        return self._head(command, protocol.REPLY_BLOCK_STATUS_EXT, len(body), last=last) + body

    def _head(self, command: Command, kind: int, length: int, *, last: bool) -> bytes:
        return protocol.EXTENDED_REPLY.pack(
            *(protocol.EXTENDED_REPLY_MAGIC, last, kind),
            *(command.cookie, command.offset, length),
        )


def _flat(number: str, states: States) -> bytes:
    return pack(f">{2 * len(states)}{number}", *(value for state in states for value in state))


def _cut(text: bytes) -> bytes:
    """As much of it as a reply takes, and no part of a character."""
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT].decode(errors="ignore").encode()
