"""Which processes have a file or block device open or locked, as far as /proc shows them.

Of processes of other users only root sees the descriptors. What everybody sees is that there is a lock, the
process of a lock of fcntl(2), and the command line of each process.
"""

import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Iterator
from typing import NamedTuple, final

__all__ = ["Lock", "is_same", "lockers", "locks", "openers", "process_name", "suspects"]

# NUMBER: OFDLCK ADVISORY READ PROCESS MAJOR:MINOR:INODE FIRST LAST; in fdinfo behind "lock:"
_LOCK = re.compile(
    r"^(?:lock:)?\s*\d+: (?P<kind>\S+) +\S+ +(?P<access>\S+) +(?P<process>-?\d+)"
    r" +(?P<device>[0-9a-f]+:[0-9a-f]+):(?P<inode>\d+) +(?P<first>\d+) +(?P<last>\d+|EOF)$",
    re.MULTILINE,
)
_MOST = 1 << 63


@final
class Lock(NamedTuple):
    """A lock on bytes of a file."""

    kind: str
    """OFDLCK, POSIX, FLOCK, LEASE."""
    access: str
    """READ or WRITE."""
    first: int
    last: int

    def is_of(self, places: Collection[int]) -> bool:
        return any(self.first <= place <= self.last for place in places)


def is_same(one: os.stat_result, other: os.stat_result) -> bool:
    """Whether they are one file, or one block device, be it through two nodes."""
    if stat.S_ISBLK(other.st_mode):
        return stat.S_ISBLK(one.st_mode) and one.st_rdev == other.st_rdev
    return os.path.samestat(one, other)


# --- descriptors --------------------------------------------------------------------------------------------


def openers(wanted: os.stat_result) -> Iterator[tuple[int, bool]]:
    """The processes that have it open, and whether for writing."""
    for process in _numbers("/proc"):
        modes = [_is_for_writing(process, number) for number in _descriptors(process, wanted)]
        if modes:
            yield process, any(modes)


def lockers(wanted: os.stat_result, own: int = -1) -> Iterator[tuple[int, list[tuple[Lock, int]]]]:
    """The processes that have locked it, but not by the own descriptor *own*, with what :func:`locks` has."""
    for process in _numbers("/proc"):
        found: list[tuple[Lock, int]] = []
        for number in _numbers(f"/proc/{process}/fdinfo"):
            if (process, number) == (os.getpid(), own):
                continue
            said = _read(f"/proc/{process}/fdinfo/{number}")
            if "lock:" in said and _is_descriptor_of(process, number, wanted):
                found += _parse(said, wanted)
        if found:
            yield process, found


def _descriptors(process: int, wanted: os.stat_result) -> Iterator[int]:
    for number in _numbers(f"/proc/{process}/fd"):
        if _is_descriptor_of(process, number, wanted):
            yield number


def _is_descriptor_of(process: int, number: int, wanted: os.stat_result) -> bool:
    try:
        return is_same(os.stat(f"/proc/{process}/fd/{number}"), wanted)
    except OSError:  # gone meanwhile, or none of ours
        return False


def _is_for_writing(process: int, number: int) -> bool:
    flags = re.search(r"^flags:\s*(\d+)", _read(f"/proc/{process}/fdinfo/{number}"), re.MULTILINE)
    return flags is None or int(flags[1], 8) & os.O_ACCMODE != os.O_RDONLY


# --- what everybody sees ------------------------------------------------------------------------------------


def locks(wanted: os.stat_result) -> Counter[tuple[Lock, int]]:
    """All locks on it, whoever has them, each with the process; -1: that of an open file (OFD)."""
    device = f"{os.major(wanted.st_dev):02x}:{os.minor(wanted.st_dev):02x}"
    return Counter(_parse(_read("/proc/locks"), wanted, device))


def suspects(path: str) -> Iterator[int]:
    """The processes whose descriptors cannot be seen, and whose command line names the path."""
    names = "|".join(re.escape(name) for name in (os.path.realpath(path), os.path.basename(path)))
    named = re.compile(rf"(?:^|[\0=:,/\"])(?:{names})(?:$|[\0,&\"])")
    for process in _numbers("/proc"):
        if _is_hidden(process) and named.search(_read(f"/proc/{process}/cmdline")):
            yield process


def _is_hidden(process: int) -> bool:
    try:
        os.listdir(f"/proc/{process}/fd")
    except PermissionError:
        return True
    except OSError:
        pass
    return False


def process_name(process: int) -> str:
    """As messages have it."""
    if process == os.getpid():
        return f"this process, {process}"
    name = _read(f"/proc/{process}/comm").removesuffix("\n")
    command = os.path.basename(_read(f"/proc/{process}/cmdline").partition("\0")[0])
    if command.startswith(name):  # which has 15 characters at most
        name = command
    if not name:
        return f"process {process}"
    return f"process {process} ({name if name.isprintable() else repr(name)})"


# --- /proc --------------------------------------------------------------------------------------------------


def _parse(said: str, wanted: os.stat_result, device: str | None = None) -> Iterator[tuple[Lock, int]]:
    for found in _LOCK.finditer(said):
        if int(found["inode"]) == wanted.st_ino and device in (None, found["device"]):
            last = _MOST if found["last"] == "EOF" else int(found["last"])
            yield Lock(found["kind"], found["access"], int(found["first"]), last), int(found["process"])


def _numbers(folder: str) -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir(folder) if name.isdecimal())
    except OSError:
        return []


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read().decode(errors="replace")
    except OSError:
        return ""
