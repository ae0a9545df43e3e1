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
import stat
import struct
from contextlib import suppress
from types import TracebackType
from typing import Literal, Self, TypeAlias, cast, final

from .._libblkio.handle import Blkio
from .._libblkio.options import Checks, StrPath
from .._libblkio.properties import IO_URING
from .._sync.clock import pause
from ..errors import BlkioError, InUseError, OptionError, UnsupportedError, request_error
from .holders import find_claims, find_lockers, loops_over, own_claims

__all__ = ["FileLock", "Locking", "hand_over", "lock_for", "require_locked"]

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

_held: "set[FileLock]" = set()
"""Those of this process that have not been released. Who drops one goes on having it."""


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
        self._claim: int | None = None
        check = Checks("lock")
        location = check.location(path, fd)
        self._name = None if path is None else str(location["path"])
        self._read_only = check.flag("read_only", read_only)
        check.flag("required", required)
        if fd is not None:
            _require_open(check, fd)
        # A descriptor of the same open file would share its locks with the caller's.
        source = f"/proc/self/fd/{fd}" if self._name is None else self._name
        self._acquire(source, required)

    def _acquire(self, source: str, required: bool) -> None:
        _held.add(self)  # from the first: a child may be forked by another thread
        try:
            for left in reversed(range(_ATTEMPTS)):
                if self._try(source, required, is_last=not left):
                    return
                self._close()
                import random  # who is alone need not wait

                pause(random.uniform(0, _LONGEST_PAUSE))
        except BaseException:
            self.release()
            raise

    def _try(self, source: str, required: bool, *, is_last: bool) -> bool:
        try:
            self._fd = self._open(source)
        except OSError as error:
            if isinstance(error, BlkioError):
                raise
            if error.errno == errno.EBUSY and not self._read_only:
                if is_last:
                    raise self._refused(find_claims(source, self._contrary)) from None
                return False
            raise self._failed("open", error) from None
        if not self._is_contradicted(required):
            return True
        if is_last:
            holders = find_lockers(self._fd, self._contrary, self._name)
            raise self._refused(f"{'written' if self._read_only else 'used'} by {holders}")
        return False

    def _open(self, source: str) -> int:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        status = os.stat(source)
        if stat.S_IFMT(status.st_mode) not in (stat.S_IFREG, stat.S_IFBLK):
            rule = "a regular file or a block device is needed"
            raise OptionError(rule, operation="lock", filename=self._name)
        if self._read_only:
            return os.open(source, flags)
        if (loop := next(loops_over(status), None)) is not None:
            raise self._refused(loop.who)
        if stat.S_ISREG(status.st_mode):
            return os.open(source, flags)
        fd = os.open(source, flags | os.O_EXCL)
        self._claim = status.st_rdev
        own_claims.add(self._claim)
        return fd

    def _is_contradicted(self, required: bool) -> bool:
        """Lock all bytes, and look for those of others."""
        try:
            return _lock(self._fd, self._ours) or _is_any_locked(self._fd, self._contrary)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise self._failed("lock", error) from None
            if required:
                raise self._without_locks(error) from None
            log.warning("%r is not locked: its filesystem has no locks", self._name or f"fd {self._fd}")
            return False  # what is claimed stays so

    @property
    def _ours(self) -> list[int]:
        held = (READ,) if self._read_only else (READ, WRITE, RESIZE)
        return [*(HELD + bit for bit in held), UNSHARED + WRITE, UNSHARED + RESIZE]

    @property
    def _contrary(self) -> list[int]:
        held = (READ,) if self._read_only else (READ, WRITE, RESIZE)
        return [HELD + WRITE, HELD + RESIZE, *(UNSHARED + bit for bit in held)]

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
        """Let others have it; idempotent. In a forked child, it does nothing: the lock is the parent's."""
        _held.discard(self)
        self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        if self._claim is not None:
            own_claims.discard(self._claim)
            self._claim = None
        try:
            with suppress(OSError):  # the filesystem has no locks
                _set(fd, fcntl.F_UNLCK, 0, 0)  # a child that Python has not forked may have a copy
        finally:
            os.close(fd)

    def _hand_over(self, fd: int) -> None:
        """Let another open file have the lock as well: until it is closed by all who have it.

        What the kernel still has to do for a lost device keeps that device's file open, so it is locked for
        as long. A block device's claim is not handed over.
        """
        if self.held:
            with suppress(OSError):
                _lock(fd, self._ours)

    def _forget(self) -> None:
        """In a forked child: its copy of the descriptor would keep the lock when the parent ends."""
        fd, self._fd = self._fd, -1
        with suppress(OSError):
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

    def _refused(self, how: str) -> InUseError:
        return InUseError(f"it is {how}", operation="lock", filename=self._name)

    def _failed(self, step: str, error: OSError) -> BlkioError:
        return request_error("lock", step, error.errno or errno.EIO, None, filename=self._name)

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
        if isinstance(error, InUseError):
            error.message = f"{error.message}; lock=False (in an address lock=off) opens it all the same"
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


def hand_over(lock: FileLock | None, handle: Blkio) -> None:
    """*handle* is about to be destroyed, of a lost device whose requests the kernel may still be at."""
    if lock is not None:
        with suppress(BlkioError):  # destroyed already
            fd = cast(int, handle.get("fd"))
            lock._hand_over(fd)  # pyright: ignore[reportPrivateUsage]


def _require_open(check: Checks, fd: int) -> None:
    try:
        os.fstat(fd)
    except OSError as error:
        raise check.error(f"fd {fd} is no open descriptor: {os.strerror(error.errno or errno.EIO)}") from None


# --- locks of bytes -----------------------------------------------------------------------------------------


def _lock(fd: int, places: list[int]) -> bool:
    """Lock the bytes for reading. Whether somebody has one for writing, which the rules do not know."""
    for place in places:
        try:
            _set(fd, fcntl.F_RDLCK, place, 1)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            return True
    return False


def _is_any_locked(fd: int, places: list[int]) -> bool:
    """Whether others have locked some of the bytes, in whatever way."""
    for place in places:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0)
        kind, *_ = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))
        if kind != fcntl.F_UNLCK:
            return True
    return False


def _set(fd: int, kind: int, start: int, length: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))


def _forget_all() -> None:
    for lock in _held:
        lock._forget()  # pyright: ignore[reportPrivateUsage]
    _held.clear()
    own_claims.clear()


os.register_at_fork(after_in_child=_forget_all)
