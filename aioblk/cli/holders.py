"""Who has a file or a block device in use, as far as the kernel tells."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

from . import system

__all__ = ["Holder", "HolderKind", "find_holders"]

HolderKind: TypeAlias = Literal["mount", "swap", "device", "lock", "exclusive", "process"]


@final
@dataclass(frozen=True, slots=True)
class Holder:
    """Somebody who uses it."""

    kind: HolderKind
    who: str
    """As it begins a sentence: "mounted at /srv"."""
    writes: bool = True
    """Whether it would mind if somebody else wrote: a process that has it open for reading only may not."""


def find_holders(path: str) -> list[Holder]:
    """Whoever has *path* in use: mounts, swap, device mapper, RAID, loop devices, locks, and processes.

    Of a disk, its partitions' users are among them. Processes of other users are seen by root only. It looks
    through /proc, which may take some tens of milliseconds, so it is not called on a loop that is busy.

    Raises:
        OSError: there is no such file.
    """
    status = os.stat(path)
    found: list[Holder] = []
    if stat.S_ISBLK(status.st_mode):
        numbers = [(os.major(status.st_rdev), os.minor(status.st_rdev))]
        numbers += _partitions(*numbers[0])
        found += _mounts(numbers)
        found += [held for major, minor in numbers for held in _above(major, minor)]
        if not found:
            found += _exclusive(path)
    found += _swaps(path, status)
    found += _loops(path, status)
    found += _locks(status)
    found += _processes(status)
    return list(dict.fromkeys(found))


def _number(text: str | None) -> tuple[int, int] | None:
    major, _, minor = (text or "").partition(":")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None


def _partitions(major: int, minor: int) -> Iterator[tuple[int, int]]:
    for path in system.paths(f"/sys/dev/block/{major}:{minor}/*/dev"):
        if number := _number(system.read(path)):
            yield number


def _mounts(numbers: list[tuple[int, int]]) -> Iterator[Holder]:
    for line in (system.read("/proc/self/mountinfo") or "").splitlines():
        fields = line.split()
        source = fields[fields.index("-") + 2] if "-" in fields[:-2] else ""
        if _number(fields[2]) in numbers or _number_of(source) in numbers:
            yield Holder("mount", f"mounted at {_unescape(fields[4])}")


def _number_of(path: str) -> tuple[int, int] | None:
    """Btrfs and its like have mounts whose number is not that of a block device, but whose source is one."""
    with contextlib.suppress(OSError, ValueError):
        status = os.stat(_unescape(path))
        if stat.S_ISBLK(status.st_mode):
            return os.major(status.st_rdev), os.minor(status.st_rdev)
    return None


def _unescape(path: str) -> str:
    return path.encode().decode("unicode_escape") if "\\" in path else path


def _above(major: int, minor: int) -> Iterator[Holder]:
    """What is made of the device: device mapper, RAID, bcache."""
    for path in system.paths(f"/sys/dev/block/{major}:{minor}/holders/*"):
        name = system.read(f"{path}/dm/name")
        yield Holder("device", f"a part of {os.path.basename(path)}{f' ({name})' if name else ''}")


def _exclusive(path: str) -> Iterator[Holder]:
    """Whether the kernel, or somebody, has claimed a block device for itself: O_EXCL."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            yield Holder("exclusive", "claimed for itself by the kernel or a process (O_EXCL)")


def _swaps(path: str, status: os.stat_result) -> Iterator[Holder]:
    for line in (system.read("/proc/swaps") or "").splitlines()[1:]:
        name = _unescape(line.split()[0])
        with contextlib.suppress(OSError):
            other = os.stat(name)
            same = (other.st_dev, other.st_ino) == (status.st_dev, status.st_ino)
            if same or (
                stat.S_ISBLK(other.st_mode)
                and stat.S_ISBLK(status.st_mode)
                and other.st_rdev == status.st_rdev
            ):
                yield Holder("swap", "swapped to")


def _loops(path: str, status: os.stat_result) -> Iterator[Holder]:
    for backing in system.paths("/sys/block/loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            other = os.stat(system.read(backing) or "")
            if (other.st_dev, other.st_ino) == (status.st_dev, status.st_ino):
                yield Holder("device", f"behind the loop device /dev/{backing.split('/')[3]}")


def _locks(status: os.stat_result) -> Iterator[Holder]:
    where = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in (system.read("/proc/locks") or "").splitlines():
        fields = line.split()
        if "->" not in fields and where in fields:
            kind, access, process = fields[1], fields[3], fields[4]
            if process == str(os.getpid()):
                continue
            who = _process_name(process) if process != "-1" else "an open file description, as QEMU's"
            yield Holder(
                "lock", f"locked by {who} ({kind} {access})", writes=access == "WRITE" or kind == "OFDLCK"
            )


def _processes(status: os.stat_result) -> Iterator[Holder]:
    for directory in system.paths("/proc/[0-9]*/fd"):
        process = directory.split("/")[2]
        modes = [] if process == str(os.getpid()) else list(_modes(directory, status))
        if modes:
            how = "for writing" if any(modes) else "for reading"
            yield Holder("process", f"open {how} in {_process_name(process)}", any(modes))


def _modes(directory: str, status: os.stat_result) -> Iterator[bool]:
    """Of each descriptor of the file that a process has: whether it is for writing."""
    with contextlib.suppress(OSError):  # it has ended, or is somebody else's
        for name in os.listdir(directory):
            with contextlib.suppress(OSError):
                if _is_same(os.stat(f"{directory}/{name}"), status):
                    yield _writes(system.read(f"{directory}info/{name}") or "")


def _is_same(one: os.stat_result, other: os.stat_result) -> bool:
    if stat.S_ISBLK(other.st_mode):
        return stat.S_ISBLK(one.st_mode) and one.st_rdev == other.st_rdev
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


def _writes(fdinfo: str) -> bool:
    flags = next((line.split()[1] for line in fdinfo.splitlines() if line.startswith("flags:")), "2")
    return int(flags, 8) & os.O_ACCMODE != os.O_RDONLY


def _process_name(process: str) -> str:
    return f"process {process} ({system.read(f'/proc/{process}/comm') or 'ended'})"
