"""NBD servers that break the protocol, say nothing, or drip: whatever they do, every request ends."""

import asyncio
import errno
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import aioblk
from aioblk import BlkioError, DeviceLostError
from aioblk.nbd import list_exports

from . import scripted as s
from .scripted import Command, Export, Script, Session, scripted

GUARD = b"g" * 4096

# --- what is said of commands -------------------------------------------------------------------------------

Lie = Callable[[Session, Command], object]


def data(offset: int, length: int) -> bytes:
    return struct.pack(">Q", offset) + b"d" * length


LIES: dict[str, tuple[int, int, Lie]] = {
    "no magic": (s.SIMPLE, s.READ, lambda peer, _: peer.send(b"HTTP/1.1 400 Bad")),
    "a reply that nobody asked for": (s.SIMPLE, s.READ, lambda peer, c: peer.simple(c.cookie + 2)),
    "a structured reply that was not agreed on": (
        s.SIMPLE,
        s.READ,
        lambda peer, c: peer.chunk(c, s.DATA, data(0, 512)),
    ),
    "a simple reply to a read": (s.STRUCTURED, s.READ, lambda peer, c: peer.simple(c.cookie, 0, b"d" * 512)),
    "a simple reply of extended ones": (s.EXTENDED, s.WRITE, lambda peer, c: peer.simple(c.cookie)),
    "data before what was asked for": (
        s.STRUCTURED,
        s.READ,
        lambda peer, c: peer.chunk(c, s.DATA, data(c.offset - 1, 512)),
    ),
    "data behind what was asked for": (
        s.EXTENDED,
        s.READ,
        lambda peer, c: peer.chunk(c, s.DATA, data(c.offset + 1, 512)),
    ),
    "more data than were asked for": (
        s.STRUCTURED,
        s.READ,
        lambda peer, c: peer.chunk(c, s.DATA, data(c.offset, 513)),
    ),
    "no data": (s.STRUCTURED, s.READ, lambda peer, c: peer.chunk(c, s.NOTHING)),
    "too few data": (s.EXTENDED, s.READ, lambda peer, c: peer.chunk(c, s.DATA, data(c.offset, 511))),
    "data of no length": (s.STRUCTURED, s.READ, lambda peer, c: peer.chunk(c, s.DATA, data(c.offset, 0))),
    "a part twice": (
        s.STRUCTURED,
        s.READ,
        lambda peer, c: peer.chunks(
            c, (s.DATA, data(c.offset, 256)), (s.HOLE, struct.pack(">QI", c.offset + 255, 257))
        ),
    ),
    "all of it twice": (
        s.EXTENDED,
        s.READ,
        lambda peer, c: peer.chunks(c, *[(s.DATA, data(c.offset, 512))] * 2),
    ),
    "a hole without bounds": (
        s.STRUCTURED,
        s.READ,
        lambda peer, c: peer.chunk(c, s.HOLE, struct.pack(">QI", c.offset, 0xFFFFFFFF)),
    ),
    "a hole in a write": (
        s.STRUCTURED,
        s.WRITE,
        lambda peer, c: peer.chunk(c, s.HOLE, struct.pack(">QI", c.offset, 512)),
    ),
    "data of a write": (s.STRUCTURED, s.WRITE, lambda peer, c: peer.chunk(c, s.DATA, data(c.offset, 512))),
    "block status of a write": (
        s.STRUCTURED,
        s.WRITE,
        lambda peer, c: peer.chunk(c, s.STATUS, struct.pack(">III", 7, 512, 0)),
    ),
    "a chunk that nobody knows": (s.STRUCTURED, s.WRITE, lambda peer, c: peer.chunk(c, 99, b"")),
    "nothing with something in it": (s.EXTENDED, s.WRITE, lambda peer, c: peer.chunk(c, s.NOTHING, b"x")),
    "an error without a number": (
        s.STRUCTURED,
        s.WRITE,
        lambda peer, c: peer.chunk(c, s.ERROR, struct.pack(">IH", 0, 0)),
    ),
    "an error whose words end behind it": (
        s.STRUCTURED,
        s.WRITE,
        lambda peer, c: peer.chunk(c, s.ERROR, struct.pack(">IH", 5, 100) + b"x"),
    ),
    "an error without an end": (
        s.EXTENDED,
        s.WRITE,
        lambda peer, c: peer.send(
            struct.pack(">IHHQQQ", 0x6E8A278C, 1, s.ERROR, c.cookie, c.offset, 1 << 40)
        ),
    ),
    "errors without an end": (
        s.STRUCTURED,
        s.WRITE,
        lambda peer, c: peer.chunks(c, *[(s.ERROR, struct.pack(">IH", 5, 0))] * 100),
    ),
    "another offset": (s.EXTENDED, s.WRITE, lambda peer, c: peer.chunk(c._replace(offset=0), s.NOTHING)),
    "an answer twice": (
        s.SIMPLE,
        s.WRITE,
        lambda peer, c: peer.send(struct.pack(">IIQ", 0x67446698, 0, c.cookie) * 2),
    ),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_lie_loses_the_device_and_touches_nothing(tmp_path: Path, lie: str) -> None:
    dialect, kind, tell = LIES[lie]
    told = asyncio.Event()

    async def script(session: Session) -> None:
        one, _ = await session.commands(2)
        tell(session, one)
        told.set()
        assert not await session.reader.read(), "the client says nothing more"

    memory = bytearray(GUARD + bytes(512) + GUARD)
    with memoryview(memory) as view:
        async with (
            scripted(tmp_path, script, Export(dialect=dialect)) as uri,
            aioblk.Nbd(uri, reconnect_for=30.0) as dev,
        ):
            lent = view[4096:-4096]
            asked = dev.read_into(4096, lent) if kind == s.READ else dev.write(4096, lent)
            both = asyncio.gather(asked, dev.read(0, 512), return_exceptions=True)
            await told.wait()
            outcomes = await both
            assert isinstance(outcomes[1], DeviceLostError)
            assert "the server breaks the protocol: " in str(outcomes[1])
            assert isinstance(outcomes[0], DeviceLostError) == (lie != "an answer twice")
            assert dev.lost is not None
            with pytest.raises(DeviceLostError, match="breaks the protocol"):
                dev.read(0, 512)
            assert dev.statistics().in_flight == 0
            lent.release()
    assert memory.startswith(GUARD)
    assert memory.endswith(GUARD)


async def test_who_guesses_what_will_be_asked_and_answers_it_loses_the_device(tmp_path: Path) -> None:
    size = 8 << 20  # more than the kernel takes while nobody receives it

    async def script(session: Session) -> None:
        _, _, cookie, *_ = struct.unpack(">IIQQI", await session.receive(28))
        session.simple(cookie + 1)
        await asyncio.Event().wait()

    async with scripted(tmp_path, script, Export(size=size, dialect=s.SIMPLE)) as uri, aioblk.Nbd(uri) as dev:
        outcomes = await asyncio.gather(
            dev.write(0, bytes(size)), dev.write(0, bytes(512)), return_exceptions=True
        )
        assert all(isinstance(each, DeviceLostError) for each in outcomes)
        assert "a command is answered that was not sent" in str(dev.lost)


STATUSES: dict[str, tuple[int, int, bytes]] = {
    "of another context": (s.STRUCTURED, s.STATUS, struct.pack(">III", 8, 512, 0)),
    "without an extent": (s.STRUCTURED, s.STATUS, struct.pack(">I", 7)),
    "with half an extent": (s.STRUCTURED, s.STATUS, struct.pack(">III", 7, 512, 0) + b"half"),
    "in 64 bits where there are 32": (s.STRUCTURED, s.STATUS_EXTENDED, struct.pack(">IIQQ", 7, 1, 512, 0)),
    "in 32 bits where there are 64": (s.EXTENDED, s.STATUS, struct.pack(">III", 7, 512, 0)),
    "with another count": (s.EXTENDED, s.STATUS_EXTENDED, struct.pack(">IIQQ", 7, 2, 512, 0)),
    "none": (s.STRUCTURED, s.NOTHING, b""),
}


@pytest.mark.parametrize("wrong", STATUSES)
async def test_block_status_that_cannot_be_loses_the_device(tmp_path: Path, wrong: str) -> None:
    dialect, kind, body = STATUSES[wrong]

    async def script(session: Session) -> None:
        session.chunk(await session.command(), kind, body)
        assert not await session.reader.read()

    async with scripted(tmp_path, script, Export(dialect=dialect)) as uri, aioblk.Nbd(uri) as dev:
        with pytest.raises(DeviceLostError, match="breaks the protocol"):
            [each async for each in dev.extents()]


@pytest.mark.parametrize("length", [0, 100])
async def test_extents_that_get_nowhere_are_an_error(tmp_path: Path, length: int) -> None:
    async def script(session: Session) -> None:
        session.chunk(await session.command(), s.STATUS, struct.pack(">III", 7, length, 0))
        await session.command()

    async with scripted(tmp_path, script, Export()) as uri, aioblk.Nbd(uri) as dev:
        with pytest.raises(BlkioError, match=f"{length} bytes at 0 have a status of their own") as caught:
            [each async for each in dev.extents()]
        assert (caught.value.errno, caught.value.filename) == (errno.EPROTO, uri)


# --- what is said before ------------------------------------------------------------------------------------


async def answer_go(session: Session, *infos: bytes) -> None:
    await session.greet()
    while True:
        option, _ = await session.option()
        if option == s.GO:
            for info in infos:
                session.answer(option, s.INFO, info)
            session.answer(option, s.ACK)
            return
        session.answer(option, s.ERR_UNSUP)


async def answer_first(session: Session, magic: int, option: int, length: int) -> None:
    await session.greet()
    await session.option()
    session.send(struct.pack(">QIII", magic, option, s.ACK, length))


async def answer_without_end(session: Session) -> None:
    await session.greet()
    option, _ = await session.option()
    while True:
        session.answer(option, s.INFO, bytes(60000))
        await session.writer.drain()


async def grant(session: Session, *granted: bytes) -> None:
    await session.greet()
    while True:
        option, _ = await session.option()
        if option == s.SET_META_CONTEXT:
            for each in granted:
                session.answer(option, s.META_CONTEXT, each)
        session.answer(option, s.ERR_UNSUP if option == s.EXTENDED_HEADERS else s.ACK)


async def say(session: Session, *words: bytes) -> None:
    session.send(*words)


def export(size: int) -> bytes:
    return struct.pack(">HQH", 0, size, s.ALL)


def blocks(*sizes: int) -> bytes:
    return struct.pack(">HIII", 3, *sizes)


GREETINGS: dict[str, tuple[Script, str]] = {
    "another service": (
        lambda p: say(p, b"SSH-2.0-OpenSSH_9.9\r\n"),
        "greets with .*; there is another service",
    ),
    "before 2011": (
        lambda p: say(p, b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53"),
        "the protocol of before 2011",
    ),
    "half a greeting": (lambda p: say(p, b"NBDMAGIC"), "closes the connection while it greets"),
    "a reply of another kind": (lambda p: answer_first(p, 5, 11, 0), "a reply to an option begins with 0x5"),
    "a reply to another option": (
        lambda p: answer_first(p, 0x3E889045565A9, 1, 0),
        "is answered as if it were 1",
    ),
    "a long reply": (lambda p: answer_first(p, 0x3E889045565A9, 11, 1 << 31), "has 2147483648 bytes"),
    "replies without an end": (answer_without_end, "the replies to option 11 have more than 16777216 bytes"),
    "no size": (lambda p: answer_go(p), "does not tell the export's size"),
    "a short size": (lambda p: answer_go(p, export(512)[:-1]), "size and flags have 11 bytes"),
    "half a block": (
        lambda p: answer_go(p, export(1000), blocks(512, 4096, 65536)),
        "no whole number of blocks",
    ),
    "a size beyond all": (lambda p: answer_go(p, export(1 << 63)), "9223372036854775808 bytes"),
    "odd blocks": (lambda p: answer_go(p, export(3000), blocks(3, 4096, 65536)), "minimum block size is 3"),
    "small payloads": (
        lambda p: answer_go(p, export(4096), blocks(4096, 4096, 512)),
        "maximum payload is 512",
    ),
    "a context that nobody wants": (
        lambda p: grant(p, b"\0\0\0\1x:y"),
        "'x:y' is granted, which nobody asked",
    ),
    "a context without a number": (lambda p: grant(p, b"\0"), "in no form that there is"),
}


@pytest.mark.parametrize("greeting", GREETINGS)
async def test_a_greeting_that_cannot_be_is_an_error_when_opened(tmp_path: Path, greeting: str) -> None:
    speak, words = GREETINGS[greeting]

    async def script(session: Session) -> None:
        await speak(session)

    async with scripted(tmp_path, script) as uri:
        with pytest.raises(BlkioError, match=words):
            await aioblk.Nbd(uri).open()


async def test_a_list_without_an_end_is_an_error(tmp_path: Path) -> None:
    async def script(session: Session) -> None:
        await session.greet()
        option, _ = await session.option()
        while True:
            session.answer(option, s.SERVER, b"\0\0\0\1n" + bytes(60000))
            await session.writer.drain()

    async with scripted(tmp_path, script) as uri:
        with pytest.raises(BlkioError, match="more than 16777216 bytes"):
            await list_exports(uri)


async def drip(session: Session) -> None:
    for byte in b"NBDMAGICIHAVEOPT\0\3":
        session.send(bytes([byte]))
        await asyncio.sleep(0.01)


async def keep_silent(session: Session) -> None:
    await session.reader.read()


@pytest.mark.parametrize("habit", [drip, keep_silent])
async def test_opening_takes_no_longer_than_it_may(tmp_path: Path, habit: Script) -> None:
    async with scripted(tmp_path, habit) as uri:
        with pytest.raises(BlkioError, match=r"does not answer within 0\.1 seconds \(connect_t") as caught:
            await aioblk.Nbd(uri, connect_timeout=0.1).open()
        assert caught.value.errno == errno.ETIMEDOUT


# --- silence ------------------------------------------------------------------------------------------------


async def drip_replies(session: Session) -> None:
    command = await session.command()
    session.send(struct.pack(">IHHQI", 0x668E33EF, 1, s.DATA, command.cookie, 8 + 4096))
    session.send(struct.pack(">Q", command.offset))
    while True:
        session.send(b"x")
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("habit", [drip_replies, keep_silent])
async def test_a_server_that_answers_no_more_loses_the_device(tmp_path: Path, habit: Script) -> None:
    async with (
        scripted(tmp_path, habit, Export()) as uri,
        aioblk.Nbd(uri, lost_after=0.1, reconnect_for=30.0) as dev,
    ):
        with pytest.raises(DeviceLostError, match=r"has not answered for 0\.1 seconds \(lost_after\)"):
            await dev.read(0, 4096)
        assert dev.lost is not None
        assert not dev.reconnecting


async def read_for_ever(dev: aioblk.Nbd) -> None:
    while True:
        await dev.read(0, 8192)
        await asyncio.sleep(0.001)


async def test_one_command_that_is_never_answered_beside_others_that_are_loses_the_device(
    tmp_path: Path,
) -> None:
    async def script(session: Session) -> None:
        await session.command()
        await session.serve(bytearray(s.SIZE))

    async with scripted(tmp_path, script, Export()) as uri, aioblk.Nbd(uri, lost_after=0.1) as dev:
        left = asyncio.ensure_future(dev.read(512, 512))
        with pytest.raises(DeviceLostError, match="that it has is at offset 512"):
            await read_for_ever(dev)
        with pytest.raises(DeviceLostError):
            await left


async def test_a_server_that_does_not_answer_can_be_given_up(tmp_path: Path) -> None:
    async with scripted(tmp_path, keep_silent, Export()) as uri, aioblk.Nbd(uri) as dev:
        read = asyncio.ensure_future(dev.read(0, 512))
        dev.abandon("enough")
        dev.abandon("again")
        with pytest.raises(DeviceLostError, match="enough"):
            await read


# --- anything -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(24))
async def test_whatever_is_answered_every_request_ends(tmp_path: Path, seed: int) -> None:
    """A good server, some of whose bytes are others, are missing, come twice, or come one by one."""
    chance = random.Random(seed)
    dialect = chance.choice((s.SIMPLE, s.STRUCTURED, s.EXTENDED))

    async def script(session: Session) -> None:
        write = session.writer.write

        def damage(head: bytes) -> None:
            said = bytearray(head)
            match chance.randrange(40):
                case 0:
                    said[chance.randrange(min(len(said), 32))] ^= 1 << chance.randrange(8)
                case 1:
                    del said[chance.randrange(len(said)) :]
                case 2:
                    said.extend(bytes(said))
                case 3:
                    said[: chance.randrange(len(said))] = chance.randbytes(chance.randrange(40))
            while said:
                size = chance.choice((1, 5, 100, len(said)))
                write(bytes(said[:size]))
                del said[:size]

        session.writer.write = damage  # type: ignore[assignment, method-assign]
        with pytest.raises((EOFError, ConnectionError, TimeoutError)):
            async with asyncio.timeout(0.2):  # it waits for ever where it has said too little
                await session.serve(bytearray(b"m" * s.SIZE))
        session.writer.transport.abort()

    buffers = [bytearray(GUARD + b"o" * 5120 + GUARD) for _ in range(40)]
    async with scripted(tmp_path, script, Export(dialect=dialect)) as uri, aioblk.Nbd(uri, depth=8) as dev:
        views = [memoryview(buffer)[4096:-4096] for buffer in buffers]
        requests: list[asyncio.Future[None]] = []
        for view in views:
            requests.append(asyncio.ensure_future(dev.read_into(0, view)))
            requests.append(asyncio.ensure_future(dev.write(8192, view[:512])))
        for request in chance.sample(requests, 8):
            await asyncio.sleep(0)
            request.cancel()
        async with asyncio.timeout(30):
            await asyncio.wait(requests)
        failed = [each.exception() for each in requests if not each.cancelled()]
        assert all(error is None or isinstance(error, BlkioError) for error in failed)
        counts = dev.statistics()
        assert counts.submitted == counts.completed + counts.failed + counts.cancelled
        del requests, failed
        for view in views:
            view.release()
        for buffer in buffers:
            buffer.append(0)  # BufferError: somebody still refers to it
            assert buffer.startswith(GUARD)
            assert buffer[:-1].endswith(GUARD)
