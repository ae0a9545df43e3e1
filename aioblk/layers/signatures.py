"""Signatures: what is known to begin, or to end, in a certain way, so that it is not overwritten unasked."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

from .block_device import BlockDevice

__all__ = ["Signature", "SignatureKind", "signatures"]

SignatureKind: TypeAlias = Literal["partition table", "file system", "volume", "swap", "image", "data"]


@final
@dataclass(frozen=True, slots=True)
class Signature:
    """What was recognised on a device."""

    offset: int
    """Where its mark is, in bytes."""
    kind: SignatureKind
    """"volume" is what is a part of something else: LVM, LUKS, a RAID, a pool."""
    name: str
    """As it ends a sentence: "an XFS file system"."""


async def signatures(device: BlockDevice) -> list[Signature]:
    """What is recognised on a device, in the order of the marks; nothing is no proof that it is unused::

        if found := await aioblk.signatures(dev):
            raise SystemExit(f"the device holds {found[0].name}")

    The first 132 KiB are looked at, and the last 128 KiB: partition tables, file systems, members of volumes
    and pools, swap space, disk images, databases and archives.

    Raises:
        BlkioError: they cannot be read.
    """
    step = max(device.limits.request_alignment, 1)
    capacity = device.capacity
    whole = capacity // step * step
    head = await device.read(0, min(whole, -(-_HEAD // step) * step)) if whole else b""
    start = max(whole - (-(-_TAIL // step) * step), 0)
    tail = await device.read(start, whole - start) if whole else b""
    found = [
        signature
        for signature, magic in _places(capacity)
        if (signature.offset >= 0 and head.startswith(magic, signature.offset))
        or (signature.offset >= start and tail.startswith(magic, signature.offset - start))
    ]
    if head[510:512] == b"\x55\xaa" and not any(each.offset < 512 or "GPT" in each.name for each in found):
        found.append(Signature(510, "partition table", "an MBR partition table, or a boot sector"))
    once = {(each.kind, each.name): each for each in sorted(found, key=lambda each: -each.offset)}
    return sorted(once.values(), key=lambda each: each.offset)


_HEAD, _TAIL = 132 << 10, 128 << 10  # bytes


_RAID = b"\xfc\x4e\x2b\xa9"

_Marks: TypeAlias = Mapping[SignatureKind, Iterable[tuple[int, bytes, str]]]

_FIRST: _Marks = {
    "partition table": (
        (512, b"EFI PART", "a GPT partition table"),
        (4096, b"EFI PART", "a GPT partition table"),
    ),
    "file system": (
        (1080, b"\x53\xef", "an ext2, ext3 or ext4 file system"),
        (0, b"XFSB", "an XFS file system"),
        (65600, b"_BHRfS_M", "a Btrfs file system"),
        (1024, b"\x10\x20\xf5\xf2", "an F2FS file system"),
        (4120, bytes.fromhex("c68573f666ce90a9d96a60cf803df7ef"), "a bcachefs file system"),
        (65588, b"ReIsEr", "a ReiserFS file system"),
        (32768, b"JFS1", "a JFS file system"),
        (1024, b"\xe2\xe1\xf5\xe0", "an EROFS file system"),
        (0, b"hsqs", "a SquashFS file system"),
        (3, b"NTFS    ", "an NTFS file system"),
        (3, b"EXFAT   ", "an exFAT file system"),
        (54, b"FAT", "a FAT file system"),
        (82, b"FAT32", "a FAT file system"),
        (32769, b"CD001", "an ISO 9660 file system"),
        (32, b"NXSB", "an APFS container"),
        (1024, b"H+\x00\x04", "an HFS+ file system"),
        (65536, b"\x01\x16\x19\x70", "a GFS2 file system"),
    ),
    "volume": (
        (131072, b"\x0c\xb1\xba\x00\x00\x00\x00\x00", "a part of a ZFS pool"),
        (131072, b"\x00\x00\x00\x00\x00\xba\xb1\x0c", "a part of a ZFS pool"),
        (0, b"LUKS\xba\xbe", "a LUKS volume"),
        *((sector * 512, b"LABELONE", "an LVM volume") for sector in range(4)),
        (4096, _RAID, "a member of a RAID"),
        (0, _RAID, "a member of a RAID"),
        (4120, bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81"), "a bcache device"),
        (0, b"bluestore block device", "a Ceph BlueStore device"),
    ),
    "swap": tuple((page - 10, b"SWAPSPACE2", "swap space") for page in (4096, 8192, 16384, 65536)),
    "image": (
        (0, b"QFI\xfb", "a qcow2 disk image"),
        (0, b"QED\x00", "a QED disk image"),
        (0, b"KDMV", "a VMDK disk image"),
        (0, b"# Disk DescriptorFile", "a VMDK disk image"),
        (0, b"vhdxfile", "a VHDX disk image"),
        (0, b"conectix", "a VHD disk image"),
        (64, b"\x7f\x10\xda\xbe", "a VDI disk image"),
        (0, b"WithoutFreeSpace", "a Parallels disk image"),
        (0, b"WithouFreSpacExt", "a Parallels disk image"),
    ),
    "data": (
        (0, b"aioblkl", "an aioblk log store"),
        (4096, b"aioblkl", "an aioblk log store"),
        (0, b"SQLite format 3\x00", "an SQLite database"),
        (257, b"ustar", "a tar archive"),
        (0, b"\x7fELF", "a program"),
    ),
}
"""How far from the beginning, in bytes, what is there, and what it belongs to."""

_LAST: _Marks = {
    "partition table": (
        (512, b"EFI PART", "a GPT partition table"),
        (4096, b"EFI PART", "a GPT partition table"),
    ),
    "image": (
        (512, b"conectix", "a VHD disk image"),
        (512, b"koly", "an Apple disk image"),
    ),
}
"""The same, from the end."""


def _places(capacity: int) -> Iterator[tuple[Signature, bytes]]:
    """Whatever may be on a device of that size, and the bytes that would tell."""
    for kind, marks in _FIRST.items():
        for offset, magic, name in marks:
            yield Signature(offset, kind, name), magic
    for kind, marks in _LAST.items():
        for offset, magic, name in marks:
            yield Signature(capacity - offset, kind, name), magic
    # The superblocks of a RAID's members in the formats 0.90 and 1.0.
    for offset in ((capacity & ~0xFFFF) - 0x10000, (capacity - 0x2000) & ~0xFFF):
        yield Signature(offset, "volume", "a member of a RAID"), _RAID
