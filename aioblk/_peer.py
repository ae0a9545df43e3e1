"""Noticing that a vhost-user backend is gone.

When the backend dies, libblkio says nothing: submission succeeds and nothing ever completes. libblkio does
not hand out its socket either, but the process's own descriptor table shows it: a Unix socket whose peer
has the backend's name. It tells of the hang-up.

libblkio expects its socket to block. A socket object may make it non-blocking, and so does uvloop's
add_reader, even to a duplicate. Hence no socket objects here, and an epoll instance stands between the socket
and the loop.
"""

import os
import select
import socket

from ._native._blkio import ffi, lib

__all__ = ["has_hung_up", "peer_descriptors", "watch_peer"]

_FAMILY_BYTES = 2  # of struct sockaddr_un, before the path
_ADDRESS_BYTES = 128  # of struct sockaddr_storage


def peer_descriptors(path: str) -> set[int]:
    """The descriptors of this process that are connected to the Unix socket at *path*."""
    descriptors = (int(name) for name in os.listdir("/proc/self/fd"))
    return {fd for fd in descriptors if _peer_path(fd) == os.fsencode(path)}


def _peer_path(fd: int) -> bytes | None:
    address = ffi.new("char[]", _ADDRESS_BYTES)
    length = ffi.new("unsigned int *", _ADDRESS_BYTES)
    if lib.getpeername(fd, ffi.cast("struct sockaddr *", address), length) != 0:
        return None  # closed meanwhile, no socket, or not connected
    raw = bytes(ffi.buffer(address, length[0]))
    family = int.from_bytes(raw[:_FAMILY_BYTES], "little")
    return raw[_FAMILY_BYTES:].rstrip(b"\0") if family == socket.AF_UNIX else None


def watch_peer(path: str, known: set[int]) -> int | None:
    """A descriptor that becomes readable when the other end of the connection to *path* is closed.

    The connection is the one that was made since ``peer_descriptors()`` gave *known*. The caller closes the
    descriptor.
    """
    for fd in peer_descriptors(path) - known:
        with select.epoll() as events:
            events.register(fd, select.EPOLLRDHUP)
            return os.dup(events.fileno())
    return None


def has_hung_up(peer: int) -> bool:
    """Whether the other end is closed; *peer* is from ``watch_peer()``."""
    poll = select.poll()
    poll.register(peer, select.POLLIN)
    return bool(poll.poll(0))
