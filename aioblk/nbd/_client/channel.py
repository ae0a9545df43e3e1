"""A connected socket that never waits: bytes in, bytes out, with TLS or without."""

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from struct import Struct
from typing import TypeAlias, cast, final

from typing_extensions import Buffer

from ..._sync.blocking import BlockingCall
from .uri import Address

__all__ = ["Channel", "PlainChannel", "TlsChannel", "connect"]

RECORDS = 256 << 10  # of what TLS is given and gives at a time
RETRY_EVERY = 0.02  # seconds, while a Unix socket's queue of those who connect is full
HEAD_START = 0.25  # seconds that one address of a host has before the next one is tried, too
PROBES = 3  # of a peer that is silent, before it is dead
# Of struct tcp_info: how often something was sent again, or the peer's window asked for, without any answer,
# and how many milliseconds ago anything was acknowledged.
TCP_INFO = Struct("=2xBB4x48xI")

Bytes: TypeAlias = "bytes | bytearray | memoryview"


class Channel(ABC):
    """BlockingIOError where there is nothing to be received, or no room for what is sent."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection

    @abstractmethod
    def receive_into(self, target: memoryview) -> int:
        """How many bytes came; 0: the peer has closed."""

    @abstractmethod
    def send(self, parts: Sequence[Buffer]) -> int:
        """How many bytes of the parts have been taken. Their memory is not looked at again."""

    @property
    def unsent(self) -> bool:
        """Whether something that was taken is to be sent still, or the answer to something that was received:
        call :meth:`send`, be it with nothing."""
        return False

    @property
    def is_record_based(self) -> bool:
        """Whether there may be more though less came than there was room for."""
        return False

    @property
    def is_of_network(self) -> bool:
        return self.socket.family != socket.AF_UNIX

    def is_unheard_for(self, seconds: float) -> bool:
        """Whether the kernel repeats what it has sent, and has heard nothing from the peer's for so long."""
        if not self.is_of_network:
            return False
        data = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO.size)
        repeated, probes, heard = TCP_INFO.unpack(data)
        return bool(repeated or probes) and heard >= seconds * 1000

    def close(self) -> None:
        self.socket.close()

    # --- for those who wait ---------------------------------------------------------------------------------

    async def receive(self, size: int) -> bytes:
        """Exactly so many bytes. EOFError: the peer has closed."""
        data = memoryview(bytearray(size))
        filled = 0
        while filled < size:
            try:
                received = self.receive_into(data[filled:])
            except BlockingIOError:
                if self.unsent:
                    await self.send_all(b"")
                await _ready(self.socket, writing=False)
                continue
            if not received:
                raise EOFError
            filled += received
        return bytes(data)

    async def send_all(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest or self.unsent:
            try:
                rest = rest[self.send([rest] if rest else []) :]
            except BlockingIOError:
                await _ready(self.socket, writing=True)


@final
class PlainChannel(Channel):
    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection)
        self.receive_into = connection.recv_into  # type: ignore[method-assign, assignment]
        self.send = connection.sendmsg  # type: ignore[method-assign, assignment]

    def receive_into(self, target: memoryview) -> int:
        raise NotImplementedError  # it is the socket's own

    def send(self, parts: Sequence[Buffer]) -> int:
        raise NotImplementedError  # it is the socket's own


@final
class TlsChannel(Channel):
    """What is sent is encrypted at once, so that its memory is free."""

    def __init__(self, connection: socket.socket, context: ssl.SSLContext, server_name: str | None) -> None:
        super().__init__(connection)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        self._unsent = memoryview(b"")

    async def shake_hands(self) -> None:
        """ssl.SSLError, EOFError: it comes to nothing."""
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self._send_handshake()
                await self._receive_handshake()
            except ssl.SSLError:
                await self._send_handshake()  # which tells the peer why
                raise
        await self._send_handshake()

    async def _send_handshake(self) -> None:
        while True:
            try:
                self._push()
                return
            except BlockingIOError:
                await _ready(self.socket, writing=True)

    async def _receive_handshake(self) -> None:
        while True:
            try:
                self._pull()
                return
            except BlockingIOError:
                await _ready(self.socket, writing=False)

    def receive_into(self, target: memoryview) -> int:
        has_pulled = False
        while True:
            try:
                received = self._tls.read(len(target), target)
            except ssl.SSLWantReadError:
                if has_pulled:  # records without data, of which there may be any number
                    raise BlockingIOError from None
                self._pull()
                has_pulled = True
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return 0
            except ssl.SSLError as error:
                raise OSError(errno.EPROTO, f"TLS: {error.reason or error}") from None
            else:
                return cast(int, received)

    def _pull(self) -> None:
        if data := self.socket.recv(RECORDS):
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def send(self, parts: Sequence[Buffer]) -> int:
        self._push()
        taken = 0
        for part in parts:
            view = memoryview(part).cast("B")
            while view and taken < RECORDS:
                try:
                    size = self._tls.write(view[:RECORDS])
                except ssl.SSLError as error:
                    raise OSError(errno.EPROTO, f"TLS: {error.reason or error}") from None
                taken += size
                view = view[size:]
            if taken >= RECORDS:
                break
        try:
            self._push()
        except BlockingIOError:
            if not taken:
                raise
        return taken

    def _push(self) -> None:
        """Have the socket take what is encrypted. BlockingIOError: not all of it."""
        while self._unsent or self._outgoing.pending:
            if not self._unsent:
                self._unsent = memoryview(self._outgoing.read())
            self._unsent = self._unsent[self.socket.send(self._unsent) :]

    @property
    def unsent(self) -> bool:
        return bool(self._unsent) or self._outgoing.pending > 0

    @property
    def is_record_based(self) -> bool:
        return True

    def close(self) -> None:
        with contextlib.suppress(ssl.SSLError, ValueError):
            self._tls.unwrap()  # says that nothing was cut off
        with contextlib.suppress(OSError):
            self._push()
        super().close()


async def _ready(connection: socket.socket, *, writing: bool) -> None:
    """Until something can be received, or sent, or neither ever will."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def tell() -> None:
        if not ready.done():
            ready.set_result(None)

    add, remove = (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
    add(connection, tell)
    try:
        await ready
    finally:
        remove(connection)


# --- connecting ---------------------------------------------------------------------------------------------


async def connect(address: Address, dead_after: float) -> socket.socket:
    """A socket that is connected to the address. A peer in the network that does not answer the kernel's
    probes for about *dead_after* seconds while nothing is under way is dead. OSError: there is nobody."""
    if not isinstance(address, tuple):
        return await _connect_to(socket.AF_UNIX, address)
    connection = await _connect_to_one_of(await _look_up(*address))
    try:
        _prepare(connection, dead_after)
    except BaseException:
        connection.close()
        raise
    return connection


async def _connect_to_one_of(addresses: list[tuple[int, tuple[object, ...]]]) -> socket.socket:
    """The first that answers: what does not for a while may be a machine that is gone, and has company from
    the next on. OSError: none of them."""
    if len(addresses) == 1:
        return await _connect_to(*addresses[0])
    loop = asyncio.get_running_loop()
    untried, last = list(addresses), OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    attempts: list[asyncio.Task[socket.socket]] = []
    try:
        while untried or attempts:
            if untried:
                attempts.append(loop.create_task(_connect_to(*untried.pop(0))))
            await asyncio.wait(
                attempts, timeout=HEAD_START if untried else None, return_when=asyncio.FIRST_COMPLETED
            )
            for attempt in [attempt for attempt in attempts if attempt.done()]:
                attempts.remove(attempt)
                try:
                    return attempt.result()
                except OSError as error:
                    last = error
        raise last
    finally:
        for attempt in attempts:
            attempt.cancel()
            attempt.add_done_callback(_forget)


def _forget(attempt: asyncio.Task[socket.socket]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


async def _look_up(host: str, port: int) -> list[tuple[int, tuple[object, ...]]]:
    """Addresses of a host, at least one. In a thread, unless it is one itself."""
    look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    try:
        try:
            found = look_up(flags=socket.AI_NUMERICHOST)
        except socket.gaierror:
            found = await BlockingCall(look_up).outcome()
    except socket.gaierror as error:
        raise OSError(errno.EHOSTUNREACH, f"the host {host!r} is not known: {error.strerror}") from None
    except UnicodeError:
        raise OSError(errno.EINVAL, f"{host!r} is no name of a host") from None
    return [(family, cast("tuple[object, ...]", where)) for family, _, _, _, where in found]


async def _connect_to(family: int, where: object) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.setblocking(False)
        while number := connection.connect_ex(where):  # type: ignore[arg-type]
            if number == errno.EINPROGRESS:
                await _ready(connection, writing=True)
                number = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not number:
                    break
            elif number == errno.EAGAIN:
                await asyncio.sleep(RETRY_EVERY)
                continue
            raise OSError(number, os.strerror(number))
        if family != socket.AF_UNIX and connection.getsockname() == connection.getpeername():
            # At a port where nobody listens, and which was drawn for this end: it would keep the server out.
            raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        return connection
    except BaseException:
        connection.close()
        raise


def _prepare(connection: socket.socket, dead_after: float) -> None:
    seconds = min(max(round(dead_after), 2), 32767)
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (socket.TCP_KEEPIDLE, max(1, seconds // 2)),
        (socket.TCP_KEEPINTVL, max(1, seconds // (2 * PROBES))),
        (socket.TCP_KEEPCNT, PROBES),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
