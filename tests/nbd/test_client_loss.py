"""Connections that break: what is sent again, what is in doubt, and when a device is lost."""

import asyncio
import contextlib
import ctypes
import errno
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import pytest

import aioblk
from aioblk import BlkioError, DeviceClosedError, DeviceLostError
from aioblk.nbd._client import connection, device, life
from aioblk.nbd._client.replies import Receiver
from aioblk.nbd._client.silence import SilenceWatch

from . import scripted as s
from .scripted import Command, Export, Session, scripted

SO_ATTACH_FILTER = 26
FOR = 30.0  # seconds; everything here is over long before


@pytest.fixture(autouse=True)
def without_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life, "FIRST_DELAY", 0.001)
    monkeypatch.setattr(life, "LONGEST_DELAY", 0.001)


class Mortal:
    """A server of which each life does what it was told to do in it, and the last one serves."""

    def __init__(self, *lives: Callable[[Session], Awaitable[object]]) -> None:
        self.lives = lives
        self.memory = bytearray(s.SIZE)
        self.commands: list[Command] = []
        """Those of the last life."""

    async def __call__(self, session: Session) -> None:
        if session.number < len(self.lives):
            await self.lives[session.number](session)
        else:
            await session.serve(self.memory, self.commands)

    def asked(self) -> list[tuple[int, int]]:
        return [(each.kind, each.offset) for each in self.commands]


def dies_of(count: int, *, answering: int = 0) -> Callable[[Session], Awaitable[object]]:
    """Receives so many commands, answers the first of them, and is gone."""

    async def live(session: Session) -> None:
        for number in range(count):
            command = await session.command()
            if number < answering:
                session.done(command, bytes(command.length) if command.kind == s.READ else b"")
        await session.writer.drain()

    return live


async def dies_at_once(session: Session) -> None:
    """After the handshake."""


async def test_without_reconnect_for_a_connection_that_breaks_loses_the_device(tmp_path: Path) -> None:
    async with scripted(tmp_path, Mortal(dies_of(2)), Export()) as uri, aioblk.Nbd(uri) as dev:
        events = dev.events()
        read, write = dev.read(0, 512), dev.write(0, bytes(512))
        with pytest.raises(DeviceLostError, match="the server has closed the connection"):
            await read
        with pytest.raises(DeviceLostError, match="the server has closed the connection") as caught:
            await write
        assert (caught.value.offset, caught.value.length) == (0, 512)
        assert caught.value.errno == errno.ENODEV
        assert isinstance(await anext(events), aioblk.DeviceLost)
        with pytest.raises(DeviceLostError):
            dev.flush()
        await dev.reconnect()
        assert dev.lost is None
        assert dev.reconnections == 1
        assert await dev.read(0, 512) == bytes(512)
        assert isinstance(await anext(events), aioblk.DeviceReturned)
        await events.aclose()


async def test_who_reconnects_brings_no_later_loss_back_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another task may have written meanwhile, and not flushed: it has to be told that this is in doubt."""
    dial, connected, go_on = life.dial_in_time, asyncio.Event(), asyncio.Event()

    async def dial_slowly_at_first(*args: Any) -> Any:
        dialled = await dial(*args)
        if not connected.is_set():
            connected.set()
            await go_on.wait()
        return dialled

    async with scripted(tmp_path, Mortal(), Export()) as uri, aioblk.Nbd(uri) as dev:
        monkeypatch.setattr(life, "dial_in_time", dial_slowly_at_first)
        dev.abandon("the first time")
        slow = asyncio.create_task(dev.reconnect())
        await connected.wait()
        await dev.reconnect()
        await dev.write(0, b"x" * 512)
        dev.abandon("the second time")
        go_on.set()
        with pytest.raises(DeviceLostError, match=r"lost once more, before it was back: .*second time"):
            await slow
        assert dev.lost is not None
        assert dev.reconnections == 1


async def test_tasks_that_reconnect_for_one_loss_have_the_device_back_together(tmp_path: Path) -> None:
    async with scripted(tmp_path, Mortal(), Export()) as uri, aioblk.Nbd(uri) as dev:
        dev.abandon()
        await asyncio.gather(*[dev.reconnect() for _ in range(3)])
        assert dev.lost is None
        assert dev.reconnections == 1


@pytest.mark.parametrize("deaths", [1, 3])
async def test_what_was_in_flight_is_sent_again_in_its_order(tmp_path: Path, deaths: int) -> None:
    server = Mortal(*[dies_of(4), dies_at_once, dies_of(2)][:deaths])
    async with (
        scripted(tmp_path, server, Export()) as uri,
        aioblk.Nbd(uri, reconnect_for=FOR, depth=4) as dev,
    ):
        events = dev.events()
        requests = [dev.write(512 * n, bytes([n + 1]) * 512) for n in range(5)]
        assert isinstance(await anext(events), aioblk.DeviceSearching)
        assert dev.reconnecting
        assert "reconnected" in repr(dev)
        read = dev.read(0, 512)
        for request in requests:
            await request
        await read
        assert server.asked() == [*((s.WRITE, 512 * n) for n in range(5)), (s.READ, 0)]
        assert [server.memory[512 * n] for n in range(5)] == [1, 2, 3, 4, 5]
        assert dev.reconnections == deaths
        counts = dev.statistics()
        assert (counts.submitted, counts.completed, counts.in_flight) == (6, 6, 0)
        await events.aclose()


async def test_a_read_that_had_come_in_part_is_read_anew(tmp_path: Path) -> None:
    async def half(session: Session) -> None:
        command = await session.command()
        session.chunk(command, s.HOLE, (1024).to_bytes(8, "big") + (512).to_bytes(4, "big"), last=False)
        await session.writer.drain()

    server = Mortal(half)
    server.memory[:1536] = os.urandom(1536)
    async with scripted(tmp_path, server, Export()) as uri, aioblk.Nbd(uri, reconnect_for=FOR) as dev:
        into = bytearray(1536)
        await dev.read_into(0, into)
        assert into == server.memory[:1536]


async def test_what_was_cancelled_is_not_sent_again(tmp_path: Path) -> None:
    received, die = asyncio.Event(), asyncio.Event()

    async def wait(session: Session) -> None:
        await session.commands(2)
        received.set()
        await die.wait()

    server = Mortal(wait)
    async with scripted(tmp_path, server, Export()) as uri, aioblk.Nbd(uri, reconnect_for=FOR) as dev:
        gone, kept = (asyncio.ensure_future(dev.write(n, bytes(512))) for n in (0, 512))
        await received.wait()
        gone.cancel()
        behind = dev.write(0, b"b" * 512)
        die.set()
        await kept
        await behind
        assert server.asked() == [(s.WRITE, 512), (s.WRITE, 0)]


@pytest.mark.parametrize("lives", [2, 3])
async def test_all_connections_are_made_again_together(tmp_path: Path, lives: int) -> None:
    async def wait(session: Session) -> None:
        await session.reader.read()

    server = Mortal(*[wait] * (lives - 1), dies_at_once)
    export = Export(flags=s.ALL | s.MULTI_CONN)
    async with (
        scripted(tmp_path, server, export) as uri,
        aioblk.Nbd(uri, connections=lives, reconnect_for=FOR) as dev,
    ):
        await asyncio.gather(*(dev.write(512 * n, bytes(512)) for n in range(6)))
        assert len(server.commands) == 6
        assert (dev.connections, dev.reconnections) == (lives, 1)


async def test_a_connection_that_is_over_when_it_is_to_be_used_leaves_no_watch_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[SilenceWatch] = []

    def make(*args: Any) -> SilenceWatch:
        made.append(SilenceWatch(*args))
        return made[-1]

    def running() -> int:
        return sum(watch.is_watching for watch in made)

    sessions: list[Session] = []

    async def live(session: Session) -> None:
        session.export = Export(flags=s.ALL | s.MULTI_CONN)
        sessions.append(session)
        if session.number == 3:  # the second one of the second life: the first one is gone by then
            sessions[2].writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await sessions[2].writer.wait_closed()
        await session.haggle()
        if session.number < 2:
            await session.command()
            sessions[0].writer.transport.abort()
        elif session.number > 3:
            await session.serve(bytearray(s.SIZE))

    async def hold(session: Session) -> None:
        try:
            await live(session)
        finally:
            if session.number == 2:
                await sessions[2].reader.read()

    monkeypatch.setattr(life, "SilenceWatch", make)
    async with (
        scripted(tmp_path, hold) as uri,
        aioblk.Nbd(uri, connections=2, lost_after=FOR, reconnect_for=FOR) as dev,
    ):
        await asyncio.gather(dev.read(0, 512), dev.read(512, 512))
        assert dev.reconnections == 2
        assert running() == 1
    assert running() == 0


async def test_numbers_of_contexts_are_those_of_the_new_connection(tmp_path: Path) -> None:
    async def tell(session: Session) -> None:
        command = await session.command()
        if session.number:
            body = struct.pack(">III", 17, command.length, 2)
            session.chunk(command, s.STATUS, body)
            await session.command()

    async with scripted(tmp_path, tell, Export()) as uri, aioblk.Nbd(uri, reconnect_for=FOR) as dev:
        (extent,) = [each async for each in dev.extents()]
        assert extent.kind is aioblk.ExtentKind.HOLE


# --- the network --------------------------------------------------------------------------------------------


def unreachable(peer: socket.socket) -> None:
    """From now on the kernel drops whatever comes for it, and acknowledges nothing."""
    drop = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))  # BPF_RET | BPF_K, 0 bytes
    peer.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(drop)))


async def test_a_machine_that_is_not_reached_any_more_is_noticed_though_nobody_asks_for_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device, "DEAD_AFTER", 0.2)

    async def vanish(session: Session) -> None:
        copy = socket.socket(fileno=os.dup(session.writer.get_extra_info("socket").fileno()))
        with copy:
            unreachable(copy)
        await asyncio.Event().wait()

    server = Mortal(vanish)
    async with scripted(None, server, Export()) as uri, aioblk.Nbd(uri, reconnect_for=FOR) as dev:
        await dev.write(512, bytes(512))
        assert server.asked() == [(s.WRITE, 512)]
        assert dev.reconnections == 1


async def test_a_server_that_receives_nothing_for_long_is_not_taken_for_such_a_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would do later what it had been sent, and what would be sent to the next one in the meantime."""
    monkeypatch.setattr(device, "DEAD_AFTER", 0.1)
    receive = asyncio.Event()

    async def wait(session: Session) -> None:
        await receive.wait()
        await session.serve(bytearray(size))

    size = 24 << 20  # more than kernels and streams have room for
    async with (
        scripted(None, wait, Export(size=size)) as uri,
        aioblk.Nbd(uri, connections=1, reconnect_for=FOR) as dev,
    ):
        (only,) = dev._dispatch.connections
        ours = only._channel.socket
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
        write = asyncio.ensure_future(dev.write(0, bytes(size)))
        await asyncio.sleep(0.7)  # time is what it is about
        assert not write.done()
        receive.set()
        await write
        assert dev.reconnections == 0


# --- what is in doubt ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "is_lost"),
    [
        (["write"], True),
        (["zeroes"], True),
        (["discard"], True),
        (["write", "flush"], False),
        (["write", "flush", "write"], True),
        (["through"], False),
        (["read", "flush"], False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
async def test_a_change_that_was_answered_and_not_flushed_loses_the_device(
    tmp_path: Path, changes: list[str], *, is_lost: bool
) -> None:
    def begin(dev: aioblk.Nbd, change: str) -> Awaitable[object]:
        match change:
            case "write":
                return dev.write(0, bytes(512))
            case "zeroes":
                return dev.write_zeroes(0, 512)
            case "discard":
                return dev.discard(0, 512)
            case "through":
                return dev.write(0, bytes(512), fua=True)
            case "flush":
                return dev.flush()
            case _:
                return dev.read(0, 512)

    server = Mortal(dies_of(len(changes) + 1, answering=len(changes)))
    async with scripted(tmp_path, server, Export()) as uri, aioblk.Nbd(uri, reconnect_for=FOR) as dev:
        for change in changes:
            await begin(dev, change)
        read = dev.read(0, 512)
        if is_lost:
            with pytest.raises(
                DeviceLostError, match=r"when 1 change had been answered and not been flushed"
            ):
                await read
            await dev.reconnect()
            await dev.flush()
        else:
            await read


@pytest.mark.parametrize("when", ["in flight", "later"])
async def test_report_lets_the_next_flush_fail_once(
    tmp_path: Path, when: Literal["in flight", "later"]
) -> None:
    server = Mortal(dies_of(2, answering=1))
    async with (
        scripted(tmp_path, server, Export()) as uri,
        aioblk.Nbd(uri, reconnect_for=FOR, unflushed="report") as dev,
    ):
        await dev.write(0, bytes(512))
        if when == "in flight":
            flush = dev.flush()
        else:
            await dev.read(0, 512)
            flush = dev.flush()
        with pytest.raises(BlkioError, match="1 change had been answered and not been flushed") as caught:
            await flush
        assert caught.value.errno == errno.EIO
        assert not isinstance(caught.value, DeviceLostError)
        await dev.flush()
        assert (dev.lost, dev.reconnections) == (None, 1)


@pytest.mark.parametrize("change", ["write", "zeroes"])
async def test_a_change_of_which_a_part_had_been_answered_is_made_again_as_a_whole(
    tmp_path: Path, change: str
) -> None:
    """Or it would be done with a part lost, after the doubt about it has been told."""
    export = Export(blocks=(512, 512, 512), flags=s.HAS_FLAGS | s.FLUSH_FLAG)
    server = Mortal(dies_of(3, answering=1))
    async with (
        scripted(tmp_path, server, export) as uri,
        aioblk.Nbd(uri, reconnect_for=FOR, unflushed="report") as dev,
    ):
        one = dev.write(0, b"1" * 1024) if change == "write" else dev.write_zeroes(0, 1024)
        with pytest.raises(BlkioError, match="1 change had been answered and not been flushed"):
            await dev.flush()
        await one
        await dev.flush()
        assert server.asked() == [(s.WRITE, 0), (s.WRITE, 512), (s.FLUSH, 0)]
        assert dev.statistics().write.completed + dev.statistics().write_zeroes.completed == 1


async def test_trust_goes_on(tmp_path: Path) -> None:
    server = Mortal(dies_of(2, answering=1))
    async with (
        scripted(tmp_path, server, Export()) as uri,
        aioblk.Nbd(uri, reconnect_for=FOR, unflushed="trust") as dev,
    ):
        await dev.write(0, bytes(512))
        await dev.flush()
        assert server.asked() == [(s.FLUSH, 0)]


async def test_a_write_through_that_is_a_write_and_a_flush_is_made_again_as_a_whole(tmp_path: Path) -> None:
    server = Mortal(dies_of(2, answering=1))
    async with (
        scripted(tmp_path, server, Export(flags=s.HAS_FLAGS | s.FLUSH_FLAG)) as uri,
        aioblk.Nbd(uri, reconnect_for=FOR, unflushed="trust") as dev,
    ):
        await dev.write(512, bytes(512), fua=True)
        # The flush was in flight, and is sent again as it was; it covers nothing that was lost before it.
        assert server.asked() == [(s.FLUSH, 0), (s.WRITE, 512), (s.FLUSH, 0)]


# --- when it is lost all the same ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Export(size=s.SIZE * 2), "its size is 2097152 now, and was 1048576"),
        (Export(flags=s.ALL | s.READ_ONLY), "its flags is 0x6f now, and was 0x6d"),
        (Export(dialect=s.SIMPLE), "its headers is simple now"),
    ],
)
async def test_another_export_is_not_taken_for_the_same(tmp_path: Path, other: Export, words: str) -> None:
    mine = Export()

    async def change(session: Session) -> None:
        await session.command()
        vars(mine).update(vars(other))

    async with (
        scripted(tmp_path, Mortal(change), mine) as uri,
        aioblk.Nbd(uri, reconnect_for=FOR) as dev,
    ):
        with pytest.raises(DeviceLostError, match=f"another export answers: {words}"):
            await dev.read(0, 512)
        with pytest.raises(DeviceLostError, match=words):
            await dev.reconnect()


async def test_a_server_that_dies_of_each_request_is_not_tried_for_ever(tmp_path: Path) -> None:
    lives = 0

    async def die(session: Session) -> None:
        nonlocal lives
        lives += 1
        await session.command()

    async with scripted(tmp_path, die, Export()) as uri, aioblk.Nbd(uri, reconnect_for=0.3) as dev:
        with pytest.raises(DeviceLostError, match=r"did not come back in 0\.3 seconds \(reconnect_for\)"):
            await dev.read(0, 512)
        assert lives >= 2


async def test_a_server_that_answers_others_and_dies_of_one_is_not_tried_for_ever(tmp_path: Path) -> None:
    async def die_of_writes(session: Session) -> None:
        died = asyncio.Event()
        while True:
            command = await session.command()
            if command.kind == s.WRITE and not died.is_set():
                died.set()
                asyncio.get_running_loop().call_later(0.01, session.writer.transport.abort)
            else:
                session.done(command, bytes(command.length))

    async with scripted(tmp_path, die_of_writes, Export()) as uri, aioblk.Nbd(uri, reconnect_for=0.3) as dev:
        write = asyncio.ensure_future(dev.write(0, bytes(512)))
        with pytest.raises(DeviceLostError, match=r"did not come back in 0\.3 seconds"):
            await read_for_ever(dev)
        with pytest.raises(DeviceLostError):
            await write


async def read_for_ever(dev: aioblk.Nbd) -> None:
    while True:
        await dev.read(0, 512)


async def test_a_server_that_does_not_stay_is_not_stormed_whatever_it_has_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    rest = life.Life._rest

    async def note(self: life.Life) -> None:
        pauses.append(self._delay)
        await rest(self)

    monkeypatch.setattr(life.Life, "_rest", note)
    monkeypatch.setattr(life, "LONGEST_DELAY", FOR)
    async with (
        scripted(tmp_path, dies_of(1, answering=1), Export()) as uri,
        aioblk.Nbd(uri, reconnect_for=FOR) as dev,
    ):
        while dev.reconnections < 6:
            await dev.read(0, 512)
        assert pauses[:5] == [0.001 * 2**n for n in range(5)]


async def test_who_comes_back_later_than_that_is_not_waited_for(tmp_path: Path) -> None:
    async with scripted(tmp_path, Mortal(dies_of(1)), Export()) as uri:
        dev = await aioblk.Nbd(uri, reconnect_for=0.1).open()
        (tmp_path / "nbd.sock").unlink()
        with pytest.raises(DeviceLostError, match=r"did not come back in .*: .*cannot connect to"):
            await dev.read(0, 512)
        with pytest.raises(BlkioError, match="cannot connect"):
            await dev.reconnect()
        await dev.aclose()


async def test_each_search_has_its_time_when_the_server_was_there_for_long(tmp_path: Path) -> None:
    """Also if nobody has asked it for anything since the last one."""
    back, die = asyncio.Event(), asyncio.Event()

    async def come_back(session: Session) -> None:
        back.set()
        await die.wait()

    async with (
        scripted(tmp_path, Mortal(dies_at_once, come_back), Export()) as uri,
        aioblk.Nbd(uri, reconnect_for=0.5) as dev,
    ):
        await back.wait()
        await asyncio.sleep(0.6)  # time is what it is about
        die.set()
        await dev.read(0, 512)
        assert dev.reconnections == 2


async def test_a_connection_that_cannot_be_used_is_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Mortal(dies_of(1))
    refused = 0

    def refuse(*arguments: Any) -> Receiver:
        nonlocal refused
        refused += 1
        if refused < 3:
            raise MemoryError
        return Receiver(*arguments)

    async with scripted(tmp_path, server, Export()) as uri, aioblk.Nbd(uri, reconnect_for=FOR) as dev:
        monkeypatch.setattr(connection, "Receiver", refuse)
        await dev.read(0, 512)
        assert (dev.reconnections, refused) == (1, 3)
        dev.abandon()
        refused = 0
        for _ in range(2):
            with pytest.raises(BlkioError, match="cannot be used"):
                await dev.reconnect()
            assert dev.lost is not None
        await dev.reconnect()
        await dev.read(0, 512)


@pytest.mark.parametrize("has_request", [False, True], ids=["idle", "request"])
def test_a_loop_that_ends_does_not_wait_for_a_search_that_is_for_nobody(
    tmp_path: Path, *, has_request: bool
) -> None:
    async def lose_server() -> tuple[aioblk.Nbd, asyncio.Task[bytes]]:
        async def read() -> bytes:
            return await dev.read(0, 512)

        async with scripted(tmp_path, dies_at_once, Export()) as uri:
            dev = await aioblk.Nbd(uri, reconnect_for=FOR).open()
            events = dev.events()
            (tmp_path / "nbd.sock").unlink()
            assert isinstance(await anext(events), aioblk.DeviceSearching)
            await events.aclose()
            task = asyncio.ensure_future(read() if has_request else asyncio.sleep(FOR, b""))
            await asyncio.sleep(0)
            return dev, task

    dev, task = asyncio.run(lose_server())
    assert task.cancelled()
    assert "the loop ends, and nobody waits for the server" in str(dev.lost)
    asyncio.run(dev.aclose())


async def test_a_search_can_be_ended(tmp_path: Path) -> None:
    async with scripted(tmp_path, Mortal(dies_of(1)), Export()) as uri:
        for end in "abandon", "cancel and close":
            dev = await aioblk.Nbd(uri, reconnect_for=FOR).open()
            (tmp_path / "nbd.sock").rename(tmp_path / "away")
            dev._life._broken(dev._dispatch.connections[0], "cut", False)  # type: ignore[union-attr]
            read = asyncio.ensure_future(dev.read(0, 512))
            assert dev.reconnecting
            await asyncio.sleep(0)
            if end == "abandon":
                dev.abandon("enough")
                with pytest.raises(DeviceLostError, match="enough"):
                    await read
            else:
                read.cancel()
            await dev.aclose()
            assert not dev.reconnecting
            (tmp_path / "away").rename(tmp_path / "nbd.sock")


async def test_a_device_that_is_closed_meanwhile_is_not_connected_again(tmp_path: Path) -> None:
    come, go = asyncio.Event(), asyncio.Event()

    async def live(session: Session) -> None:
        if session.number:
            come.set()
            await go.wait()
        await session.haggle()
        assert not await session.reader.read()

    async with scripted(tmp_path, live) as uri:
        dev = await aioblk.Nbd(uri).open()
        dev.abandon()
        attempt = asyncio.ensure_future(dev.reconnect())
        await come.wait()
        await dev.aclose()
        go.set()
        with pytest.raises(DeviceClosedError):
            await attempt
        assert dev.connections == 0


async def test_closing_waits_for_what_is_sent_again(tmp_path: Path) -> None:
    server = Mortal(dies_of(1))
    async with scripted(tmp_path, server, Export()) as uri:
        dev = await aioblk.Nbd(uri, reconnect_for=FOR).open()
        write = dev.write(512, bytes(512))
        await dev.aclose()
        await write
        assert server.asked() == [(s.WRITE, 512)]
