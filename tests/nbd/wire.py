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
EXPORT_NAME, ABORT, LIST, INFO, GO, STRUCTURED_REPLY, LIST_META_CONTEXT, SET_META_CONTEXT = (
    1,
    2,
    3,
    6,
    7,
    8,
    9,
    10,
)
ACK, SERVER, REP_INFO, META_CONTEXT = 1, 2, 3, 4
ERR_UNSUP, ERR_POLICY, ERR_INVALID, ERR_UNKNOWN, ERR_TOO_BIG = (0x80000000 + n for n in (1, 2, 3, 6, 9))

READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16


class OptionReply(NamedTuple):
    option: int
    kind: int
    data: bytes


class Reply(NamedTuple):
    cookie: int
    error: int
    data: bytes = b""
    chunks: int = 1


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
        self.structured = False
        self._cookie = 0
        self._chunks: dict[int, list[tuple[int, bytes]]] = {}  # of replies that are not complete

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

    def connect(self, *, structured: bool = False, allocation: bool = False) -> Self:
        """The whole handshake, up to transmission."""
        self.greet()
        if structured or allocation:
            assert self.ask(STRUCTURED_REPLY)[-1].kind == ACK
            self.structured = True
        if allocation:
            query = counted(b"") + struct.pack(">I", 1) + counted(b"base:allocation")
            assert [reply.kind for reply in self.ask(SET_META_CONTEXT, query)] == [META_CONTEXT, ACK]
        assert self.go()[-1].kind == ACK
        return self

    # --- transmission ---------------------------------------------------------------------------------------

    def send_command(
        self, kind: int, offset: int = 0, length: int = 0, *, flags: int = 0, data: bytes = b""
    ) -> int:
        """The command's cookie."""
        self._cookie += 1
        self.send(struct.pack(">IHHQQI", 0x25609513, flags, kind, self._cookie, offset, length) + data)
        return self._cookie

    def receive_reply(self, read_length: int = 0) -> Reply:
        """The next reply that is complete; a successful simple one is followed by *read_length* bytes."""
        return self.receive_reply_of(defaultdict(lambda: read_length))

    def receive_reply_of(self, read_lengths: Mapping[int, int]) -> Reply:
        """The next reply that is complete, of commands of which these, by cookie, read so many bytes."""
        while True:
            (magic,) = struct.unpack(">I", self.receive(4))
            if magic == 0x67446698:
                error, cookie = struct.unpack(">IQ", self.receive(12))
                return Reply(cookie, error, b"" if error else self.receive(read_lengths[cookie]))
            assert magic == 0x668E33EF
            flags, kind, cookie, length = struct.unpack(">HHQI", self.receive(16))
            data = self.receive(length)
            if kind & 0x8000:
                assert flags == 1
                error, text_length = struct.unpack_from(">IH", data)
                assert length == 6 + text_length
                return Reply(cookie, error, data[6:], 1 + len(self._chunks.pop(cookie, [])))
            if kind != 1:
                assert flags == 1
                return Reply(cookie, 0, data)
            self._chunks.setdefault(cookie, []).append((int.from_bytes(data[:8], "big"), data[8:]))
            if flags & 1:
                return self._put_together(cookie)

    def _put_together(self, cookie: int) -> Reply:
        chunks = sorted(self._chunks.pop(cookie))
        for (start, piece), (following, _) in pairwise(chunks):
            assert start + len(piece) == following, "the pieces do not meet"
        return Reply(cookie, 0, b"".join(piece for _, piece in chunks), len(chunks))

    def call(
        self, kind: int, offset: int = 0, length: int = 0, *, flags: int = 0, data: bytes = b""
    ) -> Reply:
        """Send a command and receive its reply, with nothing else in flight."""
        cookie = self.send_command(kind, offset, length, flags=flags, data=data)
        reply = self.receive_reply(length if kind == READ else 0)
        assert reply.cookie == cookie
        return reply


def counted(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text
