"""aioblk.nbd.Server: exports that come and go, who may come, what is counted, and the end."""

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import prometheus_client
import pytest

import aioblk
from aioblk.metrics import NBD_METRICS, NbdServerCollector
from aioblk.nbd import Export, Policy, Server
from aioblk.testing import Fault, Faulty, MemoryDevice

from . import wire
from .wire import Client

SIZE = 1 << 20
TIME_LIMIT = 20
T = TypeVar("T")


async def disk(content: bytes = b"", **options: Any) -> MemoryDevice:
    return await MemoryDevice(SIZE, content=content, **options).__aenter__()


@contextlib.asynccontextmanager
async def serving(server: Server) -> AsyncIterator[asyncio.Task[None]]:
    """It listens and serves. In the end it is cancelled, unless it has ended."""
    await server.listen(port=0)
    task = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(TIME_LIMIT):
            yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def away(function: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """What blocks, in a thread."""
    return await asyncio.to_thread(function, *arguments, **options)


def connected(server: Server, name: bytes = b"") -> Client:
    client = Client(server.sockets[0].getsockname()[:2])
    client.greet()
    assert client.go(name)[-1].kind == wire.ACK
    return client


def listed(server: Server) -> list[bytes]:
    with Client(server.sockets[0].getsockname()[:2]) as client:
        client.greet()
        return [reply.data[4:] for reply in client.ask(wire.LIST)[:-1]]


# --- exports ------------------------------------------------------------------------------------------------


async def test_several_exports_are_listed_chosen_by_name_and_apart() -> None:
    one, two = await disk(b"one"), await disk(b"two")
    async with Server([Export(one, "1"), Export(two, "2", default=True)]) as server, serving(server):
        assert await away(listed, server) == [b"1", b"2"]
        for name, content in ((b"1", b"one"), (b"2", b"two"), (b"", b"two")):
            with await away(connected, server, name) as client:
                assert (await away(client.call, wire.READ, 0, 3)).data == content


async def test_an_export_is_added_and_removed_while_clients_use_others() -> None:
    one, two = await disk(b"one"), await disk(b"two")
    async with Server([Export(one, "1")]) as server, serving(server):
        with await away(connected, server, b"1") as stays:
            await server.add(Export(two, "2"))
            with await away(connected, server, b"2") as leaves:
                assert (await away(leaves.call, wire.READ, 0, 3)).data == b"two"
                await server.remove("2")
                assert await away(leaves.is_closed_by_server)
            assert server.exports == ("1",)
            assert await away(listed, server) == [b"1"]
            await two.aclose()
            assert (await away(stays.call, wire.READ, 0, 3)).data == b"one"
            assert server.statistics().sent_away == {"removed": 1}
        await server.add(Export(await disk(b"new"), "2"))
        with await away(connected, server, b"2") as client:
            assert (await away(client.call, wire.READ, 0, 3)).data == b"new"


class Held(aioblk.Layer):
    """A device that reads nothing until it is released."""

    def __init__(self, device: aioblk.BlockDevice) -> None:
        super().__init__(device)
        self.asked, self.released = asyncio.Event(), asyncio.Event()

    async def _read_later(self, offset: int, buffer: Any) -> None:
        self.asked.set()
        await self.released.wait()
        await super().read_into(offset, buffer)

    def read_into(self, offset: int, buffer: Any) -> Any:
        return asyncio.ensure_future(self._read_later(offset, buffer))


async def test_what_a_client_has_in_flight_is_answered_before_its_export_is_gone() -> None:
    slow = Held(await disk(b"x" * 512))
    async with Server([Export(slow)]) as server, serving(server):
        with await away(connected, server) as client:
            client.send_command(wire.READ, 0, 512)
            await slow.asked.wait()
            removing = asyncio.create_task(server.remove(""))
            await asyncio.sleep(0)
            assert not removing.done()
            slow.released.set()
            assert (await away(client.receive_reply, 512)).data == b"x" * 512
            await removing
            assert await away(client.is_closed_by_server)


async def test_removing_goes_on_when_whoever_asked_is_cancelled() -> None:
    async with Server([Export(await disk(), "1")]) as server, serving(server):
        removing = asyncio.create_task(server.remove("1"))
        await asyncio.sleep(0)
        removing.cancel()
        await asyncio.wait([removing])
        while server.exports:  # noqa: ASYNC110 (who would tell has been cancelled)
            await asyncio.sleep(0)
        await server.add(Export(await disk(), "1"))


async def test_a_read_only_export_of_a_device_that_is_not() -> None:
    device = await disk()
    async with (
        Server([Export(device, "rw"), Export(device, "ro", read_only=True)]) as server,
        serving(server),
    ):
        with await away(connected, server, b"ro") as client:
            assert (await away(client.call, wire.WRITE, 0, 1, data=b"x")).error == errno.EPERM
        with await away(connected, server, b"rw") as client:
            assert (await away(client.call, wire.WRITE, 0, 1, data=b"x")).error == 0


async def test_parts_of_one_block_are_changed_by_way_of_two_exports() -> None:
    """Neither undoes the other's."""
    device = await disk(limits=aioblk.Limits(request_alignment=512))
    async with Server([Export(device, "1"), Export(device, "2")]) as server, serving(server):
        with await away(connected, server, b"1") as one, await away(connected, server, b"2") as two:
            for position in range(0, 512, 2):
                one.send_command(wire.WRITE, position, 1, data=b"1")
                two.send_command(wire.WRITE, position + 1, 1, data=b"2")
            for _ in range(256):
                assert (await away(one.receive_reply)).error == 0
                assert (await away(two.receive_reply)).error == 0
        assert await device.read(0, 512) == b"12" * 256


async def test_exports_that_cannot_be_are_refused_and_change_nothing() -> None:
    device = await disk()
    async with Server([Export(device, "1", default=True)]) as server:
        with pytest.raises(aioblk.UsageError, match="'1' is in use"):
            await server.add(Export(device, "1"))
        with pytest.raises(aioblk.UsageError, match="the default export already"):
            await server.add(Export(device, "2", default=True))
        with pytest.raises(aioblk.OptionError, match="at most 4096 bytes"):
            await server.add(Export(device, "x" * 5000))
        with pytest.raises(aioblk.OptionError, match="description of an export must be UTF-8"):
            await server.add(Export(device, "2", "\udcff"))
        with pytest.raises(TypeError, match="a BlockDevice is needed"):
            await server.add(Export("disk.img", "2"))  # type: ignore[arg-type]
        with pytest.raises(aioblk.UsageError, match="no export '2'; there are '1'"):
            await server.remove("2")
        assert server.exports == ("1",)
        assert server.size_of("1") == SIZE


# --- listening ----------------------------------------------------------------------------------------------


async def test_clients_come_at_all_sockets_also_at_those_that_are_added_later(tmp_path: Path) -> None:
    path = tmp_path / "nbd.sock"
    async with Server([Export(await disk())]) as server, serving(server):
        server.listen_at_path(path)
        handed = socket.create_server(("127.0.0.1", 0))
        server.listen_on(handed)
        await server.listen("", 0)
        for listener in server.sockets:
            name = listener.getsockname()
            where = Path(name) if isinstance(name, str) else name[:2]
            if listener.family == socket.AF_INET6:
                continue
            with await away(lambda where=where: Client(where).connect()) as client:
                assert (await away(client.call, wire.FLUSH)).error == 0
        with pytest.raises(aioblk.UsageError, match=r"there is no export 'b'; there are ''$"):
            server.uris("b")
        await server.add(Export(await disk(), "a b"))
        uris = server.uris("a b")
        assert uris[0].startswith("nbd://127.0.0.1:")
        assert uris[1] == f"nbd+unix:///a%20b?socket={path}"
        ports = {listener.getsockname()[1] for listener in server.sockets[3:]}
        assert len(ports) == 1  # the same at all addresses of the machine
    assert not path.exists()


async def test_addresses_that_cannot_be_had_are_told() -> None:
    async with Server() as server:
        with pytest.raises(OSError, match=r"cannot listen at 192\.0\.2\.1, port 10809: "):
            await server.listen("192.0.2.1")
        with pytest.raises(OSError, match=r"cannot listen at nowhere\.invalid: "):
            await server.listen("nowhere.invalid")
        with pytest.raises(aioblk.OptionError, match="port must be from 0 to 65535, not 70000"):
            await server.listen(port=70000)
        assert server.sockets == ()


# --- who may come -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "is_let_in"), [("127.0.0.0/8", True), ("10.0.0.0/8", False), ("::1/128", False)]
)
async def test_networks(network: str, is_let_in: bool, caplog: pytest.LogCaptureFixture) -> None:
    policy = Policy(networks=(ipaddress.ip_network(network),))
    async with Server([Export(await disk())], policy=policy) as server, serving(server):
        for _ in range(3):
            with await away(Client, server.sockets[0].getsockname()) as client:
                if is_let_in:
                    await away(client.greet)
                else:
                    assert await away(client.is_closed_by_server)
        statistics = server.statistics()
        assert statistics.refused == ({} if is_let_in else {"address": 3})
        assert statistics.connections_total == 3
    refusals = [record for record in caplog.records if "is refused" in record.getMessage()]
    assert len(refusals) == (0 if is_let_in else 1)


@pytest.mark.parametrize(
    ("policy", "is_let_in"),
    [
        (Policy(users=frozenset({os.getuid()})), True),
        (Policy(users=frozenset({12345})), False),
        (Policy(groups=frozenset({os.getgid()})), True),
        (Policy(groups=frozenset({12345})), False),
        (Policy(users=frozenset({12345}), groups=frozenset({os.getgid()})), True),
    ],
)
async def test_users_and_groups_at_unix_sockets(policy: Policy, is_let_in: bool, tmp_path: Path) -> None:
    path = tmp_path / "nbd.sock"
    async with Server([Export(await disk())], policy=policy) as server, serving(server):
        server.listen_at_path(path)
        with await away(Client, path) as client:
            if is_let_in:
                await away(client.greet)
            else:
                assert await away(client.is_closed_by_server)
        assert server.statistics().refused == ({} if is_let_in else {"user": 1})


async def test_who_asks_for_nothing_for_too_long_is_sent_away() -> None:
    async with Server([Export(await disk())], policy=Policy(idle=0.2)) as server, serving(server):
        with await away(connected, server) as idle, await away(connected, server) as busy:
            while not await away(_has_ended, idle):
                assert (await away(busy.call, wire.FLUSH)).error == 0
            assert server.statistics().sent_away == {"idle": 1}


def _has_ended(client: Client) -> bool:
    client.socket.settimeout(0.01)
    with contextlib.suppress(TimeoutError):
        return client.socket.recv(1) == b""
    return False


async def test_a_client_has_no_more_than_its_rate_and_the_end_does_not_wait_for_it() -> None:
    policy = Policy(rate=aioblk.Rate(operations=0.01, burst_operations=2), drain=TIME_LIMIT)
    async with Server([Export(await disk())], policy=policy) as server, serving(server) as task:
        with await away(connected, server) as client, await away(connected, server) as other:
            for _ in range(2):
                assert (await away(client.call, wire.READ, 0, 512)).error == 0
            client.send_command(wire.READ, 0, 512)  # waits for more than a minute
            assert (await away(other.call, wire.READ, 0, 512)).error == 0
            while server.statistics().exports[""].commands["read"] < 4:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            task.cancel()
            assert (await away(client.receive_reply, 512)).error == 0
            await asyncio.wait([task])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"clients": 0}, "clients must be at least 1, not 0"),
        ({"requests": 0}, "requests must be at least 1"),
        ({"memory": 4096}, "memory must be at least"),
        ({"patience": float("nan")}, "patience must be at least 0, not nan"),
        ({"drain": -1.0}, "drain must be at least 0"),
        ({"idle": float("inf")}, "idle must be at most"),
        ({"clients": 1.5}, "clients must be a whole number, not 1.5"),
        ({"requests": "8"}, "requests must be a whole number, not '8'"),
        ({"idle": "1h"}, "idle must be a number of seconds, not '1h'"),
        ({"rate": "10M"}, r"rate must be a Rate, or None, not '10M': aioblk\.Rate\(bytes=10 << 20\)"),
        ({"rate": 1e6}, "rate must be a Rate"),
        ({"when_lost": "pray"}, "'end' or 'reconnect', not 'pray'"),
    ],
)
def test_policies_that_cannot_be_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(aioblk.OptionError, match=words):
        Policy(**wrong)


# --- devices that are lost ----------------------------------------------------------------------------------


class Fragile(aioblk.Layer):
    """A device that is lost when it is told to, and says nothing of it."""

    is_lost = False

    def read(self, offset: int, length: int) -> Any:
        return _lost() if self.is_lost else super().read(offset, length)

    def read_into(self, offset: int, buffer: Any) -> Any:
        return _lost() if self.is_lost else super().read_into(offset, buffer)


async def _lost() -> None:
    raise aioblk.DeviceLostError("the mouse has bitten through it")


async def test_a_device_that_does_not_tell_is_found_to_be_lost_by_what_clients_ask() -> None:
    device = Fragile(await disk())
    async with Server([Export(device)]) as server, serving(server) as task:
        with await away(connected, server) as client:
            assert (await away(client.call, wire.READ, 0, 512)).error == 0
            device.is_lost = True
            assert (await away(client.call, wire.READ, 0, 512)).error == errno.EIO
            with pytest.raises(aioblk.DeviceLostError, match="the mouse"):
                await task
            assert await away(client.is_closed_by_server)


async def test_a_device_that_does_not_tell_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aioblk.nbd._server.backend.TRY_EVERY", 0.01)
    device = Fragile(await disk())
    async with (
        Server(
            [Export(device, "1"), Export(await disk(), "2")], policy=Policy(when_lost="reconnect")
        ) as server,
        serving(server),
    ):
        with await away(connected, server, b"1") as client, await away(connected, server, b"2") as other:
            device.is_lost = True
            assert (await away(client.call, wire.READ, 0, 512)).error == errno.EIO
            assert await away(client.is_closed_by_server)
            with await away(Client, server.sockets[0].getsockname()) as newcomer:
                await away(newcomer.greet)
                (refusal,) = await away(newcomer.go, b"1")
                assert (refusal.kind, refusal.data) == (wire.ERR_POLICY, b"the device is lost")
                device.is_lost = False
                while (await away(newcomer.go, b"1"))[-1].kind == wire.ERR_POLICY:
                    pass
                assert (await away(newcomer.call, wire.READ, 0, 512)).error == 0
            assert (await away(other.call, wire.READ, 0, 512)).error == 0
            assert server.statistics().sent_away == {"lost": 1}


async def test_an_export_that_is_added_while_its_device_is_lost_refuses_clients_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aioblk.nbd._server.backend.TRY_EVERY", 0.01)
    device = Fragile(await disk())
    async with (
        Server([Export(device, "1")], policy=Policy(when_lost="reconnect")) as server,
        serving(server),
    ):
        with await away(connected, server, b"1") as client:
            device.is_lost = True
            assert (await away(client.call, wire.READ, 0, 512)).error == errno.EIO
            assert await away(client.is_closed_by_server)
        await server.add(Export(device, "2"))
        with await away(Client, server.sockets[0].getsockname()) as newcomer:
            await away(newcomer.greet)
            for name in b"1", b"2":
                (refusal,) = await away(newcomer.go, name)
                assert (refusal.kind, refusal.data) == (wire.ERR_POLICY, b"the device is lost")


async def test_one_error_is_no_loss() -> None:
    faulty = Faulty(await disk())
    faulty.add(Fault(operations={"read"}, error=aioblk.DeviceLostError("for a moment"), times=1))
    async with Server([Export(faulty)]) as server, serving(server) as task:
        with await away(connected, server) as client:
            assert (await away(client.call, wire.READ, 0, 512)).error == errno.EIO
            assert (await away(client.call, wire.READ, 0, 512)).error == 0
        assert not task.done()


@pytest.mark.parametrize("when_lost", ["end", "reconnect"])
async def test_clients_of_a_device_that_was_lost_and_is_back_are_sent_away(
    monkeypatch: pytest.MonkeyPatch, when_lost: Literal["end", "reconnect"]
) -> None:
    """Nobody has asked for anything meanwhile; what they have not flushed is in doubt all the same."""
    monkeypatch.setattr("aioblk.nbd._server.backend.LOOK_EVERY", 0.01)
    faulty = Faulty(await disk())
    async with (
        Server([Export(aioblk.Slice(faulty, 0, SIZE))], policy=Policy(when_lost=when_lost)) as server,
        serving(server) as task,
    ):
        with await away(connected, server) as client:
            faulty.lose()
            await faulty.reconnect()
            assert await away(client.is_closed_by_server)
        if when_lost == "end":
            with pytest.raises(aioblk.DeviceLostError, match="it was lost, and is back"):
                await task
        else:
            with await away(Client, server.sockets[0].getsockname()) as newcomer:
                await away(newcomer.greet)
                while (await away(newcomer.go, b""))[-1].kind == wire.ERR_POLICY:
                    pass
                assert (await away(newcomer.call, wire.READ, 0, 512)).error == 0


async def test_a_flush_that_fails_is_told_to_each_client_once() -> None:
    """The page cache gives up what it could not write, whose ever it was, and the next flush succeeds."""
    faulty = Faulty(await disk())
    async with Server([Export(faulty)]) as server, serving(server):
        with await away(connected, server) as one, await away(connected, server) as two:
            assert (await away(one.call, wire.WRITE, 0, 512, data=bytes(512))).error == 0
            assert (await away(two.call, wire.WRITE, 512, 512, data=bytes(512))).error == 0
            faulty.add(Fault(operations={"flush"}, error=errno.EIO, times=1))
            for client in (one, two):
                assert (await away(client.call, wire.FLUSH)).error == errno.EIO
                assert (await away(client.call, wire.FLUSH)).error == 0
            with await away(connected, server) as later:
                assert (await away(later.call, wire.FLUSH)).error == 0


async def test_a_write_with_fua_that_fails_may_have_been_a_flush() -> None:
    faulty = Faulty(await disk())
    async with Server([Export(faulty)]) as server, serving(server):
        with await away(connected, server) as one, await away(connected, server) as two:
            faulty.add(Fault(operations={"write"}, error=errno.EIO, times=1))
            assert (
                await away(one.call, wire.WRITE, 0, 512, flags=wire.FUA, data=bytes(512))
            ).error == errno.EIO
            for client in (one, two):
                assert (await away(client.call, wire.FLUSH)).error == errno.EIO
                assert (await away(client.call, wire.FLUSH)).error == 0


@pytest.mark.parametrize(("flags", "error"), [(wire.FUA, errno.ENOSPC), (0, errno.EIO)])
async def test_no_client_makes_the_flushes_of_others_fail_by_writes_that_do(flags: int, error: int) -> None:
    faulty = Faulty(await disk())
    async with Server([Export(faulty)]) as server, serving(server):
        with await away(connected, server) as one, await away(connected, server) as two:
            faulty.add(Fault(operations={"write"}, error=error, times=1))
            assert (await away(one.call, wire.WRITE, 0, 512, flags=flags, data=bytes(512))).error == error
            assert (await away(two.call, wire.FLUSH)).error == 0


async def test_a_mirror_is_lost_with_the_last_of_its_devices() -> None:
    one, two = Fragile(await disk()), Fragile(await disk())
    mirror = await aioblk.Mirror(one, two).__aenter__()
    async with Server([Export(mirror)]) as server, serving(server) as task:
        with await away(connected, server) as client:
            one.is_lost = True
            for _ in range(4):
                assert (await away(client.call, wire.READ, 0, 512)).error == 0
            two.is_lost = True
            while (await away(client.call, wire.READ, 0, 512)).error == 0:
                pass
            with pytest.raises(aioblk.BlkioError):
                await task
    await mirror.aclose()


# --- the end ------------------------------------------------------------------------------------------------


async def test_whoever_cancels_again_waits_for_no_client() -> None:
    async with Server([Export(await disk())], policy=Policy(drain=3600)) as server, serving(server) as task:
        with await away(connected, server) as deaf:
            deaf.socket.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    deaf.send(struct.pack(">IHHQQI", 0x25609513, 0, wire.READ, 1, 0, SIZE))
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.sleep(0.05)
            assert not task.done()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


async def test_it_serves_once_at_a_time() -> None:
    async with Server([Export(await disk())]) as server, serving(server):
        await asyncio.sleep(0)
        with pytest.raises(aioblk.UsageError, match="the server serves already"):
            await server.serve()


# --- what is to be seen -------------------------------------------------------------------------------------


async def test_everything_is_counted_and_told_to_prometheus(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "aioblk.nbd")
    registry = prometheus_client.CollectorRegistry()
    async with Server([Export(await disk(), "1")]) as server, serving(server):
        registry.register(NbdServerCollector(server))
        with await away(connected, server, b"1") as client:
            assert (await away(client.call, wire.WRITE, 0, 4096, data=bytes(4096))).error == 0
            assert (await away(client.call, wire.READ, 0, 512)).error == 0
            assert (await away(client.call, wire.READ, SIZE, 512)).error == errno.EINVAL
            seen = server.statistics()
            assert (seen.connections, seen.clients) == (1, 1)
            assert seen.exports["1"].clients == 1
        with await away(Client, server.sockets[0].getsockname()) as nonsense:
            nonsense.send(b"GET / HTTP/1.1\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                while await away(nonsense.socket.recv, 100):
                    pass
        while server.statistics().connections:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        seen = server.statistics()
        assert (seen.connections_total, seen.clients) == (2, 0)
        assert seen.handshakes_failed == {"protocol": 1}
        export = seen.exports["1"]
        assert (export.clients, export.clients_total) == (0, 1)
        assert export.commands == {"write": 1, "read": 1, **dict.fromkeys(
            ("flush", "trim", "cache", "write_zeroes", "block_status"), 0
        )}  # fmt: skip
        assert (export.bytes["write"], export.bytes["read"]) == (4096, 512)
        assert export.errors == {"EINVAL": 1}

        def value(name: str, **labels: str) -> float | None:
            return registry.get_sample_value(name, labels)

        assert value("aioblk_nbd_io_bytes_total", export="1", operation="write") == 4096
        assert value("aioblk_nbd_commands_total", export="1", operation="read") == 1
        assert value("aioblk_nbd_errors_total", export="1", error_type="EINVAL") == 1
        assert value("aioblk_nbd_handshakes_failed_total", reason="protocol") == 1
        assert value("aioblk_nbd_connections_accepted_total") == 2
        told = {metric.name for metric in registry.collect()}
        assert {metric.prometheus_name.removesuffix("_total") for metric in NBD_METRICS} == told
    said = [record.getMessage() for record in caplog.records]
    assert any("client 1 (127.0.0.1:" in line and "uses export '1'" in line for line in said)
    assert any("2 commands, 512 bytes read, 4096 written, 1 failed" in line for line in said)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert not [record for record in caplog.records if record.exc_info]
