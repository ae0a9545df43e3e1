"""Noticing that a vhost-user backend is gone.

When the backend dies, libblkio says nothing: submission succeeds and nothing ever completes. libblkio does
not hand out its socket either, but the process's own descriptor table shows it: the Unix socket that has been
connected in the meantime. It tells of the hang-up. Connections to one backend look all the same, so those of
several devices are begun one after the other: see Search. Where anybody else has connected a socket at the
same time, the name of the peer tells which is ours; it is the name that the backend has bound, which need not
be spelt as our path is, nor be visible from here.

libblkio expects its socket to block. A socket object may make it non-blocking, and so does uvloop's
add_reader, even to a duplicate. Hence no socket objects here, and an epoll instance stands between the socket
and the loop.
"""

import contextlib
import errno
import os
import select
import socket
import struct
import threading
from types import TracebackType
from typing import ClassVar, Self, final

from .._libblkio.own_descriptors import find_linked
from .._native._blkio import ffi, lib
from .._sync.clock import now, pause

__all__ = ["Peer", "Search"]

_FAMILY_BYTES = 2  # of struct sockaddr_un, before the path
_ADDRESS_BYTES = 128  # of struct sockaddr_storage
_MOMENT = 0.001  # seconds
_PATIENCE = 0.1  # seconds that who connects to one backend waits for who connects to another
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid


@final
class Peer:
    """The backend at the other end of a connection that libblkio has made."""

    def __init__(self, fd: int) -> None:
        """Of the connected socket *fd*, which stays the caller's."""
        self.pid = _listener(fd)
        """The process that listens on the socket; 0: it cannot be seen from here."""
        with contextlib.ExitStack() as undo:
            with select.epoll() as events:
                events.register(fd, select.EPOLLRDHUP)
                self._events = os.dup(events.fileno())
            undo.callback(os.close, self._events)
            self._socket = os.dup(fd)
            undo.callback(os.close, self._socket)
            self.process = _watch_process(self.pid)
            """A descriptor that becomes readable when that process has ended."""
            undo.pop_all()

    def fileno(self) -> int:
        """A descriptor that becomes readable when the other end is closed."""
        return self._events

    def has_hung_up(self) -> bool:
        """Whether the other end is closed."""
        poll = select.poll()
        poll.register(self._events, select.POLLIN)
        return bool(poll.poll(0))

    def has_ended(self, until: float) -> bool:
        """Whether its process has, or does so until then, as :func:`now` has it. Blocks."""
        if self.process is None:
            return False
        poll = select.poll()
        poll.register(self.process, select.POLLIN)
        while not poll.poll(0):
            if now() >= until:
                return False
            pause(_MOMENT)
        return True

    def hang_up(self) -> None:
        """End the connection: a call of libblkio's that waits for an answer fails, and the backend learns of
        it."""
        lib.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Watch no longer. The connection is libblkio's, and stays."""
        for fd in (self._events, self._socket, self.process):
            if fd is not None:
                os.close(fd)


@final
class Search:
    """For the socket with which libblkio connects to a vhost-user backend: ``with Search(path) as search:``
    connect, and ask for :meth:`peer`.

    One begins when those before it have their sockets, or have ended: what is there is not its own, and what
    comes is. A socket is connected as soon as the backend listens, long before it answers, which it may never
    do. Only where more clients wait for a backend than it has room for does a socket take longer. Then
    searches for that backend wait as well, as their connections would; others wait for a moment, and tell by
    the name of the peer.
    """

    _turn: ClassVar[threading.Condition] = threading.Condition()
    _begun: ClassVar[list["Search"]] = []

    def __init__(self, path: str) -> None:
        self._path = path
        self._place = _place(path)
        self._known: set[int] = set()  # sockets that were there before, or are another's, by their inodes
        self._socket: int | None = None  # its descriptor

    def __enter__(self) -> Self:
        end = now() + _PATIENCE
        with self._turn:
            while self._has_to_wait(is_patient=now() < end):
                self._turn.wait(_MOMENT)  # libblkio does not tell when the other is connected
            self._known.update(_connected_sockets())
            self._begun.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._turn:
            self._begun.remove(self)
            self._turn.notify_all()

    def peer(self) -> Peer | None:
        """The backend, once libblkio has connected to it."""
        with self._turn:
            if self._socket is None:
                self._choose(self._new())
            return None if self._socket is None else Peer(self._socket)

    def _has_to_wait(self, *, is_patient: bool) -> bool:
        for other in self._begun:
            other._look()
        return any(
            other._socket is None and (is_patient or other._place == self._place) for other in self._begun
        )

    def _look(self) -> None:
        """Whether the socket is there by now. None but this one and strangers have connected any."""
        if self._socket is None:
            named = self._named(self._new())
            if len(named) == 1:
                self._settle(named)

    def _choose(self, new: "_Sockets") -> None:
        if len(new) > 1:
            new = self._named(new)
        if new:
            self._settle(new)

    def _settle(self, found: "_Sockets") -> None:
        inode, (self._socket, _) = next(iter(found.items()))
        for search in self._begun:
            search._known.add(inode)

    def _named(self, sockets: "_Sockets") -> "_Sockets":
        return {inode: found for inode, found in sockets.items() if _is_same(found[1], self._path)}

    def _new(self) -> "_Sockets":
        return {inode: found for inode, found in _connected_sockets().items() if inode not in self._known}


def _place(path: str) -> tuple[int, int] | None:
    """What tells one listening backend from another: one that takes another's name has a file of its own."""
    try:
        status = os.stat(path)
    except OSError:
        return None  # it is not there
    return status.st_dev, status.st_ino


_Sockets = dict[int, tuple[int, bytes]]
"""By its inode, a descriptor of a socket, and the name of its peer."""


def _connected_sockets() -> _Sockets:
    """The connected Unix sockets of this process. They have one inode each, and may have several descriptors:
    a peer that is watched has one of its own."""
    found: _Sockets = {}
    for fd in find_linked("socket:["):
        try:
            inode = os.fstat(fd).st_ino
        except OSError:
            continue  # closed meanwhile
        if inode not in found and (peer := _peer_path(fd)):
            found[inode] = fd, peer
    return found


def _peer_path(fd: int) -> bytes | None:
    address = ffi.new("char[]", _ADDRESS_BYTES)
    length = ffi.new("unsigned int *", _ADDRESS_BYTES)
    if lib.getpeername(fd, ffi.cast("struct sockaddr *", address), length) != 0:
        return None  # closed meanwhile, no socket, or not connected
    raw = bytes(ffi.buffer(address, length[0]))
    family = int.from_bytes(raw[:_FAMILY_BYTES], "little")
    return raw[_FAMILY_BYTES:].rstrip(b"\0") if family == socket.AF_UNIX else None


def _is_same(peer: bytes, path: str) -> bool:
    """Whether a peer's name, which may be relative to its own directory, is that of the socket at *path*."""
    if peer == os.fsencode(path):
        return True
    try:
        return os.path.samefile(peer, path)
    except OSError:
        return not os.path.isabs(peer) and os.path.realpath(os.fsencode(path)).endswith(
            b"/" + os.path.normpath(peer)
        )


def _listener(fd: int) -> int:
    credentials = ffi.new("char[]", _CREDENTIALS.size)
    length = ffi.new("unsigned int *", _CREDENTIALS.size)
    if lib.getsockopt(fd, socket.SOL_SOCKET, socket.SO_PEERCRED, credentials, length) != 0:
        return 0
    pid, _user, _group = _CREDENTIALS.unpack(bytes(ffi.buffer(credentials, length[0])))
    return int(pid)


def _watch_process(pid: int) -> int | None:
    if pid <= 0:
        return None  # in a process namespace that this one does not see
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
        return None  # it has ended, or cannot be watched
