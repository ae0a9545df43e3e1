"""An NBD client that sends what it is told to, right or wrong. It shares no code with the server."""

import select
import socket
import struct
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

TIME_LIMIT = 30

IHAVEOPT = b"IHAVEOPT"
EXPORT_NAME, ABORT, LIST = 1, 2, 3
INFO, GO, STRUCTURED_REPLY, LIST_META_CONTEXT, SET_META_CONTEXT, EXTENDED_HEADERS = range(6, 12)
ACK, SERVER, REP_INFO, META_CONTEXT = 1, 2, 3, 4
ERR_UNSUP, ERR_POLICY, ERR_INVALID, ERR_UNKNOWN, ERR_TOO_BIG, ERR_EXT_HEADER_REQD = (
    0x80000000 + n for n in (1, 2, 3, 6, 9, 10)
)

READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = 1, 2, 4, 8, 16, 32


class OptionReply(NamedTuple):
    option: int
    kind: int
    data: bytes


class Reply(NamedTuple):
    cookie: int
    error: int
    data: bytes = b""
    """What was read, holes included; or the words of an error."""
    chunks: int = 1
    holes: tuple[tuple[int, int], ...] = ()
    """Offsets and lengths of what was read and came as a hole."""
    error_offset: int | None = None
    states: dict[int, list[tuple[int, int]]] = {}  # noqa: RUF012 (never changed)
    """Lengths and flags, by the number of their metadata context."""


class Client:
    """A blocking connection. Replies are read one by one."""

    def __init__(self, where: Path | tuple[str, int]) -> None:
        """At a Unix socket's path, or at a host and a port."""
        self.socket = socket.socket(socket.AF_UNIX if isinstance(where, Path) else socket.AF_INET)
        self.socket.settimeout(TIME_LIMIT)
        try:
            self.socket.connect(str(where) if isinstance(where, Path) else where)
        except OSError:
            self.socket.close()
            raise
        self.structured = self.extended = False
        self.contexts: dict[bytes, int] = {}
        self._cookie = 0
        self._offsets: dict[int, int] = {}  # of commands
        self._replies: dict[int, _Chunks] = {}  # that are not complete

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self, size: int) -> bytes:
        """Exactly that many bytes; EOFError if the server closes the connection before."""
        data = bytearray()
        while len(data) < size:
            piece = self.socket.recv(size - len(data))
            if not piece:
                raise EOFError(f"the server closed the connection after {len(data)} of {size} bytes")
            data += piece
        return bytes(data)

    def is_closed_by_server(self) -> bool:
        """Whether the server has closed, or closes, without another word."""
        with suppress(ConnectionResetError):
            return self.socket.recv(1) == b""
        return True

    def is_hung_up(self) -> bool:
        """Whether the server has closed, or closes, with or without words that nobody has heard."""
        hang_up = select.poll()
        hang_up.register(self.socket, 0)
        return bool(hang_up.poll(TIME_LIMIT * 1000))

    # --- handshake ------------------------------------------------------------------------------------------

    def greet(self, flags: int = 3) -> int:
        """Receive the greeting and answer with these flags; the server's flags."""
        magic, i_have_opt, server_flags = struct.unpack(">8s8sH", self.receive(18))
        assert (magic, i_have_opt) == (b"NBDMAGIC", IHAVEOPT)
        self.send(struct.pack(">I", flags))
        return int(server_flags)

    def send_option(self, option: int, data: bytes = b"") -> None:
        self.send(IHAVEOPT + struct.pack(">II", option, len(data)) + data)

    def receive_option_reply(self) -> OptionReply:
        magic, option, kind, length = struct.unpack(">QIII", self.receive(20))
        assert magic == 0x3E889045565A9
        return OptionReply(option, kind, self.receive(length))

    def ask(self, option: int, data: bytes = b"") -> list[OptionReply]:
        """Send an option; its replies, the last of which acknowledges or refuses."""
        self.send_option(option, data)
        replies = [self.receive_option_reply()]
        while replies[-1].kind != ACK and replies[-1].kind < 0x80000000:
            replies.append(self.receive_option_reply())
        assert {reply.option for reply in replies} == {option}
        return replies

    def go(self, name: bytes = b"") -> list[OptionReply]:
        """Choose an export."""
        return self.ask(GO, counted(name) + struct.pack(">H", 0))

    def connect(
        self,
        *,
        structured: bool = False,
        allocation: bool = False,
        extended: bool = False,
        contexts: tuple[bytes, ...] = (),
        name: bytes = b"",
    ) -> Self:
        """The whole handshake, up to transmission."""
        self.greet()
        contexts = (b"base:allocation", *contexts) if allocation else contexts
        if extended:
            assert self.ask(EXTENDED_HEADERS)[-1].kind == ACK
            self.extended = True
        elif structured or contexts:
            assert self.ask(STRUCTURED_REPLY)[-1].kind == ACK
            self.structured = True
        if contexts:
            self.choose(name, *contexts)
        assert self.go(name)[-1].kind == ACK
        return self

    def choose(self, name: bytes, *contexts: bytes) -> None:
        """Metadata contexts, all of which there are."""
        *found, end = self.ask(SET_META_CONTEXT, queries(name, *contexts))
        assert end.kind == ACK
        assert {reply.kind for reply in found} == {META_CONTEXT}
        self.contexts = {reply.data[4:]: int.from_bytes(reply.data[:4], "big") for reply in found}
        assert self.contexts.keys() == {*contexts}
        assert len({*self.contexts.values()}) == len(contexts)

    # --- transmission ---------------------------------------------------------------------------------------

    def send_command(
        self, kind: int, offset: int = 0, length: int = 0, *, flags: int = 0, data: bytes = b""
    ) -> int:
        """The command's cookie. With extended headers, *data* are announced if there are any; *length* is
        that of the range."""
        self._cookie += 1
        self._offsets[self._cookie] = offset
        if self.extended:
            if data:
                flags, length = flags | PAYLOAD_LEN, len(data)
            head = struct.pack(">IHHQQQ", 0x21E41C71, flags, kind, self._cookie, offset, length)
        else:
            head = struct.pack(">IHHQQI", 0x25609513, flags, kind, self._cookie, offset, length)
        self.send(head + data)
        return self._cookie

    def receive_reply(self, read_length: int = 0) -> Reply:
        """The next reply that is complete; a successful simple one is followed by *read_length* bytes."""
        return self.receive_reply_of(defaultdict(lambda: read_length))

    def receive_reply_of(self, read_lengths: Mapping[int, int]) -> Reply:
        """The next reply that is complete, of commands of which these, by cookie, read so many bytes."""
        while True:
            (magic,) = struct.unpack(">I", self.receive(4))
            if magic == 0x67446698:
                assert not self.extended
                error, cookie = struct.unpack(">IQ", self.receive(12))
                return Reply(cookie, error, b"" if error else self.receive(read_lengths[cookie]))
            if self.extended:
                assert magic == 0x6E8A278C
                flags, kind, cookie, offset, length = struct.unpack(">HHQQQ", self.receive(28))
                assert offset == self._offsets[cookie]
            else:
                assert magic == 0x668E33EF
                flags, kind, cookie, length = struct.unpack(">HHQI", self.receive(16))
            assert flags in (0, 1)
            chunks = self._replies.setdefault(cookie, _Chunks())
            chunks.add(kind, self.receive(length), extended=self.extended)
            if flags:
                del self._replies[cookie]
                return chunks.reply(cookie)

    def call(
        self, kind: int, offset: int = 0, length: int = 0, *, flags: int = 0, data: bytes = b""
    ) -> Reply:
        """Send a command and receive its reply, with nothing else in flight."""
        cookie = self.send_command(kind, offset, length, flags=flags, data=data)
        reply = self.receive_reply(length if kind == READ else 0)
        assert reply.cookie == cookie
        return reply


class _Chunks:
    """A reply in chunks, as far as it has come."""

    def __init__(self) -> None:
        self._count = 0
        self._pieces: list[tuple[int, bytes, bool]] = []
        self._states: dict[int, list[tuple[int, int]]] = {}
        self._error: tuple[int, bytes, int | None] | None = None

    def add(self, kind: int, body: bytes, *, extended: bool) -> None:
        self._count += 1
        match kind:
            case 0:  # none
                assert not body
            case 1:  # data
                assert len(body) > 8
                self._pieces.append((int.from_bytes(body[:8], "big"), body[8:], False))
            case 2:  # a hole
                offset, length = struct.unpack(">QI", body)
                assert length
                self._pieces.append((offset, bytes(length), True))
            case 5 | 6:  # a block status
                assert (kind == 6) == extended
                layout, head = (">QQ", 8) if extended else (">II", 4)
                (context,) = struct.unpack_from(">I", body)
                assert context not in self._states
                states = list(struct.iter_unpack(layout, body[head:]))
                assert states
                assert all(length for length, _ in states)
                if extended:
                    assert struct.unpack_from(">I", body, 4) == (len(states),)
                self._states[context] = [(length, flags) for length, flags in states]
            case 0x8001 | 0x8002:  # an error, and one at an offset
                error, length = struct.unpack_from(">IH", body)
                assert error
                assert self._error is None
                offset = int.from_bytes(body[6 + length :], "big") if kind == 0x8002 else None
                assert len(body) == 6 + length + (8 if kind == 0x8002 else 0)
                self._error = error, body[6 : 6 + length], offset
            case _:
                raise AssertionError(f"a chunk of kind {kind}")

    def reply(self, cookie: int) -> Reply:
        """All of it."""
        pieces = sorted(self._pieces)
        for (start, piece, _), (following, _, _) in pairwise(pieces):
            assert start + len(piece) <= following, "the pieces overlap"
            assert start + len(piece) == following or self._error, "the pieces do not meet"
        holes = tuple((start, len(piece)) for start, piece, is_hole in pieces if is_hole)
        if self._error is not None:
            error, words, offset = self._error
            return Reply(cookie, error, words, self._count, holes, offset)
        data = b"".join(piece for _, piece, _ in pieces)
        return Reply(cookie, 0, data, self._count, holes, None, self._states)


def counted(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


def queries(name: bytes, *texts: bytes) -> bytes:
    """The data of the options about metadata contexts."""
    return counted(name) + struct.pack(">I", len(texts)) + b"".join(map(counted, texts))
