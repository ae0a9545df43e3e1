"""An NBD client that sends what it is told to, right or wrong. It shares no code with the server."""

import select
import socket
import struct
from contextlib import suppress
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
ERR_UNSUP, ERR_INVALID, ERR_UNKNOWN, ERR_TOO_BIG = (0x80000000 + n for n in (1, 3, 6, 9))

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


class Client:
    """A blocking connection. Replies are read one by one."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(TIME_LIMIT)
        self.socket.connect(str(path))
        self.structured = False
        self._cookie = 0

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
        data = b""
        while len(data) < size:
            piece = self.socket.recv(size - len(data))
            if not piece:
                raise EOFError(f"the server closed the connection after {len(data)} of {size} bytes")
            data += piece
        return data

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
        """The next reply; a successful simple one is followed by *read_length* bytes."""
        (magic,) = struct.unpack(">I", self.receive(4))
        if magic == 0x67446698:
            error, cookie = struct.unpack(">IQ", self.receive(12))
            return Reply(cookie, error, b"" if error else self.receive(read_length))
        assert magic == 0x668E33EF
        flags, kind, cookie, length = struct.unpack(">HHQI", self.receive(16))
        assert flags == 1, "every reply is one chunk"
        data = self.receive(length)
        if kind & 0x8000:
            error, text_length = struct.unpack_from(">IH", data)
            assert length == 6 + text_length
            return Reply(cookie, error, data[6:])
        return Reply(cookie, 0, data[8:] if kind == 1 else data)

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
