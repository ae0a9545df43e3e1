"""Locks on files, by the same rules as QEMU's, so that each refuses what the other has in use.

A byte stands for each permission that somebody has, and another for each that he does not share. Whoever
comes locks his bytes for reading, which never excludes anybody, and then looks whether others have locked
those that contradict them: of two who come together both may find the other, but never neither.

The locks are of the open file (OFD), not of the process: they stay when another descriptor of the file is
closed. A block device that is to be written is claimed besides, as mounting does.
"""

import errno
import fcntl
import logging
import os
import random
import stat
import struct
from types import TracebackType
from typing import Literal, Self, TypeAlias, final

from .._libblkio.options import Checks, StrPath
from .._libblkio.properties import IO_URING
from .._sync.clock import pause
from ..errors import BlkioError, InUseError, OptionError, UnsupportedError, request_error
from .holders import find_claims, find_lockers

__all__ = ["FileLock", "Locking", "lock_for", "require_locked"]

Locking: TypeAlias = bool | Literal["auto"]

log: logging.Logger = logging.getLogger("aioblk")

# QEMU's, of block/file-posix.c and include/block/block-common.h.
HELD = 100
UNSHARED = 200
READ, WRITE, RESIZE = 0, 1, 3  # bits of permissions

_FLOCK = struct.Struct("@hhqqi0q")  # type, whence, start, length, process
_CANNOT = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_ATTEMPTS = 6  # of which each but the last is given up when somebody else is found
_LONGEST_PAUSE = 0.02  # seconds, before the next one


@final
class FileLock:
    """A lock on a disk image or block device, as QEMU has it on what it uses::

        with aioblk.FileLock("disk.img"):
            ...                            # no virtual machine is started on it meanwhile

    ``IoUring(path, lock=True)`` has one while it is open; this is for what is read and written otherwise. Who
    is going to write shares the file with nobody; who has it ``read_only``, with others who do. Programs that
    ask for no lock are not kept from anything.

    It is held from when it is made until :meth:`release`, or the end of the process; closing other
    descriptors of the file does not end it. Making it may take as long as the filesystem takes, and a tenth
    of a second where the file is in use. From any thread.

    :param path: The file or block device.
    :param fd: An open descriptor of it, in place of *path*; it stays the caller's.
    :param read_only: Lock it for reading.
    :param required: Fail where the filesystem has no locks (as NFS may not); otherwise the log "aioblk" is
        told, and there is none.
    :raises InUseError: Somebody else has it in use; as far as can be seen, the message says who.
    :raises UnsupportedError: The filesystem has no locks, and ``required``.
    :raises BlkioError: It cannot be opened.
    """

    def __init__(
        self,
        path: StrPath | None = None,
        *,
        fd: int | None = None,
        read_only: bool = False,
        required: bool = True,
    ) -> None:
        self._fd = -1
        check = Checks("lock")
        location = check.location(path, fd)
        self._name = None if path is None else str(location["path"])
        self._read_only = check.flag("read_only", read_only)
        check.flag("required", required)
        # A descriptor of the same open file would share its locks with the caller's.
        source = f"/proc/self/fd/{fd}" if self._name is None else self._name
        self._acquire(source, required)

    def _acquire(self, source: str, required: bool) -> None:
        held = {READ} if self._read_only else {READ, WRITE, RESIZE}
        contrary = {*(UNSHARED + bit for bit in held), HELD + WRITE, HELD + RESIZE}
        ours = {*(HELD + bit for bit in held), UNSHARED + WRITE, UNSHARED + RESIZE}
        for left in reversed(range(_ATTEMPTS)):
            self._fd = self._open(source, contrary)
            try:
                taken = _lock(self._fd, sorted(ours)) or _find_locked(self._fd, sorted(contrary))
                if not taken:
                    return
                if not left:
                    raise self._in_use(find_lockers(self._fd, contrary))
            except OSError as error:
                if error.errno in _CANNOT:
                    if not required:
                        log.warning("%r is not locked: its filesystem has no locks", self._name or source)
                        return  # what is claimed stays so
                    self.release()
                    raise self._without_locks(error) from None
                self.release()
                raise
            except BaseException:
                self.release()
                raise
            self.release()
            pause(random.uniform(0, _LONGEST_PAUSE))

    def _open(self, source: str, contrary: set[int]) -> int:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            kind = stat.S_IFMT(os.stat(source).st_mode)
            if kind not in (stat.S_IFREG, stat.S_IFBLK):
                raise OptionError(
                    "a regular file or a block device is needed", operation="lock", filename=self._name
                )
            if kind == stat.S_IFBLK and not self._read_only:
                flags |= os.O_EXCL
            return os.open(source, flags)
        except BlkioError:
            raise
        except OSError as error:
            if flags & os.O_EXCL and error.errno == errno.EBUSY:
                raise self._in_use(find_claims(source, contrary)) from None
            number = error.errno or errno.EIO
            raise request_error("lock", "open", number, None, filename=self._name) from None

    # --- what it is -----------------------------------------------------------------------------------------

    @property
    def read_only(self) -> bool:
        """Whether it is shared with others who read."""
        return self._read_only

    @property
    def held(self) -> bool:
        """Whether it has not been released."""
        return self._fd >= 0

    def is_of(self, fd: int) -> bool:
        """Whether the descriptor is open on the file that is locked, and not on one that took its name."""
        return self.held and os.path.samestat(os.fstat(fd), os.fstat(self._fd))

    # --- the end --------------------------------------------------------------------------------------------

    def release(self) -> None:
        """Let others have it; idempotent. A forked child's copy does not keep it."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        try:
            _set(fd, fcntl.F_UNLCK, 0, 0)
        except OSError:
            pass  # there is none; closing ends it in any case where nobody has forked
        finally:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        how = "for reading" if self._read_only else "for writing"
        return f"<aioblk.FileLock {self._name!r} {how if self.held else 'released'}>"

    # --- refusals -------------------------------------------------------------------------------------------

    def _in_use(self, holders: str) -> InUseError:
        what = "written" if self._read_only else "used"
        return InUseError(f"it is {what} by {holders}", operation="lock", filename=self._name)

    def _without_locks(self, error: OSError) -> UnsupportedError:
        return UnsupportedError(
            "its filesystem has no locks; lock='auto' (of FileLock, required=False) goes on without",
            errno=error.errno,
            operation="lock",
            filename=self._name,
        )


def lock_for(locking: Locking, path: object, fd: object, *, read_only: bool) -> FileLock | None:
    """The one that a device of io_uring is to have, by its option. Errors say so."""
    if locking is False:
        return None
    required = locking is True
    try:
        if isinstance(fd, int):
            read_only = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
            return FileLock(fd=fd, read_only=read_only, required=required)
        return FileLock(str(path), read_only=read_only, required=required)
    except BlkioError as error:
        error.driver = IO_URING
        raise


def require_locked(lock: FileLock, fd: int, name: str | None) -> None:
    """InUseError: what was opened as *fd* is not what is locked."""
    if not lock.is_of(fd):
        raise InUseError(
            "the path leads to another file than to the one that is locked: it was replaced meanwhile",
            errno=errno.ESTALE,
            driver=IO_URING,
            operation="lock",
            filename=name,
        )


# --- locks of bytes -----------------------------------------------------------------------------------------


def _lock(fd: int, places: list[int]) -> int | None:
    """Lock the bytes for reading. The one that somebody has locked for writing, if any."""
    for place in places:
        try:
            _set(fd, fcntl.F_RDLCK, place, 1)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            return place
    return None


def _find_locked(fd: int, places: list[int]) -> int | None:
    """The first of the bytes that others have locked in whatever way."""
    for place in places:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0)
        kind, *_ = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))
        if kind != fcntl.F_UNLCK:
            return place
    return None


def _set(fd: int, kind: int, start: int, length: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
