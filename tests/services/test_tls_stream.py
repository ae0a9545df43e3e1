"""A TlsStream does what a SocketStream does, within TLS."""

import asyncio
import random
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from struct import Struct

import pytest

import aioblk

from ..support.certificates import Authority

TIME_LIMIT = 20
NUMBER = Struct(">I")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"))


def server_context(authority: Authority) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.server / "server-cert.pem", authority.server / "server-key.pem")
    return context


def pair(
    authority: Authority, *, least_rate: float = 4096
) -> tuple[aioblk.TlsStream, aioblk.TlsStream, aioblk.SocketStream]:
    """A server's stream, a client's, and what lies below that."""
    ours, theirs = socket.socketpair()
    below = aioblk.SocketStream(theirs)
    server = aioblk.TlsStream(
        aioblk.SocketStream(ours), server_context(authority), server_side=True, least_rate=least_rate
    )
    client = aioblk.TlsStream(below, authority.context(), server_side=False, server_hostname="localhost")
    return server, client, below


@pytest.fixture
async def ends(authority: Authority) -> AsyncIterator[tuple[aioblk.TlsStream, aioblk.TlsStream]]:
    server, client, _ = pair(authority)
    async with asyncio.timeout(TIME_LIMIT):
        await asyncio.gather(server.handshake(), client.handshake())
        yield server, client
    server.close()
    client.close()


async def test_what_is_sent_is_received_whatever_is_asked_for(
    ends: tuple[aioblk.TlsStream, aioblk.TlsStream],
) -> None:
    server, client = ends
    assert server.tls.version() == client.tls.version() == "TLSv1.3"
    data = random.Random(1).randbytes(3_000_000)
    freed: list[int] = []
    client.send(NUMBER.pack(7), data[:10], on_sent=lambda: freed.append(1))
    client.send(memoryview(data)[10:], on_sent=lambda: freed.append(2), more=True)
    assert await server.unpack(NUMBER) == (7,)
    assert bytes(await server.read(4)) == data[:4]
    into = bytearray(2_000_000)
    await server.read_into(into)
    assert into == data[4:2_000_004]
    await server.skip(900_000)
    rest = bytearray(len(data) - 2_900_004)
    await server.read_into(rest)
    assert rest == data[2_900_004:]
    assert not server.has_more
    server.send(b"done")
    assert bytes(await client.read(4)) == b"done"
    assert freed == [1, 2]


async def test_messages_are_taken_as_they_come_until_one_is_left(
    ends: tuple[aioblk.TlsStream, aioblk.TlsStream],
) -> None:
    server, client = ends
    taken: list[bytes] = []

    def take(size: int) -> bool:
        data = server.read_nowait(size) if 0 < size <= server.received else None
        taken.extend([] if data is None else [bytes(data)])
        return data is not None

    assert server.unpack_nowait(NUMBER) is None
    receiving = asyncio.create_task(server.unpack_while(NUMBER, take))
    await asyncio.sleep(0)
    for use in (lambda: server.read_nowait(1), lambda: server.unpack_nowait(NUMBER)):
        with pytest.raises(aioblk.StreamBusyError):
            use()
    client.send(NUMBER.pack(2) + b"hi" + NUMBER.pack(5) + b"hello" + NUMBER.pack(0))
    assert await receiving == (0,)
    assert taken == [b"hi", b"hello"]


async def test_who_is_cancelled_while_receiving_loses_nothing(
    ends: tuple[aioblk.TlsStream, aioblk.TlsStream],
) -> None:
    server, client = ends
    data = random.Random(2).randbytes(300_000)
    for start in range(0, len(data), 50_000):
        filling = asyncio.create_task(server.read_into(bytearray(len(data))))
        client.send(data[start : start + 50_000])
        for _ in range(random.Random(start).randrange(6)):
            await asyncio.sleep(0)
        filling.cancel()
        with suppress(asyncio.CancelledError):
            await filling
    whole = bytearray(len(data))
    await server.read_into(whole)
    assert whole == data


async def test_a_second_task_is_refused_and_the_first_goes_on(
    ends: tuple[aioblk.TlsStream, aioblk.TlsStream],
) -> None:
    server, client = ends
    first = asyncio.create_task(server.unpack(NUMBER))
    await asyncio.sleep(0)
    for receive in (server.unpack(NUMBER), server.read(1), server.read_into(bytearray(1)), server.skip(1)):
        with pytest.raises(aioblk.StreamBusyError):
            await receive
    client.send(NUMBER.pack(3))
    assert await first == (3,)


async def test_the_end_is_told(ends: tuple[aioblk.TlsStream, aioblk.TlsStream]) -> None:
    server, client = ends
    client.send(b"last")
    client.close()
    assert bytes(await server.read(4)) == b"last"
    for _ in range(2):
        with pytest.raises(aioblk.DisconnectedError, match="the peer has closed the connection"):
            await server.read(1)
    freed: list[int] = []
    server.abort("for the test")
    server.send(b"to nobody", on_sent=lambda: freed.append(1))
    assert freed == [1]


async def test_a_peer_that_stops_in_the_middle_stalls(authority: Authority) -> None:
    server, client, below = pair(authority, least_rate=1e9)
    async with asyncio.timeout(TIME_LIMIT):
        await asyncio.gather(server.handshake(), client.handshake())
        assert server.stalled() == 0
        waiting = asyncio.create_task(server.unpack(NUMBER))
        await asyncio.sleep(0)
        assert server.stalled() == 0  # it is in the middle of nothing
        client.send(b"ab")
        while not server.stalled():  # noqa: ASYNC110 (time passes)
            await asyncio.sleep(0)
        server.abort("it has stalled")
        with pytest.raises(aioblk.DisconnectedError, match="it has stalled"):
            await waiting
    assert server.stalled() == 0
    server.close()
    client.close()
    below.close()


async def test_a_handshake_that_fails_says_why(authority: Authority) -> None:
    ours, theirs = socket.socketpair()
    server = aioblk.TlsStream(aioblk.SocketStream(ours), server_context(authority), server_side=True)
    noisy = aioblk.SocketStream(theirs)
    noisy.send(b"no TLS at all, but long enough to be looked at")
    with pytest.raises(aioblk.DisconnectedError, match="TLS: "):
        await server.handshake()
    with pytest.raises(aioblk.DisconnectedError, match="TLS: "):
        await server.read(1)
    server.close()
    noisy.close()


async def test_a_client_that_does_not_trust_the_server_is_heard(authority: Authority) -> None:
    ours, theirs = socket.socketpair()
    server = aioblk.TlsStream(aioblk.SocketStream(ours), server_context(authority), server_side=True)
    client = aioblk.TlsStream(
        aioblk.SocketStream(theirs),
        ssl.create_default_context(),
        server_side=False,
        server_hostname="localhost",
    )
    outcomes = await asyncio.gather(server.handshake(), client.handshake(), return_exceptions=True)
    assert "alert" in str(outcomes[0])
    assert "the certificate is refused" in str(outcomes[1])
    server.close()
    client.close()


async def test_what_was_received_before_tls_is_refused(authority: Authority) -> None:
    ours, theirs = socket.socketpair()
    below, peer = aioblk.SocketStream(ours), aioblk.SocketStream(theirs)
    peer.send(b"abc")
    assert bytes(await below.read(1)) == b"a"
    with pytest.raises(aioblk.UsageError, match="TLS does not protect"):
        aioblk.TlsStream(below, server_context(authority), server_side=True)
    assert bytes(await below.read_some()) == b"bc"
    below.close()
    peer.close()


async def test_sizes_out_of_range_are_refused(ends: tuple[aioblk.TlsStream, aioblk.TlsStream]) -> None:
    server, _ = ends
    with pytest.raises(ValueError, match="must not be negative"):
        await server.read(-1)
    with pytest.raises(ValueError, match="at most 65536 bytes"):
        await server.read(65537)


class _Asked:
    """TLS that has as much to say as it hears, as one that is asked for new keys without end."""

    def __init__(self, heard: ssl.MemoryBIO, says: ssl.MemoryBIO) -> None:
        self._heard, self._says = heard, says

    def read(self, _size: int, _target: object) -> int:
        self._says.write(self._heard.read())
        raise ssl.SSLWantReadError


async def test_a_peer_that_asks_tls_for_answers_and_takes_none_is_heard_no_more(
    ends: tuple[aioblk.TlsStream, aioblk.TlsStream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or what is said to it would take any amount of memory. It is heard again when it has taken it."""
    server, client = ends
    monkeypatch.setattr(server, "_tls", _Asked(server._from_peer, server._to_peer))
    peer = client._stream._socket
    receiving = asyncio.create_task(server.read(1))

    async def send_until_nothing_goes() -> None:
        turns_without = 0
        while turns_without < 100:
            await asyncio.sleep(0)
            try:
                peer.send(bytes(1 << 16))
            except BlockingIOError:
                turns_without += 1
            else:
                turns_without = 0

    await send_until_nothing_goes()  # it would go for ever
    assert 0 < server._said <= 3 << 16
    while server._said:
        with suppress(BlockingIOError):
            peer.recv(1 << 20)
        await asyncio.sleep(0)
    assert not receiving.done()
    receiving.cancel()
    monkeypatch.undo()
    await asyncio.wait([receiving])
