"""What the system says of itself: small readers, each of one thing, which tests put others in place of."""

import ctypes
import errno
import grp
import os
import platform
import pwd
import resource
import stat
from pathlib import Path

__all__ = [
    "effective_capabilities",
    "groups",
    "io_uring_setup",
    "kernel_release",
    "libblkio_file",
    "libblkio_has",
    "limit",
    "module_state",
    "paths",
    "read",
    "target",
    "who_may",
]

IO_URING_SETUP = 425  # the same number on every architecture


def read(path: str) -> str | None:
    """What a file of /proc or /sys says, without the white space around it; None: there is none."""
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return None


def paths(pattern: str) -> list[str]:
    """The paths that match an absolute pattern, in order."""
    return sorted(map(str, Path("/").glob(pattern.removeprefix("/"))))


def target(link: str) -> str | None:
    """The last part of where a symbolic link leads; None: there is none."""
    try:
        return Path(os.readlink(link)).name
    except OSError:
        return None


def kernel_release() -> str:
    return platform.release()


def io_uring_setup() -> int:
    """The errno of an attempt to make a ring; 0: it can be made, and is gone again."""
    parameters = ctypes.create_string_buffer(120)  # struct io_uring_params, all zeroes
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    fd = call(ctypes.c_long(IO_URING_SETUP), ctypes.c_uint(4), parameters)
    if fd < 0:
        return ctypes.get_errno()
    os.close(fd)
    return 0


def module_state(name: str) -> str:
    """Of a kernel module: "loaded" (or built in), "available" to modprobe, or "missing"."""
    if os.path.isdir(f"/sys/module/{name}"):
        return "loaded"
    place = f"/lib/modules/{kernel_release()}"
    for index, state in (("modules.builtin", "loaded"), ("modules.dep", "available")):
        for line in (read(f"{place}/{index}") or "").splitlines():
            file = line.partition(":")[0].rpartition("/")[2]
            if file.partition(".ko")[0].replace("-", "_") == name:
                return state
    return "missing"


def who_may(path: str) -> tuple[bool, str]:
    """Whether this process may read and write a file, and whose it is, as ``ls -l`` says."""
    try:
        status = os.stat(path)
    except OSError as error:
        return False, os.strerror(error.errno or errno.EIO)
    try:
        owner = pwd.getpwuid(status.st_uid).pw_name
    except KeyError:
        owner = str(status.st_uid)
    whose = f"{stat.filemode(status.st_mode)} {owner}:{group_name(status.st_gid)}"
    return os.access(path, os.R_OK | os.W_OK, effective_ids=True), whose


def group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def groups() -> set[int]:
    """The groups that this process is in."""
    return {os.getegid(), *os.getgroups()}


def effective_capabilities() -> int:
    """Of this process, as a mask: capability(7)."""
    status = read("/proc/self/status") or ""
    return next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:")), 0)


def limit(number: int) -> tuple[int | None, int | None]:
    """A soft and a hard limit of this process, as :mod:`resource` numbers them; None: there is none."""
    soft, hard = resource.getrlimit(number)
    unlimited = resource.RLIM_INFINITY
    return None if soft == unlimited else soft, None if hard == unlimited else hard


def libblkio_file() -> str | None:
    """The file of libblkio that is in use, with its version in the name as a rule."""
    for line in (read("/proc/self/maps") or "").splitlines():
        path = line.partition("/")
        if path[2].rpartition("/")[2].startswith("libblkio"):
            return os.path.realpath("/" + path[2])
    return None


def libblkio_has(driver: str) -> bool:
    """Whether libblkio was built with a driver."""
    from .._libblkio.handle import Blkio  # it loads libblkio
    from ..errors import BlkioError

    try:
        Blkio(driver).destroy()
    except BlkioError:
        return False
    return True
