"""TLS of the NBD client: whom it trusts, what it shows, and what it never does without."""

import asyncio
import contextlib
import errno
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import aioblk
from aioblk import BlkioError, OptionError, UnsupportedError
from aioblk.nbd import Export, Server, Tls, list_exports
from aioblk.nbd._client.channel import TlsChannel
from aioblk.nbd._client.tls import tls_context
from aioblk.nbd._client.uri import NbdUri
from aioblk.testing import MemoryDevice

from ..support.certificates import Authority
from . import scripted as s
from .scripted import Session, scripted

SIZE = 8 << 20


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("others"))


@contextlib.asynccontextmanager
async def serving(tls: Tls | None, where: Path | None = None) -> AsyncIterator[str]:
    """A server with TLS, at a port of this machine or at a Unix socket; its URI."""
    async with Server([Export(MemoryDevice(SIZE))], tls=tls) as server:
        if where is None:
            await server.listen("127.0.0.1", 0)
        else:
            server.listen_at_path(where)
        task = asyncio.create_task(server.serve())
        try:
            [uri] = server.uris("")
            yield uri
        finally:
            task.cancel()
            await asyncio.wait([task])


async def test_with_certificates_everything_is_said_in_tls(authority: Authority) -> None:
    tls = Tls.from_certificates(authority.server, verify_clients=True)
    async with serving(tls) as uri:
        assert uri.startswith("nbds://")
        trust: dict[str, Any] = {"tls_certificates": authority.client}
        assert [each.name for each in await list_exports(uri, **trust)] == [""]
        async with aioblk.Nbd(uri, connections=2, **trust) as dev:
            data = bytes(range(256)) * (4 << 12)  # more than sockets and TLS have room for
            await asyncio.gather(dev.write(0, data), dev.write(len(data), data[::-1]))
            into = bytearray(len(data))
            assert await dev.read(len(data), len(data)) == data[::-1]
            await dev.read_into(0, into)
            assert into == data
            await dev.flush()


async def test_a_write_that_is_cancelled_within_tls_is_sent_as_it_was(authority: Authority) -> None:
    async with (
        serving(Tls.from_certificates(authority.server)) as uri,
        aioblk.Nbd(uri, tls=authority.context(shows_certificate=False)) as dev,
    ):
        data = bytearray(b"b" * (4 << 20))
        write = asyncio.ensure_future(dev.write(0, data))
        await asyncio.sleep(0)
        write.cancel()
        data[:] = b"x" * len(data)
        data.append(0)
        assert await dev.read(0, 4 << 20) in (b"b" * (4 << 20), bytes(4 << 20))


async def test_a_server_whom_nobody_trusts_is_refused(authority: Authority, stranger: Authority) -> None:
    async with serving(Tls.from_certificates(authority.server)) as uri:
        for certificates in stranger.client, None:
            with pytest.raises(
                BlkioError, match=r"the server's certificate is not trusted: .*issuer.*ca-cert\.pem to trust"
            ) as caught:
                await aioblk.Nbd(uri, tls_certificates=certificates).open()
            assert caught.value.errno == errno.EACCES
        other = f"{uri}?tls-hostname=example.org"
        with pytest.raises(BlkioError, match=r"not trusted: Hostname mismatch"):
            await aioblk.Nbd(other, tls_certificates=authority.client).open()
        async with aioblk.Nbd(f"{uri}?tls-verify-peer=0") as dev:
            assert dev.capacity == SIZE


async def test_who_shows_no_certificate_may_not_be_let_in(authority: Authority, stranger: Authority) -> None:
    tls = Tls.from_certificates(authority.server, verify_clients=True)
    async with serving(tls) as uri:
        for context in authority.context(shows_certificate=False), authority.context():
            if context.get_ca_certs():
                context.load_cert_chain(
                    stranger.client / "client-cert.pem", stranger.client / "client-key.pem"
                )
            with pytest.raises(BlkioError, match=r"TLS|closes the connection|breaks") as caught:
                await aioblk.Nbd(uri, tls=context).open()
            assert caught.value.errno in (errno.EACCES, errno.ECONNRESET, errno.EPROTO, errno.EPIPE)


async def test_what_is_wanted_with_tls_is_not_said_without(tmp_path: Path) -> None:
    async with serving(None, tmp_path / "s") as uri:
        secure = uri.replace("nbd+unix", "nbds+unix") + "&tls-verify-peer=0"
        with pytest.raises(
            BlkioError, match=r"TLS is wanted: the server does not know the option|does not allow"
        ):
            await aioblk.Nbd(secure).open()


async def test_a_server_that_wants_tls_says_so(authority: Authority, tmp_path: Path) -> None:
    async with serving(Tls.from_certificates(authority.server), tmp_path / "s") as uri:
        for attempt in (
            aioblk.Nbd(uri.replace("nbds", "nbd")).open(),
            list_exports(uri.replace("nbds", "nbd")),
        ):
            with pytest.raises(BlkioError, match=r"wants TLS: use nbds:// or nbds.unix://") as caught:
                await attempt
            assert caught.value.errno == errno.EACCES
        async with aioblk.Nbd(uri, tls_certificates=authority.client) as dev:
            assert dev.capacity == SIZE, "a Unix socket has no name that a certificate could have"
        with pytest.raises(OptionError, match=r"no name that the tls context could find.*tls-hostname=NAME"):
            aioblk.Nbd(uri, tls=authority.context())
        with pytest.raises(OptionError, match=r"'\.com' is no name that a certificate could have"):
            await aioblk.Nbd(f"{uri}&tls-hostname=.com", tls=authority.context()).open()
        async with aioblk.Nbd(f"{uri}&tls-hostname=localhost", tls=authority.context()) as dev:
            assert dev.capacity == SIZE


async def test_what_comes_before_tls_has_no_effect(tmp_path: Path) -> None:
    """Who is between can put words before the handshake; they are no part of what TLS protects."""

    async def script(session: Session) -> None:
        await session.greet()
        option, _ = await session.option()
        assert option == s.STARTTLS
        session.answer(option, s.ACK)
        session.answer(s.STRUCTURED_REPLY, s.ACK)
        await session.reader.read()

    async with scripted(tmp_path, script) as uri:
        with pytest.raises(BlkioError, match=r"TLS comes to nothing"):
            await aioblk.Nbd(uri.replace("nbd+", "nbds+") + "&tls-verify-peer=0").open()


class ServersTls:
    """A server's side of TLS, of which more is asked than of a stream."""

    def __init__(self, session: Session, context: ssl.SSLContext) -> None:
        self._session = session
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._received = b""
        self._receive, self._send = session.receive, session.send

    async def _do(self, step: Callable[[], Any]) -> Any:
        """Whatever has to be said and heard for it."""
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                self._send(self._outgoing.read())
                if not (data := await self._session.reader.read(65536)):
                    raise EOFError from None
                self._incoming.write(data)
            finally:
                self._send(self._outgoing.read())

    async def shake_hands(self) -> None:
        await self._do(self.tls.do_handshake)
        vars(self._session).update(receive=self.receive, send=self.send)

    async def receive(self, size: int) -> bytes:
        while len(self._received) < size:
            if not (data := await self._do(lambda: self.tls.read(65536))):
                raise EOFError
            self._received += data
        received, self._received = self._received[:size], self._received[size:]
        return received

    def send(self, *data: bytes) -> None:
        if any(data):
            self.tls.write(b"".join(data))
        self._send(self._outgoing.read())


@pytest.mark.parametrize("when", ["options", "commands"])
async def test_a_server_that_asks_who_is_there_after_the_handshake_is_answered(
    authority: Authority, tmp_path: Path, when: str
) -> None:
    """Though the client has nothing to say by itself."""
    of_server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    of_server.load_cert_chain(authority.server / "server-cert.pem", authority.server / "server-key.pem")
    of_server.load_verify_locations(authority.server / "ca-cert.pem")
    of_server.post_handshake_auth = True
    of_server.verify_mode = ssl.CERT_REQUIRED
    of_client = authority.context()
    of_client.post_handshake_auth = True
    of_client.check_hostname = False

    async def ask(peer: ServersTls) -> None:
        peer.tls.verify_client_post_handshake()
        peer.send(b"")
        with contextlib.suppress(ssl.SSLWantReadError):
            peer.tls.do_handshake()
            peer.send(b"")
        while not peer.tls.getpeercert():
            with contextlib.suppress(ssl.SSLWantReadError):
                peer._received += peer.tls.read(65536)
            if not peer.tls.getpeercert():
                peer._incoming.write(await peer._session.reader.read(65536))

    async def script(session: Session) -> None:
        await session.greet()
        option, _ = await session.option()
        session.answer(option, s.ACK)
        peer = ServersTls(session, of_server)
        await peer.shake_hands()
        option, _ = await session.option()
        if when == "options":
            await ask(peer)
        while option != s.GO:
            session.answer(option, s.ERR_UNSUP)
            option, _ = await session.option()
        session.go()
        session.export = s.Export(dialect=s.SIMPLE)
        command = await session.command()
        if when == "commands":
            await ask(peer)
        session.done(command, bytes(512))
        await session.command()

    async with (
        scripted(tmp_path, script) as uri,
        aioblk.Nbd(uri.replace("nbd+", "nbds+"), tls=of_client) as dev,
    ):
        assert await dev.read(0, 512) == bytes(512)


async def test_a_server_that_wants_to_shake_hands_again_is_told_that_nobody_does(
    authority: Authority,
) -> None:
    """Who is between could have it done in its place; and what is sent meanwhile would have to wait."""
    for options in {"tls_certificates": authority.client}, {}:
        context = tls_context(NbdUri.parse("nbds://localhost"), None, options.get("tls_certificates"), None)
        assert context is not None
        assert ssl.OP_NO_RENEGOTIATION in context.options


async def test_records_without_data_do_not_keep_the_loop(authority: Authority) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        channel = TlsChannel(ours, authority.context(), "localhost")

        reads = iter(range(10))

        def read(_size: int, _target: memoryview) -> int:
            next(reads)
            theirs.send(b"ticket")  # there is always more
            raise ssl.SSLWantReadError

        vars(channel)["_tls"] = SimpleNamespace(read=read)
        with pytest.raises(BlockingIOError):
            channel.receive_into(memoryview(bytearray(10)))


async def test_a_server_that_leaves_in_the_middle_of_the_handshake(tmp_path: Path) -> None:
    async def script(session: Session) -> None:
        await session.greet()
        option, _ = await session.option()
        session.answer(option, s.ACK)

    async with scripted(tmp_path, script) as uri:
        with pytest.raises(BlkioError, match=r"TLS comes to nothing: "):
            await aioblk.Nbd(uri.replace("nbd+", "nbds+") + "&tls-verify-peer=0").open()


@pytest.mark.parametrize(
    ("uri", "options", "words"),
    [
        (
            "nbd://host",
            {"tls_certificates": "."},
            r"tls_certificates is given, .* without TLS; write nbds://",
        ),
        ("nbds://host", {"tls_certificates": ".", "tls_psk": "."}, r"tls_certificates and tls_psk exclude"),
        (
            "nbds://host",
            {"tls_certificates": "nowhere"},
            "^nbd open: there is neither ca-cert.pem nor client-cert.pem in 'nowhere'",
        ),
        ("nbds://host", {"tls": True}, r"tls must be an ssl\.SSLContext, not True"),
        ("nbds://host", {"tls_psk": "nowhere"}, r"tls_psk 'nowhere' cannot be read: No such file"),
    ],
)
def test_options_of_tls_that_cannot_be(uri: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        aioblk.Nbd(uri, **options)


def test_certificates_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "ca-cert.pem").write_text("nothing")
    with pytest.raises(OptionError, match=r"cannot be used"):
        aioblk.Nbd("nbds://host", tls_certificates=tmp_path)


def test_keys_are_found_by_the_name_in_the_uri(tmp_path: Path) -> None:
    keys = tmp_path / "keys.psk"
    keys.write_text("alice:zz\n")
    for uri, words in (
        ("nbds://alice@host", "the key of 'alice' in .* is not hexadecimal"),
        ("nbds://bob@host", "has no key of 'bob'; write the name into the URI"),
    ):
        with pytest.raises(OptionError, match=words):
            aioblk.Nbd(uri, tls_psk=tmp_path)


async def test_keys_that_are_shared(tmp_path: Path) -> None:
    keys, others = tmp_path / "keys.psk", tmp_path / "others.psk"
    keys.write_text("alice:" + "2a" * 32 + "\n")
    others.write_text("alice:" + "2b" * 32 + "\n")
    if sys.version_info < (3, 13):
        with pytest.raises(UnsupportedError, match=r"needs Python 3\.13; use certificates"):
            aioblk.Nbd("nbds://alice@host", tls_psk=keys)
        return
    async with serving(Tls.from_keys(keys), tmp_path / "s") as uri:
        named = uri.replace("nbds+unix://", "nbds+unix://alice@")
        async with aioblk.Nbd(named, tls_psk=keys) as dev:
            await dev.write(0, b"k" * 512)
            assert await dev.read(0, 512) == b"k" * 512
        with pytest.raises(BlkioError, match=r"TLS"):
            await aioblk.Nbd(named, tls_psk=others).open()


def test_no_cipher_of_keys_encrypts_nothing() -> None:
    from aioblk.nbd._client.tls import CIPHERS_OF_KEYS

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers(CIPHERS_OF_KEYS)
    ciphers = [each for each in context.get_ciphers() if each["protocol"] != "TLSv1.3"]
    assert ciphers
    assert all(each["strength_bits"] >= 128 for each in ciphers)
