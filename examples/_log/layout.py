"""What is on the device, in blocks: a header twice, and groups of records, each at a block of its own.

Every checksum covers what came before it: a record's the record before, the group's first record the head of
the group, and the head of the group the last record of the group before. So the records are a chain. But the
head of a group also says by itself where it is and in which log, so that it is recognised as a part of the
log where the chain is broken.
"""

import struct
from dataclasses import dataclass
from typing import NamedTuple, Self, final
from zlib import crc32

BLOCK = 4096  # or what the device can write at once, if that is more
LARGEST_BLOCK = 1 << 16
GROUP = 1 << 20  # the most that is written at once
MARK_EVERY = 1 << 20  # bytes of groups, at most, after which a header says how far the log goes

HEADER_MAGIC = b"aioblkl2"
OLD_MAGIC = b"aioblklg"
ANY_MAGIC = b"aioblkl"  # of whatever format, with one more byte
HEADER = struct.Struct("<8sIIQQQQQQI")  # magic, checksum of the rest; then as the fields of Header
GROUP_MAGIC = b"LGRP"
GROUP_HEAD = struct.Struct("<4sIQQQIIQ")  # magic, checksum of the rest; then as the fields of GroupHead
RECORD = struct.Struct("<IIQ")  # checksum, length of the data, number; then the data
CHECKED = struct.Struct("<IQ")  # what of it the checksum covers beside the data

LARGEST_RECORD = GROUP - GROUP_HEAD.size - RECORD.size


@final
@dataclass(frozen=True, slots=True)
class Header:
    """What a header says. There are two, written in turn: one is always whole."""

    block: int
    identity: int
    """Of the log, a number that no other log has."""
    sequence: int
    """The higher, the later it was written. The odd ones are in the second block."""
    epoch: int
    """Counts the writers."""
    writer: int
    """The last of them, a random number."""
    last: int
    """The number of a record that has been acknowledged,"""
    end: int
    """where the group after it begins,"""
    checksum: int
    """and the checksum of that record."""

    def pack(self) -> bytes:
        rest = HEADER.pack(
            *(b"", 0, self.block, self.identity, self.sequence, self.epoch),
            *(self.writer, self.last, self.end, self.checksum),
        )[12:]
        return (HEADER_MAGIC + crc32(rest).to_bytes(4, "little") + rest).ljust(self.block, b"\0")

    @classmethod
    def unpack(cls, data: bytes) -> Self | None:
        """What the block says, if it is whole."""
        magic, checksum, *fields = HEADER.unpack_from(data)
        if magic != HEADER_MAGIC or checksum != crc32(data[12 : HEADER.size]):
            return None
        return cls(*fields)

    @property
    def offset(self) -> int:
        return self.sequence % 2 * self.block

    @property
    def start(self) -> int:
        """Where the first group begins."""
        return 2 * self.block

    @property
    def seed(self) -> int:
        """What the first group continues."""
        return crc32(self.identity.to_bytes(8, "little"))


class GroupHead(NamedTuple):
    """What the head of a group says."""

    identity: int
    offset: int
    first: int
    """The number of its first record."""
    previous: int
    """The checksum of the record before that."""
    length: int
    """Of its records together, with their heads."""
    epoch: int

    def pack(self) -> bytes:
        rest = GROUP_HEAD.pack(b"", 0, *self)[8:]
        return GROUP_MAGIC + crc32(rest).to_bytes(4, "little") + rest

    @classmethod
    def unpack(cls, data: bytes, *, identity: int, offset: int) -> Self | None:
        """What the head says, if it is whole and one of this log's, at that place."""
        if len(data) < GROUP_HEAD.size or not data.startswith(GROUP_MAGIC):
            return None
        _, checksum, *fields = GROUP_HEAD.unpack_from(data)
        head = cls(*fields)
        if checksum != crc32(data[8 : GROUP_HEAD.size]):
            return None
        return head if (head.identity, head.offset) == (identity, offset) else None

    @staticmethod
    def may_begin(data: bytes, *, identity: int) -> bool:
        """Whether it looks as if such a head had been written there."""
        return data.startswith(GROUP_MAGIC) or data.startswith(identity.to_bytes(8, "little"), 8)

    @property
    def checksum(self) -> int:
        """What the first record continues."""
        return crc32(self.pack())


def record_checksum(previous: int, number: int, data: bytes) -> int:
    return crc32(data, crc32(CHECKED.pack(len(data), number), previous))


def round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
