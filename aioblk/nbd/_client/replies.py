"""Replies: what of them goes where, and what must not be in them.

A server is not trusted. What it sends is for commands that are in flight, within what they have asked for,
and once; or the connection is over, before a byte has gone anywhere else. What it may have us keep is bounded
by what was asked for.
"""

from collections.abc import Callable
from typing import final

from .. import protocol
from ..protocol import (
    ERROR,
    EXTENDED_REPLY,
    EXTENDED_REPLY_MAGIC,
    HOLE,
    READ,
    REPLY_BLOCK_STATUS,
    REPLY_BLOCK_STATUS_EXT,
    REPLY_DONE,
    REPLY_IS_ERROR,
    REPLY_NONE,
    REPLY_OFFSET_DATA,
    REPLY_OFFSET_HOLE,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY,
    STRUCTURED_REPLY_MAGIC,
    U32,
)
from .channel import Channel
from .commands import Command, Coverage, NewBytes
from .export import Export, Headers

__all__ = ["Receiver", "ViolationError"]

BUFFER_SIZE = 64 << 10
LARGE = 32 << 10  # what is read of that length and more goes straight to where it belongs,
SMALL_BITE = 4096  # but for so much, which comes along with what is before it
SMALL_TARGET = 16 << 10  # a call for each of many that are smaller would take longer than a copy
MOST_IN_A_ROW = 16  # receiving calls without a turn of the loop
LONGEST_WORDS = 4096
MOST_ERRORS = 64  # of one reply
MOST_EXTENTS = 1 << 20  # of one chunk, says the protocol
U64 = protocol.OFFSET
EINVAL = protocol.EINVAL


class ViolationError(Exception):
    """What the server has done that it must not."""


@final
class Receiver:
    """The receiving half of a connection. It is called when there is something to be received, and calls
    for each command that is answered: no task waits for anything."""

    __slots__ = (
        *("_answered", "_buffer", "_chunk", "_contexts", "_end", "_ended", "_headers", "_in_flight"),
        *(
            "_is_large",
            "_is_last",
            "_is_record_based",
            "_receive_into",
            "_rest",
            "_skip",
            "_start",
            "_status",
            "_targets",
            "moved",
        ),
    )

    def __init__(
        self,
        channel: Channel,
        export: Export,
        in_flight: dict[int, Command],
        answered: Callable[[Command], object],
        ended: Callable[[str, bool], object],
    ) -> None:
        """*ended* is told why, and whether it is the server's fault."""
        self._receive_into = channel.receive_into
        self._is_record_based = channel.is_record_based
        self._headers = export.headers
        self._contexts = {number: name for name, number in export.contexts.items()}
        self._in_flight = in_flight
        self._answered = answered
        self._ended = ended
        self._buffer = memoryview(bytearray(BUFFER_SIZE))
        self._start: int = 0  # what of it has been received and not looked at
        self._end: int = 0
        # A chunk of which not all is there: whose it is, whether it is the last one of its reply, and either
        # where the rest of so many bytes goes, or how much of it goes nowhere.
        self._chunk: Command | None = None
        self._is_last = False
        self._targets: list[memoryview] | None = None
        self._rest: int = 0
        self._skip: int = 0
        self._status: bytearray | None = None
        self._is_large = False
        self.moved = 0
        """How many bytes have come."""

    def on_readable(self) -> bool:
        """Receive what there is. True: there may be more, of which nobody will tell."""
        receive_into = self._receive_into
        try:
            for _ in range(MOST_IN_A_ROW):
                if self._targets is not None:
                    room = self._targets[0]
                    if len(room) < SMALL_TARGET and len(self._targets) > 1:
                        room = self._buffer[: self._rest]
                        size = receive_into(room)
                        self._spread(size)
                    else:
                        size = receive_into(room)
                        self._fill(size)
                else:
                    room = self._room()
                    size = receive_into(room)
                    self._end += size
                    self._parse()
                if not size:
                    self._ended("the server has closed the connection", False)
                    return False
                self.moved += size
                if size < len(room) and not self._is_record_based:
                    return False
        except BlockingIOError:
            return False
        except ViolationError as violation:
            self._ended(f"the server breaks the protocol: {violation}", True)
            return False
        except OSError as error:
            self._ended(error.strerror or "receiving failed", False)
            return False
        except MemoryError:
            self._ended("there is no memory for what the server sends", False)
            return False
        return self._is_record_based

    def _room(self) -> memoryview:
        """Where to receive what is not known yet."""
        start, end = self._start, self._end
        if self._skip:
            self._start = self._end = 0
            return self._buffer[: min(self._skip, BUFFER_SIZE)]
        if start == end:
            self._start = self._end = end = 0
        elif start:
            left = bytes(self._buffer[start:end])
            self._start, self._end = 0, len(left)
            self._buffer[: len(left)] = left
            end = len(left)
        if self._is_large:
            return self._buffer[end : end + SMALL_BITE]
        return self._buffer[end:] if end else self._buffer

    def _spread(self, size: int) -> None:
        """So many bytes have come of a chunk, and belong to many places."""
        assert self._targets is not None
        self._rest -= size
        self._targets = self._copy(0, size, self._targets) or None
        if self._targets is None:
            self._end_chunk()

    def _fill(self, size: int) -> None:
        """So many bytes have come of a chunk, to where they belong."""
        targets = self._targets
        assert targets is not None
        self._rest -= size
        if size < len(targets[0]):
            targets[0] = targets[0][size:]
            return
        del targets[0]
        while targets and not targets[0]:
            del targets[0]
        if not targets:
            self._targets = None
            self._end_chunk()

    def _end_chunk(self) -> None:
        command, self._chunk = self._chunk, None
        assert command is not None
        if self._status is not None:
            data, self._status = self._status, None
            self._take_status(command, bytes(data))
        if self._is_last:
            self._finish(command)

    def let_go(self, command: Command) -> None:
        """Nothing goes to the command's memory any more."""
        if self._chunk is command and self._targets is not None and self._status is None:
            self._skip = self._rest
            self._targets = None
            self._start = self._end = 0

    def close(self) -> None:
        """Nothing goes to anybody's memory any more."""
        self._chunk = self._targets = self._status = None

    # --- what it begins with --------------------------------------------------------------------------------

    def _parse(self) -> None:
        """Look at what has been received, as far as it can be understood."""
        if self._skip and not self._skip_some():
            return
        parse = self._parse_extended if self._headers is Headers.EXTENDED else self._parse_compact
        while parse():
            pass

    def _skip_some(self) -> bool:
        """False: there is more to be skipped than there is."""
        size = min(self._skip, self._end - self._start)
        self._skip -= size
        self._start += size
        if self._skip:
            return False
        self._end_chunk()
        return True

    def _parse_compact(self) -> bool:
        """One simple reply, or one chunk of a structured one. False: not all of what is needed is there."""
        start, buffer = self._start, self._buffer
        available = self._end - start
        if available < SIMPLE_REPLY.size:
            return self._may_become(SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC)
        magic, error, cookie = SIMPLE_REPLY.unpack_from(buffer, start)
        if magic == SIMPLE_REPLY_MAGIC:
            command = self._in_flight.get(cookie)
            if command is None:
                raise ViolationError(f"a reply to {cookie:#x}, which was not asked")
            self._start = start + SIMPLE_REPLY.size
            if command.kind == READ:
                if self._headers:
                    raise ViolationError(
                        "a read is answered with a simple reply, where there are structured ones"
                    )
                if not error:
                    return self._take_data(command, 0, command.length, True)
            elif not error and command.status is not None:
                raise ViolationError("a question for block status is answered with a simple reply")
            if error:
                self._take_error(command, error, b"")
            self._finish(command)
            return True
        if magic != STRUCTURED_REPLY_MAGIC or not self._headers:
            raise ViolationError(f"a reply begins with {magic:#010x}")
        if available < STRUCTURED_REPLY.size:
            return False
        _, flags, kind, cookie, length = STRUCTURED_REPLY.unpack_from(buffer, start)
        command = self._in_flight.get(cookie)
        if command is None:
            raise ViolationError(f"a reply to {cookie:#x}, which was not asked")
        return self._parse_chunk(command, flags, kind, length, STRUCTURED_REPLY.size)

    def _parse_extended(self) -> bool:
        start = self._start
        if self._end - start < EXTENDED_REPLY.size:
            return self._may_become(EXTENDED_REPLY_MAGIC)
        magic, flags, kind, cookie, offset, length = EXTENDED_REPLY.unpack_from(self._buffer, start)
        if magic != EXTENDED_REPLY_MAGIC:
            raise ViolationError(f"a reply begins with {magic:#010x}")
        command = self._in_flight.get(cookie)
        if command is None:
            raise ViolationError(f"a reply to {cookie:#x}, which was not asked")
        if offset != command.offset:
            raise ViolationError(f"a reply to a command at {command.offset} says that it was at {offset}")
        return self._parse_chunk(command, flags, kind, length, EXTENDED_REPLY.size)

    def _may_become(self, *magics: int) -> bool:
        """False: what there is may become a reply. A server that says something else may never say more."""
        if self._end - self._start >= U32.size:
            (magic,) = U32.unpack_from(self._buffer, self._start)
            if magic not in magics:
                raise ViolationError(f"a reply begins with {magic:#010x}")
        return False

    def _parse_chunk(self, command: Command, flags: int, kind: int, length: int, header: int) -> bool:
        """A chunk, *length* bytes behind its header."""
        start, available = self._start + header, self._end - self._start - header
        is_last = flags & REPLY_DONE != 0
        if kind == REPLY_OFFSET_DATA:
            if command.kind != READ or length <= U64.size:
                raise ViolationError(
                    f"{length} bytes of data in the reply to a command of kind {command.kind}"
                )
            if available < U64.size:
                return False
            (offset,) = U64.unpack_from(self._buffer, start)
            self._start = start + U64.size
            return self._take_data(command, offset - command.offset, length - U64.size, is_last)
        if kind == REPLY_OFFSET_HOLE:
            if command.kind != READ or length != HOLE.size:
                raise ViolationError(
                    f"a hole, in {length} bytes, in the reply to a command of kind {command.kind}"
                )
            if available < HOLE.size:
                return False
            offset, size = HOLE.unpack_from(self._buffer, start)
            self._start = start + HOLE.size
            self._take_hole(command, offset - command.offset, size)
        elif kind == REPLY_NONE:
            if length or not is_last:
                raise ViolationError(
                    f"a chunk with nothing in it has {length} bytes, and is the last one or not"
                )
            self._start = start
        elif kind & REPLY_IS_ERROR:
            if not ERROR.size <= length <= ERROR.size + LONGEST_WORDS + 64:
                raise ViolationError(f"an error has {length} bytes")
            if available < length:
                return False
            error, size = ERROR.unpack_from(self._buffer, start)
            words = start + ERROR.size
            if not error or size > length - ERROR.size:
                raise ViolationError(f"an error {error} with {size} bytes of words has {length} bytes")
            self._take_error(command, error, bytes(self._buffer[words : words + size]))
            self._start = start + length
        elif kind in (REPLY_BLOCK_STATUS, REPLY_BLOCK_STATUS_EXT):
            return self._begin_status(command, kind, length, start, is_last)
        else:
            raise ViolationError(f"a chunk of kind {kind}, which nobody knows")
        if is_last:
            self._finish(command)
        return True

    # --- what is in it --------------------------------------------------------------------------------------

    def _cover(self, command: Command, start: int, length: int) -> None:
        """Violation: so much of what was asked for cannot come, or has come already."""
        if start < 0 or start + length > command.length or not length:
            raise ViolationError(
                f"{length} bytes at {command.offset + start}, where {command.length} at {command.offset} were"
                " asked for"
            )
        coverage = command.coverage
        if coverage is None:
            if length == command.length:
                command.coverage = WHOLE
                return
            coverage = command.coverage = Coverage()
        if coverage is WHOLE or not coverage.add(start, start + length):
            raise ViolationError(
                f"{length} bytes at {command.offset + start} come twice, or in too many pieces"
            )

    def _take_data(self, command: Command, at: int, size: int, is_last: bool) -> bool:
        """Data for a command, *at* bytes behind its beginning. False: they are not all there."""
        self._cover(command, at, size)
        start, available = self._start, self._end - self._start
        is_whole = available >= size
        if is_whole:
            self._start = start + size
        else:
            self._start = self._end
            self._chunk, self._is_last = command, is_last
        if command.request is None:
            return self._skip_data(command, size - min(available, size), is_last)
        if (
            is_whole
            and size == command.length
            and isinstance(command.views, NewBytes)
            and not command.position
        ):
            command.data = bytes(self._buffer[start : start + size])
        else:
            try:
                targets = command.targets(at, size)
            except MemoryError:
                command.request.owner.fail_for_memory(command.request)
                return self._skip_data(command, size - min(available, size), is_last)
            rest = self._copy(start, min(available, size), targets)
            if not is_whole:
                self._targets, self._rest = rest, size - available
                self._start = self._end = 0
                return False
        if is_last:
            self._finish(command)
        return True

    def _skip_data(self, command: Command, left: int, is_last: bool) -> bool:
        """Nobody wants the data, of which so much is not there yet. False: there is something."""
        if left:
            self._skip = left
            self._start = self._end = 0
            return False
        if is_last:
            self._finish(command)
        return True

    def _copy(self, start: int, size: int, targets: list[memoryview]) -> list[memoryview]:
        """What is there already, to where it belongs; what is left of that."""
        for number, target in enumerate(targets):
            length = min(size, len(target))
            target[:length] = self._buffer[start : start + length]
            start += length
            size -= length
            if length < len(target):
                return [target[length:], *targets[number + 1 :]]
        return []

    def _take_hole(self, command: Command, at: int, size: int) -> None:
        self._cover(command, at, size)
        if command.request is None or (isinstance(command.views, NewBytes) and command.views.are_zeroes):
            return
        for target in command.targets(at, size):
            fill_with_zeroes(target)

    def _take_error(self, command: Command, error: int, words: bytes) -> None:
        command.errors += 1
        if command.errors > MOST_ERRORS:
            raise ViolationError(f"a reply has more than {MOST_ERRORS} errors")
        if not command.error:
            command.error, command.words = error, words

    def _begin_status(self, command: Command, kind: int, length: int, start: int, is_last: bool) -> bool:
        extended = self._headers is Headers.EXTENDED
        if command.status is None or (kind == REPLY_BLOCK_STATUS_EXT) != extended:
            raise ViolationError(
                f"block status of kind {kind} in the reply to a command of kind {command.kind}"
            )
        before = protocol.EXTENDED_STATUS.size if extended else U32.size
        each = (protocol.EXTENDED_EXTENT if extended else protocol.EXTENT).size
        if length < before + each or (length - before) % each or length > before + each * MOST_EXTENTS:
            raise ViolationError(f"block status has {length} bytes")
        available = min(self._end - start, length)
        data = bytearray(length)
        data[:available] = self._buffer[start : start + available]
        self._start = start + available
        self._chunk, self._is_last, self._status = command, is_last, data
        if available == length:
            self._end_chunk()
            return True
        self._targets, self._rest = [memoryview(data)[available:]], length - available
        self._start = self._end = 0
        return False

    def _take_status(self, command: Command, data: bytes) -> None:
        (number,) = U32.unpack_from(data)
        assert command.status is not None
        if self._headers is Headers.EXTENDED:
            _, count = protocol.EXTENDED_STATUS.unpack_from(data)
            if len(data) != protocol.EXTENDED_STATUS.size + count * protocol.EXTENDED_EXTENT.size:
                raise ViolationError(f"block status of {count} extents has {len(data)} bytes")
        context = self._contexts.get(number)
        if context is None or command.status[context]:
            raise ViolationError(
                f"block status of context {number}, which was not asked for or has come already"
            )
        command.status[context] = data

    def _finish(self, command: Command) -> None:
        """Its reply is complete."""
        if not command.error:
            if command.kind == READ:
                coverage = command.coverage
                if coverage is None or (coverage is not WHOLE and coverage.length != command.length):
                    raise ViolationError(f"not all of {command.length} bytes at {command.offset} have come")
            elif command.status is not None and not all(command.status.values()):
                raise ViolationError("block status of a context is missing")
        del self._in_flight[command.cookie]
        self._answered(command)

    def expect(self, length: int) -> None:
        """So much is to be read by a command that is about to be sent."""
        self._is_large = length >= LARGE


WHOLE = Coverage()
"""What came in one piece."""

ZEROES = bytes(64 << 10)


def fill_with_zeroes(target: memoryview) -> None:
    for start in range(0, len(target), len(ZEROES)):
        piece = target[start : start + len(ZEROES)]
        piece[:] = ZEROES[: len(piece)]
