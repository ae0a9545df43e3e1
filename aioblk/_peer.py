"""Noticing that a vhost-user backend is gone.

When the backend dies, libblkio says nothing: submission succeeds and nothing ever completes. libblkio does not hand out
its socket either, but the process's own descriptor table shows it: a Unix socket whose peer has the backend's name. A
duplicate of it tells of the hang-up.
"""

import os
import socket

__all__ = ["find_peer_socket", "has_hung_up", "open_descriptors"]


def open_descriptors() -> set[int]:
    """The descriptors that this process has open."""
    return {int(name) for name in os.listdir("/proc/self/fd")}


def find_peer_socket(path: str, known: set[int]) -> socket.socket | None:
    """A duplicate of the socket, opened since *known* was taken, that is connected to *path*."""
    for fd in sorted(open_descriptors() - known):
        try:
            number = os.dup(fd)
        except OSError:
            continue  # closed meanwhile
        try:
            duplicate = socket.socket(fileno=number)
        except OSError:
            os.close(number)  # no socket
            continue
        try:
            if duplicate.family == socket.AF_UNIX and duplicate.getpeername() == path:
                duplicate.setblocking(False)
                return duplicate
        except OSError:
            pass  # not connected
        duplicate.close()
    return None


def has_hung_up(peer: socket.socket) -> bool:
    """Whether the other end is closed. Takes nothing out of the stream, which is libblkio's to read."""
    try:
        return peer.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except (BlockingIOError, InterruptedError):
        return False
    except OSError:
        return True  # ECONNRESET
