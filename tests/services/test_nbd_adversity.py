"""Clients of the NBD server that stall, vanish and rave; and a server that is asked to end."""

import os
import random
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from . import wire
from .server_process import NbdServer
from .wire import Client, counted

if TYPE_CHECKING:
    from ..conftest import StorageDaemonFactory

RAVING_CLIENTS = 10_000
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


def option(kind: int, data: bytes) -> bytes:
    return wire.IHAVEOPT + struct.pack(">II", kind, len(data)) + data


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


@pytest.mark.parametrize("server", ["file", "vhost-user"], indirect=True)
def test_clients_that_vanish_at_every_step(server: NbdServer) -> None:
    """After each message, and in the middle of each; with and without having read what was answered."""
    before = server.descriptors()
    messages = conversation()
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
        host, _, port = server.uri.removeprefix("nbd://").rstrip("/").rpartition(":")
        said = b"".join(conversation()[:7])
        for length in range(0, len(said), len(said) // 50):
            with socket.create_connection((host, int(port)), wire.TIME_LIMIT) as client:
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
    match chance.randrange(4):
        case 0:
            return noise
        case 1:
            return b"".join(polite[: chance.randrange(5)]) + wire.IHAVEOPT + noise
        case 2:
            return b"".join(polite[:5]) + struct.pack(">I", 0x25609513) + noise
        case _:
            text = bytearray(b"".join(polite[:5]) + command(wire.READ, 4096) * 3)
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


def test_more_clients_than_there_are_places_wait(image: Path) -> None:
    with (
        NbdServer("io_uring", f"path={image}", "--clients", "2") as server,
        Client(server.socket).connect(),
        Client(server.socket).connect() as second,
        Client(server.socket) as third,
    ):
        third.socket.settimeout(0.1)
        with pytest.raises(TimeoutError):
            third.receive(1)
        second.close()
        third.socket.settimeout(wire.TIME_LIMIT)
        third.connect()
        assert third.call(wire.FLUSH).error == 0


def test_a_device_that_is_lost_is_an_error_for_the_client(
    image: Path, storage_daemon: "StorageDaemonFactory"
) -> None:
    daemon = storage_daemon(image)
    with (
        NbdServer("virtio-blk-vhost-user", f"path={daemon.socket}") as server,
        Client(server.socket).connect(structured=True) as client,
    ):
        assert client.call(wire.WRITE, 0, 512, data=bytes(512)).error == 0
        daemon.pause()
        in_flight = {client.send_command(wire.READ, 0, 1 << 20), client.send_command(wire.FLUSH)}
        daemon.kill()
        replies = [client.receive_reply(), client.receive_reply()]
        assert {reply.cookie: reply.error for reply in replies} == dict.fromkeys(in_flight, EIO)
        assert client.call(wire.WRITE, 0, 512, data=bytes(512)).error == EIO


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


def test_idle_clients_do_not_keep_the_server(image: Path) -> None:
    with (
        NbdServer("io_uring", f"path={image}") as server,
        Client(server.socket).connect() as idle,
        Client(server.socket),
    ):
        server.end()
        assert server.wait() == 0
        assert idle.is_closed_by_server()


def test_a_socket_left_behind_is_replaced_and_one_in_use_is_not(image: Path, tmp_path: Path) -> None:
    with NbdServer("io_uring", f"path={image}") as server, pytest.raises(RuntimeError, match="in use"):
        NbdServer("io_uring", f"path={image}", "--unix", str(server.socket))
    left = tmp_path / "left"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(left))
    assert left.exists()
    with NbdServer("io_uring", f"path={image}", "--unix", os.fspath(left)):
        pass


def test_what_is_wrong_on_the_command_line_is_said(tmp_path: Path) -> None:
    for arguments, words in [
        (("io_uring", "path=/nowhere"), "No such file"),
        (("io_uring",), "path"),
        (("iouring", f"path={tmp_path}"), "[Dd]id you mean io_uring"),
        (("io_uring", "path"), "PROPERTY=VALUE"),
        (("io_uring", "path=x", "--memory", "1"), "at least"),
        (("io_uring", "path=x", "--memory", "lots"), "lots"),
    ]:
        with pytest.raises(RuntimeError, match=words):
            NbdServer(*arguments)
