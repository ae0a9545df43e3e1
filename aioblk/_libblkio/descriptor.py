"""The file or device node behind a device: whether it can be one, and how large it is.

libblkio finds little fault with what it is given. Some of what it takes would then do other than it says (a
descriptor that appends), fail without a word, or never open.
"""

import errno as errnos
import fcntl
import os
import stat
import struct
from typing import cast

from .._native._blkio import ffi, lib
from ..errors import OptionError, request_error
from .options import DriverOptions
from .properties import IO_URING, NVME_IO_URING, VHOST_USER, VHOST_VDPA

__all__ = ["LARGEST_FILE", "create_file", "require_suitable", "size_of"]

LARGEST_FILE = 2**63 - 1
BLKGETSIZE64 = 0x80001272 | struct.calcsize("N") << 16  # linux/fs.h: _IOR(0x12, 114, size_t)

_CHARACTER_DEVICE = "the device's character device", (stat.S_IFCHR,)
_SUITABLE = {
    IO_URING: ("a regular file or a block device", (stat.S_IFREG, stat.S_IFBLK)),
    NVME_IO_URING: _CHARACTER_DEVICE,
    VHOST_USER: ("the Unix socket of a backend", (stat.S_IFSOCK,)),
    VHOST_VDPA: _CHARACTER_DEVICE,
}
_NAMES = {
    stat.S_IFREG: "a regular file",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}

_PROCFS = 0x9FA0
_MADE_UP = {
    _PROCFS: "procfs",
    0x62656572: "sysfs",
    0x62656570: "configfs",
    0x64626720: "debugfs",
    0x73636673: "securityfs",
    0x74726163: "tracefs",
    0x27E0EB: "cgroupfs",
    0x63677270: "cgroupfs",
}
"""By their numbers (linux/magic.h), file systems whose files the kernel makes up as they are read: the size
that they tell is nothing, or a page."""


def require_suitable(options: DriverOptions) -> None:
    """Raise OptionError for a path or descriptor that the driver would take and make no device of.

    What is not there, or not to be reached, is left to the driver to say.
    """
    if options.driver not in _SUITABLE:
        return
    fd, path = options.before_connect.get("fd"), options.before_connect.get("path")
    flags = None
    try:
        if isinstance(fd, int):
            file, flags = os.fstat(fd), fcntl.fcntl(fd, fcntl.F_GETFL)
        else:
            file = os.stat(str(path))
    except OSError:
        return
    what = "it" if flags is None else f"descriptor {fd}"
    _require_kind(options.driver, file.st_mode, what, path)
    if stat.S_ISREG(file.st_mode):
        _require_size(options.driver, fd, path, file.st_size, what)
    if flags is not None:
        _require_access(options.driver, cast(int, fd), flags)


def _require_kind(driver: str, mode: int, what: str, path: object) -> None:
    """Opening a pipe would wait for somebody at its other end, and opening a terminal may make it ours."""
    wanted, kinds = _SUITABLE[driver]
    kind = stat.S_IFMT(mode)
    if kind not in kinds:
        raise OptionError(
            f"{what} is {_NAMES.get(kind, 'no file')}; {wanted} is needed",
            errno=errnos.EISDIR if kind == stat.S_IFDIR else errnos.EINVAL,
            driver=driver,
            operation="connect",
            filename=None if path is None else str(path),
        )


def _require_size(driver: str, fd: object, path: object, size: int, what: str) -> None:
    """A copy of such a file would be empty, and well done."""
    if isinstance(fd, int):
        found = lib.file_system_of(ffi.NULL, fd)
    else:
        found = lib.file_system_of(os.fsencode(str(path)), -1)
    if found in _MADE_UP and not (found == _PROCFS and size):  # /proc/vmcore has one
        raise OptionError(
            f"{what} is a file of {_MADE_UP[found]}, whose size says nothing of what it holds; a disk, or a"
            " file of another file system, is needed",
            driver=driver,
            operation="connect",
            filename=None if path is None else str(path),
        )


def _require_access(driver: str, fd: int, flags: int) -> None:
    access = flags & os.O_ACCMODE
    if flags & os.O_PATH:
        wrong = (
            "was opened with O_PATH, which only names the file; open it for reading, or reading and writing"
        )
    elif access == os.O_WRONLY:
        wrong = "is open for writing only, and no read would succeed; open it for reading and writing"
    elif flags & os.O_APPEND and access != os.O_RDONLY:
        wrong = (
            "appends (O_APPEND): what is written would go to the end of the file, whatever its offset; open"
            " it without that"
        )
    else:
        return
    raise OptionError(f"descriptor {fd} {wrong}", driver=driver, operation="connect")


def size_of(fd: int) -> int:
    """The size in bytes of a regular file or block device, now.

    libblkio would look for the end with lseek(), and move the position of the caller's descriptor.
    """
    file = os.fstat(fd)
    if not stat.S_ISBLK(file.st_mode):
        return file.st_size
    answer = bytearray(struct.calcsize("Q"))
    fcntl.ioctl(fd, BLKGETSIZE64, answer)
    size: int = struct.unpack("Q", answer)[0]
    return size


def create_file(driver: str, path: str, size: int) -> None:
    """Make a regular file of *size* bytes, all of them a hole, where nothing is. BlkioError: it cannot be."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            os.ftruncate(fd, size)
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(fd)
    except OSError as error:
        known = error.errno == errnos.EEXIST
        text = "what is there is not overwritten; leave create out to open it" if known else None
        raise request_error(driver, "create", error.errno or errnos.EIO, text, filename=path) from None
