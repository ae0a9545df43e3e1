"""The NBD client: what it asks of a server, and what becomes of the answers."""

import asyncio
import contextlib
import errno
import gc
import os
import socket
import struct
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import aioblk
from aioblk import (
    BlkioError,
    ByteView,
    DeviceClosedError,
    DeviceLostError,
    OptionError,
    UnsupportedError,
    UsageError,
)
from aioblk._sync import blocking
from aioblk.nbd import list_exports
from aioblk.nbd._client import channel, commands, connection
from aioblk.nbd._client.commands import Command as Ours
from aioblk.nbd._client.replies import Receiver
from aioblk.testing import Fault, Faulty, MemoryDevice

from ..support.nbd_in_process import serving
from . import scripted as s
from .scripted import Command, Export, Session, scripted

DIALECTS = pytest.mark.parametrize(
    "dialect", [s.SIMPLE, s.STRUCTURED, s.EXTENDED], ids=["simple", "structured", "extended"]
)


class Told:
    """A good server, and what it has been asked for."""

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self.memory = bytearray(b"m" * s.SIZE)
        self.connections = self.left = 0

    async def __call__(self, session: Session) -> None:
        self.connections += 1
        try:
            await session.serve(self.memory, self.commands)
        finally:
            self.left += 1

    @property
    def last(self) -> Command:
        return self.commands[-1]

    def asked(self) -> list[tuple[int, int, int, int]]:
        """Kinds, flags, offsets and lengths, since it was asked last."""
        asked = [(each.kind, each.flags & s.FUA, each.offset, each.length) for each in self.commands]
        self.commands.clear()
        return asked


@pytest.fixture
def told() -> Told:
    return Told()


async def turned_until(condition: Callable[[], bool]) -> None:
    """Turns of the loop, until it holds."""
    async with asyncio.timeout(30):
        while True:
            if condition():
                return
            await asyncio.sleep(0)


def forget(things: list[aioblk.Nbd]) -> None:
    things.clear()
    gc.collect()


# --- requests -----------------------------------------------------------------------------------------------


@DIALECTS
async def test_every_request_in_every_dialect(tmp_path: Path, told: Told, dialect: int) -> None:
    async with scripted(tmp_path, told, Export(dialect=dialect)) as uri, aioblk.Nbd(uri) as dev:
        assert (dev.capacity, dev.read_only, dev.connections) == (s.SIZE, False, 1)
        assert (dev.driver, dev.uri, dev.export) == ("nbd", uri, "")
        await dev.write(512, b"w" * 512)
        assert bytes(told.memory[512:1024]) == b"w" * 512
        assert await dev.read(512, 1024) == b"w" * 512 + b"m" * 512
        buffers = bytearray(512), bytearray(100), bytearray(412)
        await dev.readv(512, buffers)
        assert b"".join(buffers) == b"w" * 512 + b"m" * 512
        await dev.write_zeroes(0, 1024)
        await dev.discard(1024, 512)
        await dev.writev(2048, [b"a" * 12, b"b" * 500], fua=True)
        await dev.flush()
        assert bytes(told.memory[:1536]) == bytes(1536)
        assert told.asked() == [
            (s.WRITE, 0, 512, 512),
            (s.READ, 0, 512, 1024),
            (s.READ, 0, 512, 1024),
            (s.ZEROES, 0, 0, 1024),
            (s.TRIM, 0, 1024, 512),
            (s.WRITE, 1, 2048, 512),
            (s.FLUSH, 0, 0, 0),
        ]
        counts = dev.statistics()
        assert (counts.submitted, counts.completed, counts.in_flight, counts.parts) == (7, 7, 0, 7)
        assert (counts.bytes_read, counts.bytes_written) == (2048, 1024)


async def test_long_requests_are_divided_into_what_the_server_takes(tmp_path: Path, told: Told) -> None:
    export = Export(blocks=(4096, 8192, 16384))
    async with scripted(tmp_path, told, export) as uri, aioblk.Nbd(uri) as dev:
        assert (dev.limits.request_alignment, dev.limits.max_transfer) == (4096, 16384)
        assert dev.limits.optimal_io_alignment == 8192
        await dev.write(4096, bytes(range(256)) * 160)
        assert [each[2:] for each in told.asked()] == [(4096, 16384), (20480, 16384), (36864, 8192)]
        assert await dev.read(4096, 40960) == bytes(range(256)) * 160
        into = bytearray(40960)
        await dev.read_into(4096, into)
        assert into == bytes(range(256)) * 160
        with pytest.raises(aioblk.AlignmentError, match="4096"):
            dev.read(512, 4096)
        assert await ByteView(dev).read(4097, 3) == b"\x01\x02\x03"


@DIALECTS
@pytest.mark.parametrize("payload", [4096, 1 << 20], ids=["many commands", "one"])
async def test_any_number_of_buffers_of_any_length_are_filled_and_written(
    tmp_path: Path, told: Told, dialect: int, payload: int
) -> None:
    sizes = [1, 511, 100, 4096, 412, 20000, 480] + [512] * 1000
    whole = bytes(range(256)) * (sum(sizes) // 256)
    export = Export(dialect=dialect, blocks=(512, 4096, payload))
    async with scripted(tmp_path, told, export) as uri, aioblk.Nbd(uri) as dev:
        buffers = [bytearray(size) for size in sizes]
        view = memoryview(whole)
        written = [view[sum(sizes[:n]) :][:size] for n, size in enumerate(sizes)]
        await dev.writev(512, [b"", *written, b""])
        assert told.memory[512 : 512 + len(whole)] == whole
        await dev.readv(512, buffers)
        assert b"".join(buffers) == whole


def test_a_stretch_of_many_buffers_is_found_without_a_look_at_all_others() -> None:
    class Counted(list[memoryview]):
        looked = 0

        def __getitem__(self, place: Any) -> Any:
            self.looked += 1
            return super().__getitem__(place)

        def __iter__(self) -> Any:
            self.looked += len(self)
            return super().__iter__()

    memory = memoryview(bytes(range(250)) * 4)
    views = Counted(memory[n : n + 1] for n in range(1000))
    found = commands.Views(views).part(10)
    for start in range(0, 980, 10):
        assert b"".join(found.stretch(start, 10)) == memory[start + 10 : start + 20]
    assert views.looked <= 1000 + 980


async def test_a_size_that_is_no_number_of_sectors_is_of_bytes(tmp_path: Path, told: Told) -> None:
    async with scripted(tmp_path, told, Export(size=1001)) as uri, aioblk.Nbd(uri) as dev:
        assert dev.limits.request_alignment == 1
        assert await dev.read(1000, 1) == b"m"


async def test_what_the_server_cannot_is_done_in_another_way_or_refused(tmp_path: Path, told: Told) -> None:
    export = Export(flags=s.HAS_FLAGS | s.FLUSH_FLAG)
    async with scripted(tmp_path, told, export) as uri, aioblk.Nbd(uri) as dev:
        assert not dev.limits.supports_fua_natively
        await dev.write(0, bytes(512), fua=True)
        assert told.asked() == [(s.WRITE, 0, 0, 512), (s.FLUSH, 0, 0, 0)]
        await dev.write_zeroes(512, 512)
        assert told.asked() == [(s.WRITE, 0, 512, 512)]
        with pytest.raises(UnsupportedError, match="the server cannot discard"):
            await dev.discard(0, 512)
        with pytest.raises(UnsupportedError, match="does not tell"):
            await dev.write_zeroes(0, 512, no_fallback=True)
        assert dev.statistics().failed == 2


async def test_zeroes_have_their_flags(tmp_path: Path, told: Told) -> None:
    export = Export(flags=s.ALL | s.FAST_ZERO_FLAG)
    async with scripted(tmp_path, told, export) as uri, aioblk.Nbd(uri) as dev:
        await dev.write_zeroes(0, 512, fua=True, no_unmap=True, no_fallback=True)
        assert told.last.flags == s.FUA | s.NO_HOLE | s.FAST_ZERO


async def test_what_is_fast_by_word_of_a_server_that_cannot_do_it_at_all_is_refused(
    tmp_path: Path, told: Told
) -> None:
    export = Export(flags=s.HAS_FLAGS | s.FAST_ZERO_FLAG)
    async with scripted(tmp_path, told, export) as uri, aioblk.Nbd(uri) as dev:
        with pytest.raises(UnsupportedError, match="would write zeroes out"):
            await dev.write_zeroes(0, 512, no_fallback=True)
        assert not told.asked()


async def test_without_a_command_to_flush_nothing_is_sent(tmp_path: Path, told: Told) -> None:
    async with scripted(tmp_path, told, Export(flags=s.HAS_FLAGS)) as uri, aioblk.Nbd(uri) as dev:
        await dev.flush()
        await dev.write(0, bytes(512), fua=True)
        assert told.asked() == [(s.WRITE, 0, 0, 512)]


async def test_what_is_exported_for_reading_is_not_written(tmp_path: Path, told: Told) -> None:
    async with scripted(tmp_path, told, Export(flags=s.ALL | s.READ_ONLY)) as uri, aioblk.Nbd(uri) as dev:
        assert dev.read_only
        with pytest.raises(BlkioError):
            await dev.write(0, bytes(512))
        assert not told.commands


async def test_an_error_has_the_number_and_the_words_of_the_server(tmp_path: Path) -> None:
    async def script(session: Session) -> None:
        for number, words in (errno.ENOSPC, b"the disk\n is full"), (errno.ENOTSUP, b""), (77, b"\xff"):
            session.fail(await session.command(), number, words)
        await session.command()

    async with scripted(tmp_path, script, Export()) as uri, aioblk.Nbd(uri) as dev:
        with pytest.raises(
            BlkioError, match=r"at offset 512, length 512: .*the server says: the disk  is full"
        ) as caught:
            await dev.write(512, bytes(512))
        assert (caught.value.errno, caught.value.offset, caught.value.length) == (errno.ENOSPC, 512, 512)
        with pytest.raises(UnsupportedError):
            await dev.discard(0, 512)
        with pytest.raises(BlkioError) as caught:
            await dev.read(0, 512)
        assert caught.value.errno == errno.EINVAL, "which the protocol has for all that it does not know"
        counts = dev.statistics()
        assert (counts.failed, counts.write.errors) == (3, {errno.ENOSPC: 1})


@pytest.mark.parametrize("dialect", [s.STRUCTURED, s.EXTENDED], ids=["structured", "extended"])
async def test_a_reply_may_come_in_pieces_of_any_kind_and_order(tmp_path: Path, dialect: int) -> None:
    async def script(session: Session) -> None:
        for _ in range(2):
            one, other = await session.commands(2)
            session.chunk(one, s.DATA, struct.pack(">Q", 1024) + b"c" * 512, last=False)
            session.chunk(other, s.HOLE, struct.pack(">QI", 4096, 1024), last=False)
            session.chunk(one, s.HOLE, struct.pack(">QI", 512, 512), last=False)
            session.chunk(other, s.NOTHING)
            session.chunk(one, s.DATA, struct.pack(">Q", 0) + b"a" * 512)
        await session.command()

    export = Export(dialect=dialect)
    async with scripted(tmp_path, script, export) as uri, aioblk.Nbd(uri) as dev:
        whole = b"a" * 512 + bytes(512) + b"c" * 512
        read = await asyncio.gather(dev.read(0, 1536), dev.read(4096, 1024))
        assert [*read] == [whole, bytes(1024)]
        into = bytearray(b"x" * 1536), bytearray(b"x" * 1024)
        await asyncio.gather(dev.read_into(0, into[0]), dev.read_into(4096, into[1]))
        assert [bytes(each) for each in into] == [whole, bytes(1024)]


async def test_commands_beyond_the_depth_wait_for_their_turn(tmp_path: Path) -> None:
    seen: list[int] = []
    begin = asyncio.Event()

    async def script(session: Session) -> None:
        first = await session.commands(2)
        begin.set()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await session.receive(1)
        for command in first:
            session.done(command)
        for _ in range(3):
            command = await session.command()
            seen.append(command.offset)
            session.done(command)
        await session.command()

    async with scripted(tmp_path, script, Export()) as uri, aioblk.Nbd(uri, depth=2) as dev:
        requests = [asyncio.ensure_future(dev.write(512 * n, bytes(512))) for n in range(5)]
        assert dev.statistics().in_flight == 5
        await begin.wait()
        await asyncio.gather(*requests)
        assert seen == [1024, 1536, 2048]


@pytest.mark.parametrize("allowed", [True, False], ids=["multi-conn", "one"])
async def test_there_are_several_connections_where_the_server_allows_it(
    tmp_path: Path, told: Told, *, allowed: bool
) -> None:
    export = Export(flags=s.ALL | (s.MULTI_CONN if allowed else 0))
    async with scripted(tmp_path, told, export) as uri, aioblk.Nbd(uri, connections=3) as dev:
        assert dev.connections == told.connections == (3 if allowed else 1)
        await asyncio.gather(*(dev.write(512 * n, bytes(512)) for n in range(16)))
        assert len(told.commands) == 16
    assert dev.connections == 0


# --- what is known of blocks --------------------------------------------------------------------------------


def status(dialect: int, context: int, *stretches: tuple[int, int]) -> bytes:
    """The body of a chunk."""
    if dialect == s.EXTENDED:
        head = struct.pack(">II", context, len(stretches))
        return head + b"".join(struct.pack(">QQ", *each) for each in stretches)
    return struct.pack(">I", context) + b"".join(struct.pack(">II", *each) for each in stretches)


@pytest.mark.parametrize("dialect", [s.STRUCTURED, s.EXTENDED], ids=["structured", "extended"])
async def test_extents_and_contexts(tmp_path: Path, dialect: int) -> None:
    kind = s.STATUS_EXTENDED if dialect == s.EXTENDED else s.STATUS

    async def script(session: Session) -> None:
        while True:
            command = await session.command()
            assert command.kind == s.BLOCK_STATUS
            rest = s.SIZE - command.offset
            if command.offset == 0:
                bitmap, allocation = [(512, 1), (512, 1), (1024, 0)], [(4096, 0), (4096, 3)]
            else:
                bitmap, allocation = [(rest, 5)], [(rest, 2)]
            session.chunk(command, kind, status(dialect, 8, *bitmap), last=False)
            session.chunk(command, kind, status(dialect, 7, *allocation))

    export = Export(dialect=dialect, contexts=("base:allocation", "qemu:dirty-bitmap:b"))
    async with (
        scripted(tmp_path, script, export) as uri,
        aioblk.Nbd(uri, contexts=["qemu:dirty-bitmap:b"]) as dev,
    ):
        assert isinstance(dev, aioblk.KnowsExtents)
        assert dev.contexts == ("base:allocation", "qemu:dirty-bitmap:b")
        assert [each async for each in dev.extents()] == [
            aioblk.Extent(0, 4096, aioblk.ExtentKind.DATA),
            aioblk.Extent(4096, 4096, aioblk.ExtentKind.HOLE),
            aioblk.Extent(8192, s.SIZE - 8192, aioblk.ExtentKind.HOLE),
        ]
        stretches = [tuple(each) async for each in dev.block_status("qemu:dirty-bitmap:b", 100, 3000)]
        assert stretches == [(100, 924, 1), (1024, 1024, 0), (2048, 1052, 5)]
        with pytest.raises(OptionError, match=r"'other' was not agreed on.*base:allocation, qemu:dirty"):
            dev.block_status("other")


async def test_where_the_server_knows_no_holes_all_is_data(tmp_path: Path, told: Told) -> None:
    async with scripted(tmp_path, told, Export(dialect=s.SIMPLE)) as uri, aioblk.Nbd(uri) as dev:
        assert dev.contexts == ()
        assert [each async for each in dev.extents(512)] == [aioblk.Extent(512, s.SIZE - 512)]
        assert [each async for each in dev.extents(512, 0)] == []


async def test_contexts_that_there_are_not_are_an_error_with_those_that_there_are(tmp_path: Path) -> None:
    device = MemoryDevice(s.SIZE)
    async with serving(device, tmp_path / "s") as uri:
        with pytest.raises(BlkioError, match=r"no metadata context qemu:dirty-bitmap:x; it has base:alloc"):
            await aioblk.Nbd(uri, contexts=["qemu:dirty-bitmap:x"]).open()


# --- cancellation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [512, 65536], ids=["many buffers", "one"])
async def test_a_read_that_is_cancelled_in_the_middle_of_its_data_lets_go_of_its_buffer(
    tmp_path: Path, size: int
) -> None:
    half, go_on = asyncio.Event(), asyncio.Event()

    async def script(session: Session) -> None:
        first, second = await session.commands(2)
        session.send(struct.pack(">IHHQI", 0x668E33EF, 1, s.DATA, first.cookie, 8 + 65536))
        session.send(struct.pack(">Q", first.offset) + b"1" * 30000)
        half.set()
        await go_on.wait()
        session.send(b"1" * 35536)
        session.done(second, b"2" * 65536)
        await session.serve(bytearray(s.SIZE))

    async with scripted(tmp_path, script, Export()) as uri, aioblk.Nbd(uri) as dev:
        buffer, other = bytearray(65536), bytearray(65536)
        reads = [
            asyncio.ensure_future(
                dev.readv(0, [memoryview(each)[start : start + size] for start in range(0, 65536, size)])
            )
            for each in (buffer, other)
        ]
        await half.wait()
        await turned_until(lambda: any(buffer))
        reads[0].cancel()
        buffer[:] = bytes(65536)
        buffer.extend(b"which nobody else refers to")
        go_on.set()
        await reads[1]
        assert other == b"2" * 65536
        assert not any(buffer[:65536])
        assert dev.statistics().cancelled == 1


async def test_a_write_that_is_cancelled_when_half_of_it_is_sent_is_sent_as_it_was(tmp_path: Path) -> None:
    go_on = asyncio.Event()
    got: list[Command] = []

    async def script(session: Session) -> None:
        await go_on.wait()
        got.extend(await session.commands(2))
        for command in got:
            session.done(command)
        await session.command()

    size = 8 << 20  # more than sockets and streams have room for
    async with scripted(tmp_path, script, Export(size=size)) as uri, aioblk.Nbd(uri) as dev:
        data = bytearray(b"before" * (size // 6)) + b"be"
        write = asyncio.ensure_future(dev.write(0, data))
        later = asyncio.ensure_future(dev.write(512, b"l" * 512))
        elsewhere = asyncio.ensure_future(dev.write(0, b"?" * 512))
        elsewhere.cancel()  # of which nothing was sent
        await asyncio.sleep(0)
        write.cancel()
        data[:] = b"x" * size
        data.append(0)
        counts = dev.statistics()
        assert (counts.cancelled, counts.in_flight) == (2, 2)
        go_on.set()
        await later
        assert got[0].data == b"before" * (size // 6) + b"be"
        assert (got[1].offset, got[1].data) == (512, b"l" * 512)


async def test_what_comes_after_a_change_that_was_given_up_is_sent_when_that_is_answered(
    tmp_path: Path,
) -> None:
    order: list[str] = []

    async def script(session: Session) -> None:
        given_up = await session.command()
        order.append("given up")
        elsewhere = await session.command()
        assert elsewhere.offset == 4096
        session.done(elsewhere)
        session.done(given_up)
        order.append("answered")
        await session.serve(bytearray(s.SIZE))

    export = Export(flags=s.ALL | s.MULTI_CONN)
    async with scripted(tmp_path, script, export) as uri, aioblk.Nbd(uri) as dev:
        first = asyncio.ensure_future(dev.write(0, bytes(1024)))
        await turned_until(lambda: bool(order))
        first.cancel()
        later = asyncio.ensure_future(dev.write(512, b"n" * 512))
        never = asyncio.ensure_future(dev.read(0, 512))
        never.cancel()
        await dev.write(4096, bytes(512))
        await later
        order.append("later")
        assert order == ["given up", "answered", "later"]


@pytest.mark.parametrize("turns", range(8))
async def test_cancellation_in_any_turn_leaves_the_device_in_order(
    tmp_path: Path, told: Told, turns: int
) -> None:
    async with scripted(tmp_path, told, Export()) as uri, aioblk.Nbd(uri, depth=2) as dev:
        for change in (False, True):
            buffers = [bytearray(b"k" * 40960) for _ in range(4)]
            tasks = [
                asyncio.ensure_future(dev.write(0, each) if change else dev.read_into(0, each))
                for each in buffers
            ]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            for buffer in buffers[::2]:
                buffer.append(0)  # BufferError if anybody still refers to it
            await asyncio.gather(*tasks, return_exceptions=True)
            assert all(task.cancelled() or task.exception() is None for task in tasks)
            assert {len(buffer) for buffer in buffers[1::2]} == {40960}
        assert await dev.read(0, 40960) == b"k" * 40960
        counts = dev.statistics()
        assert counts.submitted == counts.completed + counts.cancelled
        assert counts.in_flight == 0


@pytest.mark.parametrize("depth", [1, 65536], ids=["waiting", "unsent"])
async def test_taking_requests_back_looks_through_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    compared = 0

    def compare(one: object, other: object) -> bool:
        nonlocal compared
        compared += 1
        return one is other

    async def script(session: Session) -> None:
        await asyncio.Event().wait()

    async with scripted(tmp_path, script, Export()) as uri, aioblk.Nbd(uri, depth=depth) as dev:
        first = asyncio.ensure_future(dev.write(0, bytes(s.SIZE)))  # more than the kernel takes
        requests = [asyncio.ensure_future(dev.read(512 * n, 512)) for n in range(1000)]
        monkeypatch.setattr(Ours, "__eq__", compare, raising=False)
        for request in reversed(requests):
            request.cancel()
        dev.abandon()
        await asyncio.wait([first, *requests])
        assert compared < 1000
        assert isinstance(first.exception(), DeviceLostError)


async def test_what_is_held_back_is_looked_at_again_when_what_holds_it_back_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = 0
    overlaps = Ours.overlaps

    def count(one: Ours, other: Ours) -> bool:
        nonlocal looked
        looked += 1
        return overlaps(one, other)

    sent, cancelled = asyncio.Event(), asyncio.Event()
    order: list[int] = []

    async def script(session: Session) -> None:
        commands = await session.commands(100)
        sent.set()
        await cancelled.wait()
        for command in commands:
            session.done(command)
        for _ in range(100):
            command = await session.command()
            order.append(command.offset)
            session.done(command)
        await session.reader.read()

    async with scripted(tmp_path, script, Export()) as uri, aioblk.Nbd(uri, depth=100) as dev:
        given_up = [asyncio.ensure_future(dev.write(512 * n, bytes(512))) for n in range(100)]
        await sent.wait()
        for each in given_up:
            each.cancel()
        monkeypatch.setattr(Ours, "overlaps", count)
        behind = [asyncio.ensure_future(dev.write(512 * n, bytes(512))) for n in reversed(range(100))]
        at_first = looked
        cancelled.set()
        await asyncio.gather(*behind)
        assert sorted(order) == [512 * n for n in range(100)]
        assert looked - at_first <= 100 * 100 / 2, "each is looked at once more, beside what is left"


# --- life ---------------------------------------------------------------------------------------------------


async def test_a_device_is_opened_once_and_not_used_before_or_after(tmp_path: Path, told: Told) -> None:
    async with scripted(tmp_path, told, Export()) as uri:
        dev = aioblk.Nbd(uri)
        with pytest.raises(UsageError, match="not open"):
            dev.read(0, 512)
        assert (dev.closed, dev.lost, dev.connections) == (False, None, 0)
        assert "new" in repr(dev)
        async with dev:
            assert "open" in repr(dev)
            with pytest.raises(UsageError, match="opened once"):
                await dev.open()
            with pytest.raises(UsageError, match="not lost"):
                await dev.reconnect()
        assert dev.closed
        assert "closed" in repr(dev)
        await dev.aclose()
        with pytest.raises(DeviceClosedError):
            dev.read(0, 512)
        with pytest.raises(DeviceClosedError):
            await dev.reconnect()
        assert dev.capacity == s.SIZE


async def test_closing_waits_for_what_is_in_flight_then_takes_leave(tmp_path: Path) -> None:
    answer, left = asyncio.Event(), asyncio.Event()

    async def script(session: Session) -> None:
        command = await session.command()
        await answer.wait()
        session.done(command)
        with pytest.raises(EOFError):
            await session.command()
        assert not await session.reader.read()
        left.set()

    async with scripted(tmp_path, script, Export()) as uri:
        dev = await aioblk.Nbd(uri).open()
        write = asyncio.ensure_future(dev.write(0, bytes(512)))
        closing = asyncio.ensure_future(dev.aclose())
        await asyncio.sleep(0)
        assert "being closed" in repr(dev)
        closing.cancel()
        answer.set()
        await write
        await left.wait()


async def test_a_device_is_not_closed_while_it_is_opened(tmp_path: Path) -> None:
    come, go = asyncio.Event(), asyncio.Event()

    async def script(session: Session) -> None:
        come.set()
        await go.wait()
        await session.haggle()
        await session.reader.read()

    async with scripted(tmp_path, script) as uri:
        dev = aioblk.Nbd(uri)
        opening = asyncio.ensure_future(dev.open())
        await come.wait()
        assert "being opened" in repr(dev)
        with pytest.raises(UsageError, match="being opened; cancel that instead"):
            await dev.aclose()
        go.set()
        await opening
        await dev.aclose()
        assert dev.closed


async def test_another_thread_can_end_nothing(tmp_path: Path, told: Told) -> None:
    async with scripted(tmp_path, told, Export()) as uri, aioblk.Nbd(uri) as dev:

        async def abandon() -> None:
            dev.abandon()

        for end, words in (
            (dev.aclose, "another event loop"),
            (dev.reconnect, "another event loop"),
            (abandon, "another thread"),
        ):
            with pytest.raises(UsageError, match=words):
                await asyncio.to_thread(asyncio.run, end())
        await dev.read(0, 512)


async def test_a_forked_child_is_refused_and_harms_nothing(tmp_path: Path, told: Told) -> None:
    async with scripted(tmp_path, told, Export()) as uri:
        devices = [await aioblk.Nbd(uri).open()]
        child = await asyncio.to_thread(forked, lambda: refusals(devices))
        assert child == 0
        (dev,) = devices
        await dev.read(0, 512)
        await dev.aclose()
        assert told.connections == 1


def refusals(devices: list[aioblk.Nbd]) -> int:
    """Of a child that has them from its parent; how many of what it must not do it can do."""
    devices[0]._thread = threading.get_ident()  # as if the loop's thread had forked
    done = 0
    for deed in (
        lambda: devices[0].abandon(),
        lambda: devices[0].read(0, 512),
        lambda: asyncio.run(devices[0].aclose()),
    ):
        with contextlib.suppress(UsageError):
            deed()
            done += 1
    warnings.simplefilter("error")
    forget(devices)
    return done


def forked(function: Callable[[], int]) -> int:
    """The status with which a child ends that calls it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there are other threads
        child = os.fork()
    if not child:
        status = 99
        try:
            status = function()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_device_whose_loop_is_closed_is_closed_in_any_other(tmp_path: Path, told: Told) -> None:
    async def open_one() -> aioblk.Nbd:
        async with scripted(tmp_path, told, Export()) as uri:
            return await aioblk.Nbd(uri).open()

    dev = asyncio.run(open_one())
    assert not dev.closed
    asyncio.run(dev.aclose())
    assert dev.closed
    assert dev.connections == 0
    with pytest.raises(DeviceClosedError):
        dev.read(0, 512)


async def test_a_device_that_is_forgotten_says_so_and_lets_go_of_its_socket(
    tmp_path: Path, told: Told
) -> None:
    async with scripted(tmp_path, told, Export()) as uri:
        dev = await aioblk.Nbd(uri).open()
        request = asyncio.ensure_future(dev.read(0, 512))
        devices = [dev]
        del dev
        with pytest.warns(ResourceWarning, match="was not closed"):
            forget(devices)
        with pytest.raises(DeviceLostError, match="forgotten"):
            await request


async def test_several_servers_and_a_layer_between(tmp_path: Path) -> None:
    """A client as what a server exports, of a client of another server."""
    bottom = MemoryDevice(s.SIZE, limits=aioblk.Limits(request_alignment=512))
    async with serving(bottom, tmp_path / "1") as lower, aioblk.Nbd(lower, connections=2) as middle:
        assert middle.connections == 2
        async with serving(middle, tmp_path / "2") as upper, aioblk.Nbd(upper) as top:
            await top.write(512, b"t" * 512, fua=True)
            assert await bottom.read(512, 512) == b"t" * 512
            assert await top.read(0, 1024) == bytes(512) + b"t" * 512


async def test_errors_of_the_device_behind_come_through(tmp_path: Path) -> None:
    device = Faulty(MemoryDevice(s.SIZE, limits=aioblk.Limits(request_alignment=512)))
    device.add(Fault(operations={"read"}, error=errno.ENOSPC))
    async with serving(device, tmp_path / "s") as uri, aioblk.Nbd(uri) as dev:
        with pytest.raises(BlkioError) as caught:
            await dev.read(0, 512)
        assert caught.value.errno in (errno.ENOSPC, errno.EIO)


@pytest.fixture
async def names(tmp_path: Path) -> AsyncIterator[str]:
    async with serving(MemoryDevice(s.SIZE), tmp_path / "s", "one", "zwei und drei") as uri:
        yield uri


async def test_exports_are_listed_and_chosen_by_name(names: str) -> None:
    listed = await list_exports(names)
    assert {each.name for each in listed} == {"one", "zwei und drei"}
    assert all(isinstance(each.description, str) for each in listed)
    async with aioblk.Nbd(names.replace("one", "zwei%20und%20drei")) as dev:
        assert dev.export == "zwei und drei"
    with pytest.raises(BlkioError, match="the export 'three' is asked for: the server has no such") as caught:
        await aioblk.Nbd(names.replace("one", "three")).open()
    assert caught.value.errno == errno.ENOENT


async def test_a_long_list_lets_others_have_their_turns(tmp_path: Path) -> None:
    async def script(session: Session) -> None:
        await session.greet()
        option, _ = await session.option()
        for _ in range(4000):  # which sockets have room for
            session.answer(option, s.SERVER, b"\0\0\0\1n")
        session.answer(option, s.ACK)
        await session.reader.read()

    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with scripted(tmp_path, script) as uri:
        other = asyncio.create_task(turn())
        assert len(await list_exports(uri)) == 4000
        assert turns >= 4000 / 64
        other.cancel()


async def test_who_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nobody"
    for attempt in (
        aioblk.Nbd(f"nbd+unix:///?socket={path}").open(),
        list_exports("nbd://127.0.0.1:1"),
    ):
        with pytest.raises(BlkioError, match="cannot connect to") as caught:
            await attempt
        assert caught.value.errno in (errno.ENOENT, errno.ECONNREFUSED)


@contextlib.contextmanager
def black_hole() -> Iterator[tuple[str, int]]:
    """An address at which nobody answers, not even to refuse: its queue of those who connect is full."""
    with socket.socket() as listening, socket.socket() as first, socket.socket() as second:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        where = listening.getsockname()
        for each in first, second:
            each.setblocking(False)
            each.connect_ex(where)
        yield where


@pytest.mark.parametrize("others", ["one", "several", "refusing"])
async def test_an_address_of_a_host_that_does_not_answer_keeps_nobody_from_the_next(
    told: Told, monkeypatch: pytest.MonkeyPatch, others: str
) -> None:
    monkeypatch.setattr(channel, "HEAD_START", 0.01)
    async with scripted(None, told, Export()) as uri:
        with black_hole() as nowhere:
            good = ("127.0.0.1", int(uri.rpartition(":")[2]))
            there_are = [
                nowhere,
                *{"one": [], "several": [nowhere] * 3, "refusing": [("127.0.0.1", 1)]}[others],
            ]

            async def look_up(_host: str, _port: int) -> list[tuple[int, tuple[object, ...]]]:
                return [(socket.AF_INET, where) for where in (*there_are, good, nowhere)]

            monkeypatch.setattr(channel, "_look_up", look_up)
            async with aioblk.Nbd("nbd://anywhere") as dev:
                await dev.read(0, 512)
            there_are, good = [("127.0.0.1", 1)], ("127.0.0.1", 1)
            with pytest.raises(BlkioError, match=r"does not answer within 0\.2 seconds"):
                await aioblk.Nbd("nbd://anywhere", connect_timeout=0.2).open()


async def test_a_connection_to_itself_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel draws a port for whoever connects, and may draw the one that nobody listens at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        where = taken.getsockname()

    class Bound(socket.socket):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.bind(where)

    monkeypatch.setattr(channel, "socket", SimpleNamespace(**{**vars(socket), "socket": Bound}))
    with pytest.raises(BlkioError, match="cannot connect to") as caught:
        await aioblk.Nbd(f"nbd://127.0.0.1:{where[1]}").open()
    assert caught.value.errno == errno.ECONNREFUSED


async def test_without_a_thread_to_look_for_a_host_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(blocking, "call_in_thread", refuse)
    with pytest.raises(
        BlkioError, match=r"cannot connect to nowhere\.invalid:10809: it needs a thread"
    ) as caught:
        await aioblk.Nbd("nbd://nowhere.invalid").open()
    assert caught.value.errno == errno.EAGAIN


@pytest.mark.parametrize("host", ["a..b", "n" * 64, "\udcff"])
async def test_what_is_no_name_of_a_host_is_refused(host: str) -> None:
    with pytest.raises(BlkioError, match="is no name of a host") as caught:
        await aioblk.Nbd(f"nbd://{host}").open()
    assert caught.value.errno == errno.EINVAL


async def test_a_host_that_nobody_knows_is_named() -> None:
    with pytest.raises(BlkioError, match=r"the host 'nowhere\.invalid' is not known") as caught:
        await aioblk.Nbd("nbd://nowhere.invalid").open()
    assert caught.value.errno == errno.EHOSTUNREACH


@pytest.mark.parametrize("sockets", range(3))
async def test_without_descriptors_nothing_is_opened(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch, sockets: int
) -> None:
    class Few(socket.socket):
        left = sockets

        def __init__(self, *arguments: Any) -> None:
            if not Few.left:
                raise OSError(errno.EMFILE, "too many open files")
            Few.left -= 1
            super().__init__(*arguments)

    async with scripted(tmp_path, told, Export(flags=s.ALL | s.MULTI_CONN)) as uri:
        monkeypatch.setattr(channel, "socket", SimpleNamespace(**{**vars(socket), "socket": Few}))
        with pytest.raises(BlkioError, match=r"cannot connect to .*too many open files") as caught:
            await aioblk.Nbd(uri, connections=3).open()
        assert caught.value.errno == errno.EMFILE


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENOSPC])
@pytest.mark.parametrize("connections", range(2))
async def test_what_cannot_be_looked_at_is_not_opened(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch, connections: int, number: int
) -> None:
    error = MemoryError if number == errno.ENOMEM else partial(OSError, number, "no room for another watch")
    monkeypatch.setattr(connection, "Receiver", refusing_after(connections, Receiver, error))
    async with scripted(tmp_path, told, Export(flags=s.ALL | s.MULTI_CONN)) as uri:
        with pytest.raises(BlkioError, match="a connection that was made cannot be used") as caught:
            await aioblk.Nbd(uri, connections=3).open()
        assert caught.value.errno == number
        await turned_until(lambda: told.left == 3)


def refusing_after(
    count: int, function: Callable[..., Any], error: Callable[[], Exception] = MemoryError
) -> Callable[..., Any]:
    """The function, that is there so many times."""
    left = count

    def call(*arguments: Any) -> Any:
        nonlocal left
        if not left:
            raise error()
        left -= 1
        return function(*arguments)

    return call


@pytest.mark.parametrize("when", ["it comes", "it is there"])
@pytest.mark.parametrize("payload", [512, 4096, 1 << 20], ids=["many", "several", "one"])
@DIALECTS
async def test_a_read_that_there_is_no_memory_for_fails_and_the_others_go_on(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch, payload: int, when: str, dialect: int
) -> None:
    export = Export(blocks=(512, 4096, payload), dialect=dialect)
    async with scripted(tmp_path, told, export) as uri, aioblk.Nbd(uri, depth=4) as dev:
        size = 100 << 10
        before, after = bytearray(size), bytearray(size)
        with monkeypatch.context() as patch:
            if when == "it comes":
                patch.setattr(commands, "BytesIO", refusing_after(0, bytes))
            else:
                patch.setattr(commands.NewBytes, "take", refusing_after(0, bytes))
            requests = (
                asyncio.ensure_future(dev.read_into(0, before)),
                asyncio.ensure_future(dev.read(0, size)),
                asyncio.ensure_future(dev.read_into(0, after)),
            )
            outcomes = await asyncio.gather(*requests, return_exceptions=True)
            (error,) = filter(None, outcomes)
            assert isinstance(error, BlkioError)
            assert "there is no memory for what is read: read less at a time" in str(error)
            assert (error.errno, error.offset, error.length) == (errno.ENOMEM, 0, size)
        assert before == after == b"m" * size
        assert await dev.read(0, size) == b"m" * size
        counts = dev.statistics()
        assert (counts.submitted, counts.completed, counts.in_flight) == (4, 3, 0)
        assert counts.read.errors == {errno.ENOMEM: 1}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"connections": 0}, "connections"),
        ({"depth": 65537}, "depth"),
        ({"lost_after": 0.01}, "lost_after"),
        ({"unflushed": "perhaps"}, "unflushed must be lose, report, trust"),
        ({"contexts": "base:allocation"}, "a sequence of names"),
        ({"contexts": ["bitmap"]}, "a metadata context is namespace:name, 4096 bytes at most, not 'bitmap'"),
        ({"contexts": ["x:" + "y" * 4095]}, "a metadata context is namespace:name"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        aioblk.Nbd("nbd://localhost", **options)
