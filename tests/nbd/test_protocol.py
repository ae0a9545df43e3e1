"""The NBD server's answers, byte by byte, to a client that asks for all there is, and for what is not."""

import random
import struct
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aioblk.testing.storage_daemon import StorageDaemon

from ..support.nbd_exports import SIZE, new_image
from ..support.nbd_server import NbdServer
from . import wire
from .wire import Client, OptionReply, Reply, counted

EPERM, EIO, EINVAL, ENOSPC, ENOTSUP = 1, 5, 22, 28, 95


@pytest.fixture(scope="module")
def named_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NbdServer]:
    """One for all the tests of the handshake, which change nothing but a few bytes."""
    image = new_image(tmp_path_factory.mktemp("named"))
    with NbdServer("io_uring", f"path={image}", "--description", "a test", name="disk") as server:
        yield server


# --- handshake ----------------------------------------------------------------------------------------------


def test_list_names_the_export(named_server: NbdServer) -> None:
    with Client(named_server.socket) as client:
        assert client.greet() == 3
        assert client.ask(wire.LIST) == [
            OptionReply(wire.LIST, wire.SERVER, counted(b"disk")),
            OptionReply(wire.LIST, wire.ACK, b""),
        ]
        assert client.ask(wire.LIST, b"x")[-1].kind == wire.ERR_INVALID
        assert client.ask(wire.ABORT) == [OptionReply(wire.ABORT, wire.ACK, b"")]
        assert client.is_closed_by_server()


def test_info_tells_what_was_asked(named_server: NbdServer) -> None:
    with Client(named_server.socket) as client:
        client.greet()
        *told, end = client.ask(wire.INFO, counted(b"disk") + struct.pack(">HHHH", 3, 1, 2, 3))
        assert end.kind == wire.ACK
        information = {struct.unpack_from(">H", reply.data)[0]: reply.data[2:] for reply in told}
        assert information[1] == b"disk"
        assert information[2] == b"a test"
        assert struct.unpack(">III", information[3]) == (1, 4096, 32 << 20)
        size, flags = struct.unpack(">QH", information[0])
        assert size == SIZE
        assert flags == 0b1101_0110_1101  # everything but read-only, rotational, DF and resize
        # Asking is not choosing: the handshake goes on.
        assert client.ask(wire.STRUCTURED_REPLY)[-1].kind == wire.ACK
        *told, _ = client.ask(wire.INFO, counted(b"disk") + struct.pack(">H", 0))
        (export,) = [reply.data[2:] for reply in told if reply.data[:2] == b"\0\0"]
        assert struct.unpack(">QH", export)[1] == flags | 1 << 7  # structured replies bring DF


@pytest.mark.parametrize(
    ("option", "data", "kind"),
    [
        (5, b"", wire.ERR_UNSUP),  # STARTTLS
        (11, b"x", wire.ERR_INVALID),  # extended headers
        (77, b"whatever", wire.ERR_UNSUP),
        (wire.INFO, counted(b"other") + struct.pack(">H", 0), wire.ERR_UNKNOWN),
        (wire.GO, counted(b"other") + struct.pack(">H", 0), wire.ERR_UNKNOWN),
        (wire.GO, b"", wire.ERR_INVALID),
        (wire.GO, struct.pack(">I", 1000) + b"disk", wire.ERR_INVALID),
        (wire.GO, counted(b"disk") + struct.pack(">HH", 2, 1), wire.ERR_INVALID),
        (wire.GO, counted(b"\xff\xfe") + struct.pack(">H", 0), wire.ERR_INVALID),
        (wire.STRUCTURED_REPLY, b"x", wire.ERR_INVALID),
        (wire.SET_META_CONTEXT, counted(b"disk") + struct.pack(">I", 0), wire.ERR_INVALID),  # not structured
        (wire.LIST, bytes(100_000), wire.ERR_TOO_BIG),
    ],
)
def test_wrong_options_are_refused_and_do_no_harm(
    named_server: NbdServer, option: int, data: bytes, kind: int
) -> None:
    with Client(named_server.socket) as client:
        client.greet()
        assert [reply.kind for reply in client.ask(option, data)] == [kind]
        assert client.go(b"disk")[-1].kind == wire.ACK
        assert client.call(wire.READ, 0, 512).data == bytes(512)


def test_metadata_contexts(named_server: NbdServer) -> None:
    def query(option: int, name: bytes, *queries: bytes) -> list[OptionReply]:
        texts = b"".join(map(counted, queries))
        return client.ask(option, counted(name) + struct.pack(">I", len(queries)) + texts)

    def contexts(replies: list[OptionReply]) -> list[bytes]:
        assert replies[-1].kind == wire.ACK
        return [reply.data[4:] for reply in replies[:-1]]

    with Client(named_server.socket) as client:
        client.greet()
        assert client.ask(wire.STRUCTURED_REPLY)[-1].kind == wire.ACK
        assert contexts(query(wire.LIST_META_CONTEXT, b"disk")) == [b"base:allocation"]
        assert contexts(query(wire.LIST_META_CONTEXT, b"disk", b"base:")) == [b"base:allocation"]
        assert contexts(query(wire.LIST_META_CONTEXT, b"disk", b"qemu:")) == []
        assert contexts(query(wire.SET_META_CONTEXT, b"disk", b"base:")) == []
        assert contexts(query(wire.SET_META_CONTEXT, b"disk", b"x", b"base:allocation")) == [
            b"base:allocation"
        ]
        assert query(wire.SET_META_CONTEXT, b"other", b"base:allocation")[-1].kind == wire.ERR_UNKNOWN
        assert client.go(b"disk")[-1].kind == wire.ACK
        client.structured = True
        # The last attempt to set it failed, so there is none.
        assert client.call(wire.BLOCK_STATUS, 0, 4096).error == EINVAL


@pytest.mark.parametrize("no_zeroes", [True, False])
def test_export_name_chooses_without_an_answer(named_server: NbdServer, no_zeroes: bool) -> None:
    with Client(named_server.socket) as client:
        client.greet(3 if no_zeroes else 1)
        client.send_option(wire.EXPORT_NAME, b"disk")
        size, _ = struct.unpack(">QH", client.receive(10))
        assert size == SIZE
        if not no_zeroes:
            assert client.receive(124) == bytes(124)
        assert client.call(wire.WRITE, 4096, 4, data=b"data") == Reply(1, 0)
        assert client.call(wire.READ, 4096, 4).data == b"data"


def test_export_name_of_an_unknown_export_ends_it(named_server: NbdServer) -> None:
    with Client(named_server.socket) as client:
        client.greet()
        client.send_option(wire.EXPORT_NAME, b"other")
        assert client.is_closed_by_server()


@pytest.mark.parametrize("nonsense", [b"\0\0\0\xff", b"\0\0\0\0", b"\0\0\0\x03" + bytes(16)])
def test_nonsense_in_the_handshake_ends_it(named_server: NbdServer, nonsense: bytes) -> None:
    with Client(named_server.socket) as client:
        client.receive(18)
        client.send(nonsense)
        assert client.is_closed_by_server()


def test_a_client_that_haggles_without_end_is_sent_away(named_server: NbdServer) -> None:
    with Client(named_server.socket) as client, pytest.raises((EOFError, OSError)):  # noqa: PT012
        client.greet()
        while True:
            client.ask(wire.LIST)


# --- transmission -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structured", [False, True])
def test_every_command(server: NbdServer, structured: bool) -> None:
    pattern = bytes(range(256)) * 256  # 64 KiB
    with Client(server.socket).connect(structured=structured) as client:

        def succeeds(
            kind: int, offset: int = 0, length: int = 0, *, flags: int = 0, data: bytes = b""
        ) -> bytes:
            reply = client.call(kind, offset, length, flags=flags, data=data)
            assert reply.error == 0, reply
            return reply.data

        succeeds(wire.WRITE, 0, len(pattern), data=pattern)
        succeeds(wire.WRITE, len(pattern), len(pattern), data=pattern, flags=wire.FUA)
        assert succeeds(wire.READ, 4096, len(pattern)) == pattern[4096:] + pattern[:4096]
        succeeds(wire.FLUSH)
        succeeds(wire.CACHE, 0, 1 << 20)
        succeeds(wire.TRIM, 4096, 4096)
        succeeds(wire.TRIM, 8192, 8192, flags=wire.FUA)
        assert succeeds(wire.READ, 8192, 8192) == bytes(8192)
        succeeds(wire.TRIM, 512, 100)  # no whole block: nothing to do
        succeeds(wire.WRITE_ZEROES, 16384, 4096)
        succeeds(wire.WRITE_ZEROES, 20480, 4096, flags=wire.NO_HOLE | wire.FUA)
        assert client.call(wire.WRITE_ZEROES, 24576, 4096, flags=wire.FAST_ZERO).error in (0, ENOTSUP)
        assert succeeds(wire.READ, 16384, 8192) == bytes(8192)
        for kind in (wire.READ, wire.WRITE, wire.TRIM, wire.WRITE_ZEROES, wire.CACHE):
            succeeds(kind, 0, 0)
        client.send_command(wire.DISC)
        assert client.is_closed_by_server()


def test_commands_larger_than_any_buffer(server: NbdServer) -> None:
    data = bytes(range(251)) * 50_000
    data = data[: 10 << 20]
    with Client(server.socket).connect() as client:
        assert client.call(wire.WRITE, 1 << 20, len(data), data=data).error == 0
        assert client.call(wire.READ, 1 << 20, len(data)).data == data
        assert client.call(wire.WRITE_ZEROES, 0, SIZE).error == 0
        assert not any(client.call(wire.READ, 0, SIZE).data)


@pytest.mark.parametrize("structured", [False, True])
def test_wrong_commands_are_refused_and_do_no_harm(file_server: NbdServer, structured: bool) -> None:
    with Client(file_server.socket).connect(structured=structured) as client:

        def error(kind: int, offset: int, length: int, *, flags: int = 0, data: bytes = b"") -> int:
            return client.call(kind, offset, length, flags=flags, data=data).error

        assert error(wire.READ, SIZE, 1) == EINVAL
        assert error(wire.READ, SIZE - 1, 2) == EINVAL
        assert error(wire.READ, 2**64 - 1, 2**32 - 1) == EINVAL
        assert error(wire.WRITE, SIZE - 1, 2, data=b"xx") == ENOSPC
        assert error(wire.WRITE, SIZE, 1 << 20, data=bytes(1 << 20)) == ENOSPC
        assert error(wire.TRIM, SIZE, 4096) == EINVAL
        assert error(wire.WRITE_ZEROES, SIZE - 512, 1024) == ENOSPC
        assert error(wire.CACHE, SIZE, 1) == EINVAL
        assert error(wire.BLOCK_STATUS, 0, 4096) == EINVAL  # no context was chosen
        assert error(8, 0, 0) == EINVAL
        assert error(0xFFFF, 0, 0) == EINVAL
        assert error(wire.READ, 0, 512, flags=wire.FAST_ZERO) == EINVAL
        assert error(wire.WRITE, 0, 3, flags=1 << 15, data=b"xxx") == EINVAL
        assert client.call(wire.READ, 0, 512).data == bytes(512)


def test_bytes_that_are_not_whole_blocks(server: NbdServer) -> None:
    """Many at once, on neighbouring bytes, so that what is read and written back may be written meanwhile."""
    chance = random.Random(2)
    expected = bytearray(1 << 20)
    with (
        Client(server.socket).connect(structured=True) as one,
        Client(server.socket).connect(structured=True) as other,
    ):
        assert one.call(wire.WRITE_ZEROES, 0, len(expected)).error == 0
        for _ in range(30):
            position, sent = chance.randrange(4096), {one: 0, other: 0}
            while position < len(expected) - 20_000 and sum(sent.values()) < 60:
                length = chance.choice([1, 100, 511, 512, 4096, chance.randrange(1, 10_000)])
                client = chance.choice([one, other])
                if chance.random() < 0.2:
                    client.send_command(wire.WRITE_ZEROES, position, length)
                    expected[position : position + length] = bytes(length)
                else:
                    data = chance.randbytes(length)
                    client.send_command(wire.WRITE, position, length, data=data)
                    expected[position : position + length] = data
                sent[client] += 1
                position += length
                if chance.random() < 0.3:
                    position = -(-position // 512) * 512
            for client, count in sent.items():
                assert [client.receive_reply().error for _ in range(count)] == [0] * count
        assert one.call(wire.READ, 0, len(expected)).data == expected
        assert other.call(wire.READ, 511, 300_000).data == expected[511:300_511]
        assert one.call(wire.WRITE, 7, 600_000, data=bytes(600_000)).error == 0
        assert one.call(wire.READ, 0, 600_010).data == (
            expected[:7] + bytes(600_000) + expected[600_007:600_010]
        )


def test_a_read_only_export_refuses_every_change(image: Path) -> None:
    with (
        NbdServer("io_uring", f"path={image}", "read-only=true") as server,
        Client(server.socket).connect() as client,
    ):
        assert client.call(wire.WRITE, 0, 3, data=b"abc").error == EPERM
        assert client.call(wire.TRIM, 0, 4096).error == EPERM
        assert client.call(wire.WRITE_ZEROES, 0, 4096).error == EPERM
        assert client.call(wire.FLUSH).error == 0
        assert client.call(wire.READ, 0, 4096).data == bytes(4096)


def test_block_status(file_server: NbdServer) -> None:
    def extents(reply: Reply) -> list[tuple[int, int]]:
        (states,) = reply.states.values()
        return states

    hole, data = 3, 0
    with Client(file_server.socket).connect(allocation=True) as client:
        assert client.call(wire.WRITE, 65536, 65536, data=b"x" * 65536).error == 0
        status = client.call(wire.BLOCK_STATUS, 0, 1 << 20)
        assert extents(status) == [(65536, hole), (65536, data), ((1 << 20) - 131072, hole)]
        status = client.call(wire.BLOCK_STATUS, 0, 1 << 20, flags=wire.REQ_ONE)
        assert extents(status) == [(65536, hole)]
        status = client.call(wire.BLOCK_STATUS, 65536 + 512, 1024)
        assert extents(status) == [(1024, data)]
        assert client.call(wire.BLOCK_STATUS, 0, 0).error == EINVAL
        assert client.call(wire.BLOCK_STATUS, SIZE, 1).error == EINVAL


def test_replies_come_in_the_order_of_completion(server: NbdServer) -> None:
    """Hundreds of commands are sent before any reply is read; every one is answered, once."""
    with Client(server.socket).connect(structured=True) as client:
        blocks = [bytes([number]) * 4096 for number in range(200)]
        written = {
            client.send_command(wire.WRITE, number * 4096, 4096, data=block)
            for number, block in enumerate(blocks)
        }
        assert {client.receive_reply().cookie for _ in blocks} == written
        wanted = {client.send_command(wire.READ, n * 4096, 4096): block for n, block in enumerate(blocks)}
        answers = [client.receive_reply() for _ in blocks]
        assert {answer.cookie: answer.data for answer in answers} == wanted


# --- more data than a client may have memory for ------------------------------------------------------------

SCARCE = ("--memory", "1M", "--clients", "100")  # a page for each, and a share in some 600 KiB


@pytest.mark.parametrize("structured", [False, True])
def test_commands_larger_than_a_clients_memory(image: Path, structured: bool) -> None:
    """And their replies, whole ones and those in chunks, beside others of the same client."""
    chance = random.Random(5)
    expected = bytearray(chance.randbytes(12 << 20))
    flags = [0, wire.DF] if structured else [0]
    with (
        NbdServer("io_uring", f"path={image}", *SCARCE) as server,
        Client(server.socket).connect(structured=structured) as client,
    ):
        assert client.call(wire.WRITE, 0, len(expected), data=bytes(expected), flags=wire.FUA).error == 0
        for _ in range(5):
            offset, length = chance.randrange(4 << 20), chance.randrange(7 << 20)
            data = chance.randbytes(length)
            expected[offset : offset + length] = data
            assert client.call(wire.WRITE, offset, length, data=data).error == 0
            offset, length = chance.randrange(4 << 20), chance.randrange(7 << 20)
            for flag in flags:
                wanted = {
                    client.send_command(wire.FLUSH): b"",
                    client.send_command(wire.TRIM, 15 << 20, 4096): b"",
                    client.send_command(wire.READ, offset, length, flags=flag): expected[
                        offset : offset + length
                    ],
                    client.send_command(wire.FLUSH): b"",
                    client.send_command(wire.WRITE_ZEROES, 15 << 20, 4096): b"",
                }
                read = min(wanted) + 2
                while wanted:
                    reply = client.receive_reply_of(defaultdict(int, {read: length}))
                    assert reply.error == 0
                    assert reply.data == wanted.pop(reply.cookie)
                    if reply.cookie == read:
                        assert (reply.chunks > 1) == (structured and not flag)


def test_data_that_fit_in_memory_are_not_cut(file_server: NbdServer) -> None:
    with Client(file_server.socket).connect(structured=True) as client:
        assert client.call(wire.READ, 4096, 256 << 10).chunks == 1
        assert client.call(wire.READ, 4096, 8 << 20, flags=wire.DF).chunks == 1


@contextmanager
def failing(image: Path, kind: str, offset: int | None = None) -> Iterator[NbdServer]:
    """A server on a device that fails all requests of a kind, or those that meet *offset*."""
    rule: dict[str, object] = {"event": "none", "iotype": kind, "errno": EIO}
    if offset is not None:
        rule |= {"sector": offset // 512}
    file = {"driver": "file", "filename": str(image)}
    with (
        StorageDaemon({"driver": "blkdebug", "image": file, "inject-error": [rule]}) as daemon,
        NbdServer("virtio-blk-vhost-user", f"path={daemon.socket}", *SCARCE) as server,
    ):
        yield server


@pytest.mark.parametrize("structured", [False, True])
def test_an_error_in_the_middle_of_a_reply(image: Path, structured: bool) -> None:
    """Chunks are followed by one that says so. A whole reply that has begun ends with the connection."""
    middle = 3 << 20
    with failing(image, "read", middle) as server:
        server.expect("the device fails, and maybe not only here: .*Input/output error")
        with Client(server.socket).connect(structured=structured) as client:
            assert client.call(wire.READ, middle, 1 << 20).error == EIO
            client.send_command(wire.READ, 0, 4 << 20)
            if structured:
                reply = client.receive_reply()
                assert reply.error == EIO
                assert reply.chunks > 1
                assert client.call(wire.READ, 0, 4096).error == 0
            else:
                with pytest.raises((EOFError, ConnectionError)):
                    client.receive_reply(4 << 20)
        with Client(server.socket).connect(structured=structured) as client:
            assert client.call(wire.READ, 0, 4096).error == 0


def test_an_error_in_the_middle_of_a_write(image: Path) -> None:
    with failing(image, "write", 1 << 20) as server, Client(server.socket).connect() as client:
        server.expect("the device fails")
        assert client.call(wire.WRITE, 0, 4 << 20, data=bytes(4 << 20)).error == EIO
        assert client.call(wire.WRITE, 0, 4096, data=bytes(4096)).error == 0


def test_fua_covers_all_pieces_of_a_write(image: Path) -> None:
    with failing(image, "flush") as server, Client(server.socket).connect() as client:
        server.expect("the device fails")
        for length in (4096, 1 << 20):
            assert client.call(wire.WRITE, 0, length, data=bytes(length)).error == 0
            assert client.call(wire.WRITE, 0, length, data=bytes(length), flags=wire.FUA).error == EIO
