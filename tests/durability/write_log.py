"""Logs of writes as Linux's dm-log-writes makes them, and QEMU's blklogwrites: what reached a disk, in
order.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

__all__ = ["DISCARD", "FLUSH", "FUA", "MARK", "SECTOR", "Entry", "entries"]

SECTOR = 512
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
MAGIC = 0x6A736677736872
SUPER = struct.Struct("<QQQI")
ENTRY = struct.Struct("<QQQQ")
METADATA = 16  # says nothing here


@dataclass(frozen=True, slots=True)
class Entry:
    sector: int
    count: int
    """In sectors of 512 bytes."""
    flags: int
    data: bytes | None
    """What was written, or said by a mark; None: zeroes, or nothing at all."""
    end: int
    """Where it ends in the log, in bytes."""


def entries(log: bytes, are_zeroes: Callable[[int], bool] = lambda count: False) -> Iterator[Entry]:
    """As many as there are, whatever the superblock says: it counts those only that a flush has followed.

    What wrote the log may have been killed. Then there may be gaps, where entries were to be, and an entry
    may lack its data, in part: such sectors are of zeroes. Where QEMU's 7.2 logs zeroes, they come behind the
    entries of what was written meanwhile. *are_zeroes* says of a number of sectors that such writes are
    always of zeroes."""
    block = SECTOR
    if any(log[: SUPER.size]):  # it comes with the first flush
        magic, version, _, block = SUPER.unpack_from(log)
        assert (magic, version) == (MAGIC, 1), "it is no log of writes"
    log, place = log.rstrip(b"\0").ljust(block, b"\0"), block
    end = len(log)
    log += bytes(block)  # an entry has it, though it may end with zeroes
    while place < end:
        sector, count, flags, length = ENTRY.unpack_from(log, place)
        start = place + block
        if not any(log[place:start]):
            place = start
            continue
        assert not flags & ~(FLUSH | FUA | DISCARD | MARK | METADATA), (
            f"no entry at {place}: flags {flags:#x}"
        )
        size = 0 if flags & DISCARD or are_zeroes(count) else count * block
        data: bytes | None = log[start : start + size].ljust(size, b"\0")
        if flags & MARK:
            data = log[place + ENTRY.size : place + ENTRY.size + length]
        elif not any(data or b""):
            data = None
        place = start + size
        yield Entry(sector * block // SECTOR, count * block // SECTOR, flags, data, place)
