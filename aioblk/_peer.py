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

import os
import select
import socket
from collections.abc import Container

from ._native._blkio import ffi, lib

__all__ = ["has_hung_up", "peer_descriptors", "watch_peer"]

_FAMILY_BYTES = 2  # of struct sockaddr_un, before the path
_ADDRESS_BYTES = 128  # of struct sockaddr_storage


def peer_descriptors() -> dict[tuple[int, int], bytes]:
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


def watch_peer(path: str, known: Container[tuple[int, int]]) -> int | None:
    """A descriptor that becomes readable when the other end of the connection to *path* is closed.

    The connection is the one that was made since ``peer_descriptors()`` gave *known*. The caller closes the
    descriptor.
    """
    new = {socket: peer for socket, peer in peer_descriptors().items() if socket not in known}
    if len(new) > 1:
        new = {socket: peer for socket, peer in new.items() if _is_same(peer, path)}
    for fd, _inode in new:
        with select.epoll() as events:
            events.register(fd, select.EPOLLRDHUP)
            return os.dup(events.fileno())
    return None


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


def has_hung_up(peer: int) -> bool:
    """Whether the other end is closed; *peer* is from ``watch_peer()``."""
    poll = select.poll()
    poll.register(peer, select.POLLIN)
    return bool(poll.poll(0))
