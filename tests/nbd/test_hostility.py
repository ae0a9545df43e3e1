"""What clients of the NBD server may ask for, and devices may answer, that costs more than it should."""

import asyncio
import errno
import itertools
import resource
import struct
from collections.abc import AsyncGenerator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

import aioblk
from aioblk import Extent, ExtentKind
from aioblk.nbd import Export, Policy, Server
from aioblk.nbd._server.backend import Backend
from aioblk.nbd._server.listening import Door
from aioblk.testing import Fault, Faulty

from ..support.nbd_exports import new_image
from ..support.nbd_server import NbdServer
from . import wire
from .test_server import away, disk, serving

LIST = wire.IHAVEOPT + struct.pack(">II", wire.LIST, 0)


def greeted(server: Server) -> wire.Client:
    client = wire.Client(server.sockets[0].getsockname()[:2])
    client.greet()
    return client


# --- the handshake ------------------------------------------------------------------------------------------


async def test_an_option_is_answered_when_the_answer_to_the_one_before_has_been_taken() -> None:
    """A few bytes ask for megabytes of names."""
    device, lists = await disk(), 200
    exports = [Export(device, f"{number:04}" + "x" * 4000) for number in range(100)]
    async with Server(exports) as server, serving(server):
        with await away(greeted, server) as client:
            client.send(LIST * lists)
            unsent: list[int] = []

            def sees() -> bool:
                [each] = [*server._clients._shaking_hands]
                unsent.append(sum(size for _, size, _ in each.plain._outgoing))
                return unsent[-1] > 0 and len(unsent) > 100

            while not sees():  # noqa: ASYNC110 (nothing happens: that is the matter)
                await asyncio.sleep(0)
            assert max(unsent) < 2 * 100 * 4100
            for _ in range(lists):
                for _ in exports:
                    assert (await away(client.receive_option_reply)).kind == wire.SERVER
                assert client.receive_option_reply().kind == wire.ACK


async def test_who_lists_hundreds_of_exports_may_ask_about_each() -> None:
    """As qemu-nbd and nbdinfo do, on one connection."""
    device = await disk()
    async with Server([Export(device, str(number)) for number in range(200)]) as server, serving(server):

        def ask_about_all() -> None:
            with greeted(server) as client:
                assert client.ask(wire.STRUCTURED_REPLY)[-1].kind == wire.ACK
                for reply in client.ask(wire.LIST)[:-1]:
                    name = reply.data[4:]
                    assert client.ask(wire.INFO, wire.counted(name) + bytes(2))[-1].kind == wire.ACK
                    assert client.ask(wire.LIST_META_CONTEXT, wire.queries(name))[-1].kind == wire.ACK

        await away(ask_about_all)


@pytest.mark.parametrize("name", [b"\0" * 16_000, "\N{SNOWMAN}".encode() * 5000])
async def test_no_refusal_is_longer_than_the_protocol_allows(name: bytes) -> None:
    async with Server([Export(await disk())]) as server, serving(server):
        with await away(greeted, server) as client:
            (refusal,) = await away(client.go, name)
            assert refusal.kind == wire.ERR_UNKNOWN
            assert len(refusal.data) <= 4096
            assert refusal.data.decode().startswith("there is no export ")


@pytest.mark.parametrize(
    ("optimal", "preferred"), [(1, 4096), (192 << 10, 64 << 10), (1 << 20, 1 << 20), (3 << 30, 32 << 20)]
)
async def test_the_preferred_block_size_is_a_power_of_two_whatever_the_device_likes(
    optimal: int, preferred: int
) -> None:
    """QEMU refuses to use anything else: the stripes of three disks, for one."""
    limits = aioblk.Limits(request_alignment=1, optimal_io_alignment=optimal)
    async with Server([Export(await disk(limits=limits))]) as server, serving(server):
        with await away(greeted, server) as client:
            replies = await away(client.go)
            sizes = [struct.unpack(">HIII", reply.data) for reply in replies if reply.data[:2] == b"\0\3"]
            assert sizes == [(3, 1, preferred, 32 << 20)]


# --- devices that say what they should not ------------------------------------------------------------------


class Says(aioblk.Layer):
    """A device that has the extents that it is given, whatever is asked."""

    said: tuple[Any, ...] = ()

    async def extents(self, offset: int = 0, length: int | None = None) -> AsyncGenerator[Extent]:
        for each in self.said:
            yield each


@pytest.mark.parametrize(
    ("said", "states"),
    [
        ((), [(4096, 0)]),
        ((Extent(0, 1 << 40, ExtentKind.HOLE),), [(4096, 3)]),
        ((Extent(0, 0, ExtentKind.HOLE), Extent(0, 512, ExtentKind.DATA)), [(512, 0)]),
        ((Extent(0, 4096, ExtentKind.DATA), Extent(4096, 512, ExtentKind.HOLE)), [(4096, 0)]),
        (("a hole",), None),
    ],
)
async def test_a_device_that_says_nonsense_about_its_holes(
    said: tuple[Any, ...], states: list[tuple[int, int]] | None
) -> None:
    """The client gets what is in its range, or an error, and goes on."""
    device = Says(await disk())
    device.said = said
    async with Server([Export(device)]) as server, serving(server):

        def ask() -> None:
            address = server.sockets[0].getsockname()
            with wire.Client(address).connect(allocation=True) as client:
                reply = client.call(wire.BLOCK_STATUS, 0, 4096)
                assert reply.error == (errno.EIO if states is None else 0)
                assert [*reply.states.values()] == ([] if states is None else [states])
                assert client.call(wire.FLUSH).error == 0

        await away(ask)


async def test_a_device_that_fails_every_request_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    faulty = Faulty(await disk())
    faulty.add(Fault(operations={"read"}, error=aioblk.BlkioError("worn out")))
    async with Server([Export(faulty)]) as server, serving(server):
        with wire.Client(server.sockets[0].getsockname()) as client:
            await away(client.connect)
            for _ in range(3):
                assert (await away(client.call, wire.READ, 0, 512)).error == errno.EIO
            assert (await away(client.call, wire.READ, 1 << 40, 512)).error == errno.EINVAL
    said = [record.getMessage() for record in caplog.records if "fails" in record.getMessage()]
    assert len(said) == 1
    assert "worn out" in said[0]


async def test_what_a_device_that_is_well_refuses_is_not_said(caplog: pytest.LogCaptureFixture) -> None:
    backend = Backend(await disk())
    backend.note(aioblk.UnsupportedError("no fast zeroes", errno=errno.ENOTSUP))
    assert not caplog.records


class Cancels(aioblk.Layer):
    """A device that raises what only tasks should, in place of making a request."""

    def flush(self) -> Any:
        raise asyncio.CancelledError


async def test_a_device_that_raises_that_it_is_cancelled_fails_the_command_and_nothing_else() -> None:
    async with Server([Export(Cancels(await disk()))]) as server, serving(server):
        with await away(greeted, server) as client:
            await away(client.go)
            assert (await away(client.call, wire.FLUSH)).error == errno.EIO
            assert (await away(client.call, wire.READ, 0, 512)).error == 0


# --- the loop -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [Policy(patience=0.0), Policy(idle=0.0), Policy(idle=1e-9)])
async def test_no_policy_keeps_the_loop_busy(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    sleep = asyncio.sleep

    async def counted(seconds: float) -> None:
        slept.append(seconds)
        await sleep(seconds)

    async with Server(policy=policy) as server:
        monkeypatch.setattr("aioblk.nbd._server.clients.asyncio.sleep", counted)
        serving = asyncio.create_task(server.serve())
        while not slept:
            await sleep(0)
        serving.cancel()
        await asyncio.wait([serving])
    assert min(slept) >= 0.01


class Listener:
    """Its connections fail, and then there is one."""

    def __init__(self, number: int, connection: Any) -> None:
        self._errors = itertools.chain([OSError(number, "")], itertools.repeat(None))
        self._connection = connection

    def accept(self) -> tuple[Any, None]:
        if (error := next(self._errors)) is not None:
            raise error
        return self._connection, None


@pytest.mark.parametrize(
    ("number", "pushed_out"), [(errno.ECONNABORTED, 0), (errno.EPROTO, 0), (errno.EMFILE, 1)]
)
async def test_only_who_comes_when_there_are_too_many_pushes_others_out(
    number: int, pushed_out: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that has failed before it was accepted is nobody's fault."""

    async def at_once(_: object) -> None:
        pass

    import socket

    pushes: list[bool] = []

    def push() -> bool:
        pushes.append(True)
        return True

    monkeypatch.setattr("aioblk.nbd._server.listening._readable", at_once)
    door = Door(Policy(), push)
    one, other = socket.socketpair()
    with one, other:
        assert await door.accept(Listener(number, one)) is one  # type: ignore[arg-type]
    assert len(pushes) == pushed_out


def test_who_comes_when_all_descriptors_are_taken_for_good_is_refused(tmp_path: Path) -> None:
    """Clients that are at work keep theirs. Who comes then is closed, and does not wait for ever."""
    image = new_image(tmp_path)
    with NbdServer("io_uring", f"path={image}") as server, ExitStack() as stack:
        server.expect("cannot accept clients: .*Too many open files")
        most = server.descriptors() + 4
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (most, most))
        clients: list[wire.Client] = []

        def one_more() -> bool:
            clients.append(stack.enter_context(wire.Client(server.socket)))
            with suppress(EOFError, ConnectionError):
                clients[-1].connect()
                return True
            return False

        while one_more():
            assert len(clients) < 8
        clients.pop()
        assert clients
        for client in clients:
            assert client.call(wire.FLUSH).error == 0
        for client in clients:
            client.close()
        while True:  # as soon as it has seen that
            with wire.Client(server.socket) as again, suppress(EOFError, ConnectionError):
                assert again.connect().call(wire.FLUSH).error == 0
                break
