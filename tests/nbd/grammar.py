"""Whole sessions of an NBD client by the protocol's grammar, with any values; and what may be answered."""

import random
import select
import socket
import struct
from dataclasses import dataclass, field
from pathlib import Path

from ..support.nbd_exports import SIZE
from . import wire
from .wire import counted, queries

DATA_MOST = 200_000
PAYLOAD_MOST = 32 << 20
SIMPLE, STRUCTURED, EXTENDED = range(3)
CONTEXTS = (b"base:allocation", b"base:", b"qemu:dirty-bitmap:x", b"qemu:", b"x-a:b", b"", b":", b"\xff\xfe")
ERRORS = (1, 5, 12, 22, 28, 75, 95, 108)


@dataclass
class Command:
    kind: int
    offset: int
    length: int


@dataclass
class Session:
    """What a client says from the first to the last byte, and what it may expect."""

    said: bytes = b""
    options: set[int] = field(default_factory=set[int])
    dialect: int = SIMPLE
    has_chosen: bool = False
    """Transmission begins."""
    by_name: bool = False
    """The old way."""
    commands: dict[int, Command] = field(default_factory=dict[int, Command])
    ends_well: bool = False
    """By a farewell, after which everything is answered; or nobody knows how far it comes."""


def any_session(chance: random.Random) -> Session:
    session = Session(struct.pack(">I", 3))
    for _ in range(chance.randrange(6)):
        _say_any_option(session, chance)
    match chance.randrange(12):
        case 0:
            session.said += option(wire.ABORT)
            session.options.add(wire.ABORT)
            return session
        case 1:
            session.said += option(wire.EXPORT_NAME)
            session.by_name = session.has_chosen = session.dialect != EXTENDED
            if not session.has_chosen:  # which is refused, by the end
                return session
        case _:
            session.said += option(wire.GO, counted(b"") + struct.pack(">H", 0))
            session.options.add(wire.GO)
            session.has_chosen = True
    session.ends_well = True
    for cookie in range(1, chance.randrange(1, 14)):
        _say_any_command(session, cookie, chance)
        if not session.ends_well:
            return session
    session.said += command(session.dialect, wire.DISC, 0, 0, 0, 0)
    return session


def option(kind: int, data: bytes = b"") -> bytes:
    return wire.IHAVEOPT + struct.pack(">II", kind, len(data)) + data


def command(dialect: int, kind: int, flags: int, cookie: int, offset: int, length: int) -> bytes:
    if dialect == EXTENDED:
        return struct.pack(">IHHQQQ", 0x21E41C71, flags, kind, cookie, offset, length)
    return struct.pack(">IHHQQI", 0x25609513, flags, kind, cookie, offset, length)


def _say_any_option(session: Session, chance: random.Random) -> None:
    kind = chance.choice([*range(3, 12), 12, 0, 0xFFFFFFFF])
    texts = [chance.choice(CONTEXTS) for _ in range(chance.randrange(4))]
    data = b""
    if kind in (wire.INFO, wire.GO):
        wanted = [chance.randrange(5) for _ in range(chance.randrange(4))]
        name = b"" if kind == wire.INFO else b"nobody's"
        data = counted(name) + struct.pack(f">H{len(wanted)}H", len(wanted), *wanted)
    elif kind in (wire.LIST_META_CONTEXT, wire.SET_META_CONTEXT):
        data = queries(chance.choice([b"", b"", b"other"]), *texts)
    wrong = chance.random() < 0.2 and kind not in (wire.GO, wire.ABORT)
    if wrong:
        data = data[: chance.randrange(len(data) + 1)] + chance.randbytes(chance.randrange(1, 20))
    session.options.add(kind)
    session.said += option(kind, data)
    if not data and kind == wire.EXTENDED_HEADERS:
        session.dialect = EXTENDED
    elif not data and kind == wire.STRUCTURED_REPLY and session.dialect == SIMPLE:
        session.dialect = STRUCTURED


def _say_any_command(session: Session, cookie: int, chance: random.Random) -> None:
    kind = chance.choice([0, 0, 1, 1, 3, 4, 5, 6, 7, 7, 7, 8, 0xFFFF])
    flags = chance.choice([0, 0, 0, 1, 4, 8, 16, chance.randrange(64), chance.randrange(1 << 16)])
    offset = chance.choice([0, chance.randrange(SIZE), SIZE - 512, SIZE, chance.randrange(1 << 64)])
    lengths = [0, 1, 512, 4096, 65536, chance.randrange(1 << 20), SIZE, 1 << 31, (1 << 32) - 1]
    payload = b""
    if session.dialect == EXTENDED:
        length = chance.choice([*lengths, 1 << 40, (1 << 64) - 1])
        if kind == wire.WRITE and chance.random() < 0.9:
            flags |= wire.PAYLOAD_LEN
        if flags & wire.PAYLOAD_LEN or kind == wire.WRITE:
            if kind == wire.BLOCK_STATUS:
                numbers = [chance.randrange(3) for _ in range(chance.randrange(4))]
                payload = struct.pack(f">Q{len(numbers)}I", length, *numbers)
            else:
                payload = chance.randbytes(chance.choice([1, 512, 4096, chance.randrange(1, DATA_MOST)]))
            length = len(payload)
    else:
        length = chance.choice(lengths)
        if kind == wire.WRITE:
            payload = chance.randbytes(chance.choice([0, 1, 512, 4096, chance.randrange(DATA_MOST)]))
            length = len(payload)
    if payload and chance.random() < 0.01:
        length, session.ends_well = PAYLOAD_MOST + chance.randrange(1, 1 << 20), False
    session.commands[cookie] = Command(kind, offset, length)
    session.said += command(session.dialect, kind, flags, cookie, offset, length) + payload


# --- talking ------------------------------------------------------------------------------------------------


def exchange(where: Path, said: bytes) -> bytes:
    """Say all of it, as fast as it is taken, and hear the answer to its end, though the server ends it."""
    answer = bytearray()
    resets = 0
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(where))
        client.setblocking(False)
        left = memoryview(said)
        while True:
            readable, writable, _ = select.select([client], [client] if left else [], [], wire.TIME_LIMIT)
            assert readable or writable, "the server does not end it"
            try:
                if writable:
                    left = left[client.send(left) :]
                    if not left:
                        client.shutdown(socket.SHUT_WR)
                if readable:
                    piece = client.recv(1 << 20)
                    if not piece:
                        return bytes(answer)
                    answer += piece
            except ConnectionError:  # of which each way has one, before what was answered is heard
                resets += 1
                left = memoryview(b"")
                if resets > 2:
                    return bytes(answer)


# --- judging ------------------------------------------------------------------------------------------------


def judge(session: Session, answer: bytes) -> None:
    """AssertionError: it is not an answer to that."""
    rest = _Rest(answer)
    assert rest.take(">QQH") == (0x4E42444D41474943, 0x49484156454F5054, 3)
    while True:
        if session.by_name and not rest.begins(0x3E889045565A9, 8):
            size, _ = rest.take(">QH")
            assert size == SIZE
            break
        if not rest.left:
            assert not session.has_chosen
            return
        magic, option_, kind, length = rest.take(">QIII")
        assert magic == 0x3E889045565A9
        assert option_ in session.options
        assert kind in (1, 2, 3, 4) or 0x80000001 <= kind <= 0x8000000A
        rest.skip(length)
        if option_ == wire.GO and kind == wire.ACK:
            break
    assert session.has_chosen
    if not session.ends_well:
        return
    answered: set[int] = set()
    while rest.left:
        cookie, is_last = _one_reply(session, rest)
        assert cookie not in answered
        if is_last:
            answered.add(cookie)
    assert answered == session.commands.keys()


def _one_reply(session: Session, rest: "_Rest") -> tuple[int, bool]:
    if rest.begins(0x67446698, 4):
        assert session.dialect != EXTENDED
        _, error, cookie = rest.take(">IIQ")
        command = session.commands[cookie]
        assert error == 0 or error in ERRORS
        if command.kind == wire.READ:
            assert session.dialect == SIMPLE
            rest.skip(0 if error else command.length)
        return cookie, True
    assert session.dialect != SIMPLE
    if session.dialect == EXTENDED:
        magic, flags, kind, cookie, offset, length = rest.take(">IHHQQQ")
        assert magic == 0x6E8A278C
        assert offset == session.commands[cookie].offset
    else:
        magic, flags, kind, cookie, length = rest.take(">IHHQI")
        assert magic == 0x668E33EF
    _judge_chunk(session.commands[cookie], kind, rest.skip(length), is_extended=session.dialect == EXTENDED)
    assert flags in (0, 1)
    assert flags or kind not in (0, 0x8001, 0x8002)
    return cookie, bool(flags)


def _judge_chunk(command: Command, kind: int, body: bytes, *, is_extended: bool) -> None:
    end = command.offset + command.length
    match kind:
        case 0:
            assert not body
        case 1 | 2:
            assert command.kind == wire.READ
            (offset,) = struct.unpack_from(">Q", body)
            length = len(body) - 8 if kind == 1 else struct.unpack(">I", body[8:])[0]
            assert length
            assert command.offset <= offset < offset + length <= end
        case 5 | 6:
            assert command.kind == wire.BLOCK_STATUS
            assert is_extended == (kind == 6)
            layout, head = (">QQ", 8) if is_extended else (">II", 4)
            states = [*struct.iter_unpack(layout, body[head:])]
            assert states
            assert all(length and state in (0, 3) for length, state in states)
        case 0x8001 | 0x8002:
            error, length = struct.unpack_from(">IH", body)
            assert error in ERRORS
            body[6 : 6 + length].decode()
            assert len(body) == 6 + length + (8 if kind == 0x8002 else 0)
            if kind == 0x8002:
                assert command.offset <= int.from_bytes(body[-8:], "big") < end
        case _:
            raise AssertionError(f"a chunk of kind {kind}")


class _Rest:
    """What is left of an answer."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._position = 0

    @property
    def left(self) -> int:
        return len(self._text) - self._position

    def begins(self, magic: int, size: int) -> bool:
        return self._text[self._position : self._position + size] == magic.to_bytes(size, "big")

    def take(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(layout, self.skip(struct.calcsize(layout)))

    def skip(self, size: int) -> bytes:
        assert size <= self.left, "the answer ends before its time"
        self._position += size
        return self._text[self._position - size : self._position]
