"""Clients of the NBD server that stall, vanish and rave; and a server that is asked to end."""

import os
import random
import resource
import socket
import struct
import subprocess
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aioblk.services.unix_socket import listen_at

from ..support.nbd_exports import SIZE
from ..support.nbd_server import ROOT, NbdServer
from ..support.nbd_server import command as server_command
from . import grammar, wire
from .wire import Client, counted

if TYPE_CHECKING:
    from ..conftest import StorageDaemonFactory

RAVING_CLIENTS = 10_000
SESSIONS, SESSIONS_SECONDS = 400, 60.0  # whichever is over first
EIO = 5


def settle(server: NbdServer, descriptors: int) -> None:
    """Wait until the server has as few descriptors open as it had before."""
    limit = time.monotonic() + wire.TIME_LIMIT
    while server.descriptors() > descriptors:
        assert time.monotonic() < limit, "the server does not let go of its clients"
        time.sleep(0.01)  # another process: there is no event to wait for


def serves(server: NbdServer) -> bool:
    with Client(server.socket).connect(structured=True) as client:
        block = b"hello" * 1024
        return client.call(wire.WRITE, 0, len(block), data=block).error == 0 and (
            client.call(wire.READ, 0, len(block)).data == block
        )


# --- vanishing ----------------------------------------------------------------------------------------------

BULK = b"x" * (1 << 20)


def command(kind: int, length: int) -> bytes:
    return struct.pack(">IHHQQI", 0x25609513, 0, kind, 1, 0, length)


def extended_command(kind: int, length: int, flags: int = 0) -> bytes:
    return struct.pack(">IHHQQQ", 0x21E41C71, flags, kind, 1, 0, length)


def option(kind: int, data: bytes = b"") -> bytes:
    return wire.IHAVEOPT + struct.pack(">II", kind, len(data)) + data


def extended_conversation() -> list[bytes]:
    """What is different of it with extended headers."""
    status = struct.pack(">QI", 1 << 20, 1)
    return [
        struct.pack(">I", 3),
        option(wire.EXTENDED_HEADERS),
        option(wire.SET_META_CONTEXT, wire.queries(b"", b"base:allocation")),
        option(wire.GO, counted(b"") + struct.pack(">H", 0)),
        extended_command(wire.WRITE, len(BULK), wire.PAYLOAD_LEN) + BULK,
        *(extended_command(wire.READ, 1 << 20) for _ in range(20)),
        extended_command(wire.BLOCK_STATUS, len(status), wire.PAYLOAD_LEN) + status,
        extended_command(wire.TRIM, 5, wire.PAYLOAD_LEN) + b"wrong",
        extended_command(wire.WRITE_ZEROES, SIZE),
        extended_command(wire.DISC, 0),
    ]


def conversation() -> list[bytes]:
    """A client's messages from the first to the last."""
    return [
        struct.pack(">I", 3),
        option(wire.LIST, b""),
        option(wire.STRUCTURED_REPLY, b""),
        option(wire.SET_META_CONTEXT, counted(b"") + struct.pack(">I", 1) + counted(b"base:allocation")),
        option(wire.GO, counted(b"") + struct.pack(">H", 0)),
        command(wire.WRITE, len(BULK)) + BULK,
        *(command(wire.READ, 1 << 20) for _ in range(20)),  # more than a socket's buffers hold
        command(wire.FLUSH, 0),
        command(wire.TRIM, 1 << 20),
        command(wire.WRITE_ZEROES, 1 << 20),
        command(wire.CACHE, 1 << 20),
        command(wire.BLOCK_STATUS, 1 << 20),
        command(wire.DISC, 0),
    ]


@pytest.mark.parametrize(
    ("server", "messages"),
    [("file", conversation()), ("vhost-user", conversation()), ("file", extended_conversation())],
    indirect=["server"],
    ids=["file", "vhost-user", "extended"],
)
def test_clients_that_vanish_at_every_step(server: NbdServer, messages: list[bytes]) -> None:
    """After each message, and in the middle of each; with and without having read what was answered."""
    before = server.descriptors()
    said = b""
    for message in messages:
        for part in {0, 1, len(message) // 2, len(message) - 1, len(message)}:
            for listens in (False, True):
                with Client(server.socket) as client, suppress(ConnectionResetError, BrokenPipeError):
                    client.socket.settimeout(0.05)
                    with suppress(TimeoutError):  # not heard, so it does not take what we say
                        client.send(said + message[:part])
                    if listens:
                        with suppress(TimeoutError):
                            client.socket.recv(1 << 16)
        said += message
    settle(server, before)
    assert serves(server)


def test_clients_that_vanish_with_a_reset(image: Path) -> None:
    with NbdServer("io_uring", f"path={image}", "--port", "0") as server:
        before = server.descriptors()
        said = b"".join(conversation()[:7])
        for length in range(0, len(said), len(said) // 50):
            with socket.create_connection(server.address, wire.TIME_LIMIT) as client:
                with suppress(ConnectionError):
                    client.sendall(said[:length])
                # Closing sends a reset in place of a farewell.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        settle(server, before)


# --- raving -------------------------------------------------------------------------------------------------


def raving(chance: random.Random) -> bytes:
    """Noise after nothing, after a polite beginning, or within what was a proper conversation."""
    noise = chance.randbytes(chance.randrange(200))
    polite = conversation()
    match chance.randrange(5):
        case 0:
            return noise
        case 1:
            return b"".join(polite[: chance.randrange(5)]) + wire.IHAVEOPT + noise
        case 2:
            return b"".join(polite[:5]) + struct.pack(">I", 0x25609513) + noise
        case chosen:
            if chosen == 3:
                text = bytearray(b"".join(polite[:5]) + command(wire.READ, 4096) * 3)
            else:
                text = bytearray(b"".join(extended_conversation()[:4]))
                text += extended_command(wire.READ, 4096) * 3
            for _ in range(chance.randrange(1, 8)):
                text[chance.randrange(len(text))] = chance.randrange(256)
            return bytes(text)


def test_thousands_of_raving_clients(image: Path) -> None:
    """Nobody gets an answer that is not NBD's, the server complains of nothing, and forgets them all."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    with NbdServer("io_uring", f"path={image}") as server:
        before = server.descriptors()
        for _ in range(RAVING_CLIENTS):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(wire.TIME_LIMIT)
                client.connect(str(server.socket))
                with suppress(ConnectionError):
                    client.sendall(raving(chance))
                    client.shutdown(socket.SHUT_WR)
                    assert client.recv(18, socket.MSG_WAITALL)[:8] == b"NBDMAGIC", f"seed {seed}"
        settle(server, before)
        assert serves(server), f"seed {seed}"


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_sessions_of_any_kind_are_answered_by_the_protocol(image: Path, loop: str) -> None:
    """Options and commands with any values, in each dialect: everything is answered, once, by something that
    may be an answer to it. What was damaged on its way does no harm."""
    seed = random.randrange(2**32)
    over = time.monotonic() + SESSIONS_SECONDS
    with NbdServer("io_uring", f"path={image}", "--loop", loop) as server:
        before = server.descriptors()
        for number in range(SESSIONS):
            chance = random.Random(f"{seed} {number}")
            session = grammar.any_session(chance)
            if chance.random() < 0.3:
                damaged = bytearray(session.said)
                for _ in range(chance.randrange(1, 6)):
                    damaged[chance.randrange(min(len(damaged), 500))] = chance.randrange(256)
                grammar.exchange(server.socket, bytes(damaged))
            else:
                answer = grammar.exchange(server.socket, session.said)
                try:
                    grammar.judge(session, answer)
                except (AssertionError, KeyError, struct.error) as error:
                    raise AssertionError(f"seed {seed}, session {number}: {session.dialect=}") from error
            if time.monotonic() > over:
                break
        settle(server, before)
        assert serves(server), f"seed {seed}"


# --- stalling -----------------------------------------------------------------------------------------------


def test_clients_that_stall_are_sent_away(image: Path) -> None:
    with (
        NbdServer("io_uring", f"path={image}", "--patience", "0.5") as server,
        Client(server.socket) as silent,
        Client(server.socket).connect() as slow_to_send,
        Client(server.socket).connect() as slow_to_begin,
        Client(server.socket).connect() as deaf,
        Client(server.socket).connect() as idle,
    ):
        silent.greet()
        slow_to_send.send(command(wire.WRITE, 1 << 20) + b"a beginning")
        slow_to_begin.send(command(wire.FLUSH, 0)[:10])
        for _ in range(16):
            deaf.send_command(wire.READ, 0, 1 << 20)
        assert silent.is_closed_by_server()
        assert slow_to_send.is_closed_by_server()
        assert slow_to_begin.is_closed_by_server()
        assert deaf.is_hung_up()
        server.expect(r"client [234] \(.*\): stalled: .* behind 4096 bytes per second")
        assert len(server.complaints("stalled")) == 3
        # Whoever is in the middle of nothing may take its time.
        assert idle.call(wire.FLUSH).error == 0


def test_clients_that_are_all_too_slow_are_sent_away(image: Path) -> None:
    with (
        NbdServer("io_uring", f"path={image}", "--patience", "0.5") as server,
        Client(server.socket).connect() as talker,
        Client(server.socket).connect() as listener,
    ):
        talker.send(command(wire.WRITE, 1 << 20))
        for _ in range(4):
            listener.send_command(wire.READ, 0, 8 << 20)
        with pytest.raises(ConnectionError):  # noqa: PT012
            while True:
                talker.send(b".")
                listener.socket.recv(1)
                time.sleep(0.01)
        assert listener.is_hung_up()
        server.expect(r"client [12] \(.*\): stalled")


def test_a_client_with_everything_in_flight_does_not_starve_the_others(image: Path) -> None:
    with (
        NbdServer("io_uring", f"path={image}", "--memory", "8M", "--requests", "16") as server,
        Client(server.socket).connect() as deaf,
    ):
        deaf.socket.setblocking(False)
        with suppress(BlockingIOError):
            for _ in range(1000):
                deaf.send(command(wire.READ, 4 << 20))
        for _ in range(20):
            assert serves(server)


def test_two_clients_with_everything_in_flight_do_not_stop_a_third(image: Path) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(
            NbdServer("io_uring", f"path={image}", "--memory", "8M", "--requests", "16", "--clients", "4")
        )
        for _ in range(2):
            deaf = stack.enter_context(Client(server.socket).connect())
            deaf.socket.setblocking(False)
            with suppress(BlockingIOError):
                for _ in range(1000):
                    deaf.send(command(wire.READ, 4 << 20))
        for _ in range(20):
            assert serves(server)


# --- too many -----------------------------------------------------------------------------------------------


def test_more_clients_than_there_are_places_are_told(image: Path) -> None:
    with (
        NbdServer("io_uring", f"path={image}", "--clients", "2") as server,
        Client(server.socket).connect(),
        Client(server.socket).connect() as second,
        Client(server.socket) as third,
        Client(server.socket) as old_fashioned,
    ):
        server.expect(r"client 3 \(.*\) is refused, and maybe others: the server has 2 clients")
        third.greet()
        for _ in range(2):
            (refusal,) = third.go()
            assert refusal.kind == wire.ERR_POLICY
            assert b"has 2 clients" in refusal.data
        assert third.ask(wire.INFO, counted(b"") + struct.pack(">H", 0))[-1].kind == wire.ACK
        old_fashioned.greet()
        old_fashioned.send_option(wire.EXPORT_NAME)  # which has no answer that refuses
        assert old_fashioned.is_closed_by_server()
        second.send_command(wire.DISC)
        assert second.is_closed_by_server()
        while third.go()[-1].kind == wire.ERR_POLICY:
            pass  # the server sees first to the end of one client, then of the other
        assert third.call(wire.FLUSH).error == 0


def test_whoever_only_knocks_makes_room_for_who_comes_in(image: Path) -> None:
    with (
        NbdServer("io_uring", f"path={image}", "--clients", "2", "--patience", "3600") as server,
        ExitStack() as stack,
    ):
        knocking = [stack.enter_context(Client(server.socket)) for _ in range(20)]
        for client in knocking:
            client.receive(18)
        assert serves(server)
        assert knocking[0].is_closed_by_server()


def test_a_server_without_descriptors_says_so_once_and_goes_on(image: Path) -> None:
    with NbdServer("io_uring", f"path={image}", "--patience", "3600") as server, ExitStack() as stack:
        limit = server.descriptors() + 5
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (limit, limit))
        server.expect("cannot accept clients: .*Too many open files")
        for _ in range(20):
            stack.enter_context(Client(server.socket))
        assert serves(server)
        assert len(server.complaints("cannot accept")) == 1


def test_dead_peers_are_looked_for(image: Path) -> None:
    """A connection in the network has a timer, although nothing is to be sent."""
    with (
        NbdServer("io_uring", f"path={image}", "--port", "0", "--patience", "7") as server,
        Client(server.address).connect() as client,
    ):
        assert client.call(wire.FLUSH).error == 0
        ends = (f"{server.address[1]:04X}", f"{client.socket.getsockname()[1]:04X}")
        limit = time.monotonic() + wire.TIME_LIMIT
        while True:
            connections = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
            (found,) = [line for line in connections if (line[1][-4:], line[2][-4:]) == ends]
            timer, _, ticks = found[5].partition(":")
            if timer == "02":
                break
            assert time.monotonic() < limit, f"the connection has timer {timer}"
            time.sleep(0.01)  # the reply has not been acknowledged
        assert int(ticks, 16) <= 7 * os.sysconf("SC_CLK_TCK")


# --- the device is lost -------------------------------------------------------------------------------------


def test_a_device_that_is_lost_ends_the_server(image: Path, storage_daemon: "StorageDaemonFactory") -> None:
    daemon = storage_daemon(image)
    with (
        NbdServer("virtio-blk-vhost-user", f"path={daemon.socket}") as server,
        Client(server.socket).connect(structured=True) as client,
    ):
        server.expect("the backend .*: the server ends", status=1)
        assert client.call(wire.WRITE, 0, 512, data=bytes(512)).error == 0
        daemon.pause()
        in_flight = {client.send_command(wire.READ, 0, 1 << 20), client.send_command(wire.FLUSH)}
        daemon.kill()
        replies = [client.receive_reply(), client.receive_reply()]
        assert {reply.cookie: reply.error for reply in replies} == dict.fromkeys(in_flight, EIO)
        assert client.is_closed_by_server()
        assert server.wait() == 1
        assert len(server.errors().splitlines()) == 1


@pytest.mark.parametrize("when_lost", ["end", "reconnect"])
def test_a_device_that_is_lost_in_the_end_is_said(
    image: Path, storage_daemon: "StorageDaemonFactory", when_lost: str
) -> None:
    daemon = storage_daemon(image)
    with (
        NbdServer("virtio-blk-vhost-user", f"path={daemon.socket}", "--when-lost", when_lost) as server,
        Client(server.socket).connect(structured=True) as client,
        Client(server.socket) as unheard,
    ):
        server.expect("the backend .* while the server ended", status=1)
        unheard.greet()
        assert client.call(wire.WRITE, 0, 512, data=bytes(512)).error == 0
        daemon.pause()
        client.send_command(wire.WRITE, 0, 512, data=bytes(512))
        server.end()
        assert unheard.is_closed_by_server()  # the end has begun
        daemon.kill()
        assert client.receive_reply().error == EIO
        assert server.wait() == 1
        assert len(server.errors().splitlines()) == 1


def test_a_device_that_is_lost_may_come_back(image: Path, storage_daemon: "StorageDaemonFactory") -> None:
    """Not for those who were there: they could not tell from a later flush that their writes are lost."""
    daemon = storage_daemon(image)
    with (
        NbdServer("virtio-blk-vhost-user", f"path={daemon.socket}", "--when-lost", "reconnect") as server,
        Client(server.socket).connect(structured=True) as client,
    ):
        server.expect("waiting for it to come back")
        server.expect("the device is back")
        assert client.call(wire.WRITE, 0, 512, data=bytes(512)).error == 0
        daemon.kill()
        assert client.is_hung_up()
        with Client(server.socket) as newcomer:
            newcomer.greet()
            (refusal,) = newcomer.go()
            assert (refusal.kind, refusal.data) == (wire.ERR_POLICY, b"the device is lost")
            daemon.restart()
            while newcomer.go()[-1].kind == wire.ERR_POLICY:
                time.sleep(0.01)  # it tells nobody
            assert newcomer.call(wire.WRITE, 0, 512, data=bytes(512)).error == 0
        assert len(server.errors().splitlines()) == 2


# --- the end ------------------------------------------------------------------------------------------------


def test_what_is_in_flight_is_answered_before_the_server_ends(image: Path) -> None:
    with NbdServer("io_uring", f"path={image}") as server, Client(server.socket).connect() as client:
        client.call(wire.FLUSH)
        cookies = {client.send_command(wire.READ, 0, 1 << 20) for _ in range(16)}
        answered = {client.receive_reply(1 << 20).cookie}  # received, and the others with it or not
        server.end()
        with suppress(EOFError, ConnectionError):
            while True:
                answered.add(client.receive_reply(1 << 20).cookie)
        assert answered <= cookies
        assert server.wait() == 0


@pytest.mark.parametrize("structured", [False, True])
def test_a_reply_that_has_begun_is_finished(image: Path, structured: bool) -> None:
    """Also one that is larger than the memory its client may have, and is read while it is taken."""
    with (
        NbdServer("io_uring", f"path={image}", "--memory", "1M", "--clients", "8") as server,
        Client(server.socket).connect(structured=structured) as client,
    ):
        cookie = client.send_command(wire.READ, 0, 8 << 20, flags=wire.DF if structured else 0)
        begun = client.receive(28 if structured else 16)
        assert int.from_bytes(begun[8:16], "big") == cookie
        server.end()
        assert len(client.receive(8 << 20)) == 8 << 20
        assert client.is_closed_by_server()
        assert server.wait() == 0


def test_idle_clients_do_not_keep_the_server(image: Path) -> None:
    with (
        NbdServer("io_uring", f"path={image}") as server,
        Client(server.socket).connect() as idle,
        Client(server.socket),
    ):
        server.end()
        assert server.wait() == 0
        assert idle.is_closed_by_server()


class Hostile:
    """What a client does that nobody should have to wait for. It holds on to its connection."""

    is_owed_replies = False  # which the end waits for, until the deadline

    def __init__(self, server: NbdServer) -> None:
        self._client = Client(server.socket)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._do)
        self._thread.start()

    def _do(self) -> None:
        self._client.socket.settimeout(0.05)
        with suppress(OSError, EOFError):  # the end of the server
            self.do(self._client)

    def do(self, client: Client) -> None:
        raise NotImplementedError

    def over(self) -> bool:
        return self._over.wait(0.01)

    def send_as_much_as_goes(self, data: bytes) -> None:
        with suppress(TimeoutError):
            self._client.send(data)

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._client.close()


class TakesNothing(Hostile):
    is_owed_replies = True

    def do(self, client: Client) -> None:
        client.connect()
        self.send_as_much_as_goes(command(wire.READ, 256 << 10) * 1000)


class TakesNothingOfChunks(Hostile):
    is_owed_replies = True

    def do(self, client: Client) -> None:
        client.connect(structured=True)
        self.send_as_much_as_goes(command(wire.READ, 16 << 20) * 1000)


class TakesNothingOfALongReply(Hostile):
    is_owed_replies = True

    def do(self, client: Client) -> None:
        client.connect()
        self.send_as_much_as_goes(command(wire.READ, 16 << 20) * 1000)


class AnnouncesAndFallsSilent(Hostile):
    def do(self, client: Client) -> None:
        client.connect()
        client.send(command(wire.WRITE, SIZE))


class DripsWhatItSends(Hostile):
    def do(self, client: Client) -> None:
        client.connect()
        client.send(command(wire.WRITE, SIZE))
        while not self.over():
            client.send(b"x" * 1000)


class DripsWhatItTakes(Hostile):
    is_owed_replies = True

    def do(self, client: Client) -> None:
        client.connect()
        self.send_as_much_as_goes(command(wire.READ, 256 << 10) * 1000)
        while not self.over():
            client.receive(1000)


class ComesAgain(Hostile):
    """Announces, and does not wait to be sent away."""

    def do(self, client: Client) -> None:
        address = Path(client.socket.getpeername())
        while not self.over():
            with Client(address) as another, suppress(TimeoutError):
                another.connect()
                another.send(command(wire.WRITE, SIZE) + b"x" * 10_000)


@pytest.mark.parametrize(
    "hostile",
    [
        *(TakesNothing, TakesNothingOfChunks, TakesNothingOfALongReply),
        *(AnnouncesAndFallsSilent, DripsWhatItSends, DripsWhatItTakes, ComesAgain),
    ],
)
@pytest.mark.parametrize("count", [2, 12])
def test_others_go_on_beside_hostile_clients_and_the_end_comes(
    image: Path, hostile: type[Hostile], count: int
) -> None:
    """Patience is not what saves them: nobody's is over before the test is."""
    limits = ("--patience", "3600", "--memory", "4M", "--clients", "16", "--drain", "0.2")
    loop = ("--loop", "asyncio" if count == 2 else "uvloop")
    with NbdServer("io_uring", f"path={image}", *limits, *loop) as server, ExitStack() as stack:
        for _ in range(count):
            stack.callback(hostile(server).close)
        large = random.Random(1).randbytes(5 << 20)
        for structured in (False, True):
            with Client(server.socket).connect(structured=structured) as client:
                for _ in range(20):
                    assert client.call(wire.READ, 0, 4096).error == 0
                assert client.call(wire.WRITE, 12345, len(large), data=large).error == 0
                assert client.call(wire.READ, 12345, len(large)).data == large
        if hostile.is_owed_replies:
            server.expect("the server ends, and does not wait any longer for client")
        server.end()
        assert server.wait() == 0


def test_what_a_client_asked_for_ends_with_the_client(storage_daemon: "StorageDaemonFactory") -> None:
    """A few kilobytes of commands that read, zero or trim more than a device does in a day."""
    daemon = storage_daemon(size=1 << 40, latency_ns=5_000_000)

    def ask_for_much(client: Client, kind: int) -> None:
        """And for a read, whose answer shows that all of it has begun; some of it may be done before."""
        for _ in range(100):
            client.send_command(kind, 0, (1 << 32) - (1 << 20))
        read = client.send_command(wire.READ, 0, 512)
        while (reply := client.receive_reply_of(defaultdict(int, {read: 512}))).cookie != read:
            pass
        assert reply.error == 0

    with NbdServer("virtio-blk-vhost-user", f"path={daemon.socket}", "--drain", "3600") as server:
        before = server.descriptors()
        for kind in (wire.CACHE, wire.WRITE_ZEROES, wire.TRIM):
            with Client(server.socket).connect() as client:
                ask_for_much(client, kind)
        settle(server, before)
        with Client(server.socket).connect() as client:
            ask_for_much(client, wire.CACHE)
            server.end()
            assert server.wait() == 0


def test_the_end_comes_when_the_device_does_not_answer(
    image: Path, storage_daemon: "StorageDaemonFactory"
) -> None:
    daemon = storage_daemon(image)
    with (
        NbdServer("virtio-blk-vhost-user", f"path={daemon.socket}", "--drain", "0.1") as server,
        Client(server.socket).connect() as client,
    ):
        server.expect("does not wait any longer for client 1")
        server.expect("does not finish what it has been given", status=1)
        assert client.call(wire.FLUSH).error == 0
        daemon.pause()
        client.send_command(wire.READ, 0, 4096)
        client.send_command(wire.WRITE_ZEROES, 0, 4096)
        server.end()
        assert server.wait() == 1
        daemon.resume()


def test_a_socket_left_behind_is_replaced_and_one_in_use_is_not(image: Path, tmp_path: Path) -> None:
    with (
        NbdServer("io_uring", f"path={image}", "lock=off") as server,
        pytest.raises(RuntimeError, match="in use"),
    ):
        NbdServer("io_uring", f"path={image}", "lock=off", "--unix", str(server.socket))
    left = tmp_path / "left"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(left))
    assert left.exists()
    with NbdServer("io_uring", f"path={image}", "lock=off", "--unix", os.fspath(left)):
        pass
    assert not left.exists()


def test_of_servers_that_start_at_once_one_listens(tmp_path: Path) -> None:
    """Also where a socket was left behind, which each of them finds."""
    path = str(tmp_path / "left")
    together = threading.Barrier(4)

    def start() -> bool:
        together.wait(wire.TIME_LIMIT)
        with suppress(OSError), listen_at(path, 1):
            together.wait(wire.TIME_LIMIT)
            return True
        together.wait(wire.TIME_LIMIT)
        return False

    with ThreadPoolExecutor(4) as starters:
        for _ in range(100):
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path)
            assert sum(starters.map(lambda _: start(), range(4))) == 1


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_standard_descriptors_may_be_closed(image: Path, tmp_path: Path, loop: str) -> None:
    """What is said is not sent to whom their numbers would be given, and uvloop would abort the process."""
    path = tmp_path / "nbd.sock"
    with ExitStack() as stack:
        command = [
            *("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"),
            *server_command(str(image), "--unix", str(path), "--loop", loop),
        ]
        process = stack.enter_context(subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}))
        stack.callback(process.kill)  # or its end would be waited for, whatever has failed
        limit = time.monotonic() + wire.TIME_LIMIT
        client = None
        while client is None:
            assert process.poll() is None
            assert time.monotonic() < limit
            with suppress(FileNotFoundError, ConnectionRefusedError):
                client = Client(path)
            time.sleep(0.01)  # it has no way to tell
        with client.connect():
            assert client.call(wire.FLUSH).error == 0
        assert {os.readlink(f"/proc/{process.pid}/fd/{number}") for number in range(3)} == {os.devnull}
        process.terminate()
        assert process.wait(wire.TIME_LIMIT) == 0


def test_any_patience_that_is_taken_is_had(image: Path) -> None:
    """Also more than the kernel has."""
    with (
        NbdServer("io_uring", f"path={image}", "--port", "0", "--patience", "1e6") as server,
        Client(server.address).connect() as client,
    ):
        assert client.call(wire.FLUSH).error == 0


def test_a_file_that_is_no_socket_is_left_alone(image: Path) -> None:
    with pytest.raises(RuntimeError, match="in use"):
        NbdServer("io_uring", f"path={image}", "lock=off", "--unix", os.fspath(image))
    assert image.stat().st_size == SIZE


def test_a_socket_that_others_have_taken_away_is_not_missed(image: Path) -> None:
    with NbdServer("io_uring", f"path={image}", "lock=off") as server:
        server.socket.unlink()
    with NbdServer("io_uring", f"path={image}", "lock=off") as server:
        server.socket.unlink()
        with NbdServer("io_uring", f"path={image}", "lock=off", "--unix", str(server.socket)) as other:
            server.end()
            assert server.wait() == 0
            other.socket = server.socket
            assert serves(other)


def test_what_is_wrong_on_the_command_line_is_said(image: Path) -> None:
    file = ("io_uring", f"path={image}")
    for arguments, words in [
        (("io_uring", "path=/nowhere"), "No such file"),
        ((*file, "direkt=on"), "direkt"),
        (("io_uring", "path=x", "--memory", "1"), "memory must be at least"),
        (("io_uring", "path=x", "--memory", "lots"), "a size such as .*lots"),
        ((*file, "--memory", "1000000000T"), "a block of .* bytes cannot be had"),
        ((*file, "--port", "65536"), "'--port': it must be from 0 to 65535, not '65536'"),
        ((*file, "--drain", "nan"), "a number of seconds or a time such as .*, not 'nan'"),
        ((*file, "--patience", "inf"), "a number of seconds or a time such as 250ms .*, not 'inf'"),
        ((*file, "--patience", "366d"), "patience must be at most"),
        ((*file, "--unix", ""), "must be text, not ''"),
        ((*file, "--unix", "/nowhere/nbd.sock"), "No such file or directory: '/nowhere/nbd.sock'"),
        ((*file, "--unix", "x" * 108), "at most 107 bytes, not 108"),
        ((*file, "--unix", file[1].removeprefix("path=")), "by no socket; .*: '/.*'"),
        ((*file, "--description", "\udcff"), "description of an export must be UTF-8"),
        ((*file, "--tls", "require"), "needs tls-certificates or tls-psk"),
        ((*file, "--tls-certificates", "/nowhere"), "/nowhere/server-cert.pem: No such file"),
        ((*file, "--allow", "10.0.0.1/8"), "a network such as 10.0.0.0/8 .*has host bits set"),
        ((*file, "--allow-user", "nobody-at-all"), "must be a user of this machine"),
        ((*file, "--user", "nobody-at-all"), "cannot become nobody-at-all: it is not a user of this machine"),
        ((*file, "--default", "x"), "--default x: there is no such export"),
        (("--config", "/nowhere/nbd.toml"), "/nowhere/nbd.toml: No such file"),
        (("--port", "0"), "a DEVICE is needed"),
    ]:
        with pytest.raises(RuntimeError, match=words) as refused:
            NbdServer(*arguments)
        assert "Traceback" not in str(refused.value)
    with pytest.raises(RuntimeError, match="the name of an export must have at most 4096 bytes, not 4097"):
        NbdServer(*file, name="x" * 4097)
