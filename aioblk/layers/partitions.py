"""Partitions: the stretches that a table at the beginning of a device divides it into.

GPT is as the UEFI specification (2.10, chapter 5) has it, MBR with its extended partitions as Linux reads
them.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, TypeVar, final
from uuid import UUID

from ..errors import PartitionTableError
from .block_device import BlockDevice
from .slice import Slice

__all__ = ["Partition", "partitions"]

D = TypeVar("D", bound=BlockDevice)

SECTOR_SIZES = 512, 4096
LARGEST_TABLE = 1 << 20  # bytes of a GPT's entries; 16 KiB are usual
MOST_LOGICAL = 256  # partitions in an extended one; Linux has an end as well
NO_TYPE = UUID(int=0)

PROTECTIVE = 0xEE
EXTENDED = (0x05, 0x0F, 0x85)

_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")  # after its first 92 bytes the sector is empty
_ENTRY = struct.Struct("<16s16sQQQ72s")
_MBR_ENTRY = struct.Struct("<B3xB3xII")


@final
@dataclass(frozen=True, slots=True)
class Partition:
    """A line of a partition table."""

    number: int
    """From 1 on, as Linux counts: logical partitions of an MBR begin with 5."""
    offset: int
    """Where it begins on the device, in bytes."""
    length: int
    """Its size in bytes."""
    type: str
    """GPT: the type's UUID, in small letters. MBR: the type as 0x83."""
    uuid: str
    """What Linux calls PARTUUID. GPT: a UUID. MBR: the disk's signature and the number, as 1b2c3d4e-01."""
    name: str = ""
    """The label; only GPT has one."""
    bootable: bool = False
    """Whether a BIOS is to start from it."""

    def slice(self, device: D, *, read_only: bool = False) -> Slice[D]:
        """The partition as a block device."""
        return Slice(device, self.offset, self.length, read_only=read_only)


async def partitions(
    device: BlockDevice, *, sector_size: int | None = None, backup: bool = False
) -> list[Partition]:
    """What the partition table on a device says, in the order of the table; nothing, if there is no table::

        for partition in await aioblk.partitions(dev):
            part = partition.slice(dev)

    ``sector_size``, in bytes, is what the table counts in. Without it, that is where the header of a GPT is,
    or the device's request-alignment, but 512 at least. ``backup``: read the copy of a GPT that is at the end
    of the device, to save what a damaged one says.

    Raises:
        PartitionTableError: the table is damaged, or contradicts itself or the device. A table that is wrong
            in one thing may be in others: nothing of it is given.
        BlkioError: it cannot be read.
    """
    disk = await _Disk.of(device, sector_size)
    mbr = await disk.read(0, 512)
    if mbr[510:] != b"\x55\xaa":
        if not backup and await disk.has_gpt():
            raise disk.damaged("there is a GPT, but no protective MBR before it")
        return await disk.gpt(backup=True) if backup else []
    entries = [_MbrEntry.unpack(mbr, number) for number in range(4)]
    if backup or any(entry.type == PROTECTIVE for entry in entries):
        return await disk.gpt(backup=backup)
    if any(entry.status & 0x7F for entry in entries):
        if _is_file_system(mbr):
            return []
        raise disk.damaged("an entry of the MBR is neither bootable nor not")
    return await disk.mbr(entries, int.from_bytes(mbr[440:444], "little"))


class _MbrEntry(NamedTuple):
    status: int
    type: int
    start: int
    """In sectors."""
    sectors: int

    @classmethod
    def unpack(cls, sector: bytes, number: int) -> "_MbrEntry":
        return cls(*_MBR_ENTRY.unpack_from(sector, 446 + 16 * number))


def _is_file_system(sector: bytes) -> bool:
    """The first sectors of those that DOS and Windows know end as an MBR does."""
    return sector[54:57] == b"FAT" or sector[82:87] == b"FAT32" or sector[3:11] in (b"NTFS    ", b"EXFAT   ")


class _Header(NamedTuple):
    """Of a GPT."""

    signature: bytes
    revision: int
    size: int
    checksum: int
    reserved: int
    own_sector: int
    other_sector: int
    first_usable: int
    last_usable: int
    uuid: bytes
    entries_at: int
    entries: int
    entry_size: int
    entries_checksum: int


@final
class _Disk:
    """A device with a table, in sectors."""

    def __init__(self, device: BlockDevice, sector: int) -> None:
        self._device = device
        self._sector = sector
        self._sectors = device.capacity // sector

    @classmethod
    async def of(cls, device: BlockDevice, sector: int | None) -> "_Disk":
        if sector is not None:
            if sector < 512 or sector & (sector - 1):
                raise ValueError(f"sector_size must be a power of two from 512 on, not {sector}")
            return cls(device, sector)
        for size in SECTOR_SIZES:
            disk = cls(device, size)
            if await disk.has_gpt():
                return disk
        return cls(device, max(device.limits.request_alignment, 512))

    async def read(self, offset: int, length: int) -> bytes:
        """Bytes; fewer, or none, at the end of the device."""
        alignment = self._device.limits.request_alignment
        end = min(offset + length, self._device.capacity // alignment * alignment)
        start = offset - offset % alignment
        if end <= offset:
            return b""
        found = await self._device.read(start, -(-(end - start) // alignment) * alignment)
        return found[offset - start : end - start]

    def damaged(self, what: str) -> PartitionTableError:
        return PartitionTableError(f"the partition table is damaged: {what}", operation="partitions")

    # --- GPT ------------------------------------------------------------------------------------------------

    async def has_gpt(self) -> bool:
        return await self.read(self._sector, 8) == b"EFI PART"

    async def gpt(self, *, backup: bool) -> list[Partition]:
        try:
            header = await self._gpt_header(self._sectors - 1 if backup else 1)
            table = await self._gpt_table(header)
        except PartitionTableError as error:
            if not backup and await self._has_backup():
                error.message = f"{error.message}; the copy at the end is whole: backup=True reads that"
            raise
        found = list(self._gpt_partitions(header, table))
        self._refuse_overlaps(found)
        return found

    async def _has_backup(self) -> bool:
        try:
            await self._gpt_table(await self._gpt_header(self._sectors - 1))
        except PartitionTableError:
            return False
        return True

    async def _gpt_header(self, sector: int) -> _Header:
        raw = await self.read(sector * self._sector, self._sector) if sector > 0 else b""
        if len(raw) < _HEADER.size or not raw.startswith(b"EFI PART"):
            raise self.damaged(f"the header of a GPT should be in sector {sector}, and is not")
        header = _Header(*_HEADER.unpack_from(raw))
        if not _HEADER.size <= header.size <= self._sector:
            raise self.damaged(f"the header of the GPT claims to have {header.size} bytes")
        summed = raw[:16] + bytes(4) + raw[20 : header.size]
        if zlib.crc32(summed) != header.checksum:
            raise self.damaged(f"the checksum of the GPT's header in sector {sector} is wrong")
        if header.own_sector != sector:
            raise self.damaged(
                f"the header of the GPT in sector {sector} says that it is in {header.own_sector}"
            )
        if not header.first_usable <= header.last_usable + 1 <= self._sectors:
            raise self.damaged(
                f"partitions may be in sectors {header.first_usable} to {header.last_usable}, it says;"
                f" the device has {self._sectors}"
            )
        for taken in (0, header.own_sector, header.other_sector):
            if header.first_usable <= taken <= header.last_usable:
                raise self.damaged(f"partitions may be in sector {taken}, it says, which the table is in")
        return header

    async def _gpt_table(self, header: _Header) -> bytes:
        size, length = header.entry_size, header.entries * header.entry_size
        if size < _ENTRY.size or size & (size - 1) or length > LARGEST_TABLE:
            raise self.damaged(f"the GPT claims to have {header.entries} entries of {size} bytes")
        if header.first_usable * self._sector < (header.entries_at * self._sector + length) and (
            header.entries_at <= header.last_usable
        ):
            raise self.damaged("the entries of the GPT lie where partitions may be")
        table = await self.read(header.entries_at * self._sector, length)
        if len(table) != length or zlib.crc32(table) != header.entries_checksum:
            raise self.damaged("the checksum of the GPT's entries is wrong")
        return table

    def _gpt_partitions(self, header: _Header, table: bytes) -> Iterator[Partition]:
        for number in range(header.entries):
            kind, uuid, first, last, attributes, name = _ENTRY.unpack_from(table, number * header.entry_size)
            if UUID(bytes_le=kind) == NO_TYPE:
                continue
            if not header.first_usable <= first <= last <= header.last_usable:
                raise self.damaged(
                    f"partition {number + 1} is in sectors {first} to {last}, outside of"
                    f" {header.first_usable} to {header.last_usable}"
                )
            yield Partition(
                number + 1,
                first * self._sector,
                (last - first + 1) * self._sector,
                str(UUID(bytes_le=kind)),
                str(UUID(bytes_le=uuid)),
                name.decode("utf-16-le", "replace").partition("\0")[0],
                bool(attributes & 4),
            )

    # --- MBR ------------------------------------------------------------------------------------------------

    async def mbr(self, entries: Sequence[_MbrEntry], signature: int) -> list[Partition]:
        found: list[Partition] = []
        extended: list[_MbrEntry] = []
        for number, entry in enumerate(entries, start=1):
            if entry.type == 0 or entry.sectors == 0:
                continue
            self._refuse_beyond(number, entry.start, entry.sectors)
            if entry.type in EXTENDED:
                extended.append(entry)
            found.append(self._mbr_partition(number, entry, entry.start, signature))
        if len(extended) > 1:
            raise self.damaged("the MBR has two extended partitions")
        self._refuse_overlaps(found)
        logical: list[Partition] = []
        for whole in extended:
            logical = await self._logical(whole, signature)
            self._refuse_overlaps(logical)
        primary = [part for part in found if int(part.type, 16) not in EXTENDED]  # which hold only the others
        return [*primary, *logical]

    async def _logical(self, whole: _MbrEntry, signature: int) -> list[Partition]:
        """Those in an extended partition: a chain of records, each with a partition and where the next one
        is."""
        found: list[Partition] = []
        at, seen = whole.start, set[int]()
        while True:
            if at in seen or len(seen) == MOST_LOGICAL:
                raise self.damaged("the chain of logical partitions has no end")
            seen.add(at)
            record = await self.read(at * self._sector, 512)
            if record[510:] != b"\x55\xaa":
                raise self.damaged(f"there is no record of a logical partition in sector {at}")
            entry, following = (_MbrEntry.unpack(record, number) for number in range(2))
            if entry.type and entry.sectors:
                number, start = 5 + len(found), at + entry.start
                self._refuse_beyond(number, start, entry.sectors, whole)
                found.append(self._mbr_partition(number, entry, start, signature))
            if following.type not in EXTENDED or not following.sectors:
                return found
            at = whole.start + following.start
            if not whole.start < at < whole.start + whole.sectors:
                raise self.damaged("the chain of logical partitions leaves the extended one")

    def _mbr_partition(self, number: int, entry: _MbrEntry, start: int, signature: int) -> Partition:
        return Partition(
            number,
            start * self._sector,
            entry.sectors * self._sector,
            f"{entry.type:#04x}",
            f"{signature:08x}-{number:02x}",
            bootable=entry.status == 0x80,
        )

    # --- both -----------------------------------------------------------------------------------------------

    def _refuse_beyond(self, number: int, start: int, sectors: int, within: _MbrEntry | None = None) -> None:
        first, end = (0, self._sectors) if within is None else (within.start, within.start + within.sectors)
        if not first < start <= start + sectors <= end:
            raise self.damaged(
                f"partition {number} is in sectors {start} to {start + sectors - 1}, outside of {first + 1}"
                f" to {end - 1}"
            )

    def _refuse_overlaps(self, found: Sequence[Partition]) -> None:
        ordered = sorted(found, key=lambda partition: partition.offset)
        for one, other in pairwise(ordered):
            if one.offset + one.length > other.offset:
                raise self.damaged(f"partitions {one.number} and {other.number} overlap")
