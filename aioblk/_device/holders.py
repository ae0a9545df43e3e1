"""Who has a file or a block device in use: the kernel and processes, as far as /proc and /sys show it."""

import contextlib
import errno
import functools
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from glob import glob  # pathlib takes several times as long to import, and every lock looks here
from typing import Literal, NamedTuple, TypeAlias, final

from .processes import Lock, is_same, lockers, locks, openers, process_name, suspects

__all__ = [
    "WRITERS_MIND",
    "Holder",
    "HolderKind",
    "find_claims",
    "find_holders",
    "find_lockers",
    "in_use_by",
    "loops_over",
    "own_claims",
]

HolderKind: TypeAlias = Literal["mount", "swap", "device", "lock", "exclusive", "process"]

_MOST_NAMED = 3
_UNSEEN = "somebody who cannot be seen from here"
_WHERE = "a process of another user or container, or another machine"

WRITERS_MIND = (101, 103, 201, 203)
"""The bytes of QEMU's locks that say: I write or resize, or bear nobody else who does."""

own_claims: set[int] = set()
"""The numbers of the block devices that this process has claimed by a lock of its own."""


@final
class Holder(NamedTuple):
    """Somebody who uses it."""

    kind: HolderKind
    who: str
    """As the end of a sentence: it is "mounted at /srv"."""
    writes: bool = True
    """Whether it would mind if somebody else wrote: a process that has it open for reading only may not."""


# --- everybody ----------------------------------------------------------------------------------------------


def find_holders(path: str | os.PathLike[str]) -> list[Holder]:
    """Whoever has *path* in use: mounts, swap, device mapper, RAID, loop devices, locks, and processes.

    This process itself is not among them. Of a disk, its partitions' users are. Processes of other users are
    seen by root only. Takes some tens of milliseconds: it looks through /proc, so not on an event loop.

    Raises:
        OSError: there is no such file.
    """
    status = os.stat(path)
    found = list(_kernel(status)) or list(_exclusive(path, status))
    found += _locks(status)
    found += _processes(status)
    return list(dict.fromkeys(found))


def in_use_by(path: str | os.PathLike[str]) -> str | None:
    """Who would not bear it if a file or disk was written to: the end of a sentence that begins with "it is".

    None: nobody, as far as is known. Who merely has it open is not counted, unlike by :func:`find_holders`.
    A lock of this process's own neither; so it can be asked before and after locking.
    """
    try:
        found = find_holders(path)
    except OSError:
        return None
    return _join(holder.who for holder in found if holder.writes and holder.kind != "process")


# --- in words, for the refusal of a lock --------------------------------------------------------------------


def find_lockers(fd: int, places: Collection[int], name: str | None) -> str:
    """The processes that have locked some of the bytes *places* of what *fd* is open on, as *name*."""
    try:
        return _processes_in_words(_lockers(os.fstat(fd), places, fd), name)
    except OSError:
        return f"{_UNSEEN}: {_WHERE}"


def find_claims(path: str, places: Collection[int]) -> str:
    """Who has claimed a block device for himself: the end of a sentence that begins with "it is"."""
    try:
        wanted = os.stat(path)
    except OSError:
        return f"used by {_UNSEEN}: {_WHERE}"
    if by_kernel := _join(holder.who for holder in _kernel(wanted)):
        return by_kernel
    found = list(_lockers(wanted, places)) or [process for process, _ in openers(wanted)]
    return f"used by {_processes_in_words(found, path)}"


def _lockers(wanted: os.stat_result, places: Collection[int], own: int = -1) -> Iterator[int]:
    seen = False
    for process, found in lockers(wanted, own):
        if any(lock.is_of(places) for lock, _ in found):
            seen = True
            yield process
    if not seen:  # a process of another user, if it is of fcntl's
        for lock, process in locks(wanted):
            if process > 0 and lock.kind == "POSIX" and lock.is_of(places):
                yield process


def _processes_in_words(found: Iterable[int], name: str | None) -> str:
    if known := _join(map(process_name, found)):
        return known
    guessed = _join(map(process_name, suspects(name))) if name else None
    return f"{_UNSEEN}{f', perhaps {guessed}, whose command line names it' if guessed else f': {_WHERE}'}"


def _join(found: Iterable[str]) -> str | None:
    names = list(dict.fromkeys(found))
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "") or None


# --- processes ----------------------------------------------------------------------------------------------


def _locks(status: os.stat_result) -> Iterator[Holder]:
    left = locks(status)
    for process, found in lockers(status):
        left.subtract(found)
        if process != os.getpid():
            minds = any(_minds(lock) for lock, _ in found)
            yield Holder("lock", f"locked by {process_name(process)}", minds)
    for (lock, process), count in left.items():
        if count > 0 and process != os.getpid():
            who = process_name(process) if process > 0 else "an open file description, as QEMU's"
            yield Holder("lock", f"locked by {who}", _minds(lock))


def _minds(lock: Lock) -> bool:
    return lock.access == "WRITE" or (lock.kind == "OFDLCK" and lock.is_of(WRITERS_MIND))


def _processes(status: os.stat_result) -> Iterator[Holder]:
    for process, writes in openers(status):
        if process != os.getpid():
            how = "for writing" if writes else "for reading"
            yield Holder("process", f"open {how} in {process_name(process)}", writes)


# --- the kernel ---------------------------------------------------------------------------------------------


def _kernel(status: os.stat_result) -> Iterator[Holder]:
    if stat.S_ISBLK(status.st_mode):
        numbers = [status.st_rdev, *_partitions(status.st_rdev)]
        yield from _mounts(numbers)
        for number in numbers:
            yield from _above(number)
            yield from _swaps(functools.partial(_is_disk, number))
    else:
        yield from _swaps(functools.partial(is_same, status))
    yield from loops_over(status)


def loops_over(status: os.stat_result) -> Iterator[Holder]:
    """The loop devices that a file or disk is the content of."""
    for backing in _paths("/sys/block", "loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if is_same(os.stat(_read(backing).removesuffix("\n")), status):
                yield Holder("device", f"behind the loop device /dev/{backing.split('/')[-3]}")


def _exclusive(path: str | os.PathLike[str], status: os.stat_result) -> Iterator[Holder]:
    """Whether the kernel, or somebody, has claimed a block device for itself."""
    if not stat.S_ISBLK(status.st_mode) or status.st_rdev in own_claims:
        return
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        if error.errno == errno.EBUSY:
            yield Holder("exclusive", "claimed for itself by the kernel or a process (O_EXCL)")


def _mounts(numbers: Collection[int]) -> Iterator[Holder]:
    for line in _read("/proc/self/mountinfo").splitlines():
        fields = line.split(" ")
        source = fields[fields.index("-") + 2] if "-" in fields[:-2] else ""
        # btrfs and its like have mounts whose number is not the disk's, but whose source is
        if _number(fields[2]) in numbers or _disk_at(_unescaped(source)) in numbers:
            yield Holder("mount", f"mounted at {_unescaped(fields[4])}")


def _swaps(is_it: Callable[[os.stat_result], bool]) -> Iterator[Holder]:
    for line in _read("/proc/swaps").splitlines()[1:]:
        with contextlib.suppress(OSError):
            if is_it(os.stat(_unescaped(line.split(" ")[0]))):
                yield Holder("swap", "swapped to")


def _above(number: int) -> Iterator[Holder]:
    """What is made of the disk: device mapper, RAID, bcache."""
    for path in _paths(_folder(number), "holders/*"):
        name = _read(f"{path}/dm/name").removesuffix("\n")
        yield Holder("device", f"a part of {os.path.basename(path)}{f' ({name})' if name else ''}")


def _partitions(number: int) -> Iterator[int]:
    for path in _paths(_folder(number), "*/partition"):
        part = _number(_read(f"{os.path.dirname(path)}/dev"))
        if part is not None:
            yield part


def _folder(number: int) -> str:
    return f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"


# --- /proc and /sys -----------------------------------------------------------------------------------------


def _number(text: str) -> int | None:
    found = re.fullmatch(r"(\d+):(\d+)\n?", text)
    return None if found is None else os.makedev(int(found[1]), int(found[2]))


def _is_disk(number: int, status: os.stat_result) -> bool:
    return stat.S_ISBLK(status.st_mode) and status.st_rdev == number


def _disk_at(path: str) -> int | None:
    if not path.startswith("/dev/"):
        return None
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_rdev if stat.S_ISBLK(status.st_mode) else None


def _unescaped(text: str) -> str:
    """The kernel writes spaces as \\040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _read(path: str) -> str:
    try:
        with open(path, errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def _paths(folder: str, pattern: str) -> list[str]:
    return sorted(glob(f"{folder}/{pattern}"))
