"""Who has a file or a block device in use, as far as it can be seen in /proc and /sys."""

import math
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator

__all__ = ["find_claims", "find_lockers"]

_MOST_NAMED = 3

# lock: NUMBER: OFDLCK ADVISORY READ PROCESS MAJOR:MINOR:INODE FIRST LAST
_LOCK = re.compile(
    rb"^lock:\t\d+: (?:OFDLCK|POSIX) +\S+ +\S+ +-?\d+ +[0-9a-f]+:[0-9a-f]+:(?P<inode>\d+) +(?P<first>\d+)"
    rb" +(?P<last>\d+|EOF)$",
    re.MULTILINE,
)


def find_lockers(fd: int, places: Collection[int]) -> str:
    """In words, the processes that have locked some of the bytes *places* of what *fd* is open on."""
    try:
        wanted = os.fstat(fd)
        return _in_words(dict.fromkeys(_lockers(wanted, fd, places)))
    except OSError:
        return _in_words({})


def find_claims(path: str, places: Collection[int]) -> str:
    """In words, who has claimed a block device for himself."""
    try:
        wanted = os.stat(path)
        found = dict.fromkeys(_lockers(wanted, -1, places))
        found.update(dict.fromkeys(_claims(wanted.st_rdev)))
        return _in_words(found)
    except OSError:
        return _in_words({})


def _in_words(found: dict[str, None]) -> str:
    if not found:
        return "somebody who cannot be seen from here"
    names = list(found)[:_MOST_NAMED]
    more = len(found) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


# --- processes ----------------------------------------------------------------------------------------------


def _lockers(wanted: os.stat_result, own: int, places: Collection[int]) -> Iterator[str]:
    """The processes, but not for the own descriptor *own*."""
    for process in _numbers("/proc"):
        for descriptor in _numbers(f"/proc/{process}/fdinfo"):
            if (process, descriptor) == (os.getpid(), own):
                continue
            if _has_locked(process, descriptor, wanted, places):
                yield _name(process)
                break


def _has_locked(process: int, descriptor: int, wanted: os.stat_result, places: Collection[int]) -> bool:
    try:
        with open(f"/proc/{process}/fdinfo/{descriptor}", "rb") as file:
            said = file.read()
        if b"lock:" not in said or not _is_of(said, wanted, places):
            return False
        return os.path.samestat(os.stat(f"/proc/{process}/fd/{descriptor}"), wanted)
    except OSError:  # gone meanwhile, or none of ours
        return False


def _is_of(said: bytes, wanted: os.stat_result, places: Collection[int]) -> bool:
    for lock in _LOCK.finditer(said):
        first = int(lock["first"])
        last = math.inf if lock["last"] == b"EOF" else int(lock["last"])
        if int(lock["inode"]) == wanted.st_ino and any(first <= place <= last for place in places):
            return True
    return False


def _numbers(folder: str) -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir(folder) if name.isdecimal())
    except OSError:
        return []


def _name(process: int) -> str:
    if process == os.getpid():
        return f"this process, {process}"
    try:
        with open(f"/proc/{process}/comm", "rb") as file:
            name = file.read().rstrip(b"\n").decode(errors="replace")
    except OSError:
        name = "?"
    return f"{name if name.isprintable() else repr(name)} (process {process})"


# --- the kernel ---------------------------------------------------------------------------------------------


def _claims(device: int) -> Iterator[str]:
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in _lines("/proc/self/mountinfo"):
        words = line.split()
        if len(words) > 4 and words[2] == number:
            yield f"a filesystem mounted at {_unquoted(words[4])}"
    for line in _lines("/proc/swaps")[1:]:
        path = _unquoted(line.split()[0])
        if _device_of(path) == device:
            yield "the kernel, which swaps to it"
    yield from _parts(f"/sys/dev/block/{number}")


def _parts(folder: str) -> Iterator[str]:
    """What lies over a block device or its partitions."""
    for name in _names(f"{folder}/holders"):
        yield f"the device {name}"
    for part in _names(folder):
        number = _lines(f"{folder}/{part}/dev") if os.path.exists(f"{folder}/{part}/partition") else []
        for text in number:
            major, _, minor = text.partition(":")
            yield from _claims(os.makedev(int(major), int(minor)))


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _lines(path: str) -> list[str]:
    try:
        with open(path, errors="surrogateescape") as file:
            return file.read().splitlines()
    except OSError:
        return []


def _device_of(path: str) -> int:
    try:
        found = os.stat(path)
    except OSError:
        return -1
    return found.st_rdev if stat.S_ISBLK(found.st_mode) else -1


def _unquoted(text: str) -> str:
    """The kernel writes spaces as \\040."""
    replace: Callable[[re.Match[str]], str] = lambda match: chr(int(match[1], 8))  # noqa: E731
    return re.sub(r"\\([0-7]{3})", replace, text)
