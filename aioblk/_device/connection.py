"""Making a connection to a device: all that may block, in one call for a worker thread."""

import contextlib
import errno
import os
from typing import NamedTuple, cast, final

from .._libblkio.descriptor import create_file, require_suitable
from .._libblkio.handle import Blkio
from .._libblkio.limits import Limits
from .._libblkio.options import DriverOptions
from .._libblkio.own_descriptors import count_spare, find_linked
from .._libblkio.properties import VHOST_USER
from .._libblkio.rings import memory_may_come_back
from .._sync.clock import now, pause
from ..errors import BlkioError, request_error
from .lock import FileLock, lock_for, require_locked
from .peer import Peer, Search

__all__ = ["Connection", "add_queue", "connect", "connect_first", "remove_created"]

# What libblkio opens, and what is needed here to find out about a backend. Where descriptors run out
# within its vhost-user driver, libblkio aborts the process.
_DESCRIPTORS = 12
_DESCRIPTORS_OF_A_QUEUE = 2  # a ring or a "kick", and an event

_MOMENT = 0.01  # seconds
_ENDING = 0.3  # seconds


@final
class Connection(NamedTuple):
    """A started device."""

    handle: Blkio
    peer: Peer | None
    """The vhost-user backend."""
    limits: Limits
    capacity: int
    """In bytes."""
    lock: FileLock | None = None
    """Of the file, from before the connection was made."""

    def close(self) -> None:
        """Nobody has used it: give everything back."""
        try:
            _close(self.handle, self.peer)
        finally:
            if self.lock is not None:
                self.lock.release()


def connect_first(options: DriverOptions) -> Connection:
    """As :func:`connect`, for the first time: makes the file first, if one is to be made, and locks it."""
    if options.create is None:
        return _connect_locked(options)
    create_file(options.driver, str(options.before_connect["path"]), options.create)
    try:
        return _connect_locked(options)
    except BaseException:
        remove_created(options)
        raise


def _connect_locked(options: DriverOptions) -> Connection:
    if options.lock is False:
        return connect(options)
    require_suitable(options)
    where = options.before_connect
    read_only = where.get("read-only") is True
    lock = lock_for(options.lock, where.get("path"), where.get("fd"), read_only=read_only)
    try:
        return connect(options, lock)._replace(lock=lock)
    except BaseException:
        if lock is not None:
            lock.release()
        raise


def remove_created(options: DriverOptions) -> None:
    """The device that :func:`connect_first` has connected to was never used."""
    if options.create is not None:
        with contextlib.suppress(OSError):
            os.unlink(str(options.before_connect["path"]))


def connect(options: DriverOptions, lock: FileLock | None = None) -> Connection:
    """Connect and start. Whatever fails leaves nothing open, and is a BlkioError.

    What is opened is what is locked, if there is a *lock*, which stays the caller's.
    """
    require_suitable(options)
    end = now() + _ENDING
    while True:
        try:
            return _connect(options, lock)
        except BlkioError as error:
            if not _may_pass(options.driver, error, end):
                raise
        pause(_MOMENT)


def _may_pass(driver: str, error: BlkioError, end: float) -> bool:
    """Whether it may be for something that ends just now: memory of closed rings, which is still counted as
    locked, or the connection that a backend had before, for which it turns the next one away."""
    if error.errno == errno.ENOMEM:
        return memory_may_come_back()
    turned_away = driver == VHOST_USER and error.operation == "connect" and error.errno == errno.EIO
    return turned_away and now() < end


def _connect(options: DriverOptions, lock: FileLock | None) -> Connection:
    path = options.before_connect.get("path")
    filename = None if path is None else str(path)
    handle = Blkio(options.driver)
    peer = None
    try:
        queues = options.before_start.get("num-queues", 1), options.before_start.get("num-poll-queues", 0)
        _require_descriptors(options.driver, sum(map(int, queues)), "connect", filename)
        for name, value in options.before_connect.items():
            handle.set(name, value)
        if options.driver == VHOST_USER and filename is not None:
            with Search(filename) as search:
                handle.connect()
                peer = search.peer()
        else:
            handle.connect()
        if lock is not None:
            require_locked(lock, cast(int, handle.get("fd")), filename)
        for name, value in options.before_start.items():
            handle.set(name, value)
        handle.start()
        if options.driver == VHOST_USER:
            _keep_rings_from_children()
        return Connection(handle, peer, Limits.read(handle), cast(int, handle.get("capacity")))
    except BaseException as error:
        _close(handle, peer)
        if isinstance(error, OSError) and not isinstance(error, BlkioError):
            number = error.errno or errno.EIO
            raise request_error(options.driver, "connect", number, None, filename=filename) from error
        raise


def _keep_rings_from_children() -> None:
    """The memory of libblkio's virtqueues would be inherited by every program that this process starts."""
    for fd in find_linked("/memfd:virtio-ring"):
        with contextlib.suppress(OSError):  # closed meanwhile
            os.set_inheritable(fd, False)


def add_queue(handle: Blkio) -> int:
    """Add a queue to a started device; returns its index. Blocks."""
    _require_descriptors(handle.driver, 1, "add_queue")
    return handle.add_queue()


def _close(handle: Blkio, peer: Peer | None) -> None:
    if peer is not None:
        peer.hang_up()  # nobody is kept waiting for an answer, nor is the backend by a forked child's copy
        peer.close()
    handle.destroy()


def _require_descriptors(driver: str, queues: int, operation: str, filename: str | None = None) -> None:
    """Refuse to begin what descriptors would run out in the middle of."""
    needed = _DESCRIPTORS + _DESCRIPTORS_OF_A_QUEUE * queues
    spare, reason = count_spare(needed)
    if spare < needed:
        raise request_error(
            driver,
            operation,
            reason or errno.EMFILE,
            f"it takes up to {needed} free file descriptors, and there are {spare}; see ulimit -n",
            filename=filename,
        )
