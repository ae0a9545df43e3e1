"""One writer at a time.

What the kernel knows as a file or a disk is locked there (flock), which holds against every process that can
reach it, and against other programs that ask. All else, such as a vhost-user device or a layer, is locked by
name: a socket in the kernel's table of names, which goes with its process as a lock of a file does. That
holds on one machine. On several, the epoch in the log's header is all there is: a writer that finds another's
stops.
"""

import errno
import fcntl
import os
import socket

import aioblk

from .errors import LogInUseError

IN_USE = "another writer has the log open"


class WriterLock:
    """Locks that are held until they are released, or the process ends."""

    def __init__(self) -> None:
        self._file: int | None = None
        self._name: socket.socket | None = None

    @property
    def covers_all(self) -> bool:
        """Whether nobody else can write, on whatever machine."""
        return self._file is not None

    def lock_file(self, device: aioblk.BlockDevice) -> None:
        """Lock the file or disk behind the device, if it is one that can be locked."""
        if not isinstance(device, aioblk.Device) or device.driver not in ("io_uring", "nvme-io_uring"):
            return
        # A descriptor of our own: the device's is libblkio's to close.
        try:
            file = os.open(f"/proc/self/fd/{device.properties['fd']}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # whoever opened it for us could
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            if error.errno == errno.EWOULDBLOCK:
                raise LogInUseError(f"{IN_USE}, or another program has locked the device") from None
        else:  # anything else: a file system that has no locks
            self._file = file

    def lock_name(self, identity: int) -> None:
        """Lock the name of the log."""
        name = socket.socket(socket.AF_UNIX)
        try:
            name.bind(f"\0aioblk-log-{identity:016x}")
        except OSError as error:
            name.close()
            if error.errno == errno.EADDRINUSE:
                raise LogInUseError(IN_USE) from None
            raise
        self._name = name

    def release(self) -> None:
        """Idempotent."""
        if self._name is not None:
            self._name.close()
        if self._file is not None:
            os.close(self._file)
        self._file = self._name = None
