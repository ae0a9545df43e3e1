"""Extended headers, several metadata contexts, holes in replies, and the places of errors."""

import asyncio
import contextlib
import errno
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise
from pathlib import Path

import pytest

import aioblk
from aioblk.testing import Fault, Faulty, MemoryDevice

from ..support.nbd_exports import SIZE
from ..support.nbd_in_process import serving
from ..support.nbd_server import NbdServer
from . import wire
from .wire import Client, counted, queries

EIO, EINVAL = 5, 22
HUGE = 1 << 42
GIB = 1 << 30
HOLE, DATA = 3, 0
KIB = 1 << 10


# --- handshake ----------------------------------------------------------------------------------------------


def test_extended_headers_take_precedence_over_structured_replies(file_server: NbdServer) -> None:
    """In either order, and there is no way back."""
    with Client(file_server.socket) as client:
        client.greet()
        assert client.ask(wire.STRUCTURED_REPLY)[-1].kind == wire.ACK
        assert client.ask(wire.EXTENDED_HEADERS, b"x")[-1].kind == wire.ERR_INVALID
        assert client.ask(wire.EXTENDED_HEADERS)[-1].kind == wire.ACK
        assert client.ask(wire.EXTENDED_HEADERS)[-1].kind == wire.ACK
        assert client.ask(wire.STRUCTURED_REPLY)[-1].kind == wire.ERR_EXT_HEADER_REQD
        assert client.go()[-1].kind == wire.ACK
        client.extended = True
        assert client.call(wire.READ, 0, 512).data == bytes(512)


def test_the_old_way_of_choosing_is_none_with_extended_headers(file_server: NbdServer) -> None:
    with Client(file_server.socket) as client:
        client.greet()
        assert client.ask(wire.EXTENDED_HEADERS)[-1].kind == wire.ACK
        client.send_option(wire.EXPORT_NAME)
        assert client.is_closed_by_server()


def test_what_is_offered_depends_on_what_was_agreed_on(file_server: NbdServer) -> None:
    """DF needs chunks, and block status of some contexts needs extended headers and contexts."""

    def flags(client: Client) -> int:
        *told, end = client.ask(wire.INFO, counted(b"") + struct.pack(">H", 0))
        assert end.kind == wire.ACK
        (export,) = [reply.data[2:] for reply in told if reply.data[:2] == b"\0\0"]
        return int(struct.unpack(">QH", export)[1]) & (1 << 7 | 1 << 12)

    with Client(file_server.socket) as client:
        client.greet()
        assert flags(client) == 0
        assert client.ask(wire.EXTENDED_HEADERS)[-1].kind == wire.ACK
        assert flags(client) == 1 << 7
        client.choose(b"", b"base:allocation")
        assert flags(client) == 1 << 7 | 1 << 12
        assert client.ask(wire.SET_META_CONTEXT, queries(b""))[-1].kind == wire.ACK
        assert flags(client) == 1 << 7


# --- wrong commands -----------------------------------------------------------------------------------------


def test_wrong_payloads_are_refused_and_do_no_harm(file_server: NbdServer) -> None:
    with Client(file_server.socket).connect(extended=True, allocation=True) as client:
        number = client.contexts[b"base:allocation"]

        def payload(length: int, *numbers: int) -> bytes:
            return struct.pack(f">Q{len(numbers)}I", length, *numbers)

        def error(kind: int, length: int = 0, *, flags: int = 0, data: bytes = b"") -> int:
            return client.call(kind, 0, length, flags=flags, data=data).error

        assert error(wire.WRITE, flags=wire.DF, data=b"x" * 512) == EINVAL
        for kind in (wire.READ, wire.FLUSH, wire.TRIM, wire.CACHE, wire.WRITE_ZEROES, 8, 0xFFFF):
            assert error(kind, data=b"x" * 1000) == EINVAL
        for wrong in (
            *(payload(512), payload(512, number, number), payload(512, number + 1), payload(0, number)),
            *(payload(SIZE + 1, number), payload(2**64 - 1, number), b"x", bytes(11), bytes(200_000)),
        ):
            assert error(wire.BLOCK_STATUS, data=wrong) == EINVAL
        assert client.call(wire.BLOCK_STATUS, data=payload(512, number)).states == {number: [(512, HOLE)]}
        assert client.call(wire.READ, 0, 512).data == bytes(512)


def test_a_write_need_not_say_that_its_data_follow(file_server: NbdServer) -> None:
    """As it should: QEMU's do not."""
    with Client(file_server.socket).connect(extended=True) as client:
        for number, flags in enumerate((0, wire.PAYLOAD_LEN)):
            client.send(struct.pack(">IHHQQQ", 0x21E41C71, flags, wire.WRITE, 0, number, 3) + b"abc")
            magic, is_last, kind, _, offset, length = struct.unpack(">IHHQQQ", client.receive(32))
            assert (magic, is_last, kind, offset, length) == (0x6E8A278C, 1, 0, number, 0)
        assert client.call(wire.READ, 0, 5).data == b"aabc\0"


@pytest.mark.parametrize(
    "command",
    [
        struct.pack(">IHHQQI", 0x25609513, 0, wire.READ, 1, 0, 512) + bytes(4),  # a short head
        struct.pack(">IHHQQQ", 0x21E41C71, wire.PAYLOAD_LEN, wire.WRITE, 1, 0, (32 << 20) + 1),
        struct.pack(">IHHQQQ", 0x21E41C71, wire.PAYLOAD_LEN, wire.BLOCK_STATUS, 1, 0, 2**64 - 1),
        struct.pack(">IHHQQQ", 0x21E41C71, wire.PAYLOAD_LEN, 77, 1, 0, 1 << 40),
    ],
)
def test_what_nobody_could_skip_ends_it(file_server: NbdServer, command: bytes) -> None:
    with Client(file_server.socket).connect(extended=True) as client:
        client.send(command)
        assert client.is_closed_by_server()


def test_long_heads_are_nonsense_without_agreement(file_server: NbdServer) -> None:
    with Client(file_server.socket).connect(structured=True) as client:
        client.send(struct.pack(">IHHQQQ", 0x21E41C71, 0, wire.READ, 1, 0, 512))
        assert client.is_closed_by_server()
    with Client(file_server.socket).connect(structured=True) as client:
        assert client.call(wire.WRITE, 0, 3, flags=wire.PAYLOAD_LEN, data=b"abc").error == EINVAL
        assert client.call(wire.READ, 0, 3).data == bytes(3)


# --- long ranges --------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def client_of(
    device: aioblk.BlockDevice, socket: Path, *contexts: bytes
) -> AsyncIterator[Callable[..., Awaitable[wire.Reply]]]:
    """What calls commands of a server of the device, with extended headers."""
    async with serving(device, socket):
        client = await asyncio.to_thread(lambda: Client(socket).connect(extended=True, contexts=contexts))
        with client:
            yield lambda *arguments, **options: asyncio.to_thread(client.call, *arguments, **options)


async def test_one_command_for_hundreds_of_gibibytes(tmp_path: Path) -> None:
    device = Faulty(MemoryDevice(HUGE, limits=aioblk.Limits(request_alignment=512)))
    flushes = device.add(Fault(operations={"flush"}, executed=True, error=errno.EIO))
    await device.write(100 * GIB, b"x" * 4096)
    async with client_of(device, tmp_path / "nbd.sock", b"base:allocation") as call:
        status = await call(wire.BLOCK_STATUS, 0, HUGE)
        assert [*status.states.values()] == [
            [(100 * GIB, HOLE), (4096, DATA), (HUGE - 100 * GIB - 4096, HOLE)]
        ]
        assert (await call(wire.BLOCK_STATUS, 0, HUGE, flags=wire.REQ_ONE)).states == {1: [(100 * GIB, HOLE)]}
        assert (await call(wire.CACHE, 0, HUGE)).error == 0
        assert (await call(wire.WRITE_ZEROES, 64 * GIB + 1, 64 * GIB)).error == 0
        assert (await call(wire.READ, 100 * GIB, 4096)).data == bytes(4096)
        assert (await call(wire.TRIM, 64 * GIB, 64 * GIB + 7)).error == 0
        for kind in (wire.WRITE_ZEROES, wire.TRIM):  # one flush for all of it
            assert (await call(kind, 0, 4 * GIB, flags=wire.FUA)).error == EIO
        assert flushes.hits == 2


class Slow(aioblk.Layer[MemoryDevice]):
    """Zeroes a step in each turn of the loop, and says when it has begun."""

    def __init__(self, device: MemoryDevice) -> None:
        super().__init__(device)
        self.begun = asyncio.Event()

    def write_zeroes(
        self,
        offset: int,
        length: int,
        *,
        fua: bool = False,
        no_unmap: bool = False,
        no_fallback: bool = False,
    ) -> Awaitable[None]:
        self.begun.set()
        return super().write_zeroes(offset, length, fua=fua)


async def test_what_takes_long_ends_with_its_client_though_nothing_is_received(tmp_path: Path) -> None:
    """More commands than may be in flight, each of which is good for minutes. There is one place, so whoever
    comes next is admitted when the first one has gone."""
    device, socket = Slow(MemoryDevice(1 << 60, limits=aioblk.Limits(request_alignment=512))), tmp_path / "s"

    def begin() -> Client:
        client = Client(socket).connect(extended=True)
        zero = struct.pack(">IHHQQQ", 0x21E41C71, 0, wire.WRITE_ZEROES, 1, 0, 1 << 60)
        client.send(zero * 200)
        return client

    def come_next() -> wire.Reply:
        with Client(socket) as client:
            client.greet()
            while client.go()[-1].kind == wire.ERR_POLICY:
                pass  # the handshake has an end, which would be told by an error
            return client.call(wire.READ, 0, 512)

    async with serving(device, socket, clients=1):
        client = await asyncio.to_thread(begin)
        await device.begun.wait()
        client.close()
        async with asyncio.timeout(wire.TIME_LIMIT):
            assert (await asyncio.to_thread(_until, come_next)).error == 0


def _until(attempt: Callable[[], wire.Reply]) -> wire.Reply:
    while True:
        with contextlib.suppress(EOFError, ConnectionError):
            return attempt()


async def test_a_long_range_does_not_keep_others_from_asking(tmp_path: Path) -> None:
    device, socket = Slow(MemoryDevice(1 << 60, limits=aioblk.Limits(request_alignment=512))), tmp_path / "s"

    def ask() -> wire.Reply:
        with Client(socket).connect(extended=True, allocation=True) as client:
            client.send_command(wire.WRITE_ZEROES, 0, 1 << 60)
            cookie = client.send_command(wire.BLOCK_STATUS, 0, 1 << 60)
            reply = client.receive_reply()
            assert reply.cookie == cookie
            return reply

    async with serving(device, socket):
        assert (await asyncio.to_thread(ask)).states


# --- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [wire.WRITE_ZEROES, wire.TRIM, wire.READ, wire.WRITE])
async def test_an_error_says_where_it_was_met(tmp_path: Path, kind: int) -> None:
    """As well as is known: the step, the piece."""
    device = Faulty(MemoryDevice(1 << 40, limits=aioblk.Limits(request_alignment=512)))
    place = (100 << 20) + 4096
    device.add(Fault(offset=place, length=512, error=errno.EIO))
    length, data = (1 << 30, b"") if kind in (wire.WRITE_ZEROES, wire.TRIM) else (1 << 20, b"")
    start = place - (length >> 1)
    if kind == wire.WRITE:
        data = bytes(length)
    async with client_of(device, tmp_path / "nbd.sock") as call:
        failed = await call(kind, max(start, 0), length, data=data)
        assert failed.error == EIO
        assert failed.data  # in words
        assert failed.error_offset is not None
        assert max(start, 0) < failed.error_offset <= place
        refused = await call(kind, 1 << 40, 512, data=data[:512])
        assert refused.error
        assert refused.error_offset is None  # which would have to lie in the range


# --- holes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extended", [False, True])
def test_zeroes_of_long_reads_come_as_holes(server: NbdServer, extended: bool) -> None:
    """Of every device, and of what was written as zeroes as well."""
    block = 64 * KIB
    with Client(server.socket).connect(structured=True, extended=extended) as client:
        assert client.call(wire.WRITE, 0, 1 << 20, data=bytes(1 << 20)).error == 0
        assert client.call(wire.WRITE, block + 5, 10, data=b"0123456789").error == 0
        expected = bytes(block + 5) + b"0123456789" + bytes((1 << 20) - block - 15)
        whole = client.call(wire.READ, 0, 4 * block)
        assert whole.data == expected[: 4 * block]
        assert whole.holes == ((0, block), (2 * block, 2 * block))
        assert whole.chunks == 3
        nothing = client.call(wire.READ, 2 * block, 256 * KIB)
        assert (nothing.data, nothing.holes, nothing.chunks) == (
            bytes(256 * KIB),
            *(((2 * block, 256 * KIB),), 1),
        )
        odd = client.call(wire.READ, 100, 2 * block + 1)
        assert odd.data == expected[100 : 2 * block + 101]
        assert odd.holes == ((100, block - 100), (2 * block, 101))
        large = client.call(wire.READ, 1, (1 << 20) - 1)
        assert large.data == expected[1:]
        for offset, length, flags in ((0, 4 * block, wire.DF), (2 * block, block - 512, 0)):
            as_data = client.call(wire.READ, offset, length, flags=flags)
            assert (as_data.holes, as_data.chunks) == ((), 1)
            assert as_data.data == expected[offset : offset + length]


def test_a_client_that_knows_no_chunks_gets_its_zeroes(server: NbdServer) -> None:
    with Client(server.socket).connect() as client:
        assert client.call(wire.WRITE_ZEROES, 0, 1 << 20).error == 0
        assert client.call(wire.READ, 0, 1 << 20).data == bytes(1 << 20)


# --- metadata contexts --------------------------------------------------------------------------------------


async def test_several_contexts_are_told_at_once(tmp_path: Path) -> None:
    disk = aioblk.Tracked(MemoryDevice(1 << 20, limits=aioblk.Limits(request_alignment=512)))
    disk.add_bitmap("a", granularity=4096)
    await disk.write(8192, b"x" * 4096)
    disk.add_bitmap("b", granularity=8192)
    await disk.write(0, b"x" * 512)
    names = (b"base:allocation", b"qemu:dirty-bitmap:a", b"qemu:dirty-bitmap:b")
    socket = tmp_path / "nbd.sock"
    rest = (1 << 20) - 12288

    def ask(*, extended: bool) -> None:
        with Client(socket).connect(extended=extended, contexts=names) as client:
            allocation, a, b = (client.contexts[name] for name in names)
            told = client.call(wire.BLOCK_STATUS, 0, 1 << 20)
            assert told.states == {
                allocation: [(4096, DATA), (4096, HOLE), (4096, DATA), (rest, HOLE)],
                a: [(4096, 1), (4096, 0), (4096, 1), (rest, 0)],
                b: [(8192, 1), ((1 << 20) - 8192, 0)],
            }
            one = client.call(wire.BLOCK_STATUS, 4096, 512, flags=wire.REQ_ONE)
            assert one.states == {allocation: [(512, HOLE)], a: [(512, 0)], b: [(512, 1)]}
            if extended:
                data = struct.pack(">QII", 1 << 20, b, a)
                some = client.call(wire.BLOCK_STATUS, 0, data=data)
                assert some.states == {number: told.states[number] for number in (a, b)}
            disk.remove_bitmap("b")
            gone = client.call(wire.BLOCK_STATUS, 0, 512)
            assert gone.error
            assert b"'b' was removed" in gone.data

    async with serving(disk, socket):
        for extended in (False, True):
            await asyncio.to_thread(ask, extended=extended)
            disk.add_bitmap("b", granularity=8192).dirty.mark(0, 1)


async def test_contexts_are_listed_by_namespace_and_chosen_by_name(tmp_path: Path) -> None:
    disk = aioblk.Tracked(MemoryDevice(1 << 20, limits=aioblk.Limits(request_alignment=512)))
    for name in ("a", "b"):
        disk.add_bitmap(name)
    socket, allocation = tmp_path / "nbd.sock", b"base:allocation"
    bitmaps = [b"qemu:dirty-bitmap:a", b"qemu:dirty-bitmap:b"]

    def ask() -> None:
        with Client(socket) as client:
            client.greet()
            assert client.ask(wire.EXTENDED_HEADERS)[-1].kind == wire.ACK

            def names(option: int, *texts: bytes) -> list[bytes]:
                *found, end = client.ask(option, queries(b"one", *texts))
                assert end.kind == wire.ACK
                assert all((reply.data[:4] == bytes(4)) == (option == 9) for reply in found)
                return [reply.data[4:] for reply in found]

            for texts, listed, chosen in (
                ((), [allocation, *bitmaps], []),
                ((b"base:",), [allocation], []),
                ((b"qemu:",), bitmaps, []),
                ((b"qemu:dirty-bitmap:",), bitmaps, []),
                ((b"qemu:dirty-bitmap:b", b"base:"), [allocation, bitmaps[1]], [bitmaps[1]]),
                ((bitmaps[1], bitmaps[0], bitmaps[1]), bitmaps, bitmaps),
                ((b"qemu:dirty-bitmap:c", b"base:other", b"x-y:", b"", b"qemu", b"\xff"), [], []),
            ):
                assert names(wire.LIST_META_CONTEXT, *texts) == listed
                assert names(wire.SET_META_CONTEXT, *texts) == chosen
            client.choose(b"one", allocation)
            assert client.go(b"two")[-1].kind == wire.ACK  # of which none was chosen
            client.extended = True
            assert client.call(wire.BLOCK_STATUS, 0, 512).error == EINVAL

    async with serving(disk, socket, "one", "two"):
        await asyncio.to_thread(ask)


async def test_more_stretches_than_fit_in_an_answer(tmp_path: Path) -> None:
    """And alike neighbours are one."""
    base = MemoryDevice(16 << 20, limits=aioblk.Limits(request_alignment=512))
    device = aioblk.CopyOnWrite(base, MemoryDevice(16 << 20, limits=base.limits))
    await base.write(0, bytes(range(1, 129)) * (16 << 3))
    for place in range(4096):
        await device.write(place * 4096, b"x" * 512)
    async with client_of(device, tmp_path / "nbd.sock", b"base:allocation") as call:
        offset, answers = 0, 0
        found: list[tuple[int, int]] = []
        while offset < 16 << 20:
            ((_, states),) = (await call(wire.BLOCK_STATUS, offset, (16 << 20) - offset)).states.items()
            assert len(states) <= 1024
            assert all(one[1] != other[1] for one, other in pairwise(states))
            found += states
            offset += sum(length for length, _ in states)
            answers += 1
        assert answers == 8
        assert found[0] == ((16 << 10) + 512, DATA)
        assert sum(length for length, state in found if state == HOLE) == 3584 * (4096 - 4)
