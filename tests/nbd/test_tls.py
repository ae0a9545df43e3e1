"""TLS of the NBD server: what is asked before, what is required, and who is refused."""

import os
import random
import shutil
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from aioblk import OptionError, UnsupportedError
from aioblk.nbd import Tls
from aioblk.nbd._server.tls import read_keys

from ..support.certificates import Authority
from ..support.nbd_exports import SIZE, new_image
from ..support.nbd_server import NbdServer
from . import wire
from .wire import Client, counted

STARTTLS = 5
ERR_TLS_REQD = 0x80000005


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module", params=["require", "allow"])
def tls_server(
    request: pytest.FixtureRequest, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NbdServer]:
    image = new_image(tmp_path_factory.mktemp("server"))
    certificates = "--tls-certificates", str(authority.server)
    with NbdServer("io_uring", f"path={image}", "--tls", request.param, *certificates) as server:
        yield server


@pytest.fixture(scope="module")
def strict_server(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NbdServer]:
    """Which wants certificates of clients."""
    image = new_image(tmp_path_factory.mktemp("strict"))
    certificates = "--tls-certificates", str(authority.server), "--tls-verify-peer"
    with NbdServer("io_uring", f"path={image}", *certificates) as server:
        yield server


def within_tls(client: Client, context: ssl.SSLContext) -> Client:
    """The client, which has been greeted."""
    assert client.ask(STARTTLS)[-1].kind == wire.ACK
    client.socket = context.wrap_socket(client.socket, server_hostname="localhost")
    return client


def test_what_is_asked_before_tls(tls_server: NbdServer, authority: Authority) -> None:
    required = "nbds" in tls_server.uri
    expected = ERR_TLS_REQD if required else wire.ACK
    with Client(tls_server.socket) as client:
        client.greet()
        assert client.ask(wire.LIST)[-1].kind == expected
        assert client.ask(wire.INFO, counted(b"") + struct.pack(">H", 0))[-1].kind == expected
        assert client.ask(wire.STRUCTURED_REPLY)[-1].kind == expected
        assert client.ask(STARTTLS, b"x")[-1].kind == wire.ERR_INVALID
        within_tls(client, authority.context())
        assert client.ask(STARTTLS)[-1].kind == wire.ERR_INVALID
        # What was agreed upon before is forgotten: metadata contexts need structured replies.
        query = counted(b"") + struct.pack(">I", 0)
        assert client.ask(wire.SET_META_CONTEXT, query)[-1].kind == wire.ERR_INVALID
        assert client.go()[-1].kind == wire.ACK
        assert client.call(wire.READ, 0, 512).data == bytes(512)


def test_who_only_asks_before_tls_may_leave(tls_server: NbdServer) -> None:
    with Client(tls_server.socket) as client:
        client.greet()
        assert client.ask(wire.ABORT)[-1].kind == wire.ACK
        assert client.is_closed_by_server()


def test_the_old_way_to_choose_is_closed_where_tls_is_required(strict_server: NbdServer) -> None:
    with Client(strict_server.socket) as client:
        client.greet()
        client.send_option(wire.EXPORT_NAME)
        assert client.is_closed_by_server()


@pytest.mark.parametrize("structured", [False, True])
def test_data_of_all_lengths_pass_through(
    tls_server: NbdServer, authority: Authority, structured: bool
) -> None:
    chance = random.Random(1)
    expected = bytearray(SIZE)
    with Client(tls_server.socket) as client:
        client.greet()
        within_tls(client, authority.context())
        if structured:
            assert client.ask(wire.STRUCTURED_REPLY)[-1].kind == wire.ACK
        assert client.go()[-1].kind == wire.ACK
        assert client.call(wire.WRITE_ZEROES, 0, SIZE).error == 0
        for length in (1, 511, 16_384, 65_537, 3_000_001, 10 << 20):
            offset = chance.randrange(SIZE - length)
            data = chance.randbytes(length)
            expected[offset : offset + length] = data
            assert client.call(wire.WRITE, offset, length, data=data).error == 0
            assert client.call(wire.READ, offset, length).data == data
        assert client.call(wire.READ, 0, SIZE).data == expected
        several = [client.send_command(wire.READ, 4096 * n, 4096) for n in range(100)]
        assert {client.receive_reply(4096).cookie for _ in several} == {*several}


def test_what_somebody_puts_in_before_tls_ends_it(tls_server: NbdServer) -> None:
    """Whoever is between could have the server answer it within TLS."""
    with Client(tls_server.socket) as client:
        client.greet()
        injected = wire.IHAVEOPT + struct.pack(">II", wire.LIST, 0)
        client.send(wire.IHAVEOPT + struct.pack(">II", STARTTLS, 0) + injected)
        with suppress(ConnectionError):
            assert len(client.socket.recv(100)) in (0, 20)  # which acknowledges, at most
            assert client.is_closed_by_server()


def test_noise_in_place_of_tls_ends_it(tls_server: NbdServer) -> None:
    with Client(tls_server.socket) as client:
        client.greet()
        assert client.ask(STARTTLS)[-1].kind == wire.ACK
        client.send(b"\x80" * 1000)
        with suppress(ConnectionError):
            while client.socket.recv(100):
                pass


def test_a_client_without_a_certificate_is_refused_where_one_is_wanted(
    strict_server: NbdServer, authority: Authority
) -> None:
    with Client(strict_server.socket) as client:
        client.greet()
        with pytest.raises((ssl.SSLError, OSError, EOFError)):  # noqa: PT012 (TLS 1.3 tells later)
            within_tls(client, authority.context(shows_certificate=False))
            client.ask(wire.LIST)
    with Client(strict_server.socket) as client:
        client.greet()
        within_tls(client, authority.context())
        assert client.go()[-1].kind == wire.ACK


def test_a_client_with_somebody_elses_certificate_is_refused(
    strict_server: NbdServer, tmp_path: Path, authority: Authority
) -> None:
    context = Authority(tmp_path).context()
    context.load_verify_locations(authority.client / "ca-cert.pem")
    with Client(strict_server.socket) as client:
        client.greet()
        with pytest.raises((ssl.SSLError, OSError, EOFError)):  # noqa: PT012
            within_tls(client, context)
            client.ask(wire.LIST)


def test_clients_that_vanish_within_tls_are_forgotten(strict_server: NbdServer, authority: Authority) -> None:
    before = strict_server.descriptors()
    for messages in range(4):
        with Client(strict_server.socket) as client:
            client.greet()
            if messages:
                within_tls(client, authority.context())
            if messages > 1:
                assert client.go()[-1].kind == wire.ACK
            if messages > 2:
                client.send(struct.pack(">IHHQQI", 0x25609513, 0, wire.WRITE, 1, 0, 1 << 20) + b"a beginning")
            client.socket.shutdown(socket.SHUT_RDWR)
    while strict_server.descriptors() > before:
        with Client(strict_server.socket) as client:  # by when it has greeted, some are gone
            client.greet()


def test_clients_that_stall_within_tls_are_sent_away(image: Path, authority: Authority) -> None:
    certificates = "--tls-certificates", str(authority.server)
    with NbdServer("io_uring", f"path={image}", *certificates, "--patience", "1") as server:
        server.expect("client 1 .*: stalled")
        with Client(server.socket) as slow, Client(server.socket) as silent:
            silent.greet()
            assert silent.ask(STARTTLS)[-1].kind == wire.ACK
            slow.greet()
            within_tls(slow, authority.context())
            assert slow.go()[-1].kind == wire.ACK
            slow.send(struct.pack(">IHHQQI", 0x25609513, 0, wire.WRITE, 1, 0, 1 << 20) + b"a beginning")
            with suppress(ConnectionError, ssl.SSLError):
                assert slow.socket.recv(1) == b""
            assert silent.is_closed_by_server()


def test_what_is_wrong_with_certificates_is_said(tmp_path: Path, authority: Authority) -> None:
    with pytest.raises(OptionError, match=r"server-cert\.pem: No such file"):
        Tls.from_certificates(tmp_path)
    for name in ("server-cert.pem", "server-key.pem"):
        (tmp_path / name).write_bytes((authority.server / name).read_bytes())
    assert Tls.from_certificates(tmp_path).required
    with pytest.raises(OptionError, match=r"ca-cert\.pem: No such file"):
        Tls.from_certificates(tmp_path, verify_clients=True)
    (tmp_path / "ca-cert.pem").write_text("nothing")
    with pytest.raises(OptionError, match="no certificate of an authority"):
        Tls.from_certificates(tmp_path, verify_clients=True)
    (tmp_path / "server-key.pem").write_text("nothing")
    with pytest.raises(OptionError, match="no certificate and its key"):
        Tls.from_certificates(tmp_path)


# --- keys that are shared -----------------------------------------------------------------------------------


def test_a_file_of_keys_is_read_as_others_write_it(tmp_path: Path) -> None:
    path = tmp_path / "keys.psk"
    path.write_text("alice:00ff\n\n# a comment\nbob:smith:0A0b\n")
    assert read_keys(path) == {"alice": b"\x00\xff", "bob:smith": b"\x0a\x0b"}
    for text, words in [
        ("alice:xyz\n", "line 1: not user:key"),
        ("alice:00\nbob\n", "line 2: not user:key"),
        ("alice:\n", "line 1: not user:key"),
        ("", "no keys"),
    ]:
        path.write_text(text)
        with pytest.raises(OptionError, match=words):
            read_keys(path)
    with pytest.raises(OptionError, match="No such file"):
        read_keys(tmp_path / "nowhere")


def test_keys_need_a_python_that_has_them(tmp_path: Path) -> None:
    path = tmp_path / "keys.psk"
    path.write_text("alice:" + "2a" * 32)
    if sys.version_info >= (3, 13):
        assert Tls.from_keys(path).required
    else:
        with pytest.raises(UnsupportedError, match=r"need Python 3\.13; use certificates"):
            Tls.from_keys(path)


def test_a_key_that_is_encrypted_is_refused_and_nobody_is_asked(authority: Authority, tmp_path: Path) -> None:
    """OpenSSL would ask at the terminal, and the server wait for an answer."""
    for name in ("server-cert.pem", "server-key.pem"):
        shutil.copy(authority.server / name, tmp_path / name)
    encrypt = ["openssl", "pkey", "-in", "server-key.pem", "-aes128", "-passout", "pass:x", "-out", "new.pem"]
    subprocess.run(encrypt, cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "new.pem").rename(tmp_path / "server-key.pem")
    with pytest.raises(OptionError, match="the key is encrypted; decrypt it"):
        Tls.from_certificates(tmp_path)


def test_a_file_that_nobody_writes_is_not_waited_for(authority: Authority, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "server-cert.pem")
    with pytest.raises(OptionError, match=r"server-key\.pem: No such file"):
        Tls.from_certificates(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("alice:" + "ab" * 257, "line 1: a key has at most 256 bytes, not 257"),
        ("alice:ab\nbob:cd\nalice:ef", "line 3: 'alice' has a key already"),
    ],
)
def test_keys_that_would_fail_or_hide_each_other_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "keys.psk"
    path.write_text(text)
    with pytest.raises(OptionError, match=words):
        read_keys(path)
