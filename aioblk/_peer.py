"""Noticing that a vhost-user backend is gone.

When the backend dies, libblkio says nothing: submission succeeds and nothing ever completes. libblkio does
not hand out its socket either, but the process's own descriptor table shows it: the Unix socket that has been
connected in the meantime. It tells of the hang-up. Where other threads have connected some at the same time,
the name of the peer tells which is ours; it is the name that the backend has bound, which need not be spelt
as our path is, nor be visible from here.

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
from collections.abc import Container
from typing import Self, final

from ._native._blkio import ffi, lib

__all__ = ["Peer", "connected_sockets"]

_FAMILY_BYTES = 2  # of struct sockaddr_un, before the path
_ADDRESS_BYTES = 128  # of struct sockaddr_storage
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

    @classmethod
    def find(cls, path: str, known: Container[tuple[int, int]]) -> Self | None:
        """The peer at *path*: of the connection that was made since ``connected_sockets()`` gave *known*."""
        new = {socket: peer for socket, peer in connected_sockets().items() if socket not in known}
        if len(new) > 1:
            new = {socket: peer for socket, peer in new.items() if _is_same(peer, path)}
        for fd, _inode in new:
            return cls(fd)
        return None

    def fileno(self) -> int:
        """A descriptor that becomes readable when the other end is closed."""
        return self._events

    def has_hung_up(self) -> bool:
        """Whether the other end is closed."""
        poll = select.poll()
        poll.register(self._events, select.POLLIN)
        return bool(poll.poll(0))

    def hang_up(self) -> None:
        """End the connection: a call of libblkio's that waits for an answer fails, and the backend learns of
        it."""
        lib.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Watch no longer. The connection is libblkio's, and stays."""
        for fd in (self._events, self._socket, self.process):
            if fd is not None:
                os.close(fd)


def connected_sockets() -> dict[tuple[int, int], bytes]:
    """The connected Unix sockets of this process, by descriptor and inode, and the names of their peers."""
    found: dict[tuple[int, int], bytes] = {}
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            inode = os.fstat(fd).st_ino
        except OSError:
            continue  # closed meanwhile; the listing's own descriptor is, for one
        if peer := _peer_path(fd):
            found[fd, inode] = peer
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
