"""The file of a Unix socket: a name in a directory, which others may take away or give to something else."""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
import time
from collections.abc import Generator

__all__ = ["credentials_of", "listen_at", "name_of_peer"]

CREDENTIALS = struct.Struct("iII")  # process, user, group
LONGEST_PATH = 107  # bytes
TURN = 0.01  # seconds
MOST_TURNS = 200


@contextlib.contextmanager
def listen_at(path: str, backlog: int) -> Generator[socket.socket]:
    """A socket that listens at *path*, whose file is removed in the end if it is still the socket's."""
    if "\0" in path or not path:
        raise OSError(errno.EINVAL, "a socket's path has a byte at least, and none that is zero", path)
    with socket.socket(socket.AF_UNIX) as listener:
        with _alone(path):
            _bind(listener, path)
            ours = _identity(path)
            listener.listen(backlog)
        try:
            yield listener
        finally:
            if _identity(path) == ours:
                with contextlib.suppress(OSError):
                    os.unlink(path)


@contextlib.contextmanager
def _alone(path: str) -> Generator[None]:
    """Servers that start at once do so one after the other: a socket that is bound and does not listen yet
    looks left behind. They lock the directory, which leaves nothing; where it cannot be locked, they do not.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, directory)
            for _ in range(MOST_TURNS):  # whoever else locks it may do so for good
                try:
                    fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(TURN)  # nobody is served yet
        yield


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _bind(listener: socket.socket, path: str) -> None:
    if (length := len(os.fsencode(path))) > LONGEST_PATH:
        raise OSError(
            errno.ENAMETOOLONG, f"a socket's path has at most {LONGEST_PATH} bytes, not {length}", path
        )
    try:
        try:
            listener.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_what_is_left_behind(path)
            listener.bind(path)
    except OSError as error:
        raise OSError(error.errno, f"cannot listen: {error.strerror}", path) from None


def _remove_what_is_left_behind(path: str) -> None:
    """Remove a socket at which nobody listens any more, as a server that was killed leaves it."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise OSError(errno.EADDRINUSE, "the path is in use, and by no socket; remove that or choose another")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        if probe.connect_ex(path) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, "the path is in use by who listens there; choose another")
    os.unlink(path)


def credentials_of(connection: socket.socket) -> tuple[int, int, int]:
    """Process, user and group of who has connected to a Unix socket."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    process, user, group = CREDENTIALS.unpack(found)
    return process, user, group


def name_of_peer(connection: socket.socket) -> str:
    """Which process it is, for people."""
    process, user, _ = credentials_of(connection)
    return f"process {process} of user {user}" if process else f"user {user}"
