"""The file of a Unix socket: a name in a directory, which others may take away or give to something else."""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Generator


@contextlib.contextmanager
def listen_at(path: str, backlog: int) -> Generator[socket.socket]:
    """A socket that listens at *path*, whose file is removed in the end if it is still the socket's."""
    with socket.socket(socket.AF_UNIX) as listener:
        _bind(listener, path)
        ours = _identity(path)
        listener.listen(backlog)
        try:
            yield listener
        finally:
            if _identity(path) == ours:
                with contextlib.suppress(OSError):
                    os.unlink(path)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _bind(listener: socket.socket, path: str) -> None:
    try:
        listener.bind(path)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not _is_left_behind(path):
            raise
        os.unlink(path)
        listener.bind(path)


def _is_left_behind(path: str) -> bool:
    """Whether there is a socket at which nobody listens any more, as a server that was killed leaves it."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        return probe.connect_ex(path) == errno.ECONNREFUSED
