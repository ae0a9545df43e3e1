"""Listening sockets: from where clients are taken, and what becomes of their connections."""

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final
from urllib.parse import quote

from ...errors import OptionError, UsageError
from ...services.unix_socket import credentials_of, name_of_peer
from .policy import Policy

log = logging.getLogger("aioblk.nbd")

BACKLOG = 1024  # who has connected and not been accepted, for a moment
SAY_EVERY = 60.0  # seconds
PROBES = 3  # of a peer that is silent, before it is dead
LONGEST_PROBING = 32767  # seconds, which is as long as the kernel can wait for one
TOO_MANY = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)  # descriptors, as a rule
GONE = (errno.ECONNABORTED, errno.ECONNRESET, errno.EPROTO, errno.ETIMEDOUT, errno.EHOSTUNREACH)
FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)


@final
class Spare:
    """A descriptor that is kept for when there is no other: for refusing who would wait for ever."""

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self._take()

    def _take(self) -> None:
        with contextlib.suppress(OSError):
            self._descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def refuse(self, listener: socket.socket) -> bool:
        """Close the connection of the next one who waits, if there is one and a descriptor for it."""
        self.close()
        try:
            connection, _ = listener.accept()
        except OSError:
            return False
        else:
            connection.close()
            return True
        finally:
            self._take()

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@final
@dataclass(slots=True)
class Listener:
    """One that is listened at, and how that is undone."""

    socket: socket.socket
    undo: contextlib.ExitStack
    spare: Spare = field(default_factory=Spare)
    accepting: asyncio.Task[None] | None = None

    def close(self) -> None:
        """On the loop, if anybody accepts."""
        if self.accepting is not None:
            self.accepting.cancel()
            # By itself that comes a turn later, when the descriptor's number may be somebody else's.
            asyncio.get_running_loop().remove_reader(self.socket)
        self.undo.close()
        self.spare.close()
        self.socket.close()


def refuse_unless_listening(listener: socket.socket) -> None:
    """UsageError: clients could not be taken there."""
    is_known = listener.family in FAMILIES and listener.type == socket.SOCK_STREAM
    if not (is_known and listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)):
        raise UsageError(
            f"clients are taken at TCP and Unix sockets that listen, not at {listener!r}", operation="listen"
        )


async def listen_at_tcp(host: str, port: int) -> list[socket.socket]:
    """Sockets at each address of a host; "" is every address of this machine.

    Port 0 is one that is free, the same for all of them.

    Raises:
        OSError: there is no such host, or one of its addresses cannot be had.
    """
    if not 0 <= port <= 65535:
        raise OptionError(f"port must be from 0 to 65535, not {port}", driver="nbd")
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
    except socket.gaierror as error:
        raise OSError(errno.EADDRNOTAVAIL, f"cannot listen at {host}: {error.strerror}") from None
    except ValueError as error:  # too long for a name, or no text
        raise OSError(errno.EADDRNOTAVAIL, f"cannot listen at {host!r}: {error}") from None
    with contextlib.ExitStack() as undo:
        sockets: list[socket.socket] = []
        for family, address in dict.fromkeys((each[0], each[4]) for each in found):
            if sockets and not port:
                port = sockets[0].getsockname()[1]
            where = (address[0], port, *address[2:])
            try:
                listener = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind(where)
                listener.listen(BACKLOG)
            except OSError as error:
                if not host and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    continue  # the machine has no addresses of that kind
                text = f"cannot listen at {address[0]}, port {port}: {error.strerror}"
                raise OSError(error.errno, text) from None
            sockets.append(listener)
        if not sockets:
            raise OSError(errno.EADDRNOTAVAIL, f"cannot listen at {host or 'any address'}: there is none")
        undo.pop_all()
        return sockets


def uri_of(listener: socket.socket, name: str = "", *, tls: bool = False) -> str:
    """Of an export there."""
    scheme = "nbds" if tls else "nbd"
    if listener.family == socket.AF_UNIX:
        return f"{scheme}+unix:///{quote(name)}?socket={quote(os.fsencode(listener.getsockname()))}"
    host, port = listener.getsockname()[:2]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/{quote(name)}"


@final
class Door:
    """What becomes of connections before they are clients."""

    def __init__(
        self, policy: Policy, push_out: Callable[[], bool], refuse: Callable[[], object] = lambda: None
    ) -> None:
        """When there are too many descriptors, *push_out* makes room, if it can; or else somebody is refused,
        and *refuse* counts that."""
        self._policy = policy
        self._push_out = push_out
        self._refuse = refuse
        self._said: dict[str, float] = {}  # when, what strangers can bring about as often as they like

    def warn(self, message: str, *arguments: object) -> None:
        """Say something that strangers can bring about as often as they like: not more than once a minute."""
        now = time.monotonic()
        if now - self._said.get(message, -SAY_EVERY) >= SAY_EVERY:
            self._said[message] = now
            log.warning(message, *arguments)

    async def accept(self, listener: socket.socket, spare: Spare | None = None) -> socket.socket:
        """The next connection. A *spare* descriptor is there to refuse somebody when there is no other."""
        while True:
            try:
                await _readable(listener)
                connection, _ = listener.accept()
                connection.setblocking(False)
            except BlockingIOError:  # the client is gone already
                continue
            except OSError as error:
                if error.errno in GONE:  # it is the client's connection that has failed
                    continue
                self.warn("cannot accept clients: %s", error)
                is_full = error.errno in TOO_MANY and not self._push_out()
                if is_full and spare is not None and spare.refuse(listener):
                    self._refuse()
                    continue
                await asyncio.sleep(0.1)
                continue
            try:
                self._prepare(connection)
            except OSError:  # the client is gone already
                connection.close()
            else:
                return connection

    def _prepare(self, connection: socket.socket) -> None:
        if connection.family == socket.AF_UNIX:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            return
        patience = self._policy.patience
        for option, value in (
            (socket.TCP_NODELAY, 1),
            # A peer that is gone without a word owes nothing, so nothing else would tell.
            (socket.TCP_KEEPIDLE, min(LONGEST_PROBING, max(1, round(patience)))),
            (socket.TCP_KEEPINTVL, min(LONGEST_PROBING, max(1, round(patience / PROBES)))),
            (socket.TCP_KEEPCNT, PROBES),
            (socket.TCP_USER_TIMEOUT, max(1000, round(patience * 1000))),
        ):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def refusal(self, connection: socket.socket) -> str | None:
        """Why the peer is not let in: "address" or "user", if so."""
        policy = self._policy
        if connection.family == socket.AF_UNIX:
            _, user, group = credentials_of(connection)
            known = policy.users, policy.groups
            if known != (None, None) and user not in (known[0] or ()) and group not in (known[1] or ()):
                return "user"
        elif policy.networks is not None:
            address = address_of(connection)
            if address is None or not any(address in network for network in policy.networks):
                return "address"
        return None


def name_of(connection: socket.socket) -> str:
    """Of the peer, for people: its address, or what process it is."""
    if connection.family == socket.AF_UNIX:
        return name_of_peer(connection)
    try:
        host, port = connection.getpeername()[:2]
    except OSError:
        return "nobody"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def address_of(connection: socket.socket) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Of the peer: of version 4 also where it came to a socket of version 6. None: it is gone."""
    try:
        address = ipaddress.ip_address(connection.getpeername()[0].partition("%")[0])
    except OSError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


async def _readable(listener: socket.socket) -> None:
    """Until a client waits. The loop's sock_accept() may be cancelled in the turn in which it accepts one,
    who is nobody's then."""
    loop = asyncio.get_running_loop()
    comes = loop.create_future()

    def tell() -> None:
        if not comes.done():
            comes.set_result(None)

    loop.add_reader(listener, tell)
    try:
        await comes
    finally:
        loop.remove_reader(listener)
