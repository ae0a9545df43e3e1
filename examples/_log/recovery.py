"""Following the records to their end, and telling a torn end from damage.

The end of the log is where the chain of checksums breaks. A crash breaks it in the last group, which nobody
was told is durable: a group is acknowledged before the next one is written. So it is damage, not a crash, if
a header says that the log goes further, or if another group comes later. It comes within reach: a header is
written whenever the log has grown by so much.

What cannot be told from a torn write is damage in the last group of a log that was killed within a moment
after its last write. Once that moment has passed, or the log is closed, a header covers that group as well.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import NamedTuple, final

import aioblk

from .errors import LogDamagedError, LogError
from .layout import (
    ANY_MAGIC,
    BLOCK,
    GROUP,
    GROUP_HEAD,
    HEADER_MAGIC,
    LARGEST_BLOCK,
    MARK_EVERY,
    OLD_MAGIC,
    RECORD,
    GroupHead,
    Header,
    record_checksum,
    round_up,
)

READ_AHEAD = 1 << 20


class Record(NamedTuple):
    number: int
    """1, 2, 3 and so on."""
    data: bytes


# --- headers ------------------------------------------------------------------------------------------------


@final
class Headers(NamedTuple):
    """What was found at the beginning of a device."""

    newest: Header
    damaged: int | None
    """The offset of the one that is not whole, as a crash or a bad block leaves it."""


async def read_headers(device: aioblk.BlockDevice) -> Headers:
    """Raises LogError if the device holds no log, or is not as the log needs it."""
    smallest = max(BLOCK, device.limits.request_alignment)
    first = await _read(device, 0, smallest)
    newest, damaged = Header.unpack(first) if first else None, None
    block = smallest if newest is None else newest.block
    while True:  # the first one may be damaged, and then it does not tell where the second one is
        data = await _read(device, block, block)
        second = Header.unpack(data) if data else None
        if newest is not None or second is not None or block >= LARGEST_BLOCK:
            break
        block *= 2
    if newest is None and second is None:
        if first.startswith(OLD_MAGIC):
            raise LogError("the device holds a log of an earlier format")
        if first.startswith(HEADER_MAGIC):
            raise LogError("both headers of the log are damaged")
        if first.startswith(ANY_MAGIC):
            raise LogError(
                f"the device holds a log of another format, {first[: len(HEADER_MAGIC)]!r}; this program"
                f" knows {HEADER_MAGIC!r}"
            )
        if device.capacity < 3 * smallest:
            raise LogError(f"the device has {device.capacity} bytes, and a log {3 * smallest} at least")
        raise LogError("the device holds no log; format it first")
    if newest is None or second is None:
        damaged = 0 if newest is None else block
    if newest is None or (second is not None and second.sequence > newest.sequence):
        newest = second
    assert newest is not None
    if newest.block < smallest or newest.block % device.limits.request_alignment:
        raise LogError(f"the log was made for blocks of {newest.block} bytes; the device has {smallest}")
    if newest.end > device.capacity:
        raise LogError(
            f"the log has {newest.end} bytes, and the device only {device.capacity}: its end is missing, with"
            " records that were acknowledged; bring it back, from a copy if need be"
        )
    return Headers(newest, damaged)


async def _read(device: aioblk.BlockDevice, offset: int, length: int) -> bytes:
    return await device.read(offset, length) if offset + length <= device.capacity else b""


# --- records ------------------------------------------------------------------------------------------------


@final
class Place(NamedTuple):
    """A place behind a record, or before the first one."""

    position: int
    number: int
    """Of the record; 0: none."""
    checksum: int
    group: int
    """Where its group begins,"""
    group_end: int
    """and where that should end."""
    epoch: int

    @classmethod
    def start(cls, header: Header) -> "Place":
        return cls(header.start, 0, header.seed, header.start, header.start, header.epoch)

    @property
    def in_the_middle(self) -> bool:
        """Whether its group should go on."""
        return self.position < self.group_end


@final
class Found(NamedTuple):
    """A whole record, and the place behind it."""

    record: Record
    place: Place


async def follow(device: aioblk.BlockDevice, header: Header, place: Place) -> AsyncGenerator[Found]:
    """The whole records behind a place that is the last in its group, until the chain breaks.

    A group that a crash has cut is followed by one that continues it where it was cut.
    """
    async with aclosing(_Reader(device, header.block, place.position)) as reader:
        while True:
            position = round_up(place.position, header.block)
            data = await reader.get(position, GROUP_HEAD.size)
            head = GroupHead.unpack(data, identity=header.identity, offset=position)
            if head is None or not _continues(head, place):
                return
            start = position + GROUP_HEAD.size
            place = Place(start, place.number, head.checksum, position, start + head.length, head.epoch)
            found: Found | None = None
            while place.in_the_middle and (record := await _find(reader, place)):
                found, place = record, record.place
                yield record
            if found is None:
                return


def _continues(head: GroupHead, place: Place) -> bool:
    return head.first == place.number + 1 and head.previous == place.checksum


async def _find(reader: "_Reader", place: Place) -> Found | None:
    """The record at that place, if it is whole and continues the chain."""
    head = await reader.get(place.position, RECORD.size)
    if len(head) < RECORD.size:
        return None
    checksum, length, number = RECORD.unpack(head)
    start = place.position + RECORD.size
    if number != place.number + 1 or start + length > place.group_end:
        return None
    data = await reader.get(start, length)
    if len(data) < length or checksum != record_checksum(place.checksum, number, data):
        return None
    behind = place._replace(position=start + length, number=number, checksum=checksum)
    return Found(Record(number, data), behind)


@final
class _Reader:
    """Reads a device from the front to the back, always a step ahead of its user."""

    def __init__(self, device: aioblk.BlockDevice, block: int, start: int) -> None:
        self._device = device
        self._device_end = device.capacity // block * block
        self._data = b""
        self._start = self._ahead_from = start // block * block
        self._ahead = self._read_ahead()

    async def get(self, position: int, length: int) -> bytes:
        """The bytes there, fewer at the end of the device. Positions never decrease."""
        while self._ahead is not None and position + length > self._start + len(self._data):
            more = await self._ahead
            self._ahead = self._read_ahead()
            self._data = self._data[position - self._start :] + more
            self._start = position
        begin = position - self._start
        return self._data[begin : begin + length]

    def _read_ahead(self) -> "asyncio.Future[bytes] | None":
        """The next piece: a request is under way as soon as it is made, whoever awaits it and when."""
        start, self._ahead_from = self._ahead_from, min(self._ahead_from + READ_AHEAD, self._device_end)
        if start == self._ahead_from:
            return None
        return asyncio.ensure_future(self._device.read(start, self._ahead_from - start))

    async def aclose(self) -> None:
        if self._ahead is not None:
            self._ahead.cancel()


# --- the end ------------------------------------------------------------------------------------------------


async def judge(device: aioblk.BlockDevice, header: Header, place: Place) -> str | None:
    """Whether the end of the log, behind *place*, is a good one: None, or words for what a crash has left.

    Raises LogDamagedError if records have been there that were acknowledged.
    """
    group = round_up(place.position, header.block)  # where the next one is to be
    if place.number < header.last:
        proof = f"the log's header says that there are {header.last} records, up to offset {header.end}"
        raise _damage(place, group, proof)
    torn = place.in_the_middle
    end = min(max(header.end, group) + MARK_EVERY + 2 * GROUP, device.capacity // header.block * header.block)
    for start in range(group, end, READ_AHEAD):
        data = await device.read(start, min(READ_AHEAD, end - start))
        for position in range(start, start + len(data), header.block):
            block = data[position - start : position - start + GROUP_HEAD.size]
            if position == group and GroupHead.may_begin(block, identity=header.identity):
                torn = True
            head = GroupHead.unpack(block, identity=header.identity, offset=position)
            if head is None or (position == group and _continues(head, place)):
                continue
            if head.first > place.number:
                proof = f"record {head.first}, which was written later, begins at offset {position}"
                raise _damage(place, group, proof)
    if not torn:
        return None
    where = place.position if place.in_the_middle else group
    return (
        f"what was written behind record {place.number}, from offset {where} on, is not whole: it was not "
        "acknowledged, as far as can be known, and will be written over"
    )


def _damage(place: Place, group: int, proof: str) -> LogDamagedError:
    offset = place.position if place.in_the_middle else group
    number = place.number + 1
    return LogDamagedError(
        f"record {number} is damaged, at offset {offset} or behind: {proof}. Nothing has been changed",
        offset=offset,
        number=number,
    )
